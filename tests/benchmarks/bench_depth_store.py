"""The depth store: reading a map against decoding its image, bytes, and a store of 100,000 images."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from data_cache.depth_file_build import StoredMap, build_map_file, publish_index
from data_cache.depth_map import Provenance, compute_depth_stats
from data_cache.depth_store import DepthStore
from data_cache.depth_writer import DepthStoreWriter
from data_cache.map_facts import MapFacts
from data_cache.sample import DepthKind
from data_cache.store_folder import shard_name
from tests.benchmarks.drawings import draw_photograph, draw_surface
from tests.benchmarks.harness import Goal, Line, Spread, alternate

CASES = {
    "CamVid, 360×480": ((360, 480), (392, 518)),
    "Cityscapes, 1024×2048": ((1024, 2048), (518, 1036)),
}
CODECS = ("gzip", "lzf", "blosc")
MAPS_PER_SHARD = 250
WHY_READ = (
    "unpacking and its check alone take longer than decoding so small a JPEG: a map has more pixels than its image"
)


def lines(*, small: bool) -> Iterator[Line]:
    """Yield the lines of this bench."""
    with tempfile.TemporaryDirectory() as folder:
        for name, sizes in list(CASES.items())[: 1 if small else None]:
            yield from bench_reading(Path(folder), name, *sizes, passes=3 if small else 25)
        yield from bench_many_images(Path(folder), 1_000, 2_000 if small else 100_000)


def build_provenance(codec: str) -> Provenance:
    """Return what a store says of itself."""
    numbers = ("", "", DepthKind.RELATIVE, "1", None, "", "none", None, "float32")
    return Provenance("bench", "train", "bench", *numbers, codec, "", {}, "")


def bench_reading(
    folder: Path, name: str, image_size: tuple[int, int], map_size: tuple[int, int], passes: int
) -> Iterator[Line]:
    """Read maps of every codec and decode an image of theirs in turns."""
    rng = np.random.default_rng(0)
    file = io.BytesIO()
    draw_photograph(draw_surface(image_size, rng), rng).save(file, "JPEG", quality=90)
    maps = [draw_surface(map_size, rng) for _ in range(4)]
    stores, bytes_per_map = [], []
    for codec in CODECS:
        place = folder / f"{map_size[1]}-{codec}"
        with DepthStoreWriter(place, build_provenance(codec)) as writer:
            for number, raw in enumerate(maps):
                writer.add(writer.prepare(str(number), raw, image_size, "0" * 32))
        stores.append(DepthStore(place))
        bytes_per_map.append(sum(path.stat().st_size for path in place.glob("shard-*")) / len(maps))
    sides = [lambda store=store: [store.read(str(number)) for number in range(4)] for store in stores]
    decode = lambda: [np.asarray(Image.open(io.BytesIO(file.getvalue())).convert("RGB")) for _ in range(4)]  # noqa: E731
    turns = alternate([*sides, decode], passes)
    for side, codec in enumerate(CODECS):
        detail = f"{250 * turns.seconds(side):.2f} and {250 * turns.seconds(len(CODECS)):.2f} ms"
        yield Line(
            f"map read / its JPEG decoded ({name}, {codec})", turns.ratio(side, len(CODECS)), None, detail, WHY_READ
        )
        share = bytes_per_map[side] / (4 * map_size[0] * map_size[1])
        yield Line(f"bytes stored / raw float32 ({name}, {codec})", Spread.of([share]), Goal(at_most=0.25))


def build_large_store(folder: Path, images: int) -> None:
    """Make a store of full shards of small maps."""
    values = np.ones((8, 8), np.float16)
    provenance, stats = build_provenance("lzf"), compute_depth_stats(values, DepthKind.RELATIVE, None)
    facts = MapFacts(
        source_size=(8, 8), checksum="0" * 32, depth_checksum="", crc32=zlib.crc32(values.data), stats=stats
    )
    folder.mkdir()
    links = {}
    shards = [shard_name(number) for number in range(images // MAPS_PER_SHARD)]
    for number, shard in enumerate(shards):
        image_ids = [f"group{k % 7}/image_{number:05d}_{k:03d}" for k in range(MAPS_PER_SHARD)]
        maps = [StoredMap(image_id, values, facts) for image_id in image_ids]
        (folder / shard).write_bytes(build_map_file(provenance, maps))
        links |= dict.fromkeys(image_ids, shard)
    publish_index(folder, provenance, shards, links, extend=False)


PROBE = r"""
import random, re, sys, time
from pathlib import Path
from data_cache.depth_file_build import publish_index
from data_cache.depth_store import DepthStore
images = int(sys.argv[2])
start = time.perf_counter()
store = DepthStore(Path(sys.argv[1]))
assert len(store) == images
opened = time.perf_counter() - start
rng = random.Random(0)
start = time.perf_counter()
for _ in range(400):
    shard, number = divmod(rng.randrange(images), 250)
    store.read(f"group{number % 7}/image_{shard:05d}_{number:03d}")
read = (time.perf_counter() - start) / 400
peak_kb = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text()).group(1)
print(opened, peak_kb, read)
"""


def probe(folder: Path, images: int) -> tuple[float, float, float]:
    """Return, of a fresh process, seconds to open, peak memory in MB and seconds per random read."""
    command = [sys.executable, "-c", PROBE, str(folder), str(images)]
    environment = os.environ | {"PYTHONPATH": str(Path.cwd())}
    output = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
    opened, memory_kb, read = map(float, output.split())
    return opened, memory_kb / 1e3, read


def bench_many_images(folder: Path, few: int, many: int) -> Iterator[Line]:
    """Open a small and a large store in fresh processes and read at random."""
    found = []
    for images in (few, many):
        build_large_store(folder / str(images), images)
        found.append(probe(folder / str(images), images))
    (_, few_mb, _), (opened, many_mb, read) = found
    yield Line(
        f"seconds to open a store of {many:,} images", Spread.of([opened]), Goal(at_most=1),
        f"then {1e3 * read:.2f} ms per random read",
    )  # fmt: skip
    yield Line(
        f"memory of a reader, {many:,} / {few:,} images", Spread.of([many_mb / few_mb]), Goal(at_most=1.05),
        f"{many_mb:.0f} and {few_mb:.0f} MB after 400 random reads",
    )  # fmt: skip

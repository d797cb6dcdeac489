"""Measure the depth store against its budgets: reading, size, and a store of 100,000 images.

    python -m tests.benchmarks.bench_depth_store

Prints ratios within one run. Reading is compared with decoding a JPEG as large as the image the map belongs to, warm
cache, best of many, one thread. The maps are smooth surfaces with edges and the fine grain of a network's output.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from data_cache.depth_file import MapFacts
from data_cache.depth_file_build import StoredMap, build_map_file, publish_index
from data_cache.depth_map import Provenance, compute_depth_stats
from data_cache.depth_store import DepthStore
from data_cache.depth_writer import DepthStoreWriter
from data_cache.sample import DepthKind
from data_cache.store_folder import shard_name

CASES = {
    "camvid 360x480, map 392x518": ((360, 480), (392, 518)),
    "voc 375x500, map 392x518": ((375, 500), (392, 518)),
    "cityscapes 1024x2048, map 518x1036": ((1024, 2048), (518, 1036)),
}
MAPS_PER_SHARD = 250
READ_BUDGET, SIZE_BUDGET, OPEN_BUDGET_S, MEMORY_BUDGET = 0.35, 0.25, 1.0, 1.05


def build_provenance(codec: str) -> Provenance:
    numbers = ("", "", DepthKind.RELATIVE, "1", None, "", "none", None, "float32")
    return Provenance("bench", "train", "bench", *numbers, codec, "", {}, "")


def draw_surface(size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Return (H, W) float32 in about 0 to 300: slopes and rounded bodies with hard edges, grain of 1e-4."""
    height, width = size
    ys, xs = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    surface = 120 * ys + 20 * np.sin(3 * xs)
    for _ in range(25):
        y, x, radius = rng.uniform(0, 1), rng.uniform(0, 1), rng.uniform(0.03, 0.15)
        bump = 1 - ((ys - y) ** 2 + (xs - x) ** 2) / radius**2
        surface = np.where(bump > 0, 60 + 120 * y + 30 * np.sqrt(np.maximum(bump, 0)), surface)
    return (surface * (1 + rng.normal(0, 1e-4, size))).astype(np.float32)


def encode_jpeg(size: tuple[int, int], rng: np.random.Generator) -> bytes:
    """Return a JPEG of a drawn scene with texture, about as large as a photograph of that size."""
    surface = draw_surface(size, rng)[..., None] * rng.uniform(0.5, 1, 3)
    textured = surface + 25 * np.sin(surface * 2) + rng.normal(0, 9, (*size, 1))
    file = io.BytesIO()
    Image.fromarray(textured.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
    return file.getvalue()


def best_ms(action: Callable[[], object], repeats: int = 60) -> float:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        action()
        times.append(time.perf_counter() - start)
    return 1e3 * min(times)


def bench_reading(folder: Path) -> None:
    print(f"{'case':38}{'codec':7}{'read ms':>9}{'jpeg ms':>9}{'ratio':>7}{'bytes/f32 map':>15}{'bytes/f32 image':>17}")
    for name, (image_size, map_size) in CASES.items():
        rng = np.random.default_rng(0)
        jpeg = encode_jpeg(image_size, rng)
        decode_ms = best_ms(lambda jpeg=jpeg: np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB")))
        maps = [draw_surface(map_size, rng) for _ in range(4)]
        for codec in ("lzf", "gzip", "none"):
            place = folder / f"{map_size[1]}-{image_size[0]}-{codec}"
            with DepthStoreWriter(place, build_provenance(codec)) as writer:
                for number, raw in enumerate(maps):
                    writer.add(str(number), raw, image_size, "0" * 32)
            store = DepthStore(place)
            reads = iter(range(10**9))
            read_ms = best_ms(lambda store=store, reads=reads: store.read(str(next(reads) % 4)))
            stored = sum(path.stat().st_size for path in place.glob("shard-*")) / len(maps)
            of_map, of_image = stored / (4 * np.prod(map_size)), stored / (4 * np.prod(image_size))
            print(
                f"{name:38}{codec:7}{read_ms:9.2f}{decode_ms:9.2f}{read_ms / decode_ms:7.2f}"
                f"{of_map:15.3f}{of_image:17.3f}   JPEG {len(jpeg) / 1e3:.0f} kB"
            )
    print(f"budgets: ratio <= {READ_BUDGET}, bytes <= {SIZE_BUDGET}")


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
    environment = os.environ | {"PYTHONPATH": os.getcwd()}  # noqa: PTH109 - run from the repository root
    output = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
    opened, memory_kb, read = map(float, output.split())
    return opened, memory_kb / 1e3, read


def bench_many_images(folder: Path) -> None:
    memory = {}
    for images in (1_000, 100_000):
        build_large_store(folder / str(images), images)
        opened, memory[images], read = probe(folder / str(images), images)
        print(
            f"{images:7d} images: opened in {opened * 1e3:.0f} ms "
            f"(budget {OPEN_BUDGET_S} s), {memory[images]:.1f} MB after 400 random reads of {read * 1e3:.2f} ms"
        )
    print(f"memory 100,000 / 1,000 images: {memory[100_000] / memory[1_000]:.3f} (budget {MEMORY_BUDGET})")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        bench_reading(Path(folder))
        bench_many_images(Path(folder))


if __name__ == "__main__":
    main()

"""Laws of the depth store on any input: what goes in comes out, and what was damaged is noticed without any crash."""

from __future__ import annotations

import contextlib
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray

from data_cache.depth_map import Provenance, UnfitMap, read_stored_name, stored_name
from data_cache.depth_repair import repair_store, verify_store
from data_cache.depth_store import DepthStore
from data_cache.depth_writer import DepthStoreWriter
from data_cache.errors import UserError
from data_cache.sample import DepthKind

PROVENANCE = Provenance(
    "d", "train", "e", "", "", DepthKind.RELATIVE, "1", None, "", "none", None, "float32", "lzf", "", {"torch": "2"}, ""
)
ANY = settings(
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
NUMBERS = st.floats(-6e4, 6e4, width=32) | st.sampled_from([math.nan, math.inf, -math.inf, 0.0])
MAPS = arrays(np.float32, array_shapes(min_dims=2, max_dims=2, max_side=7), elements=NUMBERS)
IDS = st.text(st.sampled_from("ab./%\\\n 4\ud800é\0") | st.characters(), max_size=9)


@settings(ANY, max_examples=50)
@given(
    maps=st.dictionaries(IDS, MAPS, max_size=6),
    commits=st.lists(st.booleans(), min_size=6, max_size=6),
    shard_size=st.integers(1, 4),
)
def test_what_goes_in_comes_out(
    tmp_path: Path, maps: dict[str, NDArray[np.float32]], commits: list[bool], shard_size: int
) -> None:
    folder = tmp_path / "s"
    shutil.rmtree(folder, ignore_errors=True)
    kept = {}
    with DepthStoreWriter(folder, PROVENANCE, shard_size=shard_size) as writer:
        for (image_id, raw), commit in zip(maps.items(), commits, strict=False):
            try:
                writer.add(writer.prepare(image_id, raw, (8, 9), "sum"))
            except UnfitMap:  # too small for float16, or an id that is the folder of another
                continue
            kept[image_id] = raw.astype(np.float16)
            if commit:
                writer.commit()
    if not kept:
        return
    assert verify_store(folder) == []
    store = DepthStore(folder)
    assert store.image_ids == tuple(sorted(kept)) and store.records().keys() == kept.keys()
    for image_id, stored in kept.items():
        found = store.read(image_id)
        assert found.raw.dtype == np.float32 and found.source_size == (8, 9)
        np.testing.assert_array_equal(found.raw, stored.astype(np.float32))
        check_statistics(found.stats, stored.astype(np.float64))
    store.close()


def check_statistics(stats: object, values: NDArray[np.float64]) -> None:
    """Compare with numpy's own over the finite numbers."""
    finite = values[np.isfinite(values)]
    names = ("min", "p2", "median", "p98", "max", "mean", "std", "inverse_mean", "inverse_std")
    found = [getattr(stats, name) for name in (*names, "valid_share")]
    if finite.size == 0:
        assert found[-1] == 0 and all(map(math.isnan, found[:-1]))
        return
    moments = [finite.mean(), finite.std()]
    expected = [*np.percentile(finite, (0, 2, 50, 98, 100)), *moments, *moments, finite.size / values.size]
    assert found == pytest.approx(expected, rel=1e-6, abs=1e-6 * np.abs(finite).max())


@settings(ANY, max_examples=200)
@given(image_id=IDS)
def test_names_in_files_are_safe_and_lead_back(image_id: str) -> None:
    name = stored_name(image_id)
    assert read_stored_name(name) == image_id
    name.encode()
    assert "\0" not in name and not {"", ".", ".."} & set(name.split("/"))


@pytest.fixture(scope="module")
def small_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two shards and an index; nothing is compressed, so that nothing but checksums tells a number from another."""
    folder = tmp_path_factory.mktemp("store") / "s"
    rng = np.random.default_rng(0)
    with DepthStoreWriter(folder, replace(PROVENANCE, codec="none"), shard_size=2) as writer:
        for number in range(3):
            writer.add(writer.prepare(f"town/{number}", rng.uniform(1, 9, (6, 7)), (60, 70), f"sum {number}"))
    return folder


def flip(content: bytes, place: float, mask: int) -> bytes:
    if not content:
        return b""
    position = int(place * (len(content) - 1))
    return content[:position] + bytes([content[position] ^ mask]) + content[position + 1 :]


PLACES = st.floats(0, 1) | st.floats(0, 0.25)  # what HDF5 itself needs stands in front
DAMAGE = st.one_of(
    st.builds(lambda place, mask: lambda content: flip(content, place, mask), PLACES, st.integers(1, 255)),
    st.builds(lambda share: lambda content: content[: int(share * len(content))], st.floats(0, 1, exclude_max=True)),
    st.builds(lambda junk: lambda _: junk, st.binary(max_size=200)),
    st.builds(
        lambda place, junk: lambda content: content[: int(place * len(content))] + junk, st.floats(0, 1), st.binary()
    ),
)


@settings(ANY, max_examples=40)
@given(
    name=st.sampled_from(["shard-00000.h5", "index.h5"]),
    damages=st.lists(DAMAGE, min_size=1, max_size=4),
)
def test_any_damage_is_a_message_and_no_number_is_another(
    small_store: Path, tmp_path: Path, name: str, damages: list[Callable[[bytes], bytes]]
) -> None:
    """HDF5 must not crash, hang or let a wrong number through, whatever is in a file; repairing leaves it sound."""
    intact = DepthStore(small_store)
    folder = tmp_path / "s"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(small_store, folder)
    content = (folder / name).read_bytes()
    for damage in damages:
        content = damage(content)
    (folder / name).write_bytes(content)
    store = None
    with contextlib.suppress(UserError):
        store = DepthStore(folder)
    for image_id in intact.image_ids:
        try:
            map_ = (store or DepthStore(folder)).read(image_id)
        except UserError as problem:
            assert str(folder) in str(problem)
            continue
        expected = intact.read(image_id)
        np.testing.assert_array_equal(map_.raw, expected.raw)
        assert (map_.stats, map_.source_size, map_.record) == (expected.stats, expected.source_size, expected.record)
    with contextlib.suppress(UserError):
        DepthStore(folder).records()
    repair_store(folder)
    if list(folder.glob("shard-*")):
        assert verify_store(folder) == []
    intact.close()

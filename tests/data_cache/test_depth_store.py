"""Laws of the depth store: what is written is the float16 of what is read, from any process, by any HDF5 program."""

import multiprocessing
import os
import pickle
import shutil
import subprocess
import sys
import zlib
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from data_cache.depth_map import Provenance
from data_cache.depth_repair import repair_store, verify_store
from data_cache.depth_store import DepthStore, find_store, store_folder
from data_cache.depth_writer import DepthStoreWriter
from data_cache.errors import UserError
from data_cache.sample import DepthKind

PROVENANCE = Provenance(
    dataset="scenes",
    split="train",
    estimator="bundled",
    revision="1",
    weights_sha256="0" * 64,
    kind=DepthKind.RELATIVE,
    unit="1",
    max_depth_m=None,
    depth_rule="",
    resize_rule="exact multiple",
    input_size=(98, 126),
    dtype="float32",
    codec="lzf",
    licence="Apache-2.0",
    tool_versions={"torch": "2"},
    created_at="2026-01-01T00:00:00+00:00",
)


def draw_map(seed: int, shape: tuple[int, int] = (6, 9)) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0, 600, shape).astype(np.float32)


def fill(folder: Path, image_ids: list[str], *, provenance: Provenance = PROVENANCE, **options):
    maps = {image_id: draw_map(number) for number, image_id in enumerate(image_ids)}
    with DepthStoreWriter(folder, provenance, **options) as writer:
        for image_id, raw in maps.items():
            writer.add(writer.prepare(image_id, raw, (60, 90), f"sum of {image_id}"))
    return maps


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


@pytest.mark.parametrize("codec", ["lzf", "gzip", "blosc", "none"])
@pytest.mark.parametrize("shape", [(1, 1), (5, 7), (300, 2100)], ids=str)
def test_reads_float16_of_what_was_written(tmp_path, codec, shape):
    raw = draw_map(0, shape)
    raw[0, 0] = 0.0
    with DepthStoreWriter(tmp_path / "s", replace(PROVENANCE, codec=codec)) as writer:
        writer.add(writer.prepare("a", raw, (60, 90), "sum"))
    found = DepthStore(tmp_path / "s").read("a")
    assert found.raw.dtype == np.float32
    np.testing.assert_array_equal(found.raw, raw.astype(np.float16).astype(np.float32))
    assert found.source_size == (60, 90)
    assert found.record.checksum == "sum"


def test_every_float16_survives(tmp_path):
    every = np.arange(1 << 16, dtype=np.uint16).view(np.float16).reshape(256, 256)
    every = np.where(np.abs(every) > 6e4, np.float16("inf"), every)
    with DepthStoreWriter(tmp_path / "s", PROVENANCE) as writer:
        writer.add(writer.prepare("a", every.astype(np.float32), (60, 90), "sum"))
        writer.add(writer.prepare("finite", np.where(np.isfinite(every), every, 0).astype(np.float32), (60, 90), "sum"))
    store = DepthStore(tmp_path / "s")
    np.testing.assert_array_equal(store.read("a").raw, every.astype(np.float32))
    np.testing.assert_array_equal(store.read("finite").raw, np.where(np.isfinite(every), every, 0).astype(np.float32))


def test_index_opens_in_plain_h5py_wherever_the_folder_is_moved(tmp_path):
    maps = fill(tmp_path / "s", ["0001TP_006690", "aachen/aachen_000", "aachen/b/c"], shard_size=2)
    (tmp_path / "s").rename(tmp_path / "moved")
    with h5py.File(tmp_path / "moved" / "index.h5") as file:
        for image_id, raw in maps.items():
            dataset = file[f"depth/{image_id}"]
            assert dataset.dtype == np.float16
            assert dataset.chunks == dataset.shape
            assert (dataset.compression, dataset.shuffle) == ("lzf", True)
            np.testing.assert_array_equal(dataset[()], raw.astype(np.float16))
            assert set(dataset.attrs) >= {"source_size", "min", "max", "p2", "p98", "median", "mean", "std", "checksum"}
            assert dataset.attrs["crc32"] == zlib.crc32(raw.astype(np.float16).tobytes())
        assert file.attrs["estimator"] == "bundled"
        assert file.attrs["kind"] == "relative"
        shard = file.get("depth/0001TP_006690", getlink=True).filename
    with h5py.File(tmp_path / "moved" / shard) as file:
        assert file.attrs["weights_sha256"] == "0" * 64


def test_large_maps_are_chunked_for_crops(tmp_path):
    with DepthStoreWriter(tmp_path / "s", PROVENANCE) as writer:
        writer.add(writer.prepare("a", np.ones((800, 1000), np.float32), (800, 1000), "sum"))
        writer.add(writer.prepare("b", np.ones((518, 1036), np.float32), (1024, 2048), "sum"))
        writer.add(writer.prepare("c", np.ones((2, 900_000), np.float32), (2, 900_000), "sum"))
    with h5py.File(tmp_path / "s" / "index.h5") as file:
        assert file["depth/a"].chunks == (267, 250)
        assert file["depth/b"].chunks == (259, 259)
        assert file["depth/c"].chunks == (2, 256)


def test_provenance_comes_back_whole(tmp_path):
    metric = replace(PROVENANCE, kind=DepthKind.METRIC, max_depth_m=80.0, unit="m", input_size=518)
    fill(tmp_path / "s", ["a"], provenance=metric)
    assert DepthStore(tmp_path / "s").provenance == metric


def test_key_changes_with_the_numbers_and_not_with_the_rest():
    assert len(PROVENANCE.key()) == 8
    assert replace(PROVENANCE, created_at="later", tool_versions={}, codec="gzip").key() == PROVENANCE.key()
    changes = ({"revision": "2"}, {"weights_sha256": "1"}, {"kind": DepthKind.METRIC}, {"depth_rule": "1 m"})
    for change in changes:
        assert replace(PROVENANCE, **change).key() != PROVENANCE.key()


def test_shards_fill_up_and_batches_are_merged(tmp_path):
    folder = tmp_path / "s"
    with DepthStoreWriter(folder, PROVENANCE, shard_size=4) as writer:
        for number in range(10):
            writer.add(writer.prepare(f"i{number}", draw_map(number), (60, 90), "sum"))
            writer.commit()
        assert names(folder) == ["batch-00002-0000.h5", "batch-00002-0001.h5", "index.h5", "shard-00000.h5",
                                 "shard-00001.h5"]  # fmt: skip
        assert len(DepthStore(folder)) == 10
    assert names(folder) == ["index.h5", "shard-00000.h5", "shard-00001.h5", "shard-00002.h5"]
    assert DepthStore(folder).image_ids == tuple(sorted(f"i{number}" for number in range(10)))


def test_a_store_is_continued(tmp_path):
    fill(tmp_path / "s", ["a", "b"])
    with DepthStoreWriter(tmp_path / "s", PROVENANCE) as writer:
        assert writer.image_ids == {"a", "b"}
        writer.add(writer.prepare("c", draw_map(9), (60, 90), "sum"))
    store = DepthStore(tmp_path / "s")
    assert store.image_ids == ("a", "b", "c")
    assert len(store) == 3
    np.testing.assert_array_equal(store.read("b").raw, draw_map(1).astype(np.float16))


def test_a_reader_outlives_merges_of_a_running_writer(tmp_path):
    folder = tmp_path / "s"
    with DepthStoreWriter(folder, PROVENANCE, shard_size=3) as writer:
        writer.add(writer.prepare("a", draw_map(0), (60, 90), "sum"))
        writer.commit()
        store = DepthStore(folder)
        for image_id in ("b", "c"):
            writer.add(writer.prepare(image_id, draw_map(1), (60, 90), "sum"))
        assert "batch-00000-0000.h5" not in names(folder)
        np.testing.assert_array_equal(store.read("a").raw, draw_map(0).astype(np.float16))


class _Maps(Dataset):
    """Compares in the worker, so that the store's own handles are used there."""

    def __init__(self, store: DepthStore) -> None:
        self.store, self.image_ids = store, store.image_ids

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.from_numpy(self.store.read(self.image_ids[index]).raw)


@pytest.mark.parametrize(
    ("method", "workers"), [("fork", 2), pytest.param("spawn", 1, marks=pytest.mark.slow), ("forkserver", 1)]
)
def test_workers_of_every_start_method_read_the_same(tmp_path, method, workers):
    image_ids = [f"i{number:02d}" for number in range(12)]
    maps = fill(tmp_path / "s", image_ids, shard_size=5)
    store = DepthStore(tmp_path / "s")
    store.read("i00")  # handles are open in the parent
    loader = DataLoader(_Maps(store), batch_size=None, num_workers=workers, multiprocessing_context=method)
    for image_id, raw in zip(image_ids, loader, strict=True):
        np.testing.assert_array_equal(raw.numpy(), maps[image_id].astype(np.float16).astype(np.float32))
    store.read("i11")


def test_pickle_carries_no_handle(tmp_path):
    fill(tmp_path / "s", ["a"])
    store = DepthStore(tmp_path / "s")
    copy = pickle.loads(pickle.dumps(store))
    store.close()
    assert copy.read("a").record.checksum == "sum of a"
    assert copy.provenance == store.provenance == PROVENANCE


def _write_and_wait(folder: Path, ready, done) -> None:
    with DepthStoreWriter(folder, PROVENANCE):
        ready.set()
        done.wait(30)


def test_one_writer_at_a_time(tmp_path):
    folder = tmp_path / "s"
    with DepthStoreWriter(folder, PROVENANCE), pytest.raises(UserError, match="already in use by this process"):
        DepthStoreWriter(folder, PROVENANCE)
    context = multiprocessing.get_context("fork")
    ready, done = context.Event(), context.Event()
    other = context.Process(target=_write_and_wait, args=(folder, ready, done))
    other.start()
    assert ready.wait(30)
    try:
        with pytest.raises(UserError, match=rf"another process \(pid {other.pid} on .*writing a depth store\)"):
            DepthStoreWriter(folder, PROVENANCE)
    finally:
        done.set()
        other.join()
    DepthStoreWriter(folder, PROVENANCE).close()


def test_a_store_never_mixes(tmp_path):
    fill(tmp_path / "s", ["a"])
    with pytest.raises(UserError, match=r"estimator 'bundled' instead of 'other'.*never mixes"):
        DepthStoreWriter(tmp_path / "s", replace(PROVENANCE, estimator="other"))
    DepthStoreWriter(tmp_path / "s", PROVENANCE).close()  # the lock was given back


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (np.full((4, 4), 7e4), "reaches 7e.04.*up to 60000"),
        (np.full((4, 4), -7e4), "reaches 7e.04"),
        (np.full((4, 4), 1e-6), "at most 1e-06, which underflows"),
        (np.ones((1, 4, 4)), r"shape \(1, 4, 4\)"),
        (np.ones((0, 4)), r"shape \(0, 4\)"),
    ],
)
def test_numbers_float16_cannot_hold_are_refused(tmp_path, raw, message):
    with DepthStoreWriter(tmp_path / "s", PROVENANCE) as writer:
        with pytest.raises(UserError, match=f"image 'a' .*{message}"):
            writer.add(writer.prepare("a", raw.astype(np.float32), (4, 4), "sum"))
        assert "a" not in writer.image_ids


def test_single_tiny_pixels_of_a_large_map_are_kept(tmp_path):
    with DepthStoreWriter(tmp_path / "s", PROVENANCE) as writer:
        writer.add(writer.prepare("a", np.array([[1e-6, 1e-9, 0, 300]], np.float32), (4, 4), "sum"))
    assert DepthStore(tmp_path / "s").read("a").raw[0, 3] == 300


@pytest.mark.parametrize(("first", "second"), [("a", "a/b"), ("a/b/c", "a"), ("a/b/c", "a/b")])
def test_an_id_cannot_be_the_folder_of_another(tmp_path, first, second):
    fill(tmp_path / "s", [first])
    with DepthStoreWriter(tmp_path / "s", PROVENANCE) as writer:
        with pytest.raises(UserError, match="one id is the folder of another"):
            writer.add(writer.prepare(second, draw_map(0), (60, 90), "sum"))
        with pytest.raises(ValueError, match="already holds"):
            writer.add(writer.prepare(first, draw_map(0), (60, 90), f"sum of {first}"))


def test_an_unknown_codec_is_named(tmp_path):
    with pytest.raises(UserError, match=r"unknown codec 'lzg' \(did you mean 'lzf'\?\); known: blosc, gzip, lzf, none"):
        DepthStoreWriter(tmp_path / "s", replace(PROVENANCE, codec="lzg"))


@pytest.mark.parametrize("name", ["x", "street", "street/02", "b/c", "", "/"])
def test_a_missing_image_names_the_command(tmp_path, name):
    fill(tmp_path / "s", ["street/01", "b"])
    with pytest.raises(
        UserError, match=rf"no depth for image '{name}' \(2 images stored\); add it with: pipeline pseudo-"
    ):
        DepthStore(tmp_path / "s").read(name)


@pytest.mark.parametrize("make", [False, True])
def test_no_store_names_the_command(tmp_path, make):
    if make:
        (tmp_path / "s").mkdir()
    with pytest.raises(UserError, match=r"no depth store in .*pipeline pseudo-depth"):
        DepthStore(tmp_path / "s")


def test_find_store(tmp_path):
    command = "pipeline pseudo-depth --dataset scenes --split train --estimator org/model-S"
    with pytest.raises(UserError, match=f"no depth store for scenes train by org/model-S .*{command}"):
        find_store(tmp_path, "scenes", "train", "org/model-S")
    first = replace(PROVENANCE, estimator="org/model-S")
    folder = store_folder(tmp_path, first)
    assert folder == tmp_path / "scenes" / f"train-org-model-S-{first.key()}"
    fill(folder, ["a"], provenance=first)
    fill(store_folder(tmp_path, replace(first, estimator="org/model-S-x")), ["a"])
    fill(store_folder(tmp_path, replace(first, split="val")), ["a"])
    assert find_store(tmp_path, "scenes", "train", "org/model-S") == folder
    with pytest.raises(UserError, match=f"made with other weights, .*{command}"):
        find_store(tmp_path, "scenes", "train", "org/model-S", made_by=lambda made: made.revision == "2")
    second = replace(first, revision="2")
    fill(store_folder(tmp_path, second), ["a"], provenance=second)
    with pytest.raises(UserError, match=f"2 depth stores fit .*{folder.name}"):
        find_store(tmp_path, "scenes", "train", "org/model-S")
    found = find_store(tmp_path, "scenes", "train", "org/model-S", made_by=lambda made: made.revision == "2")
    assert found == store_folder(tmp_path, second)


def read_records(folder: Path) -> dict[str, list[str]]:
    return {
        image_id: [record.checksum for _, record in maps] for image_id, maps in DepthStore(folder).records().items()
    }


@pytest.mark.parametrize("committed", [False, True])
def test_a_changed_image_gets_a_second_map_beside_the_first(tmp_path, committed):
    """Within one writer, within one batch, or in a later session: files hold one map of an image each, none is lost."""
    folder = tmp_path / "s"
    fill(folder, ["a", "b"])
    with DepthStoreWriter(folder, PROVENANCE) as writer:
        for number, checksum in enumerate(("new", "newer")):
            writer.add(writer.prepare("a", draw_map(10 + number), (60, 90), checksum))
            if committed:
                writer.commit()
        assert writer.find("a", "sum of a") is not None
        assert writer.find("a", "sum of b") is None
    assert read_records(folder) == {"a": ["sum of a", "new", "newer"], "b": ["sum of b"]}
    store = DepthStore(folder)
    assert len(store) == 2
    expected = (draw_map(0), draw_map(10), draw_map(11))
    for (name, _), raw in zip(store.records()["a"], expected, strict=True):
        np.testing.assert_array_equal(store.read("a", name).raw, raw.astype(np.float16))
    assert store.read("a").record.checksum == "newer"
    store.close()
    with h5py.File(folder / "index.h5") as index:
        np.testing.assert_array_equal(index["depth/a"][()], draw_map(11).astype(np.float16))


@pytest.mark.parametrize(
    ("version", "message"),
    [
        (1, "by an earlier version .*remove its folder and label again"),
        (99, "by a later version .*update this program"),
    ],
)
def test_stores_of_other_versions_say_what_to_do(tmp_path, version, message):
    folder = store_folder(tmp_path, PROVENANCE)
    fill(folder, ["a"])
    for path in folder.glob("*.h5"):
        with h5py.File(path, "r+") as file:
            file.attrs["schema_version"] = version
    for act in (
        lambda: DepthStore(folder),
        lambda: find_store(tmp_path, "scenes", "train", "bundled"),
        lambda: repair_store(folder),
        lambda: DepthStoreWriter(folder, PROVENANCE),
    ):
        with pytest.raises(UserError, match=message):
            act()
    assert len(names(folder)) == 2, "nothing was dropped"


FULL_DISK = """
import resource, sys
sys.path.insert(0, sys.argv[2])
from test_depth_store import *
resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))   # a file may not grow beyond 40 kB
kept = []
try:
    with DepthStoreWriter(Path(sys.argv[1]), PROVENANCE, shard_size=1000) as writer:
        for number in range(100):
            raw = draw_map(number, (50, 100 if number < 20 else 1000))
            writer.add(writer.prepare(f"i{number:03d}", raw, (60, 90), "sum"))
            writer.commit()
            kept.append(number)
except UserError as error:
    print(len(kept), error)
"""


def test_a_full_disk_keeps_what_was_committed(tmp_path):
    arguments = [sys.executable, "-c", FULL_DISK, str(tmp_path / "s"), str(Path(__file__).parent)]
    root = Path(sys.modules["data_cache"].__file__).parents[1]
    run = subprocess.run(arguments, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(root)})
    assert "20 cannot write" in run.stdout, run.stderr
    assert "kept" in run.stdout
    assert run.returncode == 0
    assert len(DepthStore(tmp_path / "s")) == 20
    with DepthStoreWriter(tmp_path / "s", PROVENANCE) as writer:
        assert len(writer.image_ids) == 20
    assert names(tmp_path / "s") == ["index.h5", "shard-00000.h5"]


def test_opening_lists_nothing(tmp_path):
    """What is open after reading one map does not grow with the store: no list of ids, a bounded number of files."""
    with DepthStoreWriter(tmp_path / "s", PROVENANCE, shard_size=1) as writer:
        for number in range(60):
            writer.add(writer.prepare(f"i{number:02d}", draw_map(number), (60, 90), "sum"))
    store = DepthStore(tmp_path / "s")
    descriptors = Path("/dev/fd")
    before = len(list(descriptors.iterdir()))
    for number in range(60):
        store.read(f"i{number:02d}")
    assert len(list(descriptors.iterdir())) - before <= 12


_WITHOUT_PLUGIN = """
import sys
sys.modules["hdf5plugin"] = None  # as where it is not installed
from pathlib import Path
from data_cache.depth_repair import repair_store
from data_cache.depth_store import DepthStore
from data_cache.errors import UserError
folder = Path(sys.argv[1])
for use in (lambda: DepthStore(folder).read("a"), lambda: repair_store(folder)):
    try:
        use()
    except UserError as error:
        print(error)
"""


def test_without_the_plugin_a_store_of_blosc_names_the_package_and_loses_nothing(tmp_path):
    provenance = replace(PROVENANCE, codec="blosc")
    assert provenance.fingerprint() == PROVENANCE.fingerprint(), "how maps are packed does not change them"
    with DepthStoreWriter(tmp_path / "s", provenance) as writer:
        writer.add(writer.prepare("a", draw_map(0), (8, 9), "x"))
        writer.add(writer.prepare("even", np.ones((300, 300), np.float32), (8, 9), "x"))
    said = subprocess.run(
        [sys.executable, "-c", _WITHOUT_PLUGIN, str(tmp_path / "s")], capture_output=True, text=True, check=True
    )
    lines = said.stdout.splitlines()
    assert len(lines) == 2
    for line in lines:
        assert "'a' is compressed by Blosc2, which needs the package hdf5plugin: pip install" in line
    np.testing.assert_array_equal(DepthStore(tmp_path / "s").read("a").raw, draw_map(0).astype(np.float16))
    assert (DepthStore(tmp_path / "s").read("even").raw == 1).all()


def test_batches_that_several_killed_ranks_left_each_get_the_shard_of_their_number(tmp_path):
    """Two ranks were killed: one with a batch for shard 0, one with a batch for shard 2, after its shard 1."""
    folder = tmp_path / "s"
    folder.mkdir()
    for number, name in enumerate(("batch-00000-0000.h5", "shard-00001.h5", "batch-00002-0000.h5")):
        with DepthStoreWriter(tmp_path / name, PROVENANCE) as writer:
            writer.add(writer.prepare(f"image{number}", np.full((4, 5), 1.0 + number), (4, 5), "0"))
            writer.commit()
            if name.startswith("batch"):
                shutil.copy(tmp_path / name / "batch-00000-0000.h5", folder / name)
        if name.startswith("shard"):
            shutil.copy(tmp_path / name / "shard-00000.h5", folder / name)
    with DepthStoreWriter(folder, PROVENANCE) as writer:
        assert names(folder)[:1] == ["batch-00002-0000.h5"] and "shard-00000.h5" in names(folder)
        writer.add(writer.prepare("image3", np.full((4, 5), 4.0), (4, 5), "0"))
    assert sorted(path.name for path in folder.glob("shard-*.h5")) == [f"shard-0000{number}.h5" for number in range(3)]
    assert verify_store(folder) == []
    store = DepthStore(folder)
    assert [store.read(f"image{number}").raw[0, 0] for number in range(4)] == [1, 2, 3, 4]

"""Verifying finds exactly what is damaged; repairing drops exactly that, so that labelling again makes it anew."""

from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from data_cache.depth_file_build import rebuild_index
from data_cache.depth_map import Provenance
from data_cache.depth_repair import repair_store, verify_store
from data_cache.depth_store import DepthStore
from data_cache.depth_writer import DepthStoreWriter
from data_cache.errors import UserError
from data_cache.sample import DepthKind

PROVENANCE = Provenance("d", "train", "e", "", "", DepthKind.RELATIVE, "1", None, "", "none", None, "float32", "lzf",
                        "", {}, "")  # fmt: skip
IDS = tuple(f"town/{number}" for number in range(10))


def draw_map(number: int) -> np.ndarray:
    return np.random.default_rng(number).uniform(0, 600, (20, 30)).astype(np.float32)


def label_again(folder: Path, codec: str = "lzf") -> list[str]:
    made = []
    with DepthStoreWriter(folder, replace(PROVENANCE, codec=codec), shard_size=4) as writer:
        for number, image_id in enumerate(IDS):
            if image_id not in writer.image_ids:
                writer.add(writer.prepare(image_id, draw_map(number), (20, 30), "sum"))
                made.append(image_id)
    return made


@pytest.fixture
def folder(tmp_path):
    """A store with shards of 4, 4 and 2 maps."""
    assert label_again(tmp_path / "s") == list(IDS)
    return tmp_path / "s"


def damage(folder: Path, image_id: str) -> str:
    """Flip bits in the middle of a map; return the shard."""
    with h5py.File(folder / "index.h5") as index:
        shard = index.get(f"depth/{image_id}", getlink=True).filename
    with h5py.File(folder / shard) as file:
        chunk = file[f"depth/{image_id}"].id.get_chunk_info(0)
    with (folder / shard).open("r+b") as raw:
        raw.seek(chunk.byte_offset + chunk.size // 2)
        middle = raw.read(8)
        raw.seek(chunk.byte_offset + chunk.size // 2)
        raw.write(bytes(byte ^ 0x55 for byte in middle))
    return shard


def check_repaired(folder: Path, lost: list[str]) -> None:
    kept = [image_id for image_id in IDS if image_id not in lost]
    if kept:
        assert verify_store(folder) == []
        assert DepthStore(folder).image_ids == tuple(kept)
    assert label_again(folder) == lost
    assert verify_store(folder) == []
    store = DepthStore(folder)
    for number, image_id in enumerate(IDS):
        np.testing.assert_array_equal(store.read(image_id).raw, draw_map(number).astype(np.float16))


def test_a_sound_store_has_nothing_bad(folder):
    assert verify_store(folder) == []
    report = repair_store(folder)
    assert (report.dropped, report.kept) == ((), 10)
    check_repaired(folder, [])


@pytest.mark.parametrize("codec", ["lzf", "gzip", "blosc", "none"])
def test_flipped_bits_cost_that_map_alone(tmp_path, codec):
    folder = tmp_path / "s"
    label_again(folder, codec)
    places = {image_id: damage(folder, image_id) for image_id in ("town/1", "town/2", "town/9")}
    bad = verify_store(folder)
    assert {found.image_id: found.file for found in bad} == places
    assert all("crc32" in found.reason or "cannot be read" in found.reason for found in bad)
    report = repair_store(folder)
    assert (list(report.dropped), report.kept) == (bad, 7)
    check_repaired(folder, ["town/1", "town/2", "town/9"])


@pytest.mark.parametrize("content", [b"", b"no HDF5 at all" * 100, None], ids=["empty", "garbage", "truncated"])
def test_an_unreadable_shard_costs_its_maps_alone(folder, content):
    path = folder / "shard-00001.h5"
    path.write_bytes(path.read_bytes()[:3000] if content is None else content)
    bad = verify_store(folder)
    assert [found.image_id for found in bad] == ["town/4", "town/5", "town/6", "town/7"]
    assert {found.file for found in bad} == {"shard-00001.h5"}
    with pytest.raises(UserError, match=r"shard-00001.h5 cannot be read .*pipeline cache repair"):
        DepthStore(folder).read("town/5")
    assert repair_store(folder).kept == 6
    check_repaired(folder, ["town/4", "town/5", "town/6", "town/7"])


def test_a_lost_shard_is_reported_and_repaired(folder):
    (folder / "shard-00000.h5").unlink()
    bad = verify_store(folder)
    assert [(found.file, found.image_id) for found in bad] == [("index.h5", f"town/{number}") for number in range(4)]
    assert "shard-00000.h5, which is gone" in bad[0].reason
    with pytest.raises(UserError, match=r"has lost the shard with the depth of image 'town/0'.*pipeline cache repair"):
        DepthStore(folder).read("town/0")
    repair_store(folder)
    check_repaired(folder, ["town/0", "town/1", "town/2", "town/3"])


@pytest.mark.parametrize("content", [None, b"", b"garbage" * 999], ids=["missing", "empty", "garbage"])
def test_the_index_can_be_made_anew(folder, content):
    (folder / "index.h5").unlink()
    if content is None:
        assert DepthStore(folder).image_ids == IDS  # read from the shards
    else:
        (folder / "index.h5").write_bytes(content)
        with pytest.raises(UserError, match=r"index.h5 cannot be read .*pipeline cache repair"):
            DepthStore(folder)
    assert [(found.file, found.image_id) for found in verify_store(folder)] == [("index.h5", "")]
    repair_store(folder)
    check_repaired(folder, [])


def test_a_writer_makes_a_missing_index_anew(folder):
    (folder / "index.h5").unlink()
    assert label_again(folder) == []
    assert verify_store(folder) == []


def test_rebuilding_prefers_the_later_shard(folder):
    (folder / "shard-00007.h5").write_bytes((folder / "shard-00000.h5").read_bytes())
    rebuild_index(folder)
    with h5py.File(folder / "index.h5") as index:
        assert index.get("depth/town/0", getlink=True).filename == "shard-00007.h5"
    assert len(DepthStore(folder)) == 10


def test_when_all_is_damaged_all_is_made_again(folder):
    for path in folder.glob("shard-*.h5"):
        path.write_bytes(b"gone")
    with pytest.raises(UserError, match="pipeline cache repair"):
        label_again(folder)
    report = repair_store(folder)
    assert ({found.image_id for found in report.dropped}, report.kept) == (set(IDS), 0)
    check_repaired(folder, list(IDS))


@pytest.mark.parametrize("records", [b"{", b"{}"], ids=["damaged", "empty"])
def test_the_list_of_maps_is_made_anew_from_the_maps(folder, records):
    with h5py.File(folder / "shard-00001.h5", "r+") as file:
        del file["records"]
        file["records"] = np.frombuffer(records, np.uint8)
    assert [(found.file, found.image_id) for found in verify_store(folder)] == [("shard-00001.h5", "")]
    assert repair_store(folder).kept == 10
    check_repaired(folder, [])


def test_a_shard_of_another_store_is_dropped_and_nothing_else(folder, tmp_path):
    with DepthStoreWriter(tmp_path / "other", replace(PROVENANCE, estimator="other")) as writer:
        writer.add(writer.prepare("foreign", draw_map(0), (20, 30), "sum"))
    (tmp_path / "other" / "shard-00000.h5").rename(folder / "shard-00009.h5")
    (found,) = verify_store(folder)
    assert found.file == "shard-00009.h5" and "of another store" in found.reason
    repair_store(folder)
    check_repaired(folder, [])


def test_a_link_out_of_the_store_is_found_and_replaced(folder, tmp_path):
    with h5py.File(folder / "index.h5", "r+") as index:
        del index["depth/town/3"]
        index["depth/town/3"] = h5py.ExternalLink("../elsewhere.h5", "depth/town/3")
    assert "no map of that image" in verify_store(folder)[0].reason
    repair_store(folder)
    check_repaired(folder, [])


def test_a_damaged_newer_map_gives_way_to_the_older(folder):
    """Both are of one image; labelling again makes just the newer anew."""
    with DepthStoreWriter(folder, PROVENANCE) as writer:
        writer.add(writer.prepare("town/1", draw_map(50), (20, 30), "newer"))
    damage(folder, "town/1")
    assert [found.image_id for found in verify_store(folder)] == ["town/1"]
    repair_store(folder)
    with DepthStoreWriter(folder, PROVENANCE) as writer:
        assert writer.find("town/1", "newer") is None
        assert writer.find("town/1", "sum") is not None
    check_repaired(folder, [])


def test_loose_batches_are_verified_too(folder):
    with DepthStoreWriter(folder, PROVENANCE) as writer:
        writer.add(writer.prepare("loose", draw_map(77), (20, 30), "sum"))
        writer.commit()
        assert verify_store(folder) == []
        batch = next(folder.glob("batch-*.h5"))
        content = batch.read_bytes()
        batch.write_bytes(content[:500])
        assert [(found.file, found.image_id) for found in verify_store(folder)] == [(batch.name, "")]
        with pytest.raises(UserError, match="already in use"):
            repair_store(folder)
        batch.write_bytes(content)


def test_foreign_files_are_not_maps(tmp_path):
    (tmp_path / "s").mkdir()
    with h5py.File(tmp_path / "s" / "shard-00000.h5", "w") as file:
        file["something"] = 1
    with pytest.raises(UserError, match=r"no file of a depth store|is damaged"):
        DepthStore(tmp_path / "s")
    assert len(verify_store(tmp_path / "s")) == 1


def test_another_provenance_is_not_repaired_over(folder):
    damage(folder, "town/1")
    repair_store(folder)
    with pytest.raises(UserError, match="never mixes"):
        DepthStoreWriter(folder, replace(PROVENANCE, revision="2"))


@pytest.mark.parametrize("check", [verify_store, repair_store])
def test_no_store_is_no_sound_store(tmp_path, check):
    with pytest.raises(UserError, match=r"no depth store in .*pipeline pseudo-depth"):
        check(tmp_path / "s")

"""Depth stores that were damaged, forged, mixed up or written by another version."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from data_cache.depth_repair import verify_store
from data_cache.depth_store import DepthStore
from data_cache.depth_writer import DepthStoreWriter
from tests.bad_input.world import Answer, Case, World

INDEX, SHARD = "index.h5", "shard-00000.h5"
TRAIN = ("run", "--schedule", "joint", "--set", "training.iterations=2")
"""Reads every map once."""
REPAIR = "pipeline cache repair"

Prepare = Callable[[World], Sequence[str | Path]]


def _edit(change: Callable[[h5py.File], object], *command: str, name: str = SHARD) -> Prepare:
    """Return a command of the recipe after a change inside a file of the training split's store."""

    def prepare(world: World) -> Sequence[str | Path]:
        with h5py.File(world.store() / name, "r+") as file:
            change(file)
        return world.with_recipe(*(command or TRAIN))

    return prepare


def _replace(change: Callable[[Path], object], *command: str, name: str = SHARD) -> Prepare:
    """Return a command of the recipe after a change to a file as a whole."""

    def prepare(world: World) -> Sequence[str | Path]:
        change(world.store() / name)
        return world.with_recipe(*(command or TRAIN))

    return prepare


def _look_after(prepare: Prepare, action: str) -> Prepare:
    """Return ``cache ACTION`` on the training split's store instead of the recipe's command."""

    def prepare_store(world: World) -> Sequence[str | Path]:
        prepare(world)
        return ["cache", action, world.store()]

    return prepare_store


def _attribute(name: str, value: Any, image: str = "depth/train1") -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        file[image].attrs[name] = value

    return change


def _forge(**dataset: Any) -> Callable[[h5py.File], None]:
    """Put another dataset in the place of a map, with the attributes of the map."""

    def change(file: h5py.File) -> None:
        attributes = dict(file["depth/train1"].attrs)
        del file["depth/train1"]
        file.create_dataset("depth/train1", **dataset).attrs.update(attributes)

    return change


def _link(link: Any) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        del file["depth/train1"]
        file["depth/train1"] = link

    return change


def _records(content: Any) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        del file["records"]
        file["records"] = np.frombuffer(json.dumps(content).encode(), np.uint8)

    return change


def _claim_records(file: h5py.File) -> None:
    del file["records"]
    file.create_dataset("records", (1 << 42,), np.uint8, chunks=(1024,))


def _swap_bytes(file: h5py.File) -> None:
    values = file["depth/train1"]
    values[0, 0] += 1


def _make_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _make_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _add_shard_of_val(path: Path) -> None:
    (val,) = path.parent.parent.glob("val-*")
    shutil.copy(val / SHARD, path.with_name("shard-00001.h5"))


def _take_index_of_val(path: Path) -> None:
    (val,) = path.parent.parent.glob("val-*")
    shutil.copy(val / INDEX, path)


def _relabel(change: Callable[[int, NDArray[np.float32]], NDArray[np.float32]], *command: str) -> Prepare:
    """Return a command after the training split's store was written anew from other numbers."""

    def prepare(world: World) -> Sequence[str | Path]:
        store = DepthStore(world.store())
        maps = {image_id: store.read(image_id) for image_id in store.image_ids}
        store.close()
        for path in store.folder.glob("*.h5"):
            path.unlink()
        with DepthStoreWriter(store.folder, store.provenance) as writer:
            for number, (image_id, found) in enumerate(maps.items()):
                writer.add(
                    writer.prepare(image_id, change(number, found.raw), found.source_size, found.record.checksum)
                )
        return world.with_recipe(*command)

    return prepare


def _own_depth(change: Callable[[int, NDArray[np.float32]], NDArray[np.float32]]) -> Prepare:
    """Return labelling from ground-truth depth files."""

    def prepare(world: World) -> Sequence[str | Path]:
        folder = world.data / "depth" / "train"
        folder.mkdir(parents=True)
        slope = np.tile(np.linspace(1, 9, 64, dtype=np.float32), (64, 1))
        for number in range(4):
            np.save(folder / f"train{number}.npy", change(number, slope))
        options = "data.options={depth_kind='metric'}"
        return world.with_recipe("pseudo-depth", "--split", "train", "--estimator", "dataset", "--set", options)

    return prepare


def _nothing_known(number: int, depth: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.full_like(depth, np.nan)


def _first(value: float) -> Callable[[int, NDArray[np.float32]], NDArray[np.float32]]:
    return lambda number, raw: np.full_like(raw, value) if number == 0 else raw


def _is_sound(images: int) -> Callable[[World, Answer], None]:
    def check(world: World, _answer: Answer) -> None:
        assert verify_store(world.store()) == []
        assert len(DepthStore(world.store())) == images

    return check


def _is_gone(world: World, _answer: Answer) -> None:
    assert not (world.store() / SHARD).exists()


def _has_the_rest(key: str, count: int) -> Callable[[World, Answer], None]:
    def check(_world: World, answer: Answer) -> None:
        assert answer.json[key] == count and len(answer.json["bad"]) == 1

    return check


def _odd_names(world: World) -> Sequence[str | Path]:
    for number, name in enumerate(("back\\slash.png", "100%.png", "..png", "...png")):
        shutil.copy(world.image("train", number), world.image("train").with_name(name))
    return world.with_recipe("pseudo-depth", "--split", "train")


def _are_labelled(world: World, answer: Answer) -> None:
    store = DepthStore(world.store())
    assert not answer.json["failed"]
    for name, same in (("back\\slash", "train0"), ("100%", "train1")):
        assert store.read(name).record.crc32 == store.read(same).record.crc32
    assert len(store) == answer.json["images"] and verify_store(store.folder) == []


CASES = [
    Case("numbers of a map changed", _edit(_swap_bytes), (SHARD, "'train1'", "crc32", REPAIR)),
    Case("a statistic of a map that is NaN", _edit(_attribute("p2", np.nan)), (SHARD, "contradict", REPAIR)),
    Case("a statistic changed to a likely one", _edit(_attribute("inverse_mean", 1.0)), ("'train1'", "facts_crc32")),
    Case("a map without its checksum", _edit(lambda file: file["depth/train1"].attrs.pop("crc32")), ("crc32", REPAIR)),
    Case("a checksum that is a text", _edit(_attribute("crc32", "abc")), ("crc32", "valid integer", REPAIR)),
    Case("an image size of three numbers", _edit(_attribute("source_size", [1, 2, 3])), ("source_size", REPAIR)),
    Case("a map of three dimensions", _edit(_forge(data=np.ones((4, 4, 3), np.float16))), ("(4, 4, 3)", REPAIR)),
    Case("a map of other numbers", _edit(_forge(data=np.ones((4, 4), np.int32))), ("int32", "float16 map", REPAIR)),
    Case(
        "a map that claims 2 TB",
        _edit(_forge(shape=(1 << 20, 1 << 20), dtype=np.float16, chunks=(256, 256))),
        (SHARD, "'train1'", "claims a map of 1048576 x 1048576 px", REPAIR),
    ),
    Case(
        "a map that lies in another file",
        _edit(_forge(shape=(4, 4), dtype=np.float16, external=[("/etc/passwd", 0, 32)])),
        ("'train1'", "lies in other files", REPAIR),
    ),
    Case("a shard that links to another map", _edit(_link(h5py.SoftLink("/depth/train0"))), ("link", REPAIR)),
    Case(
        "one map under the names of two images",
        _look_after(_edit(lambda file: _link(file["depth/train0"])(file)), "export"),
        (SHARD, "'train1'", "facts_crc32", REPAIR),
        check=_has_the_rest("images", 3),
    ),
    Case("a shard without maps", _edit(lambda file: file.pop("depth")), (SHARD, "depth", REPAIR)),
    Case("a list of maps of other types", _edit(_records({"train1": [1, None, "x"]})), (SHARD, "train1.", REPAIR)),
    Case("a list of maps that claims 4 TB", _edit(_claim_records), (SHARD, "claims more than the file holds", REPAIR)),
    Case("a shard cut off", _replace(lambda path: os.truncate(path, 3000)), (SHARD, "truncated", REPAIR)),
    Case("a shard of zero bytes", _replace(lambda path: path.write_bytes(b"")), (SHARD, "cannot be read", REPAIR)),
    Case("a shard of random bytes", _replace(lambda path: path.write_bytes(os.urandom(9999))), (SHARD, REPAIR)),
    Case("a shard that is a pipe", _replace(_make_pipe), (SHARD, "pipe")),
    Case("a shard that is a folder", _replace(_make_folder), (SHARD, "a folder")),
    Case("a shard of another store", _replace(_add_shard_of_val), ("shard-00001.h5", "of another store", REPAIR)),
    Case("an index of zero bytes", _replace(lambda path: path.write_bytes(b""), name=INDEX), (INDEX, REPAIR)),
    Case(
        "a shard of another estimator",
        _edit(lambda file: file.attrs.__setitem__("estimator", "other")),
        (SHARD, "fingerprint", REPAIR),
    ),
    Case(
        "provenance of no known kind",
        _edit(lambda file: file.attrs.__setitem__("kind", "sideways"), name=INDEX),
        (INDEX, "kind", "sideways", REPAIR),
    ),
    Case(
        "provenance that is no JSON",
        _edit(lambda file: file.attrs.__setitem__("tool_versions", "[" * 100_000), name=INDEX),
        (INDEX, REPAIR),
    ),
    Case(
        "a shard of a later version",
        _edit(lambda file: file.attrs.__setitem__("schema_version", 99)),
        (SHARD, "later version", "format 99", "update this program"),
    ),
    Case(
        "a version that is a text",
        _edit(lambda file: file.attrs.__setitem__("schema_version", "new"), name=INDEX),
        (INDEX, "schema_version", REPAIR),
    ),
    Case(
        "an index that points out of the store",
        _edit(_link(h5py.ExternalLink("../../x.h5", "depth/train1")), name=INDEX),
        (INDEX, "../../x.h5", "no map of that image in this store", REPAIR),
    ),
    Case(
        "an index that names another map",
        _look_after(_edit(_link(h5py.ExternalLink(SHARD, "depth/train0")), name=INDEX), "export"),
        ("'train1'", "no map of that image in this store", REPAIR),
    ),
    Case(
        "an index that counts wrongly",
        _look_after(_edit(lambda file: file.attrs.__setitem__("images", "x"), name=INDEX), "verify"),
        (INDEX, "its attribute images is no whole number", REPAIR),
    ),
    Case(
        "a pipe in place of a shard, repaired",
        _look_after(_replace(_make_pipe), "repair"),
        ('"images": 0', "pipe"),
        exit=0,
        check=_is_gone,
    ),
    Case(
        "an index without maps, repaired",
        _look_after(_edit(lambda file: file.pop("depth"), name=INDEX), "repair"),
        ('"images": 4',),
        exit=0,
        check=_is_sound(4),
    ),
    Case(
        "an index of another store, repaired",
        _look_after(_replace(_take_index_of_val, name=INDEX), "repair"),
        ('"images": 4', "of another store"),
        exit=0,
        check=_is_sound(4),
    ),
    Case(
        "one damaged map of a store, repaired",
        _look_after(_edit(_swap_bytes), "repair"),
        ('"images": 3', "train1"),
        exit=0,
        check=_is_sound(3),
    ),
    Case(
        "one damaged map of a store, exported",
        _look_after(_edit(_swap_bytes), "export"),
        (SHARD, "'train1'", REPAIR),
        check=_has_the_rest("images", 3),
    ),
    Case(
        "one damaged store of two, described",
        lambda world: (world.truncate(world.store() / INDEX), ["cache", "info"])[1],
        (INDEX, REPAIR),
        check=_has_the_rest("images", 2),
    ),
    Case("a folder that is no store", lambda world: ["cache", "repair", world.user], ("no depth store",)),
    Case("constant maps only", _relabel(lambda _, raw: 0 * raw + 3, *TRAIN), ("every map", "nothing to learn")),
    Case("one constant map", _relabel(_first(3), "plan"), ("train0: every valid pixel has the same depth",), exit=0),
    Case("one map of NaN", _relabel(_first(np.nan), "plan"), ("train0: no pixel is valid",), exit=0),
    Case("one map of infinity", _relabel(_first(np.inf), "plan"), ("train0: no pixel is valid",), exit=0),
    Case("ground-truth depth without a known pixel", _own_depth(_nothing_known), ("every map", "nothing to learn")),
    Case("one of them without", _own_depth(_first(np.nan)), ("train0", "no pixel is valid"), exit=0),
    Case("ground-truth depth beyond float16", _own_depth(_first(1e6)), ("train0", "up to 60000", "larger unit")),
    Case("names that HDF5 or a file system would read otherwise", _odd_names, (), exit=0, check=_are_labelled),
]

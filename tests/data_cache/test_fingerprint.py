"""A fingerprint changes with what would be read, and with nothing else; what is remembered never makes it wrong."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_cache import content
from data_cache.content import ContentHashes
from data_cache.datasets import open_dataset
from data_cache.fingerprint import dataset_fingerprint


def make_tree(root: Path) -> Path:
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for kind in ("images", "masks", "depth"):
            (root / kind / split).mkdir(parents=True)
        for stem in ("a", "b"):
            Image.fromarray(rng.integers(0, 255, (6, 8, 3), np.uint8)).save(root / "images" / split / f"{stem}.png")
            Image.fromarray(rng.integers(0, 2, (6, 8), np.uint8)).save(root / "masks" / split / f"{stem}.png")
            np.save(root / "depth" / split / f"{stem}.npy", rng.uniform(1, 9, (6, 8)).astype(np.float32))
    (root / "classes.txt").write_text("ground\nthing\n")
    return root


def fingerprint(
    root: Path, split: str = "train", *, labels: bool = True, depth: bool = False, **options: object
) -> str:
    return dataset_fingerprint(open_dataset("folder", root, split, **options), labels=labels, depth=depth)


def replace_at_equal_size(path: Path) -> None:
    """Change bytes of a file; neither its size nor its date tells."""
    before, kept = path.stat(), bytearray(path.read_bytes())
    kept[-1] ^= 1
    path.write_bytes(bytes(kept))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return make_tree(tmp_path / "data")


def test_equal_for_a_copy_with_other_dates_elsewhere(tree: Path, tmp_path: Path) -> None:
    before = fingerprint(tree)
    assert len(before) == 16
    copy = shutil.copytree(tree, tmp_path / "other" / "place", copy_function=shutil.copy)
    for path in copy.rglob("*.png"):
        os.utime(path, (0, 0))
    assert fingerprint(copy) == before


def test_splits_differ(tree: Path) -> None:
    shutil.rmtree(tree / "images" / "val")
    shutil.copytree(tree / "images" / "train", tree / "images" / "val")
    assert fingerprint(tree) != fingerprint(tree, "val")


@pytest.mark.parametrize(
    ("kind", "changes"),
    [("images", (True, True, True)), ("masks", (True, False, True)), ("depth", (False, False, True))],
)
def test_changes_with_the_content_of_files_at_equal_size(tree: Path, kind: str, changes: tuple[bool, ...]) -> None:
    def look() -> tuple[str, ...]:
        options = {"depth_kind": "metric"}
        return (
            fingerprint(tree, **options),
            fingerprint(tree, labels=False, **options),
            fingerprint(tree, depth=True, **options),
        )

    before = look()
    replace_at_equal_size(next((tree / kind / "train").iterdir()))
    assert tuple(old != new for old, new in zip(before, look(), strict=True)) == changes


def test_depth_options_count_with_depth(tree: Path) -> None:
    assert fingerprint(tree, depth_kind="metric") == fingerprint(tree, depth_kind="metric", depth_unit_m=1)
    found = {fingerprint(tree, depth=True, depth_kind="metric", depth_unit_m=unit) for unit in (0.001, 1)}
    assert len(found | {fingerprint(tree, depth=True, depth_kind="relative")}) == 3


def test_changes_with_the_set_of_images(tree: Path) -> None:
    before = fingerprint(tree)
    (tree / "images" / "train" / "a.png").rename(tree / "images" / "train" / "c.png")
    renamed = fingerprint(tree)
    (tree / "images" / "train" / "b.png").unlink()
    assert len({before, renamed, fingerprint(tree)}) == 3


def test_masks_and_classes_count_only_with_labels(tree: Path) -> None:
    before = fingerprint(tree), fingerprint(tree, labels=False)
    (tree / "masks" / "train" / "a.png").unlink()
    without_mask = fingerprint(tree), fingerprint(tree, labels=False)
    (tree / "classes.txt").write_text("ground\nother\n")
    renamed = fingerprint(tree), fingerprint(tree, labels=False)
    assert len({before[0], without_mask[0], renamed[0]}) == 3
    assert len({before[1], without_mask[1], renamed[1]}) == 1


def test_changes_with_the_id_table_and_the_colours_of_masks(tree: Path) -> None:
    before = fingerprint(tree)
    assert before != fingerprint(tree, first_id=1)
    (tree / "classes.txt").write_text("ground 9 9 9\nthing 8 8 8\n")
    assert before != fingerprint(tree)


@pytest.mark.parametrize("options", [{"seed": 1}, {"size": (32, 32)}, {"counts": {"train": 3}}], ids=str)
def test_scenes_change_with_their_options(options: dict[str, object]) -> None:
    default = dataset_fingerprint(open_dataset("scenes", None, "train"))
    assert dataset_fingerprint(open_dataset("scenes", None, "train", **options)) != default


def test_scenes_do_not_depend_on_their_cache(tmp_path: Path) -> None:
    options = {"size": (16, 16), "counts": {"train": 2}}
    cached = dataset_fingerprint(open_dataset("scenes", tmp_path, "train", **options))
    assert cached == dataset_fingerprint(open_dataset("scenes", None, "train", **options))


@pytest.fixture
def hashes_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where hashes are remembered, those of files just written too."""
    monkeypatch.setattr(content, "_SETTLED_NS", -1)
    return tmp_path / "cache" / "hashes.json"


def test_an_unchanged_file_is_not_read_again(tree: Path, hashes_file: Path) -> None:
    image = tree / "images" / "train" / "a.png"
    first = ContentHashes(hashes_file)
    found = first.hash([image])
    first.save()
    remembered = json.loads(hashes_file.read_text())
    remembered["files"][str(image)][1] = "0" * 32  # nothing but the remembered hash can give this
    hashes_file.write_text(json.dumps(remembered))
    assert ContentHashes(hashes_file).hash([image]) == "0" * 32
    image.write_bytes(content_of := image.read_bytes())
    assert ContentHashes(hashes_file).hash([image]) == found, "written anew, so read anew"
    replace_at_equal_size(image)
    assert image.stat().st_size == len(content_of)
    assert ContentHashes(hashes_file).hash([image]) not in (found, "0" * 32)


def test_a_file_written_just_now_is_not_remembered(tree: Path, tmp_path: Path) -> None:
    hashes = ContentHashes(tmp_path / "hashes.json")
    hashes.hash([tree / "classes.txt"])
    hashes.save()
    assert not (tmp_path / "hashes.json").exists()


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"format": 1, "files": {"a": 3}}', b"\xff\xfe"], ids=str)
def test_damaged_memory_costs_time_only(tree: Path, hashes_file: Path, damage: bytes) -> None:
    dataset = open_dataset("folder", tree, "train")
    hashes_file.parent.mkdir()
    hashes_file.write_bytes(damage)
    assert dataset_fingerprint(dataset, ContentHashes(hashes_file)) == dataset_fingerprint(dataset)
    assert len(json.loads(hashes_file.read_text())["files"]) == 4


def test_two_processes_add_to_one_memory(tree: Path, hashes_file: Path) -> None:
    first, second = ContentHashes(hashes_file), ContentHashes(hashes_file)
    for hashes, name in ((first, "a"), (second, "b")):
        hashes.hash([tree / "images" / "train" / f"{name}.png"])
        hashes.save()
    assert len(json.loads(hashes_file.read_text())["files"]) == 2

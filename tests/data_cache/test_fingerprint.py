"""A fingerprint changes with what would be read, and with nothing else."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_cache.datasets import open_dataset
from data_cache.fingerprint import dataset_fingerprint


def make_tree(root: Path) -> Path:
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for kind in ("images", "masks"):
            (root / kind / split).mkdir(parents=True)
        for stem in ("a", "b"):
            Image.fromarray(rng.integers(0, 255, (6, 8, 3), np.uint8)).save(root / "images" / split / f"{stem}.png")
            Image.fromarray(rng.integers(0, 2, (6, 8), np.uint8)).save(root / "masks" / split / f"{stem}.png")
    (root / "classes.txt").write_text("ground\nthing\n")
    return root


def fingerprint(root: Path, split: str = "train", *, labels: bool = True, **options: object) -> str:
    return dataset_fingerprint(open_dataset("folder", root, split, **options), labels=labels)


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


def test_changes_with_an_image(tree: Path) -> None:
    before = fingerprint(tree), fingerprint(tree, labels=False)
    Image.fromarray(np.zeros((60, 80, 3), np.uint8)).save(tree / "images" / "train" / "a.png")
    after = fingerprint(tree), fingerprint(tree, labels=False)
    assert before[0] != after[0]
    assert before[1] != after[1]


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


def test_changes_with_the_id_table(tree: Path) -> None:
    assert fingerprint(tree) != fingerprint(tree, first_id=1)


@pytest.mark.parametrize("options", [{"seed": 1}, {"size": (32, 32)}, {"counts": {"train": 3}}], ids=str)
def test_scenes_change_with_their_options(options: dict[str, object]) -> None:
    default = dataset_fingerprint(open_dataset("scenes", None, "train"))
    assert dataset_fingerprint(open_dataset("scenes", None, "train", **options)) != default


def test_scenes_do_not_depend_on_their_cache(tmp_path: Path) -> None:
    options = {"size": (16, 16), "counts": {"train": 2}}
    cached = dataset_fingerprint(open_dataset("scenes", tmp_path, "train", **options))
    assert cached == dataset_fingerprint(open_dataset("scenes", None, "train", **options))

"""A view is its splits' images one after another; where masks are not read, none is opened."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_cache.datasets import open_dataset
from data_cache.datasets.scenes import Scenes
from data_cache.datasets.views import Part, View
from data_cache.errors import UserError
from data_cache.fingerprint import dataset_fingerprint
from data_cache.sample import IGNORE_INDEX

COUNTS = {"train": 5, "val": 2, "unlabelled": 3}


def open_scenes(split: str) -> Scenes:
    return Scenes(None, split, size=(16, 20), counts=COUNTS)


def test_a_view_shows_its_parts_in_order() -> None:
    train, pool = open_scenes("train"), open_scenes("unlabelled")
    view = View([Part(train, [3, 0], labels=True), Part(train, [1], labels=False), Part(pool, range(3), labels=False)])
    assert view.image_ids == (
        "train-00003", "train-00000", "train-00001",
        "unlabelled/unlabelled-00000", "unlabelled/unlabelled-00001", "unlabelled/unlabelled-00002",
    )  # fmt: skip
    view = pickle.loads(pickle.dumps(view))
    for index, (dataset, place) in enumerate([(train, 3), (train, 0), (train, 1), (pool, 0), (pool, 1), (pool, 2)]):
        image, labels = view.read_pair(index)
        np.testing.assert_array_equal(image, dataset.read_image(place))
        np.testing.assert_array_equal(view.read_labels(index), labels)
        np.testing.assert_array_equal(view.read_depth(index), dataset.read_depth(place))
        expected = dataset.read_labels(place) if index < 2 else np.full((16, 20), IGNORE_INDEX)
        np.testing.assert_array_equal(labels, expected)
        assert view.sources(index).labels == (dataset.sources(place).labels if index < 2 else ())
        assert view.describe(index) == dataset.describe(place)
    with pytest.raises(IndexError):
        view.read_image(6)


def test_a_whole_split_in_a_view_is_that_split() -> None:
    train = open_scenes("train")
    view = View([Part(train, range(5), labels=True), Part(open_scenes("unlabelled"), [], labels=False)])
    assert (view.name, view.split, view.image_ids) == (train.name, "train", train.image_ids)
    assert dataset_fingerprint(view) == dataset_fingerprint(train)
    without = View([Part(train, range(5), labels=False)])
    assert dataset_fingerprint(without, labels=False) == dataset_fingerprint(train, labels=False)
    assert dataset_fingerprint(without) != dataset_fingerprint(train)
    assert not without.has_masks


def write_voc(root: Path) -> None:
    base = root / "VOC2012"
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (base / folder).mkdir(parents=True)
    for number, name in enumerate(("a", "b", "c", "d", "e")):
        Image.new("RGB", (64, 64), (number, 0, 0)).save(base / "JPEGImages" / f"{name}.jpg")
    for name, ids in {"train": "a", "val": "b", "trainaug": "a\nc"}.items():
        (base / "ImageSets/Segmentation" / f"{name}.txt").write_text(ids)


def write_cityscapes(root: Path) -> None:
    folder = root / "leftImg8bit" / "train_extra" / "ulm"
    folder.mkdir(parents=True)
    Image.new("RGB", (64, 64)).save(folder / "ulm_0_1_leftImg8bit.png")


def write_folder(root: Path) -> None:
    (root / "images" / "unlabelled").mkdir(parents=True)
    (root / "masks" / "unlabelled").mkdir(parents=True)
    (root / "classes.txt").write_text("ground\nthing\n")
    Image.new("RGB", (64, 64)).save(root / "images" / "unlabelled" / "x.png")
    (root / "masks" / "unlabelled" / "x.png").write_bytes(b"not looked at")


@pytest.mark.parametrize(
    ("name", "write", "ids"),
    [
        ("voc", write_voc, ("c", "d", "e")),
        ("cityscapes", write_cityscapes, ("ulm_0_1",)),
        ("folder", write_folder, ("x",)),
    ],
)
def test_what_a_dataset_brings_without_masks(tmp_path: Path, name: str, write, ids: tuple[str, ...]) -> None:
    write(tmp_path)
    pool = open_dataset(name, tmp_path, "unlabelled")
    assert pool.image_ids == ids and not pool.has_masks
    assert pool.read_image(0).shape == (64, 64, 3)
    if name == "voc":
        (tmp_path / "more.txt").write_text("c")
        assert open_dataset(name, tmp_path, "unlabelled", sbd_list=tmp_path / "more.txt").image_ids == ("d", "e")


def test_camvid_brings_none() -> None:
    with pytest.raises(UserError, match=r"'camvid' brings no images without masks .these may: scenes, voc"):
        open_dataset("camvid", Path(), "unlabelled")


def test_drawn_pools_are_asked_for() -> None:
    with pytest.raises(UserError, match="the unlabelled split is empty; give it a count"):
        open_dataset("scenes", None, "unlabelled")
    drawn, train = (open_scenes(split).read_image(0) for split in ("unlabelled", "train"))
    assert (drawn != train).any()

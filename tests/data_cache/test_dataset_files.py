"""Datasets read from files, on tiny trees with the official names; every error a person can cause."""

from __future__ import annotations

import ast
import json
import os
import pickle
import re
import subprocess
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cityscapesscripts.helpers.labels import labels as official_labels
from PIL import Image

from data_cache.datasets import DATASETS, choose_root, open_dataset
from data_cache.datasets.cityscapes import LABEL_IDS
from data_cache.datasets.interface import SegmentationDataset
from data_cache.errors import UserError
from data_cache.sample import IGNORE_INDEX, DepthKind

SIZE = (6, 8)


def write_image(path: Path, size: tuple[int, int] = SIZE, value: int | None = None, mode: str = "RGB") -> None:
    """Write noise, or one grey value."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(0).integers(0, 255, (*size, 3), np.uint8)
    pixels = noise if value is None else np.full((*size, 3), value, np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)


def write_mask(path: Path, ids: list[int], size: tuple[int, int] = SIZE, mode: str = "L") -> None:
    """Write a mask whose first pixels are ``ids`` and whose rest repeats the last of them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    flat = np.full(size[0] * size[1], ids[-1], np.uint8)
    flat[: len(ids)] = ids
    image = Image.fromarray(flat.reshape(size))
    if mode == "P":
        image = image.convert("P")
        image.putdata(flat.tolist())
        # A palette unlike the indices: whoever reads colours or their grey value reads nonsense.
        image.putpalette([(7 * value + 50 * channel) % 256 for value in range(256) for channel in range(3)])
    image.save(path)


def make_camvid(root: Path, split: str = "train") -> None:
    write_image(root / split / "0001TP_006690.jpg")
    write_image(root / split / "0001TP_006720.PNG")
    write_mask(root / f"{split}annot" / "0001TP_006690.png", [0, 3, 10, 11])
    write_mask(root / f"{split}annot" / "0001TP_006720.png", [11])


def make_voc(root: Path) -> None:
    base = root / "VOC2012"
    lists = base / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("2007_000032\n2007_000039\n")
    (lists / "val.txt").write_text("2007_000033\n")
    (lists / "trainaug.txt").write_text(
        "/JPEGImages/2007_000032.jpg /SegmentationClassAug/2007_000032.png\n2008_000008\n2007_000033\n"
    )
    for image_id in ("2007_000032", "2007_000039", "2007_000033", "2008_000008"):
        write_image(base / "JPEGImages" / f"{image_id}.jpg")
    for image_id in ("2007_000032", "2007_000039", "2007_000033"):
        write_mask(base / "SegmentationClass" / f"{image_id}.png", [0, 1, 20, 255], mode="P")
    write_mask(base / "SegmentationClassAug" / "2008_000008.png", [15], mode="L")


def make_cityscapes(root: Path, split: str = "train") -> None:
    for frame, ids in (("aachen_000000_000019", [7, 8, 26, 0, 33]), ("aachen_000001_000019", [1, 11])):
        write_image(root / "leftImg8bit" / split / "aachen" / f"{frame}_leftImg8bit.png")
        write_mask(root / "gtFine" / split / "aachen" / f"{frame}_gtFine_labelIds.png", ids)
        disparity = root / "disparity" / split / "aachen" / f"{frame}_disparity.png"
        disparity.parent.mkdir(parents=True, exist_ok=True)
        stored = np.zeros(SIZE, np.uint16)
        stored[0, :4] = (0, 1, 257, 12801)
        Image.fromarray(stored).save(disparity)
        camera = root / "camera" / split / "aachen" / f"{frame}_camera.json"
        camera.parent.mkdir(parents=True, exist_ok=True)
        camera.write_text(json.dumps({"extrinsic": {"baseline": 0.2}, "intrinsic": {"fx": 2000.0}}))


def make_folder(root: Path, split: str = "train") -> None:
    (root).mkdir(parents=True, exist_ok=True)
    (root / "classes.txt").write_text("grass\ntall tree\nroad\n")
    write_image(root / "images" / split / "b.jpeg")
    write_image(root / "images" / split / "a.png", mode="L")
    write_mask(root / "masks" / split / "a.png", [0, 1, 2, 255])
    write_mask(root / "masks" / split / "b.png", [2], mode="P")


MAKERS: dict[str, Callable[[Path], None]] = {
    "camvid": make_camvid,
    "voc": make_voc,
    "cityscapes": make_cityscapes,
    "folder": make_folder,
}


@pytest.fixture(params=MAKERS)
def dataset(request: pytest.FixtureRequest, tmp_path: Path) -> SegmentationDataset:
    MAKERS[request.param](tmp_path)
    return open_dataset(request.param, tmp_path, "train")


# Laws of all


def test_every_dataset_in_the_table_is_tested_here() -> None:
    assert {*MAKERS, "scenes"} == set(DATASETS)


def test_no_dataset_is_treated_apart_outside_its_own_file() -> None:
    root = Path(__file__).parents[2]
    apart = [
        f"{path.relative_to(root)}:{node.lineno}"
        for package in ("pipeline", "stages", "data_cache")
        for path in (root / package).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf8")))
        if isinstance(node, ast.Compare)
        and any(isinstance(side, ast.Constant) and side.value in DATASETS for side in (node.left, *node.comparators))
    ]
    assert apart == []


def test_a_dataset_without_a_root_lives_in_the_work_directory(tmp_path: Path) -> None:
    assert choose_root("scenes", None, tmp_path) == tmp_path / "scenes"
    assert choose_root("camvid", None, tmp_path) is None
    assert choose_root("camvid", "~/data", tmp_path) == Path.home() / "data"
    with pytest.raises(UserError, match="unknown dataset 'scene'"):
        choose_root("scene", None, tmp_path)


def test_contract(dataset: SegmentationDataset) -> None:
    assert isinstance(dataset, SegmentationDataset)
    assert dataset.name in DATASETS
    assert dataset.split == "train"
    assert len(dataset) == len(dataset.image_ids) == len(set(dataset.image_ids)) == 2
    assert len(dataset.palette) == len(dataset.classes) == len(set(dataset.classes))
    assert set(dataset.raw_ids.values()) - {IGNORE_INDEX} == set(range(len(dataset.classes)))
    for index in range(len(dataset)):
        image, labels = dataset.read_image(index), dataset.read_labels(index)
        assert (image.dtype, image.shape) == (np.uint8, (*SIZE, 3))
        assert (labels.dtype, labels.shape) == (np.uint8, SIZE)
        assert set(np.unique(labels).tolist()) <= {*range(len(dataset.classes)), IGNORE_INDEX}
        assert dataset.sources(index).image == (Path(dataset.describe(index)),)
        assert all(path.is_file() for path in dataset.sources(index).labels)


def test_pickled_copies_read_the_same(dataset: SegmentationDataset) -> None:
    copy = pickle.loads(pickle.dumps(dataset))
    assert list(copy.image_ids) == list(dataset.image_ids)
    np.testing.assert_array_equal(copy.read_labels(1), dataset.read_labels(1))


def test_index_outside_the_split(dataset: SegmentationDataset) -> None:
    with pytest.raises(IndexError):
        dataset.read_image(2)


@pytest.mark.parametrize("name", MAKERS)
def test_unknown_split(name: str, tmp_path: Path) -> None:
    MAKERS[name](tmp_path)
    with pytest.raises(UserError, match=r"unknown split .*'trian' \(did you mean 'train'\?\)"):
        open_dataset(name, tmp_path, "trian")


@pytest.mark.parametrize("name", MAKERS)
def test_missing_root(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no folder .*nowhere"):
        open_dataset(name, tmp_path / "nowhere", "train")
    with pytest.raises(UserError, match="is read from a folder"):
        open_dataset(name, None, "train")


@pytest.mark.parametrize("name", MAKERS)
def test_root_of_something_else(name: str, tmp_path: Path) -> None:
    (tmp_path / "holiday").mkdir()
    with pytest.raises(UserError, match=r"is no VOCdevkit|split of \w+ is empty: there is no folder"):
        open_dataset(name, tmp_path, "train")


def test_unknown_dataset() -> None:
    with pytest.raises(UserError, match=r"unknown dataset 'camvit' \(did you mean 'camvid'\?\); known: camvid, city"):
        open_dataset("camvit", None, "train")


def test_unknown_option(tmp_path: Path) -> None:
    make_camvid(tmp_path)
    with pytest.raises(UserError, match="dataset 'camvid' has no option 'size'; it has: none"):
        open_dataset("camvid", tmp_path, "train", size=(3, 4))


def test_listing_datasets_needs_no_torch() -> None:
    code = "import sys, data_cache.datasets.doctor; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# What can be wrong with a pair: the same for all that are made of files


def test_missing_image(dataset: SegmentationDataset) -> None:
    Path(dataset.describe(0)).unlink()
    with pytest.raises(UserError, match=r"image .* is missing"):
        dataset.read_image(0)


@pytest.mark.parametrize("keep", [0, 1, 60], ids=["empty", "one byte", "truncated"])
def test_unreadable_image(dataset: SegmentationDataset, keep: int) -> None:
    path = Path(dataset.describe(0))
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match=rf"image {re.escape(str(path))} cannot be read"):
        dataset.read_image(0)


def mask_path(dataset: Any, index: int) -> Path:
    return dataset.entries[index].mask


def test_missing_mask_is_no_error_until_it_is_asked_for(dataset: SegmentationDataset) -> None:
    mask_path(dataset, 0).unlink()
    assert dataset.read_image(0).shape == (*SIZE, 3)
    with pytest.raises(UserError, match=r"mask .* is missing"):
        dataset.read_labels(0)


def test_unreadable_mask(dataset: SegmentationDataset) -> None:
    path = mask_path(dataset, 0)
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(UserError, match=rf"mask {re.escape(str(path))} cannot be read"):
        dataset.read_labels(0)


def test_mask_of_another_size(dataset: SegmentationDataset) -> None:
    write_mask(mask_path(dataset, 0), [0], size=(6, 4))
    with pytest.raises(UserError, match=r"has 4 x 6 px, its image .* has 8 x 6"):
        dataset.read_labels(0)


def test_ids_outside_the_table(dataset: SegmentationDataset) -> None:
    write_mask(mask_path(dataset, 0), [0, 99, 77])
    with pytest.raises(UserError, match=r"ids outside the table: 77, 99; known: .*= void"):
        dataset.read_labels(0)


def test_rgb_mask(dataset: SegmentationDataset) -> None:
    write_image(mask_path(dataset, 0), value=128)
    with pytest.raises(UserError, match=r"is an RGB image \(1 colour: \(128, 128, 128\)\)"):
        dataset.read_labels(0)


def test_16_bit_masks_are_read_as_ids(dataset: SegmentationDataset) -> None:
    raw_id, train_id = next((raw, train) for raw, train in dataset.raw_ids.items() if train == 2)
    Image.fromarray(np.full(SIZE, raw_id, np.uint16)).save(mask_path(dataset, 0))
    assert (dataset.read_labels(0) == train_id).all()
    Image.fromarray(np.full(SIZE, 3000, np.uint16)).save(mask_path(dataset, 0))
    with pytest.raises(UserError, match="ids outside the table: 3000"):
        dataset.read_labels(0)


def write_pgm(path: Path) -> None:
    """Write ids of at most 11, and say so: Pillow would stretch them to 255."""
    path.write_bytes(b"P5 8 6 11\n" + bytes(48))


@pytest.mark.parametrize(
    ("suffix", "write", "message"),
    [
        ("tif", lambda path: Image.fromarray(np.zeros(SIZE, np.float32)).save(path), "holds floats, but ids are whole"),
        ("jpg", lambda path: Image.fromarray(np.zeros(SIZE, np.uint8)).save(path), "is a JPEG, whose compression"),
        ("png", lambda path: Image.new("LA", SIZE[::-1], (1, 9)).save(path), "has transparent pixels"),
        (
            "tif",
            lambda path: Image.new("L", SIZE[::-1]).save(path, save_all=True, append_images=[Image.new("L", (8, 6))]),
            "has several frames or pages",
        ),
        ("pgm", write_pgm, "has a largest value of 11, so that reading would scale its ids"),
        ("png", lambda path: Image.new("L", SIZE[::-1]).save(path, bits=4), "is grey of fewer than 8 bits"),
    ],
    ids=["float", "jpeg", "transparent", "pages", "pgm", "four bits"],
)
def test_masks_whose_ids_are_not_certain_are_refused(
    tmp_path: Path, suffix: str, write: Callable[[Path], None], message: str
) -> None:
    make_camvid(tmp_path)
    mask = tmp_path / "trainannot" / "0001TP_006690.png"
    mask.unlink()
    write(mask.with_suffix(f".{suffix}"))
    with pytest.raises(UserError, match=rf"mask .*{suffix} {message}"):
        open_dataset("camvid", tmp_path, "train").read_labels(0)


def test_masks_may_carry_an_alpha_channel_that_hides_nothing(tmp_path: Path) -> None:
    make_camvid(tmp_path)
    Image.new("LA", SIZE[::-1], (3, 255)).save(tmp_path / "trainannot" / "0001TP_006690.png")
    assert (open_dataset("camvid", tmp_path, "train").read_labels(0) == 3).all()


def test_image_and_mask_agree_after_both_are_turned_upright(tmp_path: Path) -> None:
    make_camvid(tmp_path)
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter clockwise
    image, mask = tmp_path / "train" / "0001TP_006690.jpg", tmp_path / "trainannot" / "0001TP_006690.png"
    Image.fromarray(np.zeros((*SIZE, 3), np.uint8)).save(image, exif=exif)
    ids = (np.arange(48) % 11).reshape(SIZE).astype(np.uint8)
    dataset = open_dataset("camvid", tmp_path, "train")
    Image.fromarray(ids).save(mask, exif=exif)
    np.testing.assert_array_equal(dataset.read_labels(0), np.rot90(ids, -1))
    Image.fromarray(np.ascontiguousarray(np.rot90(ids, -1))).save(mask)
    np.testing.assert_array_equal(dataset.read_labels(0), np.rot90(ids, -1))
    Image.fromarray(ids).save(mask)
    with pytest.raises(UserError, match="was drawn on the image as stored, but its EXIF orientation turns the image"):
        dataset.read_labels(0)


@pytest.mark.parametrize("name", ["camvid", "voc", "cityscapes"])
def test_no_depth_of_its_own(name: str, tmp_path: Path) -> None:
    MAKERS[name](tmp_path)
    if name == "cityscapes":
        (tmp_path / "disparity").rename(tmp_path / "elsewhere")
    dataset = open_dataset(name, tmp_path, "train")
    assert dataset.ground_truth_depth_kind is None
    with pytest.raises(UserError, match=f"{name} brings no ground-truth depth"):
        dataset.read_depth(0)


# CamVid


def test_camvid_pairs_by_stem_and_reads_11_as_void(tmp_path: Path) -> None:
    make_camvid(tmp_path, "val")
    dataset = open_dataset("camvid", tmp_path, "val")
    assert list(dataset.image_ids) == ["0001TP_006690", "0001TP_006720"]
    assert dataset.read_labels(0).ravel()[:4].tolist() == [0, 3, 10, IGNORE_INDEX]
    assert (dataset.read_labels(1) == IGNORE_INDEX).all()  # an image without any label is allowed
    assert (dataset.classes[0], dataset.classes[3], dataset.classes[10]) == ("sky", "road", "bicyclist")


def test_camvid_without_a_test_split(tmp_path: Path) -> None:
    make_camvid(tmp_path)
    with pytest.raises(UserError, match=r"the test split of camvid is empty: .* holds: train, trainannot"):
        open_dataset("camvid", tmp_path, "test")


def test_empty_split_folder(tmp_path: Path) -> None:
    make_camvid(tmp_path)
    (tmp_path / "val").mkdir()
    with pytest.raises(UserError, match="the val split of camvid is empty: there is no image in"):
        open_dataset("camvid", tmp_path, "val")


def test_two_images_of_one_stem(tmp_path: Path) -> None:
    make_camvid(tmp_path)
    write_image(tmp_path / "train" / "0001TP_006690.png")
    with pytest.raises(UserError, match="share the name '0001TP_006690'"):
        open_dataset("camvid", tmp_path, "train")


def test_names_that_are_no_text(tmp_path: Path) -> None:
    make_camvid(tmp_path)
    write_image(tmp_path / "train" / os.fsdecode(b"caf\xe9.png"))
    write_mask(tmp_path / "trainannot" / os.fsdecode(b"caf\xe9.png"), [0])
    dataset = open_dataset("camvid", tmp_path, "train")
    index = dataset.image_ids.index("caf\\xe9")
    assert dataset.read_image(index).shape[:2] == dataset.read_labels(index).shape


def test_accents_written_as_one_code_or_as_two_pair(tmp_path: Path) -> None:
    make_camvid(tmp_path)
    one, two = unicodedata.normalize("NFC", "é"), unicodedata.normalize("NFD", "é")
    write_image(tmp_path / "train" / f"{one}.png")
    write_mask(tmp_path / "trainannot" / f"{two}.png", [0])
    dataset = open_dataset("camvid", tmp_path, "train")
    dataset.read_labels(dataset.image_ids.index(one))
    assert not dataset.orphans
    write_image(tmp_path / "train" / f"{two}.png")  # to which the mask belongs more
    dataset = open_dataset("camvid", tmp_path, "train")
    dataset.read_labels(dataset.image_ids.index(two))
    with pytest.raises(UserError, match="is missing"):
        dataset.read_labels(dataset.image_ids.index(one))


# VOC


def test_voc_palette_masks_are_read_as_indices(tmp_path: Path) -> None:
    make_voc(tmp_path)
    dataset = open_dataset("voc", tmp_path, "train")
    assert dataset.read_labels(0).ravel()[:4].tolist() == [0, 1, 20, IGNORE_INDEX]
    assert (len(dataset.classes), dataset.classes[0], dataset.classes[20]) == (21, "background", "tvmonitor")
    # From the development kit's own table.
    assert dataset.palette[:4] == ((0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0))
    assert (dataset.palette[15], dataset.palette[20]) == ((192, 128, 128), (0, 64, 128))


@pytest.mark.parametrize("below", ["", "VOC2012"])
def test_voc_root_may_be_the_year(tmp_path: Path, below: str) -> None:
    make_voc(tmp_path)
    assert len(open_dataset("voc", tmp_path / below, "val")) == 1


def test_sbd_list_adds_training_images_but_never_those_of_val(tmp_path: Path) -> None:
    make_voc(tmp_path)
    dataset = open_dataset("voc", tmp_path, "trainaug")
    assert list(dataset.image_ids) == ["2007_000032", "2007_000039", "2008_000008"]
    assert (dataset.read_labels(2) == 15).all()
    extra = tmp_path / "more.txt"
    extra.write_text("2008_000008\n")
    options = {"sbd_list": str(extra), "sbd_masks": str(tmp_path / "VOC2012" / "SegmentationClassAug")}
    assert list(open_dataset("voc", tmp_path, "train", **options).image_ids) == list(dataset.image_ids)
    assert list(open_dataset("voc", tmp_path, "val", **options).image_ids) == ["2007_000033"]


def test_missing_list_names_the_lists_there_are(tmp_path: Path) -> None:
    make_voc(tmp_path)
    with pytest.raises(UserError, match=r"there is no list .*test\.txt; lists there: train, trainaug, val"):
        open_dataset("voc", tmp_path, "test")


def test_empty_list(tmp_path: Path) -> None:
    make_voc(tmp_path)
    (tmp_path / "VOC2012" / "ImageSets" / "Segmentation" / "val.txt").write_text("\n")
    with pytest.raises(UserError, match="the val split of voc is empty"):
        open_dataset("voc", tmp_path, "val")


def test_sbd_masks_missing_or_in_matlab_form(tmp_path: Path) -> None:
    make_voc(tmp_path)
    masks = tmp_path / "cls"
    with pytest.raises(UserError, match=r"there is no folder .*cls with the SBD masks"):
        open_dataset("voc", tmp_path, "trainaug", sbd_masks=masks)
    masks.mkdir()
    (masks / "2008_000008.mat").write_bytes(b"MATLAB")
    with pytest.raises(UserError, match="holds no PNG masks, MATLAB files do"):
        open_dataset("voc", tmp_path, "trainaug", sbd_masks=masks)


# Cityscapes


def test_cityscapes_table_is_the_official_one() -> None:
    official = {label.id: label.trainId for label in official_labels if label.id >= 0}
    assert official == LABEL_IDS
    trained = {label.trainId: label.id for label in official_labels if 0 <= label.trainId < 19}
    assert DATASETS["cityscapes"].prediction_ids == trained


def test_cityscapes_classes_and_palette_are_the_official_ones(tmp_path: Path) -> None:
    make_cityscapes(tmp_path)
    dataset = open_dataset("cityscapes", tmp_path, "train")
    scored = sorted((label.trainId, label.name, label.color) for label in official_labels if 0 <= label.trainId < 19)
    assert list(dataset.classes) == [name for _, name, _ in scored]
    assert list(dataset.palette) == [colour for _, _, colour in scored]
    assert list(dataset.image_ids) == ["aachen_000000_000019", "aachen_000001_000019"]
    assert dataset.read_labels(0).ravel()[:5].tolist() == [0, 1, 13, IGNORE_INDEX, 18]


def test_cityscapes_disparity(tmp_path: Path) -> None:
    make_cityscapes(tmp_path)
    dataset = open_dataset("cityscapes", tmp_path, "train")
    assert dataset.ground_truth_depth_kind is DepthKind.RELATIVE
    depth = dataset.read_depth(0)
    assert depth.dtype == np.float32
    np.testing.assert_array_equal(depth[0, :4], [np.nan, 0.0, 1.0, 50.0])


def test_cityscapes_metres(tmp_path: Path) -> None:
    make_cityscapes(tmp_path)
    dataset = open_dataset("cityscapes", tmp_path, "train", metric_depth=True)
    assert dataset.ground_truth_depth_kind is DepthKind.METRIC
    # baseline 0.2 m · focal 2000 px / disparity
    np.testing.assert_allclose(dataset.read_depth(0)[0, :4], [np.nan, np.inf, 400.0, 8.0])


def test_cityscapes_metres_need_cameras(tmp_path: Path) -> None:
    make_cityscapes(tmp_path)
    camera = next((tmp_path / "camera").rglob("*.json"))
    dataset = open_dataset("cityscapes", tmp_path, "train", metric_depth=True)
    camera.write_text("{}")
    with pytest.raises(UserError, match=r"_camera\.json lacks extrinsic\.baseline or intrinsic\.fx"):
        dataset.read_depth(0)
    (tmp_path / "camera").rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="metric depth of cityscapes needs"):
        open_dataset("cityscapes", tmp_path, "train", metric_depth=True)


# Own folders


def test_folder_reads_classes_and_pairs_by_stem(tmp_path: Path) -> None:
    make_folder(tmp_path, "winter")
    dataset = open_dataset("folder", tmp_path, "winter")
    assert dataset.classes == ("grass", "tall tree", "road")
    assert list(dataset.image_ids) == ["a", "b"]
    assert dataset.read_labels(0).ravel()[:4].tolist() == [0, 1, 2, IGNORE_INDEX]
    assert (dataset.read_labels(1) == 2).all()
    assert dataset.ground_truth_depth_kind is None


def test_folder_with_ids_from_one_reads_zero_as_void(tmp_path: Path) -> None:
    make_folder(tmp_path)
    write_mask(tmp_path / "masks" / "train" / "a.png", [0, 1, 2, 3])
    dataset = open_dataset("folder", tmp_path, "train", first_id=1)
    assert dataset.read_labels(0).ravel()[:4].tolist() == [IGNORE_INDEX, 0, 1, 2]


def test_folder_with_own_void_ids(tmp_path: Path) -> None:
    make_folder(tmp_path)
    write_mask(tmp_path / "masks" / "train" / "a.png", [0, 9, 2])
    dataset = open_dataset("folder", tmp_path, "train", void_ids=[9])
    assert dataset.read_labels(0).ravel()[:3].tolist() == [0, IGNORE_INDEX, 2]


def test_folder_with_colours_reads_rgb_masks(tmp_path: Path) -> None:
    make_folder(tmp_path)
    (tmp_path / "classes.txt").write_text("# nature first\ngrass 0 200 0\ntall tree 0 90 0\nroad 128 64 128\n")
    pixels = np.full((*SIZE, 3), (128, 64, 128), np.uint8)
    pixels[0, :2] = [(0, 90, 0), (0, 0, 0)]
    Image.fromarray(pixels).save(tmp_path / "masks" / "train" / "a.png")
    dataset = open_dataset("folder", tmp_path, "train")
    assert dataset.classes == ("grass", "tall tree", "road")
    assert dataset.palette[2] == (128, 64, 128)
    assert dataset.read_labels(0).ravel()[:3].tolist() == [1, IGNORE_INDEX, 2]
    pixels[2, 2] = (1, 2, 3)
    Image.fromarray(pixels).save(tmp_path / "masks" / "train" / "a.png")
    with pytest.raises(UserError, match=r"has the colour \(1, 2, 3\), which no class in classes.txt has \(1 such"):
        dataset.read_labels(0)


@pytest.mark.parametrize(
    ("kind", "expected"), [("metric", [np.nan, 0.001, 2.0]), ("relative", [np.nan, 1.0, 2000.0])], ids=str
)
def test_folder_depth_png(tmp_path: Path, kind: str, expected: list[float]) -> None:
    make_folder(tmp_path)
    stored = np.zeros(SIZE, np.uint16)
    stored[0, :3] = (0, 1, 2000)
    (tmp_path / "depth" / "train").mkdir(parents=True)
    Image.fromarray(stored).save(tmp_path / "depth" / "train" / "a.png")
    dataset = open_dataset("folder", tmp_path, "train", depth_kind=kind)
    assert dataset.ground_truth_depth_kind is DepthKind(kind)
    np.testing.assert_allclose(dataset.read_depth(0)[0, :3], expected, rtol=1e-6)
    with pytest.raises(UserError, match=r"depth map .*b\.png is missing"):
        dataset.read_depth(1)


def test_folder_depth_npy(tmp_path: Path) -> None:
    make_folder(tmp_path)
    (tmp_path / "depth" / "train").mkdir(parents=True)
    np.save(tmp_path / "depth" / "train" / "a.npy", np.array([[1.5, np.inf], [np.nan, 3.0]]))
    dataset = open_dataset("folder", tmp_path, "train", depth_kind="metric")
    np.testing.assert_array_equal(dataset.read_depth(0), np.array([[1.5, np.inf], [np.nan, 3.0]], np.float32))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (np.zeros((2, 3, 4)), r"holds float64 \(2, 3, 4\); a \(height, width\) array"),
        (b"\x93NUMPY broken", "cannot be read"),
        (np.array([{}], dtype=object), "cannot be read"),
    ],
    ids=["three axes", "broken", "pickle"],
)
def test_folder_depth_that_is_none(tmp_path: Path, content: Any, message: str) -> None:
    make_folder(tmp_path)
    path = tmp_path / "depth" / "train" / "a.npy"
    path.parent.mkdir(parents=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.save(path, content)
    with pytest.raises(UserError, match=message):
        open_dataset("folder", tmp_path, "train", depth_kind="metric").read_depth(0)


def test_folder_depth_png_with_channels(tmp_path: Path) -> None:
    make_folder(tmp_path)
    write_image(tmp_path / "depth" / "train" / "a.png")
    with pytest.raises(UserError, match="is a RGB image; one channel of 16 bits"):
        open_dataset("folder", tmp_path, "train", depth_kind="metric").read_depth(0)


def test_folder_depth_of_unknown_meaning(tmp_path: Path) -> None:
    make_folder(tmp_path)
    write_image(tmp_path / "depth" / "train" / "a.png")
    dataset = open_dataset("folder", tmp_path, "train")
    assert dataset.ground_truth_depth_kind is None
    with pytest.raises(UserError, match=r"holds depth but not what it means.*data\.options\.depth_kind"):
        dataset.read_depth(0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"there is no .*classes\.txt; write one class name per line"),
        ("# nothing\n\n", "names no class"),
        ("", "names no class"),
        ("road\n\ngrass\n", "line 2 is blank, but the order of the lines gives the ids"),
        ("road 1 2 3 # wet\n", "line 1: a comment stands on a line of its own"),
        ("road\nroad\n", "names a class twice: road"),
        ("road\nroad\u200b\n", "names a class twice: road, road"),
        ("\u00e9\ne\u0301\n", "names a class twice"),
        ("road 1 2 300\n", "line 1: a colour has three numbers from 0 to 255"),
        (f"road 1 2 {'3' * 5000}\n", "line 1: a colour has three numbers from 0 to 255"),
        ("road 1 2 3\ngrass\n", "gives a colour to 1 of 2 classes"),
        ("road 1 2 3\ngrass 1 2 3\n", "gives two classes the same colour"),
        ("\n".join(f"class{index}" for index in range(256)), "names 256 classes; at most 255"),
        ("stra\xdfe\n".encode("latin1"), r"is not UTF-8 \(at byte 4\); write one class name per line, as UTF-8"),
        ("road\ngrass\n".encode("utf-16"), "is not UTF-8"),
        ("road\ngrass\n".encode("utf-16-le"), "holds NUL bytes"),
        ("road\x0bgrass\n", "line 1 holds a control character that some programs take for the end of a line"),
        ("road\u2028grass\n", "line 1 holds a control character"),
        ("7 road\n11: grass\n", r"begins every line with a number \(7 road\), but the order of the lines"),
        ("x" * 201, "has a class name of 201 characters"),
        ("x" * (1 << 21), "has 2,097,152 bytes, which is no list of names"),
    ],
)
def test_folder_classes_that_make_no_sense(tmp_path: Path, text: str | bytes | None, message: str) -> None:
    make_folder(tmp_path)
    (tmp_path / "classes.txt").unlink()
    if text is not None:
        (tmp_path / "classes.txt").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=message):
        open_dataset("folder", tmp_path, "train")


@pytest.mark.parametrize("text", ["\ufeffroad\r\ngrass\r\n", "road\rgrass", "road \n\tgrass\n\n \n"])
def test_folder_classes_of_any_editor(tmp_path: Path, text: str) -> None:
    make_folder(tmp_path)
    (tmp_path / "classes.txt").write_bytes(text.encode())
    assert open_dataset("folder", tmp_path, "train").classes == ("road", "grass")


def test_folder_class_names_keep_their_hash_signs(tmp_path: Path) -> None:
    make_folder(tmp_path)
    (tmp_path / "classes.txt").write_text("lane #1\n  # not a class\nlane #2\nroad\n\n")
    assert open_dataset("folder", tmp_path, "train").classes == ("lane #1", "lane #2", "road")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"first_id": -1}, "first_id must be a whole number"),
        ({"void_ids": "255"}, "void_ids must be a list"),
        ({"void_ids": [1]}, "ids 1 are void by void_ids, but classes.txt has a class there"),
        ({"depth_kind": "meters"}, "unknown depth_kind of folder 'meters'.*known: metric, relative"),
        ({"depth_unit_m": 0}, "depth_unit_m must be a positive number"),
    ],
    ids=str,
)
def test_folder_options_that_make_no_sense(tmp_path: Path, options: dict[str, object], message: str) -> None:
    make_folder(tmp_path)
    with pytest.raises(UserError, match=message):
        open_dataset("folder", tmp_path, "train", **options)

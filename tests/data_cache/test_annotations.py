"""Annotations of each tool, as its documentation has them, become the masks that they say."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import ExifTags, Image

from data_cache.annotations import FORMATS
from data_cache.annotations.choices import Choices
from data_cache.annotations.writing import Imported, write_folder
from data_cache.datasets import open_dataset
from data_cache.datasets.doctor import examine
from data_cache.errors import UserError
from tests.data_cache.annotation_files import (
    NAMES,
    build_coco,
    build_cvat,
    draw_photo,
    write_labelme,
    write_photos,
    write_yolo,
)

VOID = 255


class Converted:
    """An import and what it wrote."""

    def __init__(self, kind: str, source: Path, out: Path, images: Path | None = None, **choices: Any) -> None:
        out.mkdir()
        usual = {"order": FORMATS[kind].order, "empty": FORMATS[kind].empty}
        annotations = FORMATS[kind].read(source, images)
        self.out = out
        self.facts: Imported = write_folder(annotations, out, Choices(**(usual | choices)), source=source)

    @property
    def classes(self) -> list[str]:
        return (self.out / "classes.txt").read_text().splitlines()

    def mask(self, stem: str) -> NDArray[np.uint8]:
        (path,) = self.out.glob(f"masks/*/{stem}.png")
        return np.array(Image.open(path))

    def split(self, split: str) -> list[str]:
        return sorted(path.name for path in (self.out / "images" / split).glob("*"))

    def says(self, words: str) -> bool:
        return any(words in note for note in self.facts.notes)


def blank(folder: Path, *names: str, size: tuple[int, int] = (10, 10)) -> None:
    """Write images of (height, width), each of another grey."""
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size[::-1], (number, number, 9)).save(folder / name)


def save(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def ring(left: float, top: float, right: float, bottom: float) -> list[list[float]]:
    return [[left, top], [right, top], [right, bottom], [left, bottom]]


def flat(*corners: float) -> list[float]:
    return [number for point in ring(*corners) for number in point]


@pytest.mark.parametrize("kind", ["labelme", "yolo", "coco", "coco runs", "cvat", "cvat runs"])
def test_masks_come_back_as_they_were_drawn(tmp_path: Path, kind: str) -> None:
    shots = tmp_path / "shots" / "images" / "train"
    masks = write_photos(shots, 6)
    source = tmp_path / "shots"
    if kind == "labelme":
        write_labelme(shots, masks)
    elif kind == "yolo":
        write_yolo(source, {"train": masks})
    elif kind.startswith("coco"):
        source = save(source / "annotations" / "instances_default.json", build_coco(masks, runs="runs" in kind))
    else:
        ElementTree.ElementTree(build_cvat(masks, runs="runs" in kind)).write(source / "annotations.xml")
    found = Converted(kind.split()[0], source, tmp_path / "out")
    for stem, mask in masks.items():
        assert np.array_equal(found.mask(stem), mask), stem
    assert [name.split()[0] for name in found.classes] == ["background", *NAMES]
    assert found.facts.images == {"train": 5, "val": 1}
    shares = np.bincount(np.concatenate([masks[name[:-4]].ravel() for name in found.split("train")])) / (5 * 48 * 64)
    assert list(found.facts.classes["train"].values()) == pytest.approx(shares.tolist())
    report = examine("folder", found.out, splits=("train", "val"))
    assert not report.problems and report.images == {"train": 5, "val": 1}


def test_coco_as_its_page_describes_it(tmp_path: Path) -> None:
    """Two parts of one object, a crowd beneath, ids with gaps, an image without objects, one that is not listed."""
    crowd = np.zeros((10, 10), dtype=bool)
    crowd[0:6] = True
    counts = [0, *[6, 4] * 9, 6, 4]  # six pixels of each column, first of none outside
    content = {
        "info": {"year": 2017, "version": "1.0", "description": "", "contributor": "", "url": "", "date_created": ""},
        "licenses": [{"id": 1, "name": "", "url": ""}],
        "images": [
            {"id": 397133, "width": 10, "height": 10, "file_name": "000000397133.jpg", "license": 1, "coco_url": ""},
            {"id": 37777, "width": 10, "height": 10, "file_name": "000000037777.jpg", "license": 1, "coco_url": ""},
        ],
        "annotations": [
            {"id": 900100, "image_id": 397133, "category_id": 18, "iscrowd": 1, "area": 60, "bbox": [0, 0, 10, 6],
             "segmentation": {"counts": counts, "size": [10, 10]}},
            {"id": 1768, "image_id": 397133, "category_id": 44, "iscrowd": 0, "area": 8.5, "bbox": [1, 1, 8, 8],
             "segmentation": [flat(1, 1, 3, 3), flat(7, 7, 9, 9)]},
            {"id": 1769, "image_id": 397133, "category_id": 18, "iscrowd": 0, "area": 1, "bbox": [8, 8, 1, 1],
             "segmentation": {"counts": "h21;", "size": [10, 10]}},
        ],
        "categories": [
            {"id": 44, "name": "bottle", "supercategory": "kitchen"},
            {"id": 18, "name": "dog", "supercategory": "animal"},
            {"id": 90, "name": "toothbrush", "supercategory": "indoor"},
        ],
    }  # fmt: skip
    source = save(tmp_path / "annotations" / "instances_val2017.json", content)
    photos = tmp_path / "val2017"
    blank(photos, "000000397133.jpg", "000000037777.jpg", "000000000001.jpg")
    found = Converted("coco", source, tmp_path / "out", photos)
    expected = np.where(crowd, VOID, 0)
    expected[1:3, 1:3] = expected[7:9, 7:9] = 1
    expected[8, 8] = 2
    assert found.classes == ["background", "bottle", "dog"] and found.says("left out: 1 (toothbrush)")
    assert np.array_equal(found.mask("000000397133"), expected)
    assert found.split("train") == ["000000397133.jpg"] and found.split("val") == ["000000037777.jpg"]
    assert not found.mask("000000037777").any() and found.split("unlabelled") == ["000000000001.jpg"]
    assert found.says("void objects (crowds, names that mean void): 1") and found.says("without an object: 1")
    empty = Converted("coco", source, tmp_path / "pool", photos, empty="background", background=False)
    assert (empty.mask("000000037777") == VOID).all() and empty.classes == ["bottle", "dog"]


def test_labelme_as_its_examples_have_it(tmp_path: Path) -> None:
    """Every shape, the names that mean background and void, and an image inside of its annotation."""
    photo, cut_out = io.BytesIO(), io.BytesIO()
    Image.new("RGB", (20, 20), "navy").save(photo, format="PNG")
    Image.fromarray(np.array([[0, 255], [255, 255]], dtype=np.uint8)).save(cut_out, format="PNG")

    def shape(label: str, kind: str, points: list[list[float]], **more: Any) -> dict[str, Any]:
        return {"label": label, "points": points, "group_id": None, "description": "", "shape_type": kind,
                "flags": {}, "mask": None} | more  # fmt: skip

    shapes = [
        shape("road", "polygon", ring(0, 10, 20, 20)),
        shape("car", "rectangle", [[12, 16], [4, 12]]),
        shape("_background_", "polygon", ring(6, 13, 8, 15)),
        shape("ball", "circle", [[10, 5], [10, 8]]),
        shape("__ignore__", "polygon", ring(0, 0, 3, 3)),
        shape("car", "mask", [[17, 1], [18, 2]], mask=base64.b64encode(cut_out.getvalue()).decode()),
        shape("car", "linestrip", [[1, 1], [2, 2], [3, 3]]),
        shape("car", "point", [[1, 1]]),
    ]
    inside = {"imagePath": "..\\lost\\a.jpg", "imageData": base64.b64encode(photo.getvalue()).decode()}
    sizes = {"version": "5.4.1", "flags": {}, "imageHeight": 20, "imageWidth": 20}
    save(tmp_path / "in" / "a.json", sizes | {"shapes": shapes} | inside)
    blank(tmp_path / "in", "b.png", "c.png", "extra.png", size=(20, 20))
    save(tmp_path / "in" / "b.json", sizes | {"shapes": [], "imagePath": "b.png", "imageData": None})
    save(tmp_path / "in" / "c.json", sizes | {"shapes": shapes[-2:], "imagePath": "c.png", "imageData": None})
    found = Converted("labelme", tmp_path / "in", tmp_path / "out")
    assert found.classes == ["_background_", "ball", "car", "road"]
    mask = found.mask("a")
    assert mask[0, 0] == VOID and mask[19, 0] == 3 and mask[12, 4] == 2 and mask[13, 6] == 0, "file order"
    assert (mask == 1).sum() == pytest.approx(np.pi * 9, abs=4) and mask[5, 10] == 1
    assert mask[1:3, 17:19].tolist() == [[0, 2], [2, 2]]
    assert not found.mask("b").any() and found.says("shapes without an area (points, lines), left out: 4")
    assert found.split("train") + found.split("val") == ["a.png", "b.png"]
    assert np.array_equal(Image.open(next(found.out.glob("images/*/a.png"))), Image.open(photo))
    assert found.split("unlabelled") == ["c.png", "extra.png"], "a line says that there is something"


def test_cvat_as_its_page_describes_it(tmp_path: Path) -> None:
    """Subsets, colours, layers, a turned box, an ellipse, a mask, and an image that nobody has looked at."""
    text = """<?xml version="1.0" encoding="utf-8"?>
    <annotations><version>1.1</version><meta><project><id>7</id><name>yard</name><labels>
      <label><name>lawn</name><color>#00ff00</color><type>any</type><attributes></attributes></label>
      <label><name>shed</name><color>#ff0000</color><type>any</type><attributes></attributes></label>
      <label><name>man</name><color>#123456</color><type>skeleton</type><attributes></attributes></label>
      <label><name>1</name><color>#d12345</color><type>points</type><parent>man</parent></label>
    </labels></project><dumped>2024-05-05 10:00:00+00:00</dumped></meta>
    <image id="0" name="yard/a.png" subset="Train" task_id="3" width="20" height="20">
      <polygon label="shed" source="manual" occluded="0" points="2.00,2.00;8.00,2.00;8.00,8.00;2.00,8.00" z_order="1">
        <attribute name="age">old</attribute></polygon>
      <polygon label="lawn" source="manual" occluded="0" points="0.00,0.00;20.00,0.00;20.00,10.00;0.00,10.00"
        z_order="0"></polygon>
      <box label="shed" source="manual" occluded="0" xtl="10.00" ytl="13.00" xbr="16.00" ybr="15.00" rotation="90.00"
        z_order="0"></box>
      <mask label="lawn" source="semi-auto" occluded="0" rle="1, 2, 1" left="0" top="18" width="2" height="2"
        z_order="0"></mask>
      <polyline label="lawn" source="manual" occluded="0" points="1.0,1.0;5.0,5.0" z_order="0"></polyline>
      <tag label="lawn" source="manual"></tag>
    </image>
    <image id="1" name="yard/b.png" subset="Validation" task_id="3" width="20" height="20">
      <ellipse label="shed" source="manual" occluded="0" cx="10.00" cy="10.00" rx="6.00" ry="3.00" z_order="0">
        </ellipse>
    </image>
    <image id="2" name="yard/c.png" subset="Train" task_id="3" width="20" height="20"></image>
    </annotations>"""
    blank(tmp_path / "in" / "images" / "yard", "a.png", "b.png", "c.png", size=(20, 20))
    (tmp_path / "in" / "annotations.xml").write_text(text)
    found = Converted("cvat", tmp_path / "in", tmp_path / "out")
    assert found.classes == ["background 0 0 0", "lawn 0 255 0", "shed 255 0 0"]
    expected = np.zeros((20, 20), dtype=np.uint8)
    expected[0:10] = 1
    expected[2:8, 2:8] = expected[11:17, 12:14] = 2
    expected[18, 1] = expected[19, 0] = 1
    assert np.array_equal(found.mask("a"), expected)
    assert (found.mask("b") == 2).sum() == pytest.approx(np.pi * 18, abs=4)
    assert (found.split("train"), found.split("val"), found.split("unlabelled")) == (["a.png"], ["b.png"], ["c.png"])
    assert found.says("--empty background") and found.says("left out: 1") and found.says("splits are those of the data")
    assert open_dataset("folder", found.out, "train").palette[1] == (0, 255, 0)
    with Image.open(found.out / "masks" / "train" / "a.png") as image:
        assert image.mode == "P" and image.convert("RGB").getpixel((5, 5)) == (255, 0, 0)


@pytest.mark.parametrize("layout", ["names by index", "roboflow", "a list of images"])
def test_yolo_as_ultralytics_describes_it(tmp_path: Path, layout: str) -> None:
    """The page's own two lines; an empty file is an image without objects, no file one that is not annotated."""
    root = tmp_path / "in"
    lines = "0 0.681 0.485 0.670 0.487 0.676 0.487\n1 0.1 0.1 0.5 0.1 0.5 0.5 0.1 0.5\n"
    beside = layout != "roboflow"
    folders = (
        {"train": "images/train", "val": "images/val"} if beside else {"train": "train/images", "val": "valid/images"}
    )
    for place in folders.values():
        blank(root / place, "a.jpg", "b.jpg", "c.jpg", size=(20, 40))
        labels = root / place.replace("images", "labels")
        labels.mkdir(parents=True)
        (labels / "a.txt").write_text(lines)
        (labels / "b.txt").write_text("")
    names = "names:\n  0: person\n  1: bicycle\n"
    if layout == "names by index":
        (root / "data.yaml").write_text(
            f"path: ../datasets/coco8-seg\ntrain: images/train\nval: images/val\ntest:\n{names}"
        )
    elif layout == "roboflow":
        (root / "data.yaml").write_text(
            "train: ../train/images\nval: ../valid/images\nnc: 2\nnames: ['person', 'bicycle']\nroboflow: {x: 1}\n"
        )
    else:
        for split, place in folders.items():
            (root / f"{split}.txt").write_text("".join(f"./{place}/{name}.jpg\n" for name in "abc"))
        (root / "data.yaml").write_text(f"path: .\ntrain: train.txt\nval: [val.txt]\n{names}")
    found = Converted("yolo", root, tmp_path / "out")
    assert found.facts.images == {"train": 2, "val": 2, "unlabelled": 1}
    mask = np.array(Image.open(found.out / "masks" / "val" / "a.png"))
    expected = np.zeros((20, 40), dtype=np.uint8)
    expected[2:10, 4:20] = 2
    assert found.classes == ["background", "person", "bicycle"] and np.array_equal(mask, expected)
    assert not np.array(Image.open(found.out / "masks" / "train" / "b.png")).any()
    assert found.says("images without a .txt: 2") and found.says("of val and test that are not annotated, left out: 1")
    assert found.says("objects that cover no pixel of their image: 2"), "the page's person is smaller than one"


def labelme(folder: Path, stem: str, shapes: list[tuple[str, list[list[float]]]], **facts: Any) -> None:
    listed = [{"label": label, "points": points, "shape_type": "polygon"} for label, points in shapes]
    save(folder / f"{stem}.json", {"shapes": listed, "imagePath": f"{stem}.png", "imageData": None} | facts)


@pytest.mark.parametrize(("order", "seen"), [("file", 2), ("area", 1)])
def test_later_objects_lie_over_earlier_ones(tmp_path: Path, order: str, seen: int) -> None:
    blank(tmp_path / "in", "a.png", "b.png")
    for stem in "ab":
        labelme(tmp_path / "in", stem, [("apple", ring(2, 2, 4, 4)), ("plate", ring(1, 1, 9, 9))])
    found = Converted("labelme", tmp_path / "in", tmp_path / "out", order=order)
    assert found.mask("a")[3, 3] == seen and found.mask("a")[8, 8] == 2
    assert found.says("images in which objects overlap: 2; drawn ")


def test_what_reaches_beyond_the_image_is_cut_off_and_counted(tmp_path: Path) -> None:
    blank(tmp_path / "in", "a.png", "b.png")
    for stem in "ab":
        labelme(tmp_path / "in", stem, [("leaf", ring(-5, 6, 100, 30)), ("leaf", ring(50, 50, 60, 60))])
    found = Converted("labelme", tmp_path / "in", tmp_path / "out")
    assert np.array_equal(found.mask("b"), np.repeat([0, 1], [60, 40]).reshape(10, 10))
    assert found.says("cut off there: 4") and found.says("cover no pixel of their image: 2")


def test_the_split_goes_by_names_and_leaves_every_class_in_train(tmp_path: Path) -> None:
    chosen = []
    for place in ("one", "other"):
        folder = tmp_path / place
        stems = [f"shot{number}" for number in range(20)]
        for stem in stems if place == "one" else reversed(stems):
            blank(folder, f"{stem}.png")
            labelme(folder, stem, [("common", ring(1, 1, 5, 5)), *[("rare", ring(6, 6, 9, 9))] * (stem == "shot7")])
        found = Converted("labelme", folder, tmp_path / f"{place}-out", val_share=0.5)
        chosen.append(found.split("val"))
    assert chosen[0] == chosen[1] and len(chosen[0]) == 10
    assert "shot7.png" not in chosen[0], "the only image of a class"


def test_images_that_nearly_equal_each_other_stay_on_one_side(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for scene in range(6):
        pixels = np.kron(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8), np.ones((8, 8, 1), np.uint8))
        for frame, suffix in enumerate((".png", ".jpg")):
            (tmp_path / "in").mkdir(exist_ok=True)
            path = tmp_path / "in" / f"{frame}-{scene}{suffix}"
            Image.fromarray(pixels).save(path)
            labelme(tmp_path / "in", path.stem, [("leaf " if frame else "leaf", ring(1, 1, 5, 5))], imagePath=path.name)
    found = Converted("labelme", tmp_path / "in", tmp_path / "out", val_share=0.3)
    val = {path.partition(".")[0] for path in found.split("val")}
    assert found.classes == ["background", "leaf"], "but for a space they are one"
    assert len(val) == 4 and {name[2:] for name in val if name[0] == "0"} == {
        name[2:] for name in val if name[0] == "1"
    }


def test_folders_are_splits_and_equal_names_stay_apart(tmp_path: Path) -> None:
    for place in ("train/day", "train/night", "valid", "test"):
        blank(tmp_path / "in" / place, "a.png")
        labelme(tmp_path / "in" / place, "a", [("leaf", ring(1, 1, 5, 5))])
    found = Converted("labelme", tmp_path / "in", tmp_path / "out")
    assert found.facts.images == {"train": 2, "val": 1, "test": 1}
    assert found.split("train") == ["a.png", "night__a.png"]


@pytest.mark.parametrize("layout", ["coco.org", "roboflow"])
def test_a_coco_file_a_split(tmp_path: Path, layout: str) -> None:
    root = tmp_path / "in"
    for split, seed in (("train", 0), ("val", 1)):
        photos = root / (f"{split}2017" if layout == "coco.org" else split.replace("val", "valid"))
        masks = write_photos(photos, 2)
        content = build_coco(masks)
        place = root / "annotations" / f"instances_{split}2017.json"
        save(place if layout == "coco.org" else photos / "_annotations.coco.json", content)
        Image.fromarray(draw_photo(seed + 10)[0]).save(photos / "photo00.png")
    save(root / "annotations" / "captions_val2017.json", {}) if layout == "coco.org" else None
    found = Converted("coco", root, tmp_path / "out")
    assert found.split("train") == found.split("val") == ["photo00.png", "photo01.png"]
    with pytest.raises(UserError, match="each must be of another split"):
        save(root / "annotations" / ("instances_more.json" if layout == "coco.org" else "more.json"), {})
        Converted("coco", root, tmp_path / "again")


@pytest.mark.parametrize(("orientation", "as_stored"), [(3, False), (6, False), (6, True)])
def test_images_that_exif_turns(tmp_path: Path, orientation: int, as_stored: bool) -> None:
    """Tools show the upright image; a size that fits the stored one alone says that this one was shown."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    upright = np.zeros((12, 8), dtype=np.uint8)
    upright[1:4, 2:8] = 1
    undo = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90}[orientation]
    (tmp_path / "in").mkdir()
    for stem in "ab":
        Image.fromarray(upright * 255).transpose(undo).save(tmp_path / "in" / f"{stem}.png", exif=exif)
        drawn = ring(1, 0, 4, 6) if as_stored else ring(2, 1, 8, 4)
        height, width = (8, 12) if as_stored else (12, 8)
        labelme(tmp_path / "in", stem, [("bar", drawn)], imageHeight=height, imageWidth=width)
    found = Converted("labelme", tmp_path / "in", tmp_path / "out")
    image = open_dataset("folder", found.out, "train")
    assert np.array_equal(image.read_labels(0), upright)
    assert np.array_equal(image.read_image(0)[..., 0] // 255, upright)
    assert found.says("annotated as stored" if as_stored else "EXIF turns upright: 2")


def test_images_may_be_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_labelme(Path("in"), write_photos(Path("in"), 3))
    found = Converted("labelme", Path("in"), tmp_path / "out", link=True)
    files = [path for path in found.out.rglob("photo*.png") if "images" in path.parts]
    assert len(files) == 3 and all(path.readlink() == tmp_path / "in" / path.name for path in files)


@pytest.mark.parametrize("change", [lambda path: path, lambda path: path.rename(path.with_name("moved.png"))])
def test_images_are_found_in_a_folder_that_is_named(tmp_path: Path, change: Callable[[Path], Path]) -> None:
    masks = write_photos(tmp_path / "photos" / "2024", 3)
    (tmp_path / "in").mkdir()
    write_labelme(tmp_path / "in", masks)
    if change(tmp_path / "photos" / "2024" / "photo00.png").name == "moved.png":
        with pytest.raises(UserError, match=r"not below .*photos; name their folder with --images: 1 \(photo00.png\)"):
            Converted("labelme", tmp_path / "in", tmp_path / "out", tmp_path / "photos")
    else:
        found = Converted("labelme", tmp_path / "in", tmp_path / "out", tmp_path / "photos")
        assert found.facts.images == {"train": 2, "val": 1}

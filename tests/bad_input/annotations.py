"""Annotations of other tools that cannot be drawn: said before anything is written, all at once."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from PIL import Image

from tests.bad_input.world import Answer, Case, World
from tests.data_cache.annotation_files import NAMES, build_coco, build_cvat, write_labelme, write_photos, write_yolo

Prepare = Callable[[World], Sequence[str | Path]]


def _shots(world: World) -> Path:
    return world.root / "shots"


def _out(world: World) -> Path:
    return world.root / "imported"


def _call(world: World, kind: str, source: Path, *words: str | Path) -> Sequence[str | Path]:
    return ["import", kind, source, "--out", _out(world), *words]


def _labelme(change: Callable[[dict[str, Any]], object], *words: str) -> Prepare:
    """Return an import of LabelMe files, the first of which is changed."""

    def prepare(world: World) -> Sequence[str | Path]:
        write_labelme(_shots(world), write_photos(_shots(world), 3))
        world.edit_json(_shots(world) / "photo00.json", change)
        return _call(world, "labelme", _shots(world), *words)

    return prepare


def _coco(change: Callable[[dict[str, Any]], object], *words: str) -> Prepare:
    def prepare(world: World) -> Sequence[str | Path]:
        content = build_coco(write_photos(_shots(world), 3))
        change(content)
        (_shots(world) / "instances.json").write_text(json.dumps(content))
        return _call(world, "coco", _shots(world) / "instances.json", *words)

    return prepare


def _cvat(change: Callable[[ElementTree.Element], object]) -> Prepare:
    def prepare(world: World) -> Sequence[str | Path]:
        root = build_cvat(write_photos(_shots(world), 3))
        change(root)
        ElementTree.ElementTree(root).write(_shots(world) / "annotations.xml")
        return _call(world, "cvat", _shots(world))

    return prepare


def _yolo(change: Callable[[Path], object]) -> Prepare:
    def prepare(world: World) -> Sequence[str | Path]:
        write_yolo(_shots(world), {"train": write_photos(_shots(world) / "images" / "train", 3)})
        change(_shots(world))
        return _call(world, "yolo", _shots(world))

    return prepare


def _text(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda root: (root / name).write_bytes(content)


def _first_shape(content: dict[str, Any], **facts: Any) -> None:
    content["shapes"][0].update(facts)


def _many_classes(content: dict[str, Any]) -> None:
    content["shapes"] = [content["shapes"][0] | {"label": f"kind {number}"} for number in range(260)]


def _into(place: Callable[[World], Path]) -> Prepare:
    """Return an import of sound files to a place that is taken."""

    def prepare(world: World) -> Sequence[str | Path]:
        write_labelme(_shots(world), write_photos(_shots(world), 3))
        return ["import", "labelme", _shots(world), "--out", place(world)]

    return prepare


def _shrink(world: World) -> Sequence[str | Path]:
    words = _labelme(lambda _: None)(world)
    path = _shots(world) / "photo01.png"
    Image.open(path).resize((24, 18)).save(path)
    return words


def _nothing_is_left(world: World, _answer: Answer) -> None:
    left = [path.name for path in world.root.iterdir() if path.name.startswith(".") or path == _out(world)]
    assert not left


def _refused(what: str, prepare: Prepare, *words: str) -> Case:
    return Case(what, prepare, words, check=_nothing_is_left)


CASES = [
    _refused(
        "a LabelMe file that is cut off",
        lambda world: (_labelme(lambda _: None)(world), world.truncate(_shots(world) / "photo00.json"))[0],
        "photo00.json is damaged",
        "save it again in LabelMe",
    ),
    _refused(
        "JSON that is not LabelMe's", _labelme(lambda c: c.pop("shapes")), "is no LabelMe file (shapes is missing)"
    ),
    _refused(
        "an annotation whose image is nowhere",
        _labelme(lambda c: c.update(imagePath="..\\pictures\\lost.jpg")),
        "images that are not below",
        "--images: 1 (..\\\\pictures\\\\lost.jpg)",
    ),
    _refused(
        "two annotations of one image",
        _labelme(lambda c: c.update(imagePath="photo01.png")),
        "annotated twice; remove one: 1 (photo00.json and photo01.json)",
    ),
    _refused(
        "an outline of two points, and one of letters beside it: both are named",
        _labelme(lambda c: (_first_shape(c, points=[[1, 1], [2, 2]]), c["shapes"][1].update(shape_type="scribble"))),
        "objects with an outline of fewer than 3 points",
        "photo00.json shape 1 (leaf)",
        "objects of the shape 'scribble'",
    ),
    _refused("images that were resized after they were annotated", _shrink, "photo01.json is 24 x 18 px, not 64 x 48"),
    _refused(
        "embedded images that are none",
        _labelme(lambda c: c.update(imagePath="elsewhere.png", imageData="bm9uZQ==")),
        "embedded images that cannot be read; export them again: 1 (photo00.json)",
    ),
    _refused("260 classes", _labelme(_many_classes), "names 263 classes; at most 255 fit"),
    _refused(
        "two spellings of one class",
        _labelme(lambda c: _first_shape(c, label="Leaf")),
        "differ by capital letters alone",
        "make them one",
    ),
    _refused(
        "a class whose name a list of classes cannot hold",
        _labelme(lambda c: _first_shape(c, label="#1 leaf")),
        "the class '#1 leaf' of",
        "rename it",
    ),
    _refused(
        "a folder of images that is not there",
        _labelme(lambda _: None, "--images", "nowhere"),
        "the images are looked for in nowhere, which is no folder",
    ),
    _refused("a folder without annotations", lambda world: _call(world, "labelme", world.data), "there is no LabelMe"),
    _refused("a format that nobody knows", lambda world: _call(world, "voc", world.data), "'voc' is not one of 'coco'"),
    Case(
        "a place for the data set that has files in it",
        _into(lambda world: world.user),
        ("user is not empty; name a new folder",),
    ),
    Case("a place that is a file", _into(lambda world: world.user / "notes.txt"), ("notes.txt is no folder",)),
    _refused(
        "a place among the images",
        _into(lambda world: _shots(world) / "imported"),
        "lies among the files that are read from",
    ),
    _refused("COCO without categories", _coco(lambda c: c.pop("categories")), "categories is missing"),
    _refused(
        "COCO with an object of an unknown category and one of an unknown image",
        _coco(lambda c: (c["annotations"][0].update(category_id=9), c["annotations"][1].update(image_id=77))),
        "objects of a category that the file does not define",
        "1 of photo00.png: 9",
        "instances.json does not list; add it to its images: 1 (image 77)",
    ),
    _refused(
        "two classes of one name",
        _coco(lambda c: c["categories"][1].update(name=NAMES[0])),
        "instances.json names a class twice: leaf",
    ),
    _refused(
        "COCO with boxes alone",
        _coco(lambda c: [each.update(segmentation=[]) for each in c["annotations"]]),
        "objects with a box and no outline, which is no mask",
        "6 (1 of photo00.png",
    ),
    _refused(
        "run lengths that do not fill their image",
        _coco(lambda c: c["annotations"][0].update(segmentation={"counts": [5, 9], "size": [48, 64]})),
        "objects whose run lengths do not add up",
    ),
    _refused(
        "run lengths in letters that nobody wrote",
        _coco(lambda c: c["annotations"][0].update(segmentation={"counts": "é!", "size": [48, 64]})),
        "objects whose run lengths are no text of COCO's",
    ),
    _refused(
        "COCO's panoptic format",
        _coco(lambda c: c["annotations"][0].update(segments_info=[])),
        "panoptic format",
        "export it again as COCO instances",
    ),
    _refused(
        "COCO with one image",
        _coco(lambda c: c.update(images=c["images"][:1], annotations=c["annotations"][:2])),
        "too few annotated images (1 of train)",
    ),
    _refused(
        "YOLO without data.yaml", _yolo(lambda root: (root / "data.yaml").unlink()), "there is no data.yaml below"
    ),
    _refused("data.yaml that is no YAML", _yolo(_text("data.yaml", b"names: [a\ntrain: {")), "data.yaml is no YAML"),
    _refused(
        "data.yaml without names", _yolo(_text("data.yaml", b"train: images/train\n")), "data.yaml names no classes"
    ),
    _refused(
        "a class that YAML reads as no text",
        _yolo(_text("data.yaml", b"train: images/train\nnames: [leaf, no]\n")),
        "has a name that YAML reads as False; put it in quotes",
    ),
    _refused(
        "a split that is not there",
        _yolo(_text("data.yaml", b"path: /content/x\ntrain: pictures\nnames: [leaf, stone]\n")),
        "splits that are not there",
        "train: pictures in /content/x or",
    ),
    _refused(
        "YOLO for detection: boxes",
        _yolo(_text("labels/train/photo00.txt", b"0 0.5 0.5 0.2 0.2\n1 0.1 0.1 0.1 0.1\n")),
        "this is a data set for detection, whose boxes are no masks",
        "2 (photo00.txt line 1, photo00.txt line 2)",
    ),
    _refused(
        "YOLO of an unknown class, in pixels, in words",
        _yolo(
            _text(
                "labels/train/photo01.txt",
                b"7 0.1 0.1 0.2 0.1 0.2 0.2\n0 10 10 20 10 20 20\n0 a b c d e f\n0 0.1 0.1 0.2 0.1 0.2\n",
            )
        ),
        "of a class that data.yaml does not name (it has 0 to 1): 1 (photo01.txt line 1)",
        "no shares of the image's width and height; divide them by these: 1 (photo01.txt line 2)",
        "no line of numbers: 1 (photo01.txt line 3)",
        "not a class and pairs of coordinates: 1 (photo01.txt line 4)",
    ),
    _refused(
        "an XML file that is cut off",
        lambda world: (_cvat(lambda _: None)(world), world.truncate(_shots(world) / "annotations.xml"))[0],
        "annotations.xml is no XML",
        'export it again as "CVAT for images 1.1"',
    ),
    _refused("CVAT for video", _cvat(lambda root: ElementTree.SubElement(root, "track")), "is of CVAT for video"),
    _refused("XML of another tool", _cvat(lambda root: setattr(root, "tag", "annotation")), "is no file of CVAT's"),
    _refused(
        "XML that makes entities",
        lambda world: (
            _cvat(lambda _: None)(world),
            (_shots(world) / "annotations.xml").write_text(
                '<!DOCTYPE a [<!ENTITY b "c">]><annotations>&b;</annotations>'
            ),
        )[0],
        "has a document type, which no file of CVAT's has",
    ),
    _refused(
        "a label that meta does not define, and a polygon without points",
        _cvat(lambda root: (root[2][0].set("label", "cloud"), root[2][1].attrib.pop("points"))),
        "objects of a label that meta does not define; add it there: 1 (photo00.png polygon 1: cloud)",
        "objects with an outline of fewer than 3 points",
    ),
]

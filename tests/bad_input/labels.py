"""Masks and classes that cannot be learnt from or scored on: said before the first training step."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from tests.bad_input.world import SIZE, SPLITS, Answer, Case, World

Change = Callable[[World], object]


def _run(change: Change, *words: str) -> Callable[[World], Sequence[str | Path]]:
    """Return what changes the data and asks for a training."""
    return _call(change, lambda world: world.with_recipe("run", "--schedule", "seg-only", *words))


def _call(change: Change, words: Callable[[World], Sequence[str | Path]]) -> Callable[[World], Sequence[str | Path]]:
    def prepare(world: World) -> Sequence[str | Path]:
        change(world)
        return words(world)

    return prepare


def _evaluate(world: World, *words: str) -> Sequence[str | Path]:
    return ["evaluate", world.run_folder("seg-only"), "--data-root", world.data, *words]


def _doctor(change: Change) -> Callable[[World], Sequence[str | Path]]:
    return _call(change, lambda world: ["datasets", "folder", "--data-root", world.data])


def _fill(split: str, value: int, number: int | None = None) -> Change:
    """Return what writes one id into one mask of a split, or into all."""

    def fill(world: World) -> None:
        masks = [world.mask(split, number)] if number is not None else sorted(world.mask(split).parent.iterdir())
        for path in masks:
            Image.fromarray(np.full(SIZE, value, np.uint8)).save(path)

    return fill


def _replace(split: str, pixels: np.ndarray, suffix: str = ".png") -> Change:
    """Return what saves other pixels in the place of a split's first mask."""

    def replace(world: World) -> None:
        world.mask(split).unlink()
        Image.fromarray(pixels).save(world.mask(split).with_suffix(suffix))

    return replace


def _classes(content: bytes) -> Change:
    return lambda world: (world.data / "classes.txt").write_bytes(content)


def _nothing_was_trained(world: World, answer: Answer) -> None:
    assert len(list((world.work / "nodes").iterdir())) == 3, answer
    assert "seg 0" not in answer.stderr


def _exchange(split: str) -> Change:
    """Return what exchanges the two classes in all masks of a split."""

    def exchange(world: World) -> None:
        for path in world.mask(split).parent.iterdir():
            Image.fromarray(1 - np.array(Image.open(path))).save(path)

    return exchange


def _scored_on_the_masks_as_they_are(world: World, answer: Answer) -> None:
    record = json.loads((Path(answer.json["folder"]) / "run.json").read_text())
    masks = np.stack([np.array(Image.open(path)) for path in world.mask("val").parent.iterdir()])
    _equal(answer.json["phases"][0]["reused"], True)
    _equal([row["pixels"] for row in record["per_class"]], np.bincount(masks.ravel()).tolist())


def _pipe(world: World) -> None:
    (world.data / "classes.txt").unlink()
    os.mkfifo(world.data / "classes.txt")


def _equal(found: object, expected: object) -> None:
    assert found == expected


FLOATS = np.zeros(SIZE, np.float32)
COLOURS = np.full((*SIZE, 3), 9, np.uint8)
BEFORE = _nothing_was_trained


def _write_city(world: World) -> Path:
    """Return the root of Cityscapes files in which two cities have an image of one name."""
    root = world.root / "cityscapes"
    for place, number in (("train/a", 0), ("train/b", 1), ("val/a", 2)):
        image = root / "leftImg8bit" / place / "x_leftImg8bit.png"
        mask = root / "gtFine" / place / "x_gtFine_labelIds.png"
        image.parent.mkdir(parents=True)
        mask.parent.mkdir(parents=True)
        shutil.copy(world.image("train", number), image)
        Image.fromarray(np.full(SIZE, 7, np.uint8)).save(mask)
    return root


def _write_voc(world: World, line: str) -> Path:
    """Return the root of a VOC layout in which a line of a list is bad."""
    root = world.root / "VOC2012"
    (root / "JPEGImages").mkdir(parents=True)
    (root / "ImageSets" / "Segmentation").mkdir(parents=True)
    (root / "ImageSets" / "Segmentation" / "train.txt").write_text(f"2007_000032\n{line}\n")
    return root


def _own_depth(world: World, *words: str) -> Sequence[str | Path]:
    for split, number_of_images in SPLITS.items():
        for number in range(number_of_images):
            path = world.data / "depth" / split / f"{split}{number}.npy"
            path.parent.mkdir(parents=True, exist_ok=True)
            shape = (32, 48) if (split, number) == ("train", 1) else (32, 32)
            np.save(path, np.random.default_rng(0).random(shape, np.float32))
    return world.with_recipe("pseudo-depth", "--estimator", "dataset", "--split", "train", *words)


def _three_were_labelled(world: World, answer: Answer) -> None:
    assert answer.json["labelled"] == 3


CASES = [
    Case(
        "images of one name in two cities",
        lambda world: ["datasets", "cityscapes", "--data-root", _write_city(world)],
        ("train/a/x_leftImg8bit.png", "train/b/x_leftImg8bit.png", "share the name 'x'", "rename"),
    ),
    Case(
        "a list of images with a line of 5,000 letters",
        lambda world: world.with_recipe("plan", "--dataset", "voc", "--data-root", _write_voc(world, "x" * 5000)),
        ("train.txt line 2", "no name of an image"),
    ),
    Case(
        "a year of VOC that is a number",
        lambda world: world.with_recipe(
            "plan", "--dataset", "voc", "--data-root", _write_voc(world, "a"), "--set", "data.options.year=2012"
        ),
        ("'voc'", "year must be text", "'2012'"),
    ),
    Case(
        "a mask of the reported split that is no image",
        _run(lambda world: world.mask("val").write_bytes(b"no mask")),
        ("val: masks that cannot be read: 1 (val0)", "replace the file"),
        check=BEFORE,
    ),
    Case(
        "a mask of the reported split that is missing",
        _run(lambda world: world.mask("val").unlink()),
        ("val: images without a mask: 1 (val0)", "the first belongs at"),
        check=BEFORE,
    ),
    Case(
        "a truncated mask in training",
        _run(lambda world: world.truncate(world.mask("train", 2))),
        ("train: masks that cannot be read: 1 (train2)",),
        check=BEFORE,
    ),
    Case(
        "several bad masks in both splits: all are named at once",
        _run(lambda world: (world.mask("train", 1).unlink(), _fill("val", 7, 1)(world), _fill("train", 9, 3)(world))),
        ("images without a mask: 1 (train1)", "ids outside the table: 9", "val: masks with ids", "0 = ground"),
        check=BEFORE,
    ),
    Case(
        "a mask of another size than its image",
        _run(_replace("val", np.zeros((64, 60), np.uint8))),
        ("has 60 x 64 px, its image", "val0.png", "make the mask anew"),
        check=BEFORE,
    ),
    Case(
        "a float TIFF as a mask",
        _run(_replace("train", FLOATS, ".tif")),
        ("train0.tif", "holds floats, but ids are whole numbers"),
        check=BEFORE,
    ),
    Case(
        "a float TIFF as a mask where classes have colours",
        _run(lambda world: (_classes(b"ground 0 0 0\nthing 9 9 9\n")(world), _replace("val", FLOATS, ".tif")(world))),
        ("val0.tif", "holds floats"),
        check=BEFORE,
    ),
    Case(
        "an RGB mask where classes have no colours",
        _run(_replace("val", COLOURS)),
        ("is an RGB image (1 colour: (9, 9, 9))", "convert it to a palette or grey PNG"),
        check=BEFORE,
    ),
    Case(
        "an RGB mask with a colour of no class",
        _run(lambda world: (_classes(b"ground 1 2 3\nthing 4 5 6\n")(world), _replace("train", COLOURS)(world))),
        ("has the colour (9, 9, 9), which no class", "train0.png"),
        check=BEFORE,
    ),
    Case(
        "a training split without a labelled pixel",
        _run(_fill("train", 255)),
        ("train: every pixel is void; there is nothing to learn",),
        check=BEFORE,
    ),
    Case(
        "a reported split without a labelled pixel",
        _run(_fill("val", 255)),
        ("val: every pixel is void",),
        check=BEFORE,
    ),
    Case(
        "plan sees bad masks too",
        _call(_fill("val", 5, 0), lambda world: world.with_recipe("plan")),
        ("val: masks with ids outside the table: 1 (val0)", "ids outside the table: 5"),
    ),
    Case(
        "so does evaluate",
        _call(_fill("test", 5, 1), lambda world: _evaluate(world, "--split", "test")),
        ("test: masks with ids outside the table: 1 (test1)",),
    ),
    Case("so does the doctor", _doctor(_fill("val", 5, 0)), ("val: masks with ids outside the table: 1 (val0)",)),
    Case(
        "weights and training states for which the disk has no room",
        _run(lambda _: None, "--set", "network.decoder_channels=[60000,60000,60000,60000,60000]"),
        ("the weights and training states need about", "GB are free", "--workdir"),
        check=BEFORE,
    ),
    Case(
        "masks changed at equal size: what reads them is to be trained anew",
        _call(_exchange("train"), lambda world: world.with_recipe("plan")),
        (),
        exit=0,
        check=lambda _, answer: _equal([phase["done"] for phase in answer.json["phases"]], [True, False]),
    ),
    Case(
        "masks of the reported split changed at equal size: scored anew",
        _run(_exchange("val")),
        (),
        exit=0,
        check=_scored_on_the_masks_as_they_are,
    ),
    Case(
        "the training split as the reported one",
        _call(lambda _: None, lambda world: world.with_recipe("plan", "--set", "evaluation.split=train")),
        ("the reported split is the training split",),
        exit=0,
    ),
    Case(
        "an image of the training split in the reported one",
        _call(
            lambda world: shutil.copy(world.image("train"), world.image("val")),
            lambda world: world.with_recipe("plan", "--schedule", "seg-only"),
        ),
        ("val: images with a byte-identical copy in train: 1",),
        exit=0,
    ),
    Case(
        "memory of earlier looks that was tampered with",
        _call(
            lambda world: (world.work / "looks.json").write_text('{"format":1,"files":{"a":[[64,null],[],{"x":1}]}}'),
            lambda world: world.with_recipe("plan"),
        ),
        (),
        exit=0,
    ),
    Case(
        "void_ids that are no ids",
        _call(lambda _: None, lambda world: world.with_recipe("plan", "--set", "data.options.void_ids=[true]")),
        ("void_ids must be a list of whole numbers, got (True,)",),
    ),
    Case("classes.txt that is a pipe", _doctor(_pipe), ("classes.txt", "it is a pipe, socket or device")),
    Case(
        "classes.txt with a blank line in the middle",
        _doctor(_classes(b"ground\n\nthing\n")),
        ("line 2 is blank, but the order of the lines gives the ids",),
    ),
    Case("classes.txt in UTF-16", _doctor(_classes("ground\nthing".encode("utf-16"))), ("is not UTF-8", "write one")),
    Case("classes.txt with a NUL byte", _doctor(_classes(b"gro\0und\nthing")), ("holds NUL bytes",)),
    Case(
        "classes.txt that numbers its lines",
        _doctor(_classes(b"7 ground\n9 thing\n")),
        ("begins every line with a number (7 ground)",),
    ),
    Case(
        "classes.txt with a byte order mark, Windows line ends and a hash sign in a name",
        _doctor(_classes("\ufeffground #1\r\nthing\r\n".encode())),
        (),
        exit=0,
        check=lambda _, answer: _equal(list(answer.json["classes"]["train"]), ["ground #1", "thing"]),
    ),
    Case(
        "a class that no training mask contains",
        _call(_fill("train", 0), lambda world: world.with_recipe("plan")),
        ("train: classes of which no pixel is labelled: thing",),
        exit=0,
        check=lambda _, answer: answer.json["notes"][0].index("thing"),
    ),
    Case(
        "a class that no scored mask contains",
        _call(_fill("test", 1), lambda world: _evaluate(world, "--split", "test")),
        ("test: classes of which no pixel is labelled: ground",),
        exit=0,
    ),
    Case(
        "a run on data with other classes",
        _call(_classes(b"cat\ndog\n"), lambda world: _evaluate(world)),
        ("was trained for the classes ground, thing, but", "has cat, dog", "train anew"),
    ),
    Case(
        "a run on data with its classes in another order",
        _call(_classes(b"thing\nground\n"), lambda world: _evaluate(world)),
        ("in the order ground, thing, but", "has thing, ground", "put the order back"),
    ),
    Case(
        "an export on data with one class more",
        _call(_classes(b"ground\nthing\ncar\n"), lambda world: ["evaluate", world.export, "--data-root", world.data]),
        ("was trained for the classes ground, thing, but", "has ground, thing, car"),
    ),
    Case(
        "own depth of another shape than its image",
        lambda world: _own_depth(world, "--set", 'data.options={depth_kind = "relative"}'),
        ("train1.png has 32 x 48 px", "the image 64 x 64", "cut, turned or another image's"),
        check=_three_were_labelled,
    ),
    Case("own depth of which nobody said what it means", _own_depth, ("what it means", "data.options.depth_kind")),
]

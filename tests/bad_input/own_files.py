"""Folders of somebody's files that make no data set: said before a recipe is written."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from tests.bad_input.world import SIZE, Answer, Case, World

MASK = np.zeros(SIZE, np.uint8)
MASK[:, : SIZE[1] // 2] = 1
GRADIENT = np.arange(MASK.size).reshape(SIZE).astype(np.uint8)


def _init(change: Callable[[World], object], *words: str) -> Callable[[World], Sequence[str | Path]]:
    """Return what changes the data and has it looked at."""

    def prepare(world: World) -> Sequence[str | Path]:
        change(world)
        return ["init", world.data, "--out", world.root / "mine.toml", *words]

    return prepare


def _masks(*pixels: np.ndarray, suffix: str = ".png") -> Callable[[World], object]:
    """Return what saves these in turn in the place of all masks."""

    def replace(world: World) -> None:
        for number, path in enumerate(sorted((world.data / "masks").rglob("*.png"))):
            path.unlink()
            Image.fromarray(pixels[number % len(pixels)]).save(path.with_suffix(suffix))

    return replace


def _keep(*names: str) -> Callable[[World], object]:
    """Return what leaves only these folders and files of the data."""

    def remove(world: World) -> None:
        for path in world.data.iterdir():
            if path.name not in names:
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    return remove


def _nothing_was_written(world: World, _: Answer) -> None:
    assert not list(world.root.glob("mine*"))


def _equal(found: object, expected: object) -> None:
    assert found == expected


def _refused(what: str, prepare: Callable[[World], Sequence[str | Path]], *words: str) -> Case:
    return Case(what, prepare, words, check=_nothing_was_written)


def _another_s_list(world: World) -> Sequence[str | Path]:
    """Return a look at images of no splits, beside whose recipe another's list lies."""
    for kind in ("images", "masks"):
        for path in sorted((world.data / kind).glob("*/*")):
            shutil.move(path, world.data / kind / path.name)
            if not any(path.parent.iterdir()):
                path.parent.rmdir()
    return ["init", world.data, "--out", world.user / "notes.toml"]


CASES = [
    _refused("a folder without images", _init(_keep("classes.txt")), "no image below", ".jpg", "name the folder"),
    _refused("images without masks", _init(_keep("images")), "no masks that pair with them", "cat_mask.png"),
    _refused(
        "a folder that is not there",
        lambda world: ["init", world.root / "nowhere", "--out", world.root / "mine.toml"],
        "there is no folder",
    ),
    _refused(
        "an image as folder",
        lambda world: ["init", world.image("val"), "--out", world.root / "mine.toml"],
        "there is no folder",
    ),
    _refused(
        "an --out that is no recipe",
        lambda world: ["init", world.data, "--out", world.root / "mine"],
        "mine must end in .toml",
        "mine.toml",
    ),
    _refused(
        "a recipe among the images",
        lambda world: ["init", world.data, "--out", world.data / "mine.toml"],
        "--out",
        "lies among the files that are read",
    ),
    Case(
        "a recipe in the place of another",
        lambda world: ["init", world.data, "--out", world.recipe],
        ("would replace", "recipe.toml", "--overwrite"),
        check=lambda world, _: _equal("init" in world.recipe.read_text(), False),
    ),
    Case(
        "a list in the place of another's notes",
        lambda world: ((world.user / "notes.train.txt").write_text("mine"), _another_s_list(world))[1],
        ("would replace", "notes.train.txt"),
        check=lambda world, _: _equal((world.user / "notes.toml").exists(), False),
    ),
    Case(
        "masks of another size than their images",
        _init(_masks(MASK[:, :-4])),
        ("masks of another size than their image: 8", "60 x 64, image 64 x 64"),
    ),
    _refused("masks that all hold one id", _init(_masks(MASK * 0)), "nothing but 0", "nothing to tell apart"),
    _refused("masks with smoothed edges", _init(_masks(GRADIENT)), "256 different ids", "without smoothing"),
    _refused("JPEG masks", _init(_masks(MASK * 255, suffix=".jpg")), "8 of 8 masks cannot be read", "is a JPEG"),
    _refused(
        "masks of which some are RGB",
        _init(_masks(MASK, np.stack([MASK * 90] * 3, -1))),
        "4 of 8 masks are RGB",
        "one form",
    ),
    _refused(
        "more ids than names",
        _init(_masks(MASK * 3 + GRADIENT // 128)),
        "classes.txt names 2 classes",
        "write a line for every id",
    ),
    _refused(
        "images for validation alone",
        _init(
            lambda world: [
                shutil.rmtree(world.data / kind / split) for kind in ("images", "masks") for split in ("train", "test")
            ]
        ),
        "there are images for val",
        "none for training",
    ),
]

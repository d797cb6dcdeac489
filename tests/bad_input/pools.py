"""Shares of masks, lists of images and images without masks that cannot be meant: said before the first step."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from tests.bad_input.world import SIZE, Answer, Case, World

Prepare = Callable[[World], Sequence[str | Path]]


def _plan(*words: str, change: Callable[[World], object] = lambda _: None) -> Prepare:
    def prepare(world: World) -> Sequence[str | Path]:
        change(world)
        return world.with_recipe("plan", "--schedule", "seg-only", *words)

    return prepare


def _list(text: str, change: Callable[[World], object] = lambda _: None) -> Prepare:
    """Return a plan with the masks of a list of images."""

    def prepare(world: World) -> Sequence[str | Path]:
        change(world)
        path = world.root / "kept.txt"
        path.write_text(text)
        return world.with_recipe("plan", "--schedule", "seg-only", "--labelled-fraction", path)

    return prepare


def _one_rare(world: World) -> None:
    """Let one image alone show one of the two classes."""
    for number in range(4):
        Image.fromarray(np.full(SIZE, number == 2, np.uint8)).save(world.mask("train", number))


def _pool(change: Callable[[Path], object]) -> Prepare:
    """Return a plan that reads images without masks, one of which is special."""

    def prepare(world: World) -> Sequence[str | Path]:
        folder = world.data / "images" / "unlabelled"
        folder.mkdir()
        for number, name in enumerate(("sound", "special")):
            shutil.copy(world.image("test", number), folder / f"{name}.png")
        change(folder / "special.png")
        return world.with_recipe("plan")

    return prepare


def _all_but_two(_world: World, answer: Answer) -> None:
    assert [phase["images_seen"] for phase in answer.json["phases"]] == [{"labelled": 2, "unlabelled": 0}]


def _without(*numbers: int) -> Callable[[World], object]:
    return lambda world: [world.mask("train", number).unlink() for number in numbers]


CASES = [
    Case(
        "a share of the masks that leaves a class without one",
        _plan("--labelled-fraction", "1/4", change=_one_rare),
        ("keeps 1 of 4 masks", "it takes 2", "smallest possible fraction is 2/4"),
    ),
    Case(
        "a share of the masks above 1",
        _plan("--labelled-fraction", "9/8"),
        ("labelled_fraction 9/8", "above 0 and at most 1"),
    ),
    Case(
        "a share of the masks that is none", _plan("--labelled-fraction", "1/0"), ("1/0", "neither a share, as 0.125")
    ),
    Case("a list of masks that names no image", _list("\n"), ("kept.txt names no image",)),
    Case("a list of masks that names a strange image", _list("train0\ntrian1\n"), ("1 that", "trian1", "train1")),
    Case("a list of masks that names one twice", _list("train0\ntrain1\ntrain0.png\n"), ("1 twice (train0)",)),
    Case(
        "a list of masks that names an image without one",
        _list("train0\ntrain3\n", _without(3)),
        ("images without a mask: 1 (train3)",),
    ),
    Case(
        "a list of masks beside which others are missing",
        _list("train0\nimages/train/train1.png\n", _without(2, 3)),
        (),
        exit=0,
        check=_all_but_two,
    ),
    Case(
        "training images without masks that nobody has allowed",
        _plan(change=_without(1)),
        ("images without a mask: 1 (train1)", "--unlabelled allow"),
    ),
    Case(
        "no training image with a mask",
        _plan("--unlabelled", "allow", change=_without(0, 1, 2, 3)),
        ("no training image of folder has a mask",),
    ),
    Case(
        "an image of the val split among those without masks",
        _pool(lambda path: shutil.copy(path.parents[1] / "val" / "val1.png", path)),
        ("images of the val split, by checksum: 1 (special)", "--unlabelled ignore"),
    ),
    Case(
        "an image without a mask that is no image",
        _pool(lambda path: path.write_bytes(b"no image")),
        ("unlabelled: images that cannot be read: 1 (special)",),
    ),
    Case(
        "images without masks that nobody has labelled with depth",
        _pool(lambda _: None),
        ("no depth store for folder unlabelled", "--split unlabelled"),
    ),
    Case(
        "images without masks of a dataset that has none",
        lambda world: world.with_recipe(
            "pseudo-depth", "--dataset", "camvid", "--data-root", world.data, "--split", "unlabelled"
        ),
        ("'camvid' brings no images without masks", "--labelled-fraction", "images/unlabelled"),
    ),
    Case(
        "scores of images without masks",
        lambda world: (
            _pool(lambda _: None)(world)
            and ["evaluate", world.run_folder("seg-only"), "--data-root", world.data, "--split", "unlabelled"]
        ),
        ("'unlabelled'", "without masks", "nothing can be scored"),
    ),
]

"""From files as people have them to predictions, by no more than the commands that `init` and `import` print."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image, ImageOps

from tests.bad_input.world import Answer
from tests.pipeline.own_photos import (
    CLASSES,
    take_photos,
    write_binary,
    write_labelme,
    write_voc,
    write_yolo,
)

Call = Callable[..., Answer]
TINY = {
    "encoder": '"tu-test_resnet"', "decoder_channels": "[8, 8, 8, 8, 8]", "epochs": "1", "batch_size": "4",
    "crop": "[64, 64]",
}  # fmt: skip
"""Keys of the written recipe, which make it quick."""
LEARNING = {"epochs": "5", "lr": "1e-2"}
"""Enough for leaves on sand."""
QUICK_EXPORT = ("--formats", "safetensors", "--no-benchmark")


class Journey(NamedTuple):
    """What somebody has, and what must come of it."""

    write: Callable[[Path], None]
    begin: tuple[str, ...]
    """The first command; the others are printed."""
    images: dict[str, int]
    classes: tuple[str, ...]


JOURNEYS = {
    "labelme": Journey(
        write_labelme, ("import", "labelme", "my photos", "--out", "my data"),
        {"train": 15, "val": 4, "unlabelled": 1}, CLASSES,
    ),
    "binary": Journey(
        write_binary, ("init", "my photos", "--out", "my data.toml"),
        {"train": 23, "val": 6, "unlabelled": 1}, ("background", "object"),
    ),
    "yolo": Journey(
        write_yolo, ("import", "yolo", "my photos", "--out", "my data"),
        {"train": 14, "val": 4, "unlabelled": 1}, CLASSES,
    ),
    "voc": Journey(
        write_voc, ("init", "my photos", "--out", "my data.toml"), {"train": 14, "val": 3, "unlabelled": 1}, CLASSES
    ),
}  # fmt: skip


def read_commands(answer: Answer) -> list[list[str]]:
    """Return the words of the commands that people see."""
    assert answer.status == 0, answer
    return [shlex.split(line)[1:] for line in answer.stdout.splitlines() if line.startswith("  pipeline ")]


def shrink(recipe: Path, changes: dict[str, str]) -> None:
    """Change values that the recipe has."""
    text = recipe.read_text()
    for key, value in changes.items():
        text, found = re.subn(rf"^{key} = .*$", f"{key} = {value}", text, count=1, flags=re.MULTILINE)
        assert found == 1, key
    recipe.write_text(text)


def read_tree(root: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


@pytest.mark.slow
@pytest.mark.parametrize("name", JOURNEYS)
def test_the_printed_commands_lead_to_predictions(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    journey, answers = JOURNEYS[name], dict[str, Any]()
    journey.write(tmp_path / "my photos")
    before = read_tree(tmp_path / "my photos")
    monkeypatch.chdir(tmp_path)
    commands = read_commands(call(*journey.begin, as_json=False))
    if journey.begin[0] == "import":
        with Image.open("my data/contact-sheet.png") as sheet:
            assert sheet.width > 4 * 192 and np.asarray(sheet.convert("L")).std() > 20
        (init,) = commands
        commands = read_commands(call(*init, as_json=False))
    shrink(Path("my data.toml"), TINY | (LEARNING if name == "binary" else {}))
    for words in commands:
        answer = call(*words, *(QUICK_EXPORT if words[0] == "export" else ()))
        assert answer.status == 0, answer
        answers[words[0]] = answer.json
    assert [*answers] == ["datasets", "pseudo-depth", "run", "export", "predict"]
    assert answers["datasets"]["problems"] == []
    assert {split: count for split, count in answers["datasets"]["images"].items() if count} == journey.images
    assert tuple(answers["datasets"]["classes"]["train"]) == journey.classes
    assert answers["pseudo-depth"]["labelled"] == sum(journey.images.values())
    assert answers["export"]["proof"]["max_abs_difference"]["stripped_vs_full"] == 0
    with Image.open(commands[-1][2]) as photo:
        size = ImageOps.exif_transpose(photo).size
    (labels,) = (Image.open(path) for path in answers["predict"]["files"] if "/labels/" in path)
    assert labels.size == size and labels.mode == "P"
    assert set(np.unique(np.array(labels)).tolist()) <= set(range(len(journey.classes)))
    if name == "binary":  # is it the leaf of that photo?
        drawn = next(photo for photo in take_photos(30) if photo.name == Path(commands[-1][2]).stem)
        leaf, seen = drawn.mask == CLASSES.index("leaf"), np.array(labels) == 1
        assert (leaf & seen).sum() > 0.7 * (leaf | seen).sum()
    assert read_tree(tmp_path / "my photos") == before


@pytest.mark.parametrize("name", ["labelme", "yolo"])
def test_people_are_told_what_was_decided(call: Call, tmp_path: Path, name: str) -> None:
    JOURNEYS[name].write(tmp_path / "in")
    (tmp_path / "out").mkdir()
    shown = call("--workdir", tmp_path / "w", "import", name, tmp_path / "in", "--out", tmp_path / "out", as_json=False)
    split, train = (
        ("some were drawn by name: 4 of 19", 15) if name == "labelme" else ("names ../test/images for test", 14)
    )
    assert split in shown.stdout and f"train: {train} images, val: " in shown.stdout
    assert "images that EXIF turns upright: 1" in shown.stdout
    assert f"look at  {tmp_path / 'out' / 'contact-sheet.png'}" in shown.stdout
    assert read_commands(shown)[0][:3] == ["--workdir", str(tmp_path / "w"), "init"]
    assert {path.name for path in tmp_path.iterdir()} <= {"in", "out", "w"}, "nothing is left beside it"

"""`pipeline import`: from another tool's annotations to predictions by the printed commands alone."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.bad_input.world import Answer
from tests.data_cache.annotation_files import write_labelme, write_photos, write_yolo

Call = Callable[..., Answer]
SIZE = (64, 80)
TINY = {
    "run": (
        "--encoder tu-test_resnet --iterations 1 --batch-size 2 --precision float32 "
        "--set network.decoder_channels=[8,8,8,8,8] --set data.crop=[64,64] --set evaluation.panels=0"
    ),
    "export": "--formats safetensors",
}
"""What makes the printed commands quick."""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["labelme", "yolo"])
def test_the_printed_commands_lead_to_predictions(call: Call, tmp_path: Path, kind: str) -> None:
    source, out = tmp_path / "my shots", tmp_path / "my data"
    if kind == "labelme":
        write_labelme(source, write_photos(source, 20, size=SIZE))
        write_photos(source, 2, names=["later1", "later2"], size=(66, 80))
    else:
        splits = {"train": write_photos(source / "images" / "train", 6, size=SIZE)}
        splits["val"] = write_photos(source / "images" / "val", 2, names=["v0", "v1"], size=(70, 80))
        write_yolo(source, splits)
    found = call("import", kind, source, "--out", out).json
    expected = {"train": 16, "val": 4, "unlabelled": 2} if kind == "labelme" else {"train": 6, "val": 2}
    assert found["images"] == expected and list(found["classes"]["train"]) == ["background", "leaf", "stone"]
    with Image.open(found["sheet"]) as sheet:
        assert sheet.width > 4 * 192 and np.asarray(sheet.convert("L")).std() > 20
    for line in found["next"]:
        program, command, *words = shlex.split(line)
        answer = call(command, *words, *TINY.get(command, "").split())
        assert (program, answer.status) == ("pipeline", 0), answer
    predicted = [Image.open(path).size for path in answer.json["files"] if "/labels/" in path]
    assert predicted == ([(80, 64)] * 4 if kind == "labelme" else [(80, 70)] * 2), "those of val"


def test_people_are_told_what_was_decided(call: Call, tmp_path: Path) -> None:
    write_labelme(tmp_path / "in", write_photos(tmp_path / "in", 3))
    (tmp_path / "out").mkdir()
    shown = call("import", "labelme", tmp_path / "in", "--out", tmp_path / "out", as_json=False)
    assert shown.status == 0 and "train: 2 images, val: 1 image\n" in shown.stdout
    assert "note: nothing says which images are for validation, so some were drawn by name: 1 of 3" in shown.stdout
    assert f"look at  {tmp_path / 'out' / 'contact-sheet.png'}" in shown.stdout
    assert {path.name for path in tmp_path.iterdir()} == {"in", "out"}, "nothing is left beside it"

"""The doctor finds each kind of damage, reports all of it at once, and raises nothing for it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data_cache.datasets.alignment import MOVES, find_better_move
from data_cache.datasets.doctor import DoctorReport, examine
from data_cache.errors import UserError


def save(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


@pytest.fixture
def camvid(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for stem in ("a", "b", "c"):
            save(tmp_path / split / f"{stem}.png", rng.integers(0, 255, (4, 8, 3), np.uint8))
            save(tmp_path / f"{split}annot" / f"{stem}.png", np.repeat(np.arange(8, dtype=np.uint8)[None], 4, axis=0))
    return tmp_path


def only_problem(report: DoctorReport) -> str:
    assert len(report.problems) == 1, report.problems
    return report.problems[0]


def test_a_sound_dataset_has_no_problems(camvid: Path) -> None:
    save(camvid / "trainannot" / "a.png", np.full((4, 8), 11, np.uint8))
    report = examine("camvid", camvid)
    assert report.problems == []
    assert report.images == {"train": 3, "val": 3, "test": 0}
    assert report.labelled == {"train": 3, "val": 3}
    assert report.void == {"train": pytest.approx(1 / 3), "val": 0.0}
    assert report.classes["train"]["sky"] == pytest.approx(1 / 8)
    assert sum(report.classes["train"].values()) == pytest.approx(1.0)
    assert report.classes["val"]["bicyclist"] == 0.0
    assert report.sizes["train"] == {"8 x 4": 3}
    assert report.id_table.endswith("10 = bicyclist, 11 = void")
    assert any("33% of the pixels are void" in note for note in report.notes)
    assert any("no pixel is labelled: car, pedestrian, bicyclist" in note for note in report.notes)
    assert any("the test split of camvid is empty" in note for note in report.notes)


def test_report_is_json(camvid: Path) -> None:
    assert set(json.loads(json.dumps(asdict(examine("camvid", camvid))))) >= {"problems", "images", "classes"}


def test_mask_without_image(camvid: Path) -> None:
    (camvid / "val" / "c.png").unlink()
    assert only_problem(examine("camvid", camvid)) == "val: masks without an image: 1 (c.png)"


def test_how_images_are_read_is_noted(camvid: Path) -> None:
    for stem in "ab":
        save(camvid / "train" / f"{stem}.png", np.full((64, 64, 4), 99, np.uint8))
        save(camvid / "trainannot" / f"{stem}.png", np.zeros((64, 64), np.uint8))
    report = examine("camvid", camvid, weighted=True)
    assert report.problems == ["train: images with a byte-identical copy within the split: 1; scores would flatter"]
    assert "train: images with transparent pixels, laid over white: 2 (a, b)" in report.notes
    assert any(note.startswith("train: images with a side below 64 px") and "1 (c)" in note for note in report.notes)


def test_unmapped_ids_print_the_table(camvid: Path) -> None:
    save(camvid / "trainannot" / "a.png", np.full((4, 8), 30, np.uint8))
    save(camvid / "trainannot" / "b.png", np.full((4, 8), 12, np.uint8))
    problem = only_problem(examine("camvid", camvid))
    assert problem.startswith("train: masks with ids outside the table: 2 (a, b); mask ")
    assert "ids outside the table: 30; known: 0 = sky, " in problem and problem.endswith("in all of them: 12, 30")


def test_many_problems_are_reported_together_and_briefly(camvid: Path) -> None:
    for index in range(20):
        save(camvid / "train" / f"x{index:02d}.png", np.full((4, 8, 3), index, np.uint8))
    shutil.rmtree(camvid / "val")
    problems = examine("camvid", camvid).problems
    assert "the val split of camvid is empty" in problems[0]
    assert "train: images without a mask: 20 (x00, x01, x02, x03, x04, …)" in problems[1]


def test_a_test_split_without_masks_is_meant_so(camvid: Path) -> None:
    save(camvid / "test" / "t.png", np.full((4, 8, 3), 7, np.uint8))
    report = examine("camvid", camvid)
    assert report.problems == []
    assert any("test: no image has a mask" in note for note in report.notes)


def test_root_that_is_no_dataset(tmp_path: Path) -> None:
    problem = only_problem(examine("voc", tmp_path))
    assert "is no VOCdevkit" in problem


def test_folder_splits_are_those_that_lie_there(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("ground\nthing\n")
    for number, split in enumerate(("summer", "winter")):
        save(tmp_path / "images" / split / "a.png", np.full((4, 8, 3), number, np.uint8))
        save(tmp_path / "masks" / split / "a.png", np.zeros((4, 8), np.uint8))
    (tmp_path / "depth" / "summer").mkdir(parents=True)
    report = examine("folder", tmp_path, depth_kind="metric", needed=())
    assert report.images == {"summer": 1, "winter": 1}
    assert "summer: ground-truth depth maps that cannot be read: 1 (a); depth map" in only_problem(report)
    missing = examine("folder", tmp_path, depth_kind="metric").problems[:2]
    assert missing[0].startswith(
        "there is no train split, which is trained on (there are: summer, winter); `pipeline init"
    )
    assert missing[1].startswith("there is no val split, which is scored")


def draw_boxes(seed: int, side: int = 96) -> tuple[np.ndarray, np.ndarray]:
    """Return a photo (side, side, 3) with bright boxes on a texture of its own, and their labels."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 120, (6, 6), np.uint8)).resize((side, side), Image.Resampling.BICUBIC)
    image, labels = np.asarray(coarse).astype(np.int16), np.zeros((side, side), np.uint8)
    for _ in range(3):
        top, left = rng.integers(10, side - 40, 2)
        labels[top : top + 26, left : left + 20] = 1
    image = image + 100 * labels + rng.integers(0, 9, labels.shape)
    return np.repeat(image[..., None], 3, axis=-1).clip(0, 255).astype(np.uint8), labels


def make_own(root: Path, change: Callable[[np.ndarray], np.ndarray] = lambda labels: labels) -> None:
    """Write 8 images for train and 4 for val, their labels changed."""
    for number in range(12):
        image, labels = draw_boxes(number)
        split = "train" if number < 8 else "val"
        save(root / "images" / split / f"{number}.png", image)
        save(root / "masks" / split / f"{number}.png", np.ascontiguousarray(change(labels)))
    (root / "classes.txt").write_text("ground\nbox\n")


@pytest.mark.parametrize(
    ("change", "options", "expected"),
    [
        (lambda labels: labels, {}, None),
        (lambda labels: labels * np.uint8(255), {}, "255 is a class: data.options.ids = [0, 255]"),
        (lambda labels: labels * np.uint8(0), {}, "train: ground has 100.00% of the labelled pixels"),
        (lambda labels: np.where(labels, 1, 11).astype(np.uint8), {}, "data.options.void_ids = [11, 255]"),
        (lambda labels: np.roll(labels, (6, -6), (0, 1)), {}, "train: masks are shifted, it seems: moved "),
        (lambda labels: labels[:, ::-1], {}, "train: masks are mirrored, it seems"),
        (
            lambda labels: labels,
            {"classes": ["ground", "box", "tree"]},
            "train: classes of which no pixel is labelled: tree",
        ),
        (lambda labels: labels * np.uint8(255), {"ids": [0, 255]}, None),
    ],
    ids=["sound", "0 and 255", "one class", "void", "shifted", "mirrored", "absent", "0 and 255, told"],
)
def test_what_spoils_a_training_is_a_problem_with_a_remedy(
    tmp_path: Path, change: Callable[[np.ndarray], np.ndarray], options: dict[str, Any], expected: str | None
) -> None:
    make_own(tmp_path, change)
    problems = examine("folder", tmp_path, **options).problems
    if expected is None:
        assert problems == []
    else:
        assert any(expected in problem for problem in problems), problems


def test_remedies_repair(tmp_path: Path) -> None:
    make_own(tmp_path, lambda labels: np.where(labels, 1, 11).astype(np.uint8))
    assert examine("folder", tmp_path, classes=["box"], ids=[1], void_ids=[11, 255], weighted=True).problems == []
    rare = tmp_path / "rare"
    make_own(rare, lambda labels: labels * (np.arange(labels.size).reshape(labels.shape) % 40 == 0).astype(np.uint8))
    alone, weighted = (examine("folder", rare, weighted=weighted) for weighted in (False, True))
    assert any("99." in line and 'loss.class_weights = "median-frequency"' in line for line in alone.problems)
    assert not any("99." in line for line in weighted.problems) and any("99." in line for line in weighted.notes)


def test_nearly_equal_images_across_splits_are_a_problem_and_one_scene_is_not(tmp_path: Path) -> None:
    make_own(tmp_path)
    copied = Image.open(tmp_path / "images" / "train" / "3.png")
    copied.resize((80, 80)).save(tmp_path / "images" / "val" / "9.jpg", quality=60)
    (tmp_path / "images" / "val" / "9.png").unlink()
    save(tmp_path / "masks" / "val" / "9.png", np.ones((80, 80), np.uint8))
    assert "val: images that nearly equal one of train: 1 (9 ~ 3)" in only_problem(examine("folder", tmp_path))
    for split in ("train", "val"):
        for path in (tmp_path / "images" / split).iterdir():
            pixels = np.asarray(copied).copy()
            pixels[40:50, 40:50] = int(path.stem) * 8
            Image.fromarray(pixels).resize(Image.open(path).size).save(path)
    report = examine("folder", tmp_path, weighted=True)
    assert not any("nearly" in line for line in report.problems)
    assert any(line.startswith("val: most images nearly equal one of train") for line in report.notes)


def test_scenes_are_sound(tmp_path: Path) -> None:
    report = examine("scenes", tmp_path, size=(32, 48), counts={"train": 3, "val": 2, "test": 2})
    assert report.problems == []
    assert report.images == {"train": 3, "val": 2, "test": 2}


def test_progress_is_reported(camvid: Path) -> None:
    calls: list[tuple[str, int, int]] = []
    examine("camvid", camvid, splits=("val",), progress=lambda *numbers: calls.append(numbers))
    assert calls == [("val", 1, 3), ("val", 2, 3), ("val", 3, 3)]


def test_what_is_asked_wrongly_is_an_error(camvid: Path) -> None:
    with pytest.raises(UserError, match="unknown dataset 'kamvid'"):
        examine("kamvid", camvid)
    with pytest.raises(UserError, match="has no option 'size'"):
        examine("camvid", camvid, size=3)
    with pytest.raises(UserError, match="there is no folder"):
        examine("camvid", camvid / "nowhere")


def test_a_move_that_leaves_no_border_hides_no_better_one() -> None:
    fits = np.zeros((6, len(MOVES)), np.float32)
    fits[:, 1], fits[:, MOVES.index("mirrored")] = np.nan, 1 + 0.01 * np.arange(6)
    assert find_better_move(list(fits)) == "mirrored"

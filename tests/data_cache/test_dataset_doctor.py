"""The doctor finds each kind of damage, reports all of it at once, and raises nothing for it."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

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
    report = examine("camvid", camvid)
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
    report = examine("folder", tmp_path, depth_kind="metric")
    assert report.images == {"summer": 1, "winter": 1}
    assert "summer: ground-truth depth maps that cannot be read: 1 (a); depth map" in only_problem(report)


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

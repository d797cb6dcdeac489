"""What may be taken as done: runs, nodes and stores are reused exactly as long as they are still what was asked for."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

Call = Callable[..., Any]
TINY = Path(__file__).parent / "tiny.toml"


def write_images(folder: Path, names: list[str], *, seed: int, masks: Path | None = None) -> None:
    """Write uncompressed images, whose files all have one size, and masks of two classes."""
    rng = np.random.default_rng(seed)
    for name in names:
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(folder / f"{name}.bmp")
        if masks:
            masks.mkdir(parents=True, exist_ok=True)
            mask = Image.fromarray(rng.integers(0, 2, (64, 64), dtype=np.uint8))
            mask.save(masks / f"{name}.png", compress_level=0)


@pytest.fixture
def own_data(tmp_path: Path) -> Iterator[list[str]]:
    """Arguments for a small dataset of one's own, labelled by the bundled estimator."""
    root = tmp_path / "own"
    for split, names in (("train", ["a", "b", "c", "d"]), ("val", ["e", "f"])):
        write_images(root / "images" / split, names, seed=len(names), masks=root / "masks" / split)
    (root / "classes.txt").write_text("ground\nthing\n")
    yield ["--recipe", str(TINY), "--dataset", "folder", "--data-root", str(root), "--iterations", "1"]


def test_asking_for_a_finished_run_makes_it_the_newest(call: Call) -> None:
    first = call("run", "--recipe", TINY, "--schedule", "seg-only", "--iterations", "1").json["run"]
    call("run", "--recipe", TINY, "--schedule", "seg-only", "--iterations", "1", "--seed", "1")
    again = call("run", "--recipe", TINY, "--schedule", "seg-only", "--iterations", "1").json
    assert again["run"] == first and again["phases"][0]["reused"]
    assert call("export", "--formats", "safetensors", "--no-benchmark").json["run"] == first


def test_a_run_is_evaluated_again_when_its_reported_split_or_depth_changes(
    call: Call, own_data: list[str], tmp_path: Path
) -> None:
    label = [*own_data[:-2], "--estimator", "bundled"]
    words = ["run", *own_data, "--estimator", "bundled", "--schedule", "joint"]
    assert call("pseudo-depth", *label, "--split", "train").status == 0
    first = call(*words)
    assert "depth_mse" not in first.json["metrics"] and "no depth metrics on split 'val'" in first.stderr
    assert call("pseudo-depth", *label, "--split", "val").status == 0
    second = call(*words).json
    assert second["run"] == first.json["run"] and second["phases"][0]["reused"]
    assert "depth_mse" in second["metrics"]

    Image.new("L", (64, 64), 1).save(tmp_path / "own/masks/val/e.png")
    third = call(*words).json
    assert third["phases"][0]["reused"] and third["metrics"] != second["metrics"]


def test_a_taught_estimator_labels_and_trains_by_its_path(call: Call, tmp_path: Path) -> None:
    teacher = tmp_path / "my teacher"
    teach = ["teach", "--recipe", TINY, "--out", teacher, "--init", "nano", "--steps", "16", "--batch-size", "2"]
    assert call(*teach).status == 0
    words = ["--recipe", TINY, "--estimator", teacher]
    assert call("pseudo-depth", *words).status == 0
    run = ["run", *words, "--schedule", "joint", "--iterations", "1"]
    assert call(*run).status == 0

    shutil.rmtree(teacher)
    assert call(*teach, "--seed", "5").status == 0
    answer = call(*run)
    assert answer.status == 2 and "made with other weights" in answer.json["error"]
    assert f"--estimator '{teacher}'" in answer.json["error"], "the command can be pasted"


def test_a_store_at_another_input_size_is_not_taken(call: Call) -> None:
    words = ["--recipe", TINY, "--estimator", "bundled"]
    assert call("pseudo-depth", *words).status == 0
    answer = call("run", *words, "--set", "depth.input_size=56")
    assert answer.status == 2 and "--set depth.input_size=56" in answer.json["error"]


def test_nothing_is_trained_for_an_empty_reported_split(call: Call, own_data: list[str], tmp_path: Path) -> None:
    for path in (tmp_path / "own/images/val").iterdir():
        path.unlink()
    answer = call("run", *own_data, "--schedule", "seg-only")
    assert answer.status == 2 and "the val split of folder is empty" in answer.json["error"]
    assert not (tmp_path / "work/nodes").exists()


def test_a_run_can_be_evaluated_from_another_folder(
    call: Call, own_data: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    own_data[own_data.index("--data-root") + 1] = "own"
    run = call("run", *own_data, "--schedule", "seg-only").json
    monkeypatch.chdir("/")
    monkeypatch.setenv("PIPELINE_WORKDIR", str(tmp_path / "elsewhere"))
    assert call("evaluate", run["folder"]).json["metrics"] == run["metrics"]


def test_a_damaged_node_that_is_removed_as_advised_is_trained_again(call: Call, tmp_path: Path) -> None:
    words = ["run", "--recipe", TINY, "--schedule", "seg-only", "--iterations", "1"]
    run = call(*words).json
    (tmp_path / "work/runs" / run["run"] / "run.json").unlink()
    folder = tmp_path / "work/nodes" / run["phases"][0]["key"]
    (folder / "node.json").write_text("{")
    assert f"remove the folder {folder}" in call(*words).json["error"]
    shutil.rmtree(folder)
    again = call(*words).json
    assert not again["phases"][0]["reused"] and again["metrics"] == run["metrics"]

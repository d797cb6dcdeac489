"""What is the same is pooled and reused, what differs is kept apart: data, numerics, metrics, versions."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from data_cache.content import ContentHashes
from pipeline.experiment.provenance import describe_numerics
from pipeline.threads import SPIN_COUNT, choose_thread_defaults, count_usable_cpus, read_cpu_quota
from stages.networks import build_network
from stages.networks.tensor_files import save_tensors
from stages.training.settings import TrainingSettings

Call = Callable[..., Any]
TINY = Path(__file__).parent / "tiny.toml"
RUN = ["run", "--recipe", TINY, "--schedule", "seg-only", "--iterations", "1"]


def make_folder(root: Path, classes: str, seed: int) -> Path:
    rng = np.random.default_rng(seed)
    for split in ("train", "val"):
        for kind in ("images", "masks"):
            (root / kind / split).mkdir(parents=True)
        for name in "abcd":
            Image.fromarray(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(root / f"images/{split}/{name}.png")
            Image.fromarray(rng.integers(0, 2, (64, 64), dtype=np.uint8)).save(root / f"masks/{split}/{name}.png")
    (root / "classes.txt").write_text(classes)
    return root


def edit_record(run: dict[str, Any], change: Callable[[dict[str, Any]], object]) -> Path:
    file = Path(run["folder"]) / "run.json"
    record = json.loads(file.read_text())
    change(record)
    file.write_text(json.dumps(record))
    return file


def test_two_datasets_of_one_name_are_two_rows(call: Call, tmp_path: Path) -> None:
    """They used to be pooled into one row of two seeds, whose interval was of two datasets."""
    for name, seed in (("A", 0), ("B", 1)):
        root = make_folder(tmp_path / name, f"ground\n{name}\n", seed)
        answer = call(*RUN, "--dataset", "folder", "--data-root", root, "--seed", seed)
        assert answer.status == 0
    refused = call("compare")
    assert refused.status == 2 and "data and reported split: other images or masks" in refused.json["error"]
    runs = sorted(path.name for path in (tmp_path / "work" / "runs").iterdir())
    assert all(f"folder at {tmp_path / name}, split val, cpu, float32: " in refused.json["error"] for name in "AB")
    assert all(run in refused.json["error"] for run in runs) and call("report").json == refused.json
    assert [row["seeds"] for row in call("compare", runs[0]).json["rows"]] == [[0]]
    compared = call("compare", "--across").json
    assert [row["seeds"] for row in compared["rows"]] == [[0], [1]]
    assert any("images or masks" in note for note in compared["notes"])


def test_a_copy_of_the_data_is_the_same_data(call: Call, tmp_path: Path) -> None:
    for name, seed in (("A", 0), ("B", 1)):
        root = make_folder(tmp_path / name, "ground\nthing\n", 0)
        call(*RUN, "--dataset", "folder", "--data-root", root, "--seed", seed)
    (row,) = call("compare").json["rows"]
    assert row["seeds"] == [0, 1]


def test_a_run_is_scored_where_its_data_lies_when_it_was_last_asked_for(call: Call, tmp_path: Path) -> None:
    root = make_folder(tmp_path / "A", "ground\nthing\n", 0)
    first = call(*RUN, "--dataset", "folder", "--data-root", root).json
    moved = root.rename(tmp_path / "B")
    again = call(*RUN, "--dataset", "folder", "--data-root", moved).json
    assert again["run"] == first["run"] and again["phases"][0]["reused"]
    assert call("evaluate", first["run"]).json["metrics"] == first["metrics"]


def test_weights_files_are_told_apart_by_content_and_not_by_name(call: Call, tmp_path: Path) -> None:
    """Runs from a file that was replaced in place used to be pooled into one row."""
    network = build_network("unet", 2, encoder="tu-test_resnet", encoder_weights="none")
    for seed, name, value in ((0, "old", 0.1), (1, "old", 0.2), (2, "new", 0.2)):
        save_tensors(tmp_path / f"{name}.safetensors", {k: v * value for k, v in network.encoder.state_dict().items()})
        weights = f"network.encoder_weights={tmp_path / name}.safetensors"
        assert call(*RUN, "--set", weights, "--seed", seed).status == 0
    assert [row["seeds"] for row in call("compare").json["rows"]] == [[0], [1, 2]]


def test_a_run_that_began_on_another_device_is_another_row(call: Call, tmp_path: Path) -> None:
    words = ["run", "--recipe", TINY, "--iterations", "1"]
    assert call("pseudo-depth", "--recipe", TINY).status == 0
    first = call(*words, "--schedule", "depth-then-seg").json["phases"][0]["key"]
    file = tmp_path / "work" / "nodes" / first / "node.json"
    record = json.loads(file.read_text())
    record["numerics"]["device"] = "cuda"
    file.write_text(json.dumps(record))
    for seed in (0, 1):
        call(*words, "--schedule", "depth-first-direct", "--seed", seed)
    rows = [row for row in call("compare", "--across").json["rows"] if row["name"] == "depth-first-direct"]
    assert sorted(((row["seeds"], row["identity"]["numerics"]["device"]) for row in rows), key=str) == [
        ([0], ["cuda", "cpu"]),
        ([1], "cpu"),
    ]


def test_other_numerics_are_another_row(call: Call) -> None:
    call(*RUN, "--precision", "float32")
    call(*RUN, "--precision", "bfloat16", "--seed", 1)
    assert "numerics: dtype float32 / bfloat16" in call("compare").json["error"]
    assert [row["seeds"] for row in call("compare", "--across").json["rows"]] == [[0], [1]]


def test_numerics_say_what_was_switched_on() -> None:
    """A switch that is off says nothing, so that runs from before it had a name are the same row."""
    usual = TrainingSettings(precision="float32")
    plain = {"device": "cpu", "dtype": "float32", "tf32": False, "compile": False}
    assert describe_numerics(torch.device("cpu"), usual) == plain
    changes = {"deterministic": True, "compile": True, "compile_mode": "reduce-overhead", "tf32": True}
    switched = usual.model_copy(update=changes)
    assert describe_numerics(torch.device("cpu"), switched) == {
        **plain, "compile": "reduce-overhead", "deterministic": True,
    }  # fmt: skip
    assert describe_numerics(torch.device("cuda:1"), switched)["tf32"] is True


def test_auto_is_the_same_training_as_what_it_comes_to(call: Call) -> None:
    auto = call(*RUN, "--precision", "auto").json
    named = json.loads((Path(auto["folder"]) / "run.json").read_text())["config"]["training"]["precision"]
    assert named in ("bfloat16", "float16", "float32")
    assert call(*RUN, "--precision", named).json["run"] == auto["run"]


@pytest.mark.parametrize("command", ["compare", "evaluate", "run"])
def test_scores_of_an_older_version_are_computed_anew_without_training(call: Call, command: str) -> None:
    run = call(*RUN).json
    (weights,) = Path(run["folder"]).parent.parent.glob("nodes/*/weights.safetensors")
    trained_at = weights.stat().st_mtime_ns

    def age(record: dict[str, Any]) -> None:
        record["evaluation"]["version"] -= 1
        record["metrics"] = {"miou_macro": 0.123}

    file = edit_record(run, age)
    answer = call(*{"compare": ["compare"], "evaluate": ["evaluate", run["run"]], "run": RUN}[command])
    assert answer.status == 0 and weights.stat().st_mtime_ns == trained_at, "nothing is trained"
    assert json.loads(file.read_text())["metrics"] == run["metrics"]


@pytest.mark.parametrize("command", ["compare", "run"])
def test_what_images_scored_is_written_anew_where_it_is_missing(call: Call, command: str) -> None:
    run = call(*RUN).json
    file = Path(run["folder"]) / "images.npz"
    written = file.read_bytes()
    file.unlink()
    assert call(*{"compare": ["compare"], "run": RUN}[command]).status == 0
    assert file.read_bytes() == written


def test_weights_trained_again_are_scored_again(call: Call) -> None:
    """A phase trained again on another device has the same key and other weights."""
    run = call(*RUN).json
    (weights,) = Path(run["folder"]).parent.parent.glob("nodes/*/weights.safetensors")
    tensors = load_file(weights)
    save_file({name: value * 2 if value.is_floating_point() else value for name, value in tensors.items()}, weights)
    record = json.loads((weights.parent / "node.json").read_text())
    (weights.parent / "node.json").write_text(json.dumps(record | {"weights": ContentHashes().hash((weights,))}))
    for command in ("evaluate", "export"):
        assert "has the scores of other weights" in call(command, run["run"]).json["error"]
    again = call(*RUN).json
    assert again["run"] == run["run"] and again["metrics"] != run["metrics"]
    assert again["metrics"] == call("evaluate", run["run"]).json["metrics"]


def test_a_run_of_an_older_version_of_the_program_is_refused_with_its_command(call: Call) -> None:
    run = call(*RUN).json
    edit_record(run, lambda record: record.pop("format"))
    for words in (["evaluate", run["run"]], ["export", run["run"]]):
        answer = call(*words)
        assert answer.status == 2 and "older version" in answer.json["error"] and "pipeline" in answer.json["error"]


def test_a_phase_keeps_its_work_under_another_name(call: Call, tmp_path: Path) -> None:
    recipe = tmp_path / "own.toml"
    step = '\n[[schedule.steps]]\nphase = "NAME"\ntrains = ["encoder", "seg-branch"]\nseg = 1.0\n'
    plain = TINY.read_text().replace('name = "depth-first"\ncopy_weights = true', 'name = "own"')
    folders = []
    for name in ("first", "second"):
        recipe.write_text(plain.replace('name = "own"', f'name = "{name}-own"' + step.replace("NAME", name)))
        run = call("run", "--recipe", recipe).json
        folders.append(run["phases"][0]["key"])
        log = (Path(run["folder"]) / "metrics.jsonl").read_text().splitlines()
        assert {json.loads(line)["phase"] for line in log} == {name}, "the log has the names of its run"
    assert folders[0] == folders[1] and run["phases"][0]["reused"]


@pytest.mark.parametrize(
    ("text", "cpus"), [("150000 100000\n", 1.5), ("max 100000\n", float("inf")), ("nonsense", float("inf"))]
)
def test_threads_follow_what_the_process_may_use(tmp_path: Path, text: str, cpus: float) -> None:
    file = tmp_path / "cpu.max"
    file.write_text(text)
    assert read_cpu_quota(file) == cpus
    assert read_cpu_quota(tmp_path / "missing") == float("inf")
    assert count_usable_cpus() >= 1


def test_what_the_user_says_of_threads_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMP_WAIT_POLICY", "OMP_NUM_THREADS", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(name, raising=False)
    choose_thread_defaults()
    assert int(os.environ["OMP_NUM_THREADS"]) == count_usable_cpus() and os.environ["GOMP_SPINCOUNT"] == SPIN_COUNT
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    monkeypatch.delenv("GOMP_SPINCOUNT")
    choose_thread_defaults()
    assert os.environ["OMP_NUM_THREADS"] == "7" and "GOMP_SPINCOUNT" not in os.environ

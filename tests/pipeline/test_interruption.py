"""Killed at any moment, the same command continues and ends as if nothing had happened."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from data_cache.depth_store import DepthStore

TINY = Path(__file__).parent / "tiny.toml"
Start = Callable[..., subprocess.Popen[str]]
LONG = ["--recipe", TINY, "--schedule", "depth-first", "--copy-weights", "--iterations", "30", "--set",
        "training.checkpoint_minutes=1e-9", "--set", "training.ema_decay=0.9"]  # fmt: skip


def finish(process: subprocess.Popen[str]) -> None:
    """Wait for a process and show its words if it failed."""
    _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said


def kill_when(process: subprocess.Popen[str], reached: Callable[[], bool]) -> None:
    """Send SIGKILL as soon as a point is reached; the process must not have ended before."""
    deadline = time.monotonic() + 240
    while not reached():
        assert process.poll() is None, f"ended before the point was reached: {process.communicate()[1]}"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert process.returncode == -signal.SIGKILL


def steps_of_unfinished_node(work: Path) -> int:
    """Return how many steps the node in training has logged."""
    logs = [log for log in work.glob("nodes/*/metrics.jsonl") if not (log.parent / "node.json").exists()]
    return max((len(log.read_text().splitlines()) for log in logs), default=0)


def finished_nodes(work: Path) -> int:
    return len(list(work.glob("nodes/*/node.json")))


def weights_and_logs(work: Path) -> dict[str, tuple[dict[str, bytes], str]]:
    """Return every finished node's tensors and log, by key."""
    return {
        node.parent.name: (
            {name: value.tobytes() for name, value in load_file(node.parent / "weights.safetensors").items()},
            (node.parent / "metrics.jsonl").read_text(),
        )
        for node in work.glob("nodes/*/node.json")
    }


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_killed_in_two_phases_ends_with_the_same_bits(start: Start, tmp_path: Path, workers: int) -> None:
    words = ["run", *LONG, "--workers", workers]
    finish(start("pseudo-depth", "--recipe", TINY))
    work = tmp_path / "work"
    kill_when(start(*words), lambda: steps_of_unfinished_node(work) >= 10)
    assert finished_nodes(work) == 0
    kill_when(start(*words), lambda: finished_nodes(work) == 1 and steps_of_unfinished_node(work) >= 14)
    finish(start(*words))
    assert any("resumed_from" in node.read_text() for node in work.glob("nodes/*/node.json"))
    disturbed = weights_and_logs(work)

    undisturbed = tmp_path / "undisturbed"
    finish(start("--workdir", undisturbed, "pseudo-depth", "--recipe", TINY))
    finish(start("--workdir", undisturbed, "run", *LONG))
    assert weights_and_logs(undisturbed) == disturbed


def test_ctrl_c_saves_says_so_and_the_command_continues(start: Start, tmp_path: Path) -> None:
    words = [
        "run",
        "--recipe",
        TINY,
        "--schedule",
        "seg-only",
        "--iterations",
        "60",
        "--set",
        "training.checkpoint_minutes=1000.0",
    ]
    work = tmp_path / "work"
    process = start(*words)
    while steps_of_unfinished_node(work) < 5:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "interrupted" in said and "Traceback" not in said
    done = steps_of_unfinished_node(work)
    finish(start(*words))
    (record,) = work.glob("nodes/*/node.json")
    assert f'"resumed_from": {done}' in record.read_text()


@pytest.mark.slow
def test_labelling_killed_half_way_ends_with_the_same_maps(start: Start, tmp_path: Path) -> None:
    many = "data.options={size=[64,64],counts={train=40,val=4,test=4}}"
    words = [
        "pseudo-depth",
        "--recipe",
        TINY,
        "--set",
        many,
        "--estimator",
        "bundled",
        "--split",
        "train",
        "--batch-size",
        "2",
    ]
    work = tmp_path / "work"
    kill_when(start(*words), lambda: len(list(work.glob("depth/*/*/*.h5"))) >= 2)
    (folder,) = work.glob("depth/*/*")
    before = len(DepthStore(folder))
    assert 0 < before < 40, "a killed store opens, and holds what was committed"
    finish(start(*words))

    finish(start("--workdir", tmp_path / "undisturbed", *words))
    (other,) = (tmp_path / "undisturbed").glob("depth/*/*")
    assert other.name == folder.name
    repaired, whole = DepthStore(folder), DepthStore(other)
    assert repaired.image_ids == whole.image_ids and len(whole) == 40
    for image_id in whole.image_ids:
        # batches fall differently after a restart, and a sum in another order differs in its last bits
        np.testing.assert_allclose(repaired.read(image_id).raw, whole.read(image_id).raw, rtol=2e-2, atol=2e-3)

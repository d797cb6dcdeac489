"""An interruption says what was kept and loses no step. Kills at any moment: tests/crash."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.interruption import interruptible

TINY = Path(__file__).parent / "tiny.toml"
Start = Callable[..., subprocess.Popen[str]]
WORDS = ["run", "--recipe", TINY, "--schedule", "seg-only", "--iterations", "100000",
         "--set", "training.checkpoint_minutes=1000.0"]  # fmt: skip


def count_logged_steps(work: Path) -> int:
    """Return how many steps the node in training has logged."""
    return max((len(log.read_text().splitlines()) for log in work.glob("nodes/*/metrics.jsonl")), default=0)


@pytest.mark.slow
def test_a_signal_to_all_processes_loses_no_step(start: Start, tmp_path: Path) -> None:
    """Loader workers included, as from a terminal."""
    words, work = [*WORDS, "--workers", 2], tmp_path / "work"
    process = start(*words)
    while count_logged_steps(work) < 5:
        assert process.poll() is None
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    answer, said = process.communicate(timeout=120)
    assert process.returncode == 130
    assert list(json.loads(answer)) == ["interrupted"]
    assert said.strip().splitlines()[-1].startswith("interrupted: stopped in phase 'seg' after ")
    assert "Traceback" not in said
    (state,) = work.glob("nodes/*/checkpoint/step-*")
    assert int(state.name.removeprefix("step-")) == count_logged_steps(work)


def hear_two_signals() -> None:
    """Do what a worker does whose second signal ends it at once, as the first one does within a long import."""
    with interruptible(json_mode=True, last=True):
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        time.sleep(0.3)  # one that comes at once is the same wish
        signal.raise_signal(signal.SIGTERM)


@pytest.mark.slow
def test_only_the_first_process_says_that_it_was_interrupted(capfd: pytest.CaptureFixture[str]) -> None:
    worker = multiprocessing.get_context("spawn").Process(target=hear_two_signals)
    worker.start()
    worker.join(60)
    assert worker.exitcode == 130 and capfd.readouterr() == ("", "")

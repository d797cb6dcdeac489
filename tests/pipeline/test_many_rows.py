"""A table's rows in many processes: each phase is trained once, by whomever, to the bits that one process trains."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
RECIPE = ("--recipe", str(HERE / "tiny.toml"))
TABLE = (
    "table", "few", *RECIPE, "--device", "cpu", "--encoder", "tu-test_resnet", "--set", "data.workers=0",
    "--set", "network.decoder_channels=[8,8,8,8,8]",
)  # fmt: skip
NODES = 4
"""Phases of the table: seg and depth first, then a joint one after either."""


def start(work: Path, *words: str, threads: int = 1) -> subprocess.Popen[str]:
    """Start the command line, with the small table, in a session of its own."""
    command = [sys.executable, str(HERE / "few_rows.py"), "--workdir", str(work), "--json", *words]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(HERE.parents[1])}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def finish(process: subprocess.Popen[str], status: int = 0) -> tuple[dict[str, Any], str]:
    """Return the command's object and what it said."""
    answer, said = process.communicate(timeout=240)
    assert process.returncode == status, said
    assert "Traceback" not in said
    return json.loads(answer), said


def wait_for_training(work: Path, process: subprocess.Popen[str]) -> int:
    """Return the number of a process that is training a phase, and has saved a state of it."""
    while process.poll() is None:
        for lock in work.glob("nodes/*/.lock"):
            with contextlib.suppress(OSError):  # gone just now
                found = re.match(r"pid (\d+) on ", lock.read_text())
                if found and any(lock.parent.glob("checkpoint/step-*")):
                    return int(found[1])
        time.sleep(0.005)
    raise AssertionError(process.communicate())


def what_came_of(work: Path) -> dict[str, bytes]:
    """Return every phase's weights and every run's scores and losses."""
    found = {str(path.relative_to(work)): path.read_bytes() for path in work.glob("nodes/*/weights.safetensors")}
    found |= {str(path.relative_to(work)): path.read_bytes() for path in work.glob("runs/*/metrics.jsonl")}
    for path in work.glob("runs/*/run.json"):
        record = json.loads(path.read_text())
        found[str(path.relative_to(work))] = json.dumps([record["metrics"], record["evaluation"]]).encode()
    return found


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A work directory with depth of both splits."""
    work = tmp_path_factory.mktemp("many") / "work"
    finish(start(work, "pseudo-depth", *RECIPE))
    return work


@pytest.fixture(scope="module")
def alone(labelled: Path) -> dict[str, bytes]:
    """What comes of the table in one process, one row after another."""
    work = labelled.with_name("alone")
    shutil.copytree(labelled, work)
    assert finish(start(work, *TABLE))[0]["trained"] == NODES
    return what_came_of(work)


@pytest.fixture
def work(labelled: Path, tmp_path: Path) -> Path:
    """A labelled work directory of the test's own."""
    shutil.copytree(labelled, tmp_path / "work")
    return tmp_path / "work"


def test_a_table_in_two_jobs_of_which_one_is_killed_is_that_of_one_process(work: Path, alone: dict[str, bytes]) -> None:
    process = start(work, *TABLE, "--jobs", "2", threads=2)
    os.kill(wait_for_training(work, process), signal.SIGKILL)
    answer, _ = finish(process)
    assert answer["trained"] == NODES
    assert what_came_of(work) == alone


def test_two_processes_on_one_work_directory_share_the_work(work: Path, alone: dict[str, bytes]) -> None:
    answers = [finish(each)[0] for each in [start(work, *TABLE, "--wait") for _ in range(2)]]
    assert sum(answer["trained"] for answer in answers) == NODES
    assert answers[0]["rows"] == answers[1]["rows"] and len(answers[0]["rows"]) == 3
    assert what_came_of(work) == alone


def test_an_interruption_keeps_what_every_job_has_done(work: Path) -> None:
    process = start(work, *TABLE, "--jobs", "2", "--iterations", "100000", threads=2)
    wait_for_training(work, process)
    os.killpg(process.pid, signal.SIGINT)
    answer, said = finish(process, 130)
    assert list(answer) == ["interrupted"] and "steps; the state is in" in answer["interrupted"], said
    for node in work.glob("nodes/*"):
        (state,) = node.glob("checkpoint/step-*")
        assert int(state.name.removeprefix("step-")) == len((node / "metrics.jsonl").read_text().splitlines())
        assert not (node / ".lock").exists()


def test_a_table_on_ray_whose_worker_is_killed_is_that_of_one_process(work: Path, alone: dict[str, bytes]) -> None:
    process = start(work, *TABLE, "--on", "ray", "--address", "local", threads=2)
    os.kill(wait_for_training(work, process), signal.SIGKILL)
    answer, said = finish(process)
    assert answer["trained"] == NODES
    assert all(line.startswith(("[", "looking at")) for line in said.splitlines()), "Ray says nothing"
    assert what_came_of(work) == alone

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
import torch

from pipeline.cli import main
from pipeline.experiment.slurm import write_script
from pipeline.experiment.tables import TABLES
from pipeline.workspace import Workspace
from tests.pipeline.few_rows import FEW

pytestmark = pytest.mark.slow
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


def start_script(script: Path, number: int) -> subprocess.Popen[str]:
    """Start a job of a SLURM array."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parents[1])}
    environment |= {"SLURM_ARRAY_TASK_ID": str(number)}
    return subprocess.Popen(
        ["bash", script], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(process: subprocess.Popen[str], status: int = 0) -> tuple[dict[str, Any], str]:
    """Return the command's object and what it said."""
    answer, said = process.communicate(timeout=240)
    assert process.returncode == status, said
    assert "Traceback" not in said
    return json.loads(answer), said


def run_here(work: Path, *words: str) -> None:
    """Run the command line in this process."""
    with pytest.raises(SystemExit) as ended:
        main(["--workdir", str(work), "--quiet", *words])
    assert ended.value.code == 0


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
    run_here(work, "pseudo-depth", *RECIPE)
    return work


@pytest.fixture(scope="module")
def alone(labelled: Path) -> dict[str, bytes]:
    """What comes of the table in one process with one thread, one row after another."""
    work, threads = labelled.with_name("alone"), torch.get_num_threads()
    shutil.copytree(labelled, work)
    TABLES["few"] = FEW
    torch.set_num_threads(1)
    run_here(work, *TABLE)
    torch.set_num_threads(threads)
    del TABLES["few"]
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


@pytest.mark.exhaustive
def test_the_jobs_of_a_slurm_array_share_the_work(labelled: Path, alone: dict[str, bytes], tmp_path: Path) -> None:
    work, script = tmp_path / 'it\'s "my" $HOME' / "work", tmp_path / "my jobs.sh"
    shutil.copytree(labelled, work)
    finish(start(work, "plan", *TABLE[1:], "--slurm", str(script), "--gpus", "2"))
    text = script.read_text().replace("-m pipeline.cli", f"{HERE / 'few_rows.py'} --json")
    script.write_text(text)
    assert subprocess.run(["bash", "-n", script], check=False).returncode == 0
    answers = [finish(job)[0] for job in [start_script(script, number) for number in (1, 2)]]
    assert sum(answer["trained"] for answer in answers) == NODES
    assert answers[0]["rows"] == answers[1]["rows"] and len(answers[0]["rows"]) == 3
    assert what_came_of(work) == alone


def test_a_slurm_job_on_a_machine_with_another_work_directory_is_refused(tmp_path: Path) -> None:
    script = tmp_path / "jobs.sh"
    script.write_text(write_script("few", ["few"], 2, Workspace(tmp_path / "work")))
    shutil.rmtree(tmp_path / "work")
    (tmp_path / "work").mkdir()
    refused = start_script(script, 1)
    _, said = refused.communicate(timeout=60)
    assert refused.returncode == 2 and "must lie on a shared disk" in said
    assert not list((tmp_path / "work").iterdir())


@pytest.mark.exhaustive
def test_an_interruption_keeps_what_every_job_has_done(work: Path) -> None:
    process = start(work, *TABLE, "--jobs", "2", "--iterations", "100000", threads=2)
    wait_for_training(work, process)
    os.killpg(process.pid, signal.SIGINT)
    answer, said = finish(process, 130)
    assert list(answer) == ["interrupted"] and "steps; the state is in" in answer["interrupted"], said
    logged = {log.parent: len(log.read_text().splitlines()) for log in work.glob("nodes/*/metrics.jsonl")}
    kept = {state.parents[1]: int(state.name.removeprefix("step-")) for state in work.glob("nodes/*/checkpoint/step-*")}
    assert kept and kept == {node: steps for node, steps in logged.items() if steps}
    assert not list(work.glob("nodes/*/.lock"))


@pytest.mark.exhaustive
def test_a_table_on_ray_whose_worker_is_killed_is_that_of_one_process(work: Path, alone: dict[str, bytes]) -> None:
    process = start(work, *TABLE, "--on", "ray", "--address", "local", threads=2)
    os.kill(wait_for_training(work, process), signal.SIGKILL)
    answer, said = finish(process)
    assert answer["trained"] == NODES
    assert all(line.startswith(("[", "looking at")) for line in said.splitlines()), "Ray says nothing"
    assert what_came_of(work) == alone

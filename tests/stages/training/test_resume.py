"""A killed training continues in the middle of a phase and ends with the same bits, weights and log alike."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "killed_training.py"
ROOT = Path(__file__).parents[3]


def start(folder, *arguments):
    folder.mkdir(exist_ok=True)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), str(folder), *arguments],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,  # signals to the group then reach the loader workers, as in a terminal
    )


def finish(folder, *arguments):
    process = start(folder, *arguments, "never")
    output = process.communicate()[0]
    assert process.returncode == 0, output
    return output


def strike(folder, *arguments, with_signal):
    """Run until the process hangs at the step given last, then signal its group; return output and status."""
    process = start(folder, *arguments)
    try:
        assert "hanging\n" in iter(process.stdout.readline, ""), "ended before the step at which to strike"
        os.killpg(process.pid, with_signal)
        return process.communicate()[0], process.returncode
    finally:
        process.kill()
        process.wait()


def contents(folder):
    names = ("depth.safetensors", "joint.safetensors", "metrics.jsonl")
    assert sorted(path.name for path in folder.iterdir()) == sorted(names)
    return {name: (folder / name).read_bytes() for name in names}


@pytest.mark.parametrize(
    "arguments", [("0", "adam", "uncertainty"), ("2", "sgd", "dwa")], ids=["0-workers", "2-workers"]
)
def test_killed_in_two_phases_it_ends_as_if_undisturbed(tmp_path, arguments):
    disturbed, undisturbed = tmp_path / "disturbed", tmp_path / "undisturbed"
    for hang_at in ("depth:5", "joint:4"):  # one or two steps after a checkpoint, which must be done again
        _, status = strike(disturbed, *arguments, hang_at, with_signal=signal.SIGKILL)
        assert status == -signal.SIGKILL
    assert finish(disturbed, *arguments) == "joint resumed from 3\n"
    assert finish(undisturbed, *arguments) == "depth resumed from 0\njoint resumed from 0\n"
    assert contents(disturbed) == contents(undisturbed)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_between_checkpoints_it_loses_no_step(tmp_path, number):
    disturbed, undisturbed = tmp_path / "disturbed", tmp_path / "undisturbed"
    arguments = ("2", "adam", "fixed")
    output, status = strike(disturbed, *arguments, "depth:5", with_signal=number)
    assert status == 130
    assert "stopped in phase 'depth' after 5 of 8 steps" in output
    assert finish(disturbed, *arguments) == "depth resumed from 5\njoint resumed from 0\n"
    finish(undisturbed, *arguments)
    assert contents(disturbed) == contents(undisturbed)

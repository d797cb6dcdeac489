"""A killed training continues in the middle of a phase and ends with the same bits, weights and log alike."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from killed_training import train

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


@pytest.fixture
def finish(capsys):
    """Train to the end in this process, with the one thread of the others; returns what was printed."""

    def run(folder, workers, optimizer, weighting):
        folder.mkdir(exist_ok=True)
        train(folder, int(workers), optimizer, weighting, "never")
        return capsys.readouterr().out

    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield run
    torch.set_num_threads(num_threads)


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
    names = ("depth.safetensors", "joint.safetensors", "depth.jsonl", "joint.jsonl")
    assert sorted(path.name for path in folder.iterdir()) == sorted(names)
    return {name: (folder / name).read_bytes() for name in names}


@pytest.mark.parametrize(
    ("arguments", "kill_at", "interrupt_at", "with_signal"),
    [
        (("0", "adam", "uncertainty"), "depth:5", "joint:4", signal.SIGTERM),
        (("2", "sgd", "dwa"), "joint:5", "depth:4", signal.SIGINT),
    ],
    ids=["0-workers", "2-workers"],
)
def test_killed_and_interrupted_it_ends_as_if_undisturbed(
    tmp_path, finish, arguments, kill_at, interrupt_at, with_signal
):
    """A kill loses the step that was not saved yet, a signal none."""
    disturbed, undisturbed = tmp_path / "disturbed", tmp_path / "undisturbed"
    for strike_at in sorted((kill_at, interrupt_at)):
        number = signal.SIGKILL if strike_at == kill_at else with_signal
        output, status = strike(disturbed, *arguments, strike_at, with_signal=number)
        if strike_at == kill_at:
            assert status == -signal.SIGKILL
        else:
            assert status == 130
            assert re.search(r"stopped in phase '\w+' after 4 of 8 steps", output)
    assert finish(disturbed, *arguments) == "joint resumed from 4\n"
    assert finish(undisturbed, *arguments) == "depth resumed from 0\njoint resumed from 0\n"
    assert contents(disturbed) == contents(undisturbed)

"""A sample of `make test-crash`: whatever stops a command, repeating it ends as if nothing had happened."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.exhaustive
def test_whatever_stops_a_command_repeating_it_ends_as_if_undisturbed():
    command = [sys.executable, "-m", "tests.crash", "--kills", "4", "--only", "labelling", "--only", "training"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "labelling" in done.stdout

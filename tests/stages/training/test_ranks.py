"""Two ranks that share every batch train what one process trains: weights, statistics, losses and gradient norms."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from ranks_worker import CASES, train
from safetensors.torch import load_file

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def of_two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes on gloo made of all cases."""
    folder = tmp_path_factory.mktemp("ranks")
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
        str(Path(__file__).with_name("ranks_worker.py")), str(folder),
    ]  # fmt: skip
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("name", CASES)
def test_two_ranks_train_what_one_process_trains(of_two_ranks: Path, name: str) -> None:
    alone, together = train(CASES[name]), load_file(of_two_ranks / f"{name}.safetensors")
    tolerance = 2e-2 if CASES[name].dtype == "bfloat16" else 1e-5  # bfloat16 has 8 bits, and rows are summed apart
    assert alone.keys() == together.keys()
    for key, value in alone.items():
        difference = (together[key].double() - value.double()).abs().max().item()
        assert difference <= tolerance, key

"""Every line of the GPU benchmark runs on a CPU; without a GPU it says so in one message."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.benchmarks import gpu


@pytest.mark.exhaustive
def test_every_line_runs_on_a_cpu(tmp_path: Path) -> None:
    assert gpu.main(["--device", "cpu", "--small", "--json", str(tmp_path / "figures.json")]) == 0
    figures = json.loads((tmp_path / "figures.json").read_text())
    measured = list(dict.fromkeys(line["bench"] for line in figures["lines"]))
    assert measured == ["matmul", "labelling", "step", "data", "codec"]
    assert all(line["found"] > 0 for line in figures["lines"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_there_is_one_message(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main([]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1

"""The command line as a person calls it, on a tiny recipe, in a work directory of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline.cli import main
from tests.bad_input.world import Answer

TINY = Path(__file__).parent / "tiny.toml"


@pytest.fixture
def call(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Answer]:
    """Call the command line in this process, in ``tmp_path / "work"``, with ``--json``."""
    monkeypatch.setenv("PIPELINE_WORKDIR", str(tmp_path / "work"))

    def run(*words: str | Path, as_json: bool = True) -> Answer:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([*(["--json"] if as_json else []), *map(str, words)])
        captured = capsys.readouterr()
        return Answer(ended.value.code or 0, captured.out, captured.err)

    return run


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start the command line as a process of its own, in ``tmp_path / "work"``; none outlives the test."""
    started: list[subprocess.Popen[str]] = []

    def run(*words: str | Path) -> subprocess.Popen[str]:
        environment = os.environ | {"PIPELINE_WORKDIR": str(tmp_path / "work"), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "pipeline.cli", "--json", *map(str, words)]
        process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        started.append(process)
        return process

    yield run
    for process in started:
        process.kill()

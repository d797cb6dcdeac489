"""What the console shows of names is the names."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.console import Console, plain_table


def test_cells_of_tables_are_text_and_not_markup(capsys: pytest.CaptureFixture[str]) -> None:
    names = ["[bold]street[/bold]", "[/red]", "road\x1b[31m"]
    Console().result({}, plain_table("Classes", ["class", *names], [[name, 7, 8, 9] for name in names]))
    shown = capsys.readouterr().out
    assert shown.count("[bold]street[/bold]") == 2 and shown.count("[/red]") == 2
    assert r"road\x1b[31m" in shown and "\x1b" not in shown


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_a_full_disk_behind_stdout_is_one_message(form: list[str]) -> None:
    with Path("/dev/full").open("wb") as full:
        command = [sys.executable, "-m", "pipeline.cli", *form, "schedules"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2 and done.stderr.startswith("error: cannot write") and done.stderr.count("\n") == 1

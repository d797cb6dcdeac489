"""What the console shows of names is the names."""

from __future__ import annotations

import pytest

from pipeline.console import Console, plain_table


def test_cells_of_tables_are_text_and_not_markup(capsys: pytest.CaptureFixture[str]) -> None:
    names = ["[bold]street[/bold]", "[/red]", "road\x1b[31m"]
    Console().result({}, plain_table("Classes", ["class", *names], [[name, 7, 8, 9] for name in names]))
    shown = capsys.readouterr().out
    assert shown.count("[bold]street[/bold]") == 2 and shown.count("[/red]") == 2
    assert r"road\x1b[31m" in shown and "\x1b" not in shown

"""What the console shows of names is the names."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.cli import main
from pipeline.console import Console, format_duration, plain_table

NAMES = ["[bold]street[/bold]", "[/red]", ":smile:", "road\x1b[31m", "도로", "a\u202eb"]


class Terminal(io.TextIOWrapper):
    """Takes what a terminal of an encoding would be sent."""

    def __init__(self, encoding: str) -> None:
        super().__init__(io.BytesIO(), encoding=encoding)

    def isatty(self) -> bool:
        return True

    @property
    def shown(self) -> str:
        """What it was sent."""
        self.flush()
        return self.buffer.getvalue().decode(self.encoding)  # type: ignore[attr-defined]


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


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_messages_and_progress_show_names_on_any_terminal(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")
    terminal = Terminal(encoding)
    monkeypatch.setattr(sys, "stderr", terminal)
    for name in NAMES:
        Console().info(f"info {name} · ±")
        Console().error(f"error {name}")
        with Console().progress(f"progress {name}", 1) as advance:
            advance(1, f"note {name}")
    for name in ("[bold]street[/bold]", "[/red]", ":smile:", r"road\x1b[31m", r"a\u202eb"):
        assert all(f"{what} {name}" in terminal.shown for what in ("info", "error", "progress", "note")), name
    assert (r"\ub3c4\ub85c - +-" if encoding == "ascii" else "도로 · ±") in terminal.shown


@pytest.mark.parametrize(
    "words", ["--help", "compare --help", "run --help", "schedules", "recipes", "recipes --keys", "nope"]
)
def test_every_text_fits_an_ascii_terminal_of_20_columns(words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    out, err = Terminal("ascii"), Terminal("ascii")
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    with pytest.raises(SystemExit) as ended:
        main(words.split())
    assert ended.value.code == (2 if words == "nope" else 0)
    assert out.shown or err.shown


def test_a_command_goes_on_where_its_progress_cannot_be_written() -> None:
    command = [sys.executable, "-m", "pipeline.cli", "--json", "compare", "nope"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=full, text=True, check=False)
    assert done.returncode == 2 and done.stdout.startswith('{"error": ')


LONG = "unet-resnet34 s0 joint (0.85 focal + 0.15 mse)"
NOTE = "mIoU 0.4123 (best) seg 0.4123 (85%) depth 0.0123 (15%) 31.2 images/s, 7% waiting for data"


@pytest.fixture
def tell(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Show a progress of ten steps, each of which takes a minute, up to one of them."""

    def run(last: int) -> None:
        now = iter(range(0, 6000, 60))
        monkeypatch.setattr("pipeline.console.time.monotonic", lambda: float(next(now)))
        with Console().progress(LONG, 10) as advance:
            for step in range(1, last + 1):
                advance(step, NOTE)

    return run


def test_a_terminal_of_80_columns_shows_the_time_left(
    tell: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys, "stderr", terminal := Terminal("utf-8"))
    tell(5)
    frames = [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line) for line in re.split(r"[\r\n]", terminal.shown)]
    drawn = [frame for frame in frames if frame.startswith("unet-")]
    assert drawn and all(len(frame) <= 80 for frame in frames)
    assert "5/10 5 min left mIoU 0.41" in drawn[-1]


def test_a_log_without_a_terminal_tells_the_time_left(
    tell: Callable[[int], None], capsys: pytest.CaptureFixture[str]
) -> None:
    tell(10)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == f"{LONG}: 1/10 {NOTE}", "nothing is known yet"
    assert lines[1:3] == [f"{LONG}: 2/10, 8 min left {NOTE}", f"{LONG}: 3/10, 7 min left {NOTE}"]
    assert lines[-1] == f"{LONG}: 10/10 {NOTE}"
    assert [format_duration(each) for each in (7.4, 89, 95, 3600, 11_100)] == [
        "7 s",
        "89 s",
        "2 min",
        "60 min",
        "3 h 05 min",
    ]

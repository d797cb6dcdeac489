"""How the command line speaks: results to stdout, progress and everything else to stderr."""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from rich.console import Console as RichConsole
from rich.console import ConsoleOptions, Group, RenderableType
from rich.progress import BarColumn, Progress, TextColumn
from rich.segment import Segment
from rich.table import Column, Table
from rich.text import Text

from data_cache.escaping import encodable_text, json_text, printable_lines, printable_text
from data_cache.ranks import claim_last_word, is_speaker, rank
from pipeline.interruption import start_answering


class Advance(Protocol):
    """Tells how far a piece of work has come."""

    def __call__(self, done: int, note: str = "") -> None:
        """Take the items done so far and a short note such as "12.3 images/s"."""
        ...


class _Aside:
    """Stderr as a file whose loss stops no work: a full disk, a reader or a terminal that went away."""

    def __init__(self) -> None:
        self._file = getattr(sys.stderr, "rich_proxied_file", sys.stderr)

    def write(self, text: str) -> int:
        """Write what can be written."""
        with contextlib.suppress(OSError):
            self._file.write(text)
        return len(text)

    def flush(self) -> None:
        """Bring it there."""
        with contextlib.suppress(OSError):
            self._file.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


class _LiteralConsole(RichConsole):
    """Shows control characters of a text instead of obeying them, and letters that the terminal lacks as codes."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings, highlight=False, markup=False, emoji=False)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Yield what is to be written."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=_literal(segment.text, self.encoding))

    def on_broken_pipe(self) -> None:
        """Leave it to the caller what that means: Rich would end the process."""
        raise BrokenPipeError


def _literal(text: str, encoding: str | None) -> str:
    return encodable_text(printable_lines(text), encoding)


@dataclass(frozen=True)
class Console:
    """One per process; knows whether a person or a program is listening."""

    json_mode: bool = False
    quiet: bool = False
    name: str = ""
    """In front of every line, of a process that is one of several; a progress bar would be in the others' way."""

    @property
    def _stderr(self) -> RichConsole:
        return _LiteralConsole(file=_Aside(), quiet=self.quiet or not is_speaker())

    def info(self, text: str) -> None:
        """Tell a person what is going on."""
        self._stderr.print(f"[{self.name}] {text}" if self.name else text, soft_wrap=True)

    def error(self, text: str, label: str = "error") -> None:
        """Say why the command ended; not even ``--quiet`` hides it. With ``--json`` stdout gets it as an object.

        Of the processes of a job the first that has to end says it.
        """
        start_answering()
        if not claim_last_word(130 if label == "interrupted" else 2):
            return
        if rank():
            sys.stdout, text = sys.__stdout__ or sys.stdout, f"rank {rank()}: {text}"
        _LiteralConsole(file=_Aside()).print(f"{label}: {text}", soft_wrap=True)
        if self.json_mode:
            with contextlib.suppress(OSError):  # what is full may be the disk that stdout goes to
                self._print(json_text({label: text}))

    def result(self, value: dict[str, Any], text: RenderableType) -> None:
        """Print the command's result: one JSON object with ``--json``, else the text or table."""
        start_answering()
        if self.json_mode:
            self._print(json_text(value))
        elif isinstance(text, str):
            self._print(text)
        else:
            width = None if sys.stdout.isatty() else 160
            _LiteralConsole(file=sys.stdout, width=width).print(text, crop=False)  # what is not to be wrapped is whole

    def _print(self, text: str) -> None:
        print(_literal(text, sys.stdout.encoding), file=sys.stdout)  # noqa: T201

    @contextmanager
    def progress(self, what: str, total: int) -> Iterator[Advance]:
        """Show a progress bar on a terminal, a line now and then in a log file; both tell the time that is left.

        Args:
            what: is done.
            total: how often; 0 is not known.
        """
        stderr, clock = self._stderr, _Clock(total)
        if self.name or not stderr.is_terminal:
            yield self._log_lines(what, total, clock)
            return
        narrow: dict[str, Any] = {"no_wrap": True, "overflow": "ellipsis"}
        columns = (
            TextColumn("{task.description}", markup=False, table_column=Column(ratio=2, **narrow)),
            BarColumn(bar_width=10),
            TextColumn("{task.fields[count]}", markup=False, table_column=Column(no_wrap=True)),
            TextColumn("{task.fields[left]}", markup=False, table_column=Column(no_wrap=True)),
            TextColumn("{task.fields[note]}", markup=False, table_column=Column(ratio=3, **narrow)),
        )
        with Progress(*columns, console=stderr, expand=True) as bar:
            task = bar.add_task(printable_text(what), total=total or None, count=f"0/{total or '?'}", left="", note="")

            def advance(done: int, note: str = "") -> None:
                left, of = clock.tell(done), f"{done}/{total or '?'}"
                bar.update(task, completed=done, count=of, left=left, note=printable_text(note))

            yield advance

    def _log_lines(self, what: str, total: int, clock: _Clock) -> Advance:
        shown = -1

        def advance(done: int, note: str = "") -> None:
            nonlocal shown
            tenth, left = 10 * done // total if total else done.bit_length(), clock.tell(done)
            if tenth > shown or done == total:
                shown = 10 * total if done == total else tenth
                self.info(f"{what}: {done}/{total or '?'}{f', {left}' if left else ''} {note}".rstrip())

        return advance


class LoggingConsole(Console):
    """Speaks to the logger ``pipeline`` alone, which a program hears if it wants to."""

    def info(self, text: str) -> None:
        """Log what is going on."""
        logging.getLogger("pipeline").info("%s", text)

    @contextmanager
    def progress(self, what: str, total: int) -> Iterator[Advance]:
        """Log a line now and then."""
        yield self._log_lines(what, total, _Clock(total))


class _Clock:
    """How much time is left, by what was done since the first word about it: before that, things had to start."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._first: tuple[int, float] | None = None

    def tell(self, done: int) -> str:
        """Return "3 min left"; nothing before that can be known, and in the end."""
        now = time.monotonic()
        if self._first is None:
            self._first = done, now
        began, at = self._first
        if not self._total or not began < done < self._total:
            return ""
        return f"{format_duration((now - at) * (self._total - done) / (done - began))} left"


def format_duration(seconds: float) -> str:
    """Return "45 s", "12 min" or "3 h 05 min"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02} min"


def plain_table(title: str, columns: list[str], rows: list[list[Any]]) -> Group:
    """Build a title above a borderless table of texts; numbers to the right."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    numeric = [bool(rows) and all(isinstance(row[i], int | float) for row in rows) for i in range(len(columns))]
    for name, right in zip(columns, numeric, strict=True):
        table.add_column(Text(printable_text(name)), justify="right" if right else "left", overflow="fold")
    for row in rows:
        cells = (f"{cell:,}" if isinstance(cell, int) else printable_text(str(cell)) for cell in row)
        table.add_row(*map(Text, cells))  # as in the heads: in strings Rich would look for markup
    return Group(Text(title, style="italic"), table)  # not the table's own title, which would wrap at its width


def count(number: int, noun: str) -> str:
    """Return "1 problem", "2 problems"."""
    return f"{number} {noun}{'' if number == 1 else 's'}"

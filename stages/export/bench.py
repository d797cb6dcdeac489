"""Latency and memory of written files: each runs in a process of its own, and they take turns. Imports no torch."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from data_cache.errors import UserError
from stages.export.formats import EXPORT_FORMATS
from stages.export.turns import take_turns

REFERENCE = "safetensors"
"""PyTorch itself, which the others are held against."""


def measure_formats(
    folder: Path, names: Sequence[str], size: tuple[int, int], *, threads: int, passes: int | None = None
) -> dict[str, dict[str, Any]]:
    """Return what running each file costs on one drawn image.

    Args:
        folder: an export.
        names: its formats that are measured.
        size: (height, width) of the image.
        threads: for each.
        passes: timed turns; None takes as many as a quarter of a minute allows.

    Returns:
        Format → ``latency_ms`` (``median``, and the quartiles ``low`` and ``high``), ``passes``, ``threads``,
        ``ratio_to_pytorch``, ``ratio_to_base`` (to the format of the same runtime that it was made from) and ``base``,
        and ``memory_mb``: what opening and running the file added at most to a process that had loaded its runtime;
        ``process_mb`` with it. None where there is nothing to tell.

    Raises:
        UserError: a file does not run.
    """
    with contextlib.ExitStack() as stack:
        workers = [stack.enter_context(_start(folder, name, size, threads)) for name in names]
        for worker in workers:  # they start at the same time
            worker.answer()
        turns = take_turns([worker.time_run for worker in workers], passes, warm_up=2)
        memory = [worker.end() for worker in workers]
    rows = {}
    for place, name in enumerate(names):
        base = _find_base(name, names)
        before, peak = memory[place]["before_mb"], memory[place]["peak_mb"]
        rows[name] = {
            "latency_ms": turns.milliseconds(place).to_json(),
            "passes": turns.passes,
            "threads": threads,
            "ratio_to_pytorch": turns.ratio(place, names.index(REFERENCE)).to_json() if REFERENCE in names else None,
            "base": base,
            "ratio_to_base": turns.ratio(place, names.index(base)).to_json() if base else None,
            "memory_mb": None if peak is None or before is None else round(peak - before, 1),
            "process_mb": None if peak is None else round(peak, 1),
        }
    return rows


def describe_file(name: str, folder: Path) -> dict[str, Any]:
    """Return a format with its files and their size."""
    wanted = EXPORT_FORMATS[name].files
    files = [each for each in (*wanted, f"{wanted[0]}.data") if (folder / each).is_file()]
    return {"format": name, "files": files, "bytes": sum((folder / each).stat().st_size for each in files)}


def _find_base(name: str, names: Sequence[str]) -> str | None:
    """Return the float format of the same runtime that a format was made from."""
    base = EXPORT_FORMATS[name].derived_from
    suffixes = {Path(EXPORT_FORMATS[each].files[0]).suffix for each in (name, base) if each}
    return base if base in names and len(suffixes) == 1 else None


class _Worker:
    """The other end of ``bench_worker``."""

    def __init__(self, name: str, process: subprocess.Popen[bytes], said: IO[bytes]) -> None:
        assert process.stdin is not None and process.stdout is not None
        self._name, self._process, self._said = name, process, said
        self._orders, self._answers = process.stdin, process.stdout

    def answer(self) -> dict[str, Any]:
        """Return the next line.

        Raises:
            UserError: there is none, because the process failed.
        """
        if line := self._answers.readline():
            return json.loads(line)
        status = self._process.wait()
        self._said.seek(0)
        lines = self._said.read().decode(errors="replace").strip().splitlines() or [f"it ended with status {status}"]
        raise UserError(
            f"{self._name} cannot be measured: {lines[-1][:500]}; export the run again, or install versions of its "
            "runtime that belong together"
        )

    def time_run(self) -> float:
        """Run once and return the seconds."""
        with contextlib.suppress(BrokenPipeError):  # the missing answer says why
            self._orders.write(b"\n")
            self._orders.flush()
        return self.answer()["seconds"]

    def end(self) -> dict[str, Any]:
        """Have it end and return what it needed."""
        self._orders.close()
        return self.answer()


@contextmanager
def _start(folder: Path, name: str, size: tuple[int, int], threads: int) -> Iterator[_Worker]:
    root = str(Path(__file__).parents[2])
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        "PYTHONPATH": os.pathsep.join(dict.fromkeys((root, *filter(None, sys.path)))),  # also where plug-ins lie
    }
    words = [str(folder.absolute()), name, *map(str, size), str(threads)]
    # -P: a stranger's export must not have what lies in the working directory imported.
    command = [sys.executable, "-P", "-m", "stages.export.bench_worker", *words]
    with (
        tempfile.TemporaryFile() as said,
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, env=environment
        ) as process,
    ):
        try:
            yield _Worker(name, process, said)
        finally:
            process.kill()

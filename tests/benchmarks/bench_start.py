"""How soon the command line answers, against the least that any program with click needs."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

from tests.benchmarks.harness import Goal, Line, alternate

WHY = "what `pipeline --help` imports besides click; see it with python -X importtime -m pipeline.cli --help"


def lines(*, small: bool) -> Iterator[Line]:
    """Yield the line of this bench."""
    sides = [
        lambda: run("-c", "from pipeline.cli import main; main()", "--help"),  # as the installed script does
        lambda: run("-c", "import click"),
    ]
    turns = alternate(sides, 2 if small else 25)
    times = " and ".join(f"{1e3 * turns.seconds(side):.0f} ms" for side in range(2))
    yield Line('`pipeline --help` / `python -c "import click"`', turns.ratio(0, 1), Goal(at_most=3), times, WHY)


def run(*words: str) -> None:
    """Run a process of this Python."""
    subprocess.run([sys.executable, *words], check=True, capture_output=True)

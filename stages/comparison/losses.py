"""The loss curves of a run, read from its metrics.jsonl. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from data_cache.training_log import read_log

MAX_POINTS = 300
"""Points kept per curve; longer ones are averaged in groups, so that a page stays small."""


class PhaseSpan(NamedTuple):
    """The steps of one phase, on the axis of the whole run."""

    name: str
    first_step: int
    last_step: int


@dataclass(frozen=True)
class LossCurves:
    """Unweighted losses over all steps of a run."""

    phases: tuple[PhaseSpan, ...]
    curves: dict[str, tuple[tuple[float, float], ...]]
    """By term (``seg``, ``depth``, …): step of the whole run, and loss. Phases without a term leave a gap, marked by a
    point whose loss is NaN."""


def read_losses(run_folder: Path) -> LossCurves | None:
    """Return the curves of a run, or None when it has no log.

    Raises:
        UserError: the log is damaged.
    """
    path = run_folder / "metrics.jsonl"
    if not path.is_file():
        return None
    phases: list[PhaseSpan] = []
    segments: dict[str, list[list[tuple[float, float]]]] = {}
    offset = 0
    for line in read_log(path):
        if not phases or phases[-1].name != line.phase:
            offset = phases[-1].last_step if phases else 0
            phases.append(PhaseSpan(line.phase, offset, offset))
            for parts in segments.values():
                parts.append([])
        phases[-1] = phases[-1]._replace(last_step=offset + line.step)
        for term, value in line.losses.items():
            segments.setdefault(term, [[]])[-1].append((offset + line.step, value))
    return LossCurves(tuple(phases), {term: _join(parts) for term, parts in segments.items()})


def _join(parts: list[list[tuple[float, float]]]) -> tuple[tuple[float, float], ...]:
    """Return the thinned parts of a curve one after another, a NaN between them."""
    size = max(1, sum(map(len, parts)) // MAX_POINTS)
    points: list[tuple[float, float]] = []
    for part in filter(None, parts):
        if points:
            points.append((part[0][0], float("nan")))
        for start in range(0, len(part), size):
            group = part[start : start + size]
            points.append((group[-1][0], sum(value for _, value in group) / len(group)))
    return tuple(points)

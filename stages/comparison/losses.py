"""The curves of a run, read from its metrics.jsonl. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from data_cache.metrics import HEADLINE
from data_cache.training_log import read_log

MAX_POINTS = 300
"""Points kept per curve; longer ones are averaged in groups, so that a page stays small."""


class PhaseSpan(NamedTuple):
    """The steps of one phase, on the axis of the whole run."""

    name: str
    first_step: int
    last_step: int


Points = tuple[tuple[float, float], ...]
"""Step of the whole run, and value; a gap is marked by a point whose value is NaN."""


@dataclass(frozen=True)
class LossCurves:
    """What was logged over all steps of a run; phases that did not log a curve leave a gap in it."""

    phases: tuple[PhaseSpan, ...]
    curves: dict[str, Points]
    """Unweighted losses by term (``seg``, ``depth``, …)."""
    norms: dict[str, Points] = field(default_factory=dict)
    """Norms of the gradients of both losses on the encoder, where they were looked at."""
    cosines: dict[str, Points] = field(default_factory=dict)
    """Their cosine, under ``cosine``."""
    scores: dict[str, Points] = field(default_factory=dict)
    """What the weights scored while they were trained, under ``mIoU``."""


def read_losses(run_folder: Path) -> LossCurves | None:
    """Return the curves of a run, or None when it has no log.

    Raises:
        UserError: the log is damaged.
    """
    path = run_folder / "metrics.jsonl"
    if not path.is_file():
        return None
    phases: list[PhaseSpan] = []
    segments: dict[str, dict[str, list[list[tuple[float, float]]]]] = {
        kind: {} for kind in ("losses", "norms", "cosines", "scores")
    }
    offset = 0
    for line in read_log(path):
        if not phases or phases[-1].name != line.phase:
            offset = phases[-1].last_step if phases else 0
            phases.append(PhaseSpan(line.phase, offset, offset))
            for parts in (parts for kind in segments.values() for parts in kind.values()):
                parts.append([])
        phases[-1] = phases[-1]._replace(last_step=offset + line.step)
        gradients = line.gradients or {}
        cosine = {name: gradients[name] for name in gradients if name == "cosine"}
        norms = {name: gradients[name] for name in gradients if name != "cosine"}
        scores = {"mIoU": line.val[HEADLINE]} if line.val and HEADLINE in line.val else {}
        for kind, values in zip(segments.values(), (line.losses, norms, cosine, scores), strict=True):
            for term, value in values.items():
                kind.setdefault(term, [[]])[-1].append((offset + line.step, value))
    joined = ({term: _join(parts) for term, parts in kind.items()} for kind in segments.values())
    return LossCurves(tuple(phases), *joined)


def _join(parts: list[list[tuple[float, float]]]) -> Points:
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

"""Rows that differ in the share of the masks they had: their curves, and the masks that depth saves. No torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from data_cache.metrics import HEADLINE, METRICS
from data_cache.settings import parse_share
from stages.comparison.answer import SHARE_MARK, SOURCE_MARK, learns_depth
from stages.comparison.rows import Row
from stages.comparison.statistics import ERROR_RATE
from stages.comparison.table import Table


class Point(NamedTuple):
    """A row of a curve."""

    share: float
    """Of the training images' masks, in (0, 1]."""
    text: str
    """The same as the row's name has it."""
    row: Row


class Curve(NamedTuple):
    """Rows that differ only in how many masks they had."""

    name: str
    points: tuple[Point, ...]
    """In rising order of shares; at least two."""

    @property
    def is_plain(self) -> bool:
        """Whether none of its rows learned depth."""
        return not any(learns_depth(point.row) for point in self.points)


def find_curves(table: Table) -> list[Curve]:
    """Return the rows with a share behind their name as curves, those without depth first."""
    found: dict[str, dict[float, Point]] = {}
    for row in table.rows:
        name, mark, text = row.name.rpartition(SHARE_MARK)
        share = parse_share(text) if mark else None
        if not row.is_measured_as(table.rows[0]):  # nothing is drawn across data or numerics
            continue
        if share is not None and 0 < share <= 1 and HEADLINE in row.metrics:
            found.setdefault(name, {})[share] = Point(share, text, row)
    curves = [Curve(name, tuple(points[at] for at in sorted(points))) for name, points in found.items()]
    return sorted((curve for curve in curves if len(curve.points) > 1), key=lambda curve: not curve.is_plain)


def describe_savings(curves: Sequence[Curve]) -> str:
    """Return in a sentence how many masks depth saves at an equal score, or that it saves none.

    Only a row counts that is clearly above the row without depth and with as many masks. How many masks that would need
    for the same score is read off its curve, between measured points on a logarithmic scale of masks.
    """
    plain = next((curve for curve in curves if curve.is_plain), None)
    if plain is None:
        return ""
    label, best, tested = METRICS[HEADLINE].label, None, 0
    for curve in curves:
        for point in () if curve.is_plain or SOURCE_MARK in curve.name else curve.points:
            found = point.row.differences.get(HEADLINE)
            base = point.row.base
            if found is None or found.half_width is None or base is None or base.name != f"{plain.name}:{point.text}":
                continue
            tested += 1
            equal = _find_equal(plain, point.row.metrics[HEADLINE].mean)
            above = found.is_clear and found.mean > 0 and (found.holm is None or found.holm < ERROR_RATE)
            if above and (best is None or point.share / equal < best[1].share / best[2]):
                best = (curve, point, equal)
    if not tested:
        return f"Whether depth saves masks cannot be told without several seeds of {plain.name} at the same shares."
    if best is None:
        return f"No row with depth is clearly above {plain.name} with as many masks: none are saved."
    curve, point, equal = best
    most = plain.points[-1]
    score = f"With {point.text} of the masks {curve.name} has the {label} that {plain.name} has"
    if equal > most.share:
        return f"{score} not even with {most.text}: at least {1 - point.share / most.share:.0%} of the masks are saved."
    return f"{score} with a share of about {equal:.2g}: {1 - point.share / equal:.0%} of the masks are saved."


def _find_equal(plain: Curve, score: float) -> float:
    """Return the least share at which a curve reaches a score; infinity where it never does."""
    last: tuple[float, float] | None = None
    for share, _, row in plain.points:
        mean = row.metrics[HEADLINE].mean
        if mean >= score:
            if last is None:
                return share
            part = (score - last[1]) / (mean - last[1])
            return math.exp(math.log(last[0]) + part * (math.log(share) - math.log(last[0])))
        last = (share, mean)
    return math.inf

"""Rows that differ in the share of the masks they had: their curves, and the masks that depth saves. No torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from data_cache.metrics import HEADLINE, METRICS
from data_cache.settings import parse_share
from stages.comparison.answer import learns_depth
from stages.comparison.row_name import RowName, name_control
from stages.comparison.rows import Row
from stages.comparison.statistics import ERROR_RATE, adjust_holm
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
    """With the source of the depth and the network, where rows have several."""
    points: tuple[Point, ...]
    """In rising order of shares; at least two."""

    @property
    def is_plain(self) -> bool:
        """Whether none of its rows learned depth."""
        return not any(learns_depth(point.row) for point in self.points)


def find_curves(table: Table) -> list[Curve]:
    """Return the rows with a share behind their name as curves, those without depth first."""
    found: dict[str, dict[float, Point]] = {}
    several = len({row.first.network for row in table.rows}) > 1
    for row in table.rows:
        base, _, text = RowName.parse(row.name)
        name = name_control(base, row.depth_source) if row.depth_source else base
        name = f"{name} · {row.first.network}" if several else name
        share = parse_share(text) if text else None
        if not row.is_measured_as(table.rows[0]):  # nothing is drawn across data or numerics
            continue
        if share is not None and 0 < share <= 1 and HEADLINE in row.metrics:
            found.setdefault(name, {})[share] = Point(share, text, row)
    curves = [Curve(name, tuple(points[at] for at in sorted(points))) for name, points in found.items()]
    return sorted((curve for curve in curves if len(curve.points) > 1), key=lambda curve: not curve.is_plain)


def describe_savings(curves: Sequence[Curve]) -> str:
    """Return in a sentence how many masks depth saves at an equal score, or that it saves none.

    Only a row counts that is clearly above the row without depth and with as many masks, by Holm's adjustment for all
    that are looked at here, whatever their share. How many masks that would need for the same score is read off its
    curve, between measured points on a logarithmic scale of masks.
    """
    plains = [curve for curve in curves if curve.is_plain]
    if not plains:
        return ""
    tested: list[tuple[Curve, Point, Curve, float]] = []
    for curve in curves:
        for point in () if curve.is_plain else curve.points:
            found, plain = point.row.differences.get(HEADLINE), _find_plain(point, plains)
            if plain is not None and found is not None and found.p is not None and not point.row.depth_source:
                tested.append((curve, point, plain, found.p))
    if not tested:
        return f"Whether depth saves masks cannot be told without several seeds of {plains[0].name} at the same shares."
    savings = []
    for (curve, point, plain, _), holm in zip(tested, adjust_holm([p for *_, p in tested]), strict=True):
        found = point.row.differences[HEADLINE]
        mean = point.row.metrics[HEADLINE].mean
        equal = _find_equal(plain, mean)
        if found.is_clear and found.mean > 0 and holm < ERROR_RATE and equal > point.share:
            least = _find_equal(plain, mean - (found.half_width or 0.0))
            savings.append((point.share / equal, point, curve, plain, equal, least))
    if not savings:
        names = ", ".join(dict.fromkeys(plain.name for _, _, plain, _ in tested))
        return f"No row with depth is clearly above {names} with as many masks: none are saved."
    _, point, curve, plain, equal, least = min(savings, key=lambda each: each[0])
    most = plain.points[-1]
    sure = f"{max(0.0, 1 - point.share / min(least, most.share)):.0%} by the lower end of its interval"
    score = f"With {point.text} of the masks {curve.name} has the {METRICS[HEADLINE].label} that {plain.name} has"
    if equal > most.share:
        saved = f"at least {1 - point.share / most.share:.0%} of the masks are saved, {sure}"
        return f"{score} not even with {most.text}: {saved}."
    return f"{score} with a share of about {equal:.2g}: {1 - point.share / equal:.0%} of the masks are saved, {sure}."


def _find_plain(point: Point, plains: Sequence[Curve]) -> Curve | None:
    """Return the curve on which what a row is compared with has as many masks."""
    base = point.row.base
    for curve in plains if base else ():
        if any(other.share == point.share and base and other.row.runs is base.runs for other in curve.points):
            return curve
    return None


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

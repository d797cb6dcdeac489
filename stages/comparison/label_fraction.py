"""Rows that differ in the share of the masks they had: their curves, and the masks that depth saves. No torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from data_cache.metrics import HEADLINE, METRICS
from data_cache.settings import parse_share
from stages.comparison.answer import learns_depth
from stages.comparison.row_name import RowName, name_control
from stages.comparison.rows import Row
from stages.comparison.statistics import compare_paired
from stages.comparison.table import Table

_STEPS = 200
"""Shares that are tried between two measured ones."""


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
    """Return the rows with a share behind their name as curves, those without depth first.

    Rows of one name and other settings are on curves of their own, as their labels tell them apart.
    """
    found: dict[tuple[str, str], dict[float, Point]] = {}
    several = len({row.first.network for row in table.rows}) > 1
    for label, row in table.labelled:
        base, _, text = RowName.parse(row.name)
        name = name_control(base, row.depth_source) if row.depth_source else base
        words = [name, *label.split(" · ")[1:]]
        if several and row.first.network not in words:
            words.append(row.first.network)
        share = parse_share(text) if text else None
        if not row.is_measured_as(table.rows[0]):  # nothing is drawn across data or numerics
            continue
        if share is not None and 0 < share <= 1 and HEADLINE in row.metrics:
            found.setdefault((" · ".join(words), row.first.network), {})[share] = Point(share, text, row)
    curves = [Curve(name, tuple(points[at] for at in sorted(points))) for (name, _), points in found.items()]
    return sorted((curve for curve in curves if len(curve.points) > 1), key=lambda curve: not curve.is_plain)


class Saving(NamedTuple):
    """How many masks a row without depth would need for the score of one with it."""

    point: Point
    curve: Curve
    plain: Curve
    equal: float
    """Share at which the curve without depth has the same mean; infinity where it never has."""
    least: float
    most: float
    """Ends of its 95 % interval."""

    def say_saved(self, share: float) -> str:
        """Return the part of the masks that is saved if the curve without depth needs this share."""
        largest = self.plain.points[-1].share
        part = f"{max(0.0, 1 - self.point.share / min(share, largest)):.0%}"
        return part if share <= largest else f"at least {part}"


def describe_savings(curves: Sequence[Curve]) -> str:
    """Return in a sentence how many masks depth saves at an equal score, or that it saves none.

    Only a row counts that is above the row without depth and with as many masks by more than chance explains: by its
    interval over seeds, Holm's adjustment for all differences of the table, and its interval over images. How many
    masks that would need for the same score is read off its curve, between measured points on a logarithmic scale of
    masks. The interval holds what is unsure of both: it is every share at which the paired difference over seeds
    between the curve and the row may be 0 at 95 % (Fieller's way).
    """
    plains = [curve for curve in curves if curve.is_plain]
    if not plains:
        return ""
    tested: list[tuple[Curve, Point, Curve]] = []
    for curve in curves:
        for point in () if curve.is_plain else curve.points:
            found, plain = point.row.differences.get(HEADLINE), _find_plain(point, plains)
            if plain is not None and found is not None and found.p is not None and not point.row.depth_source:
                tested.append((curve, point, plain))
    if not tested:
        return f"Whether depth saves masks cannot be told without several seeds of {plains[0].name} at the same shares."
    savings = []
    for curve, point, plain in tested:
        found = point.row.differences[HEADLINE]
        equal = _find_equal(plain, point.row.metrics[HEADLINE].mean)
        if found.mean > 0 and not found.may_be_chance and equal > point.share:
            savings.append(Saving(point, curve, plain, equal, *_find_ends(plain, point)))
    if not savings:
        names = ", ".join(dict.fromkeys(plain.name for _, _, plain in tested))
        return f"No row with depth is clearly above {names} with as many masks: none are saved."
    best = min(savings, key=lambda each: each.point.share / each.equal)
    most = best.plain.points[-1]
    start = f"With {_name_share(best.point)} of the masks {best.curve.name} has the {METRICS[HEADLINE].label} that"
    start += f" {best.plain.name} has "
    start += f"not even with {most.text}" if best.equal > most.share else f"with a share of about {best.equal:.2g}"
    ends = f"95 % interval over seeds, of both: {best.say_saved(best.least)} to {best.say_saved(best.most)}"
    return f"{start}: {best.say_saved(best.equal)} of the masks are saved ({ends})."


def _name_share(point: Point) -> str:
    count = point.row.labelled_images
    return point.text if count is None else f"{point.text} ({count:,})"


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


def _find_ends(plain: Curve, point: Point) -> tuple[float, float]:
    """Return the least and the largest share, from a row's own on, at which a curve may have the row's score.

    Infinity stands for shares beyond the curve's end.
    """
    score = point.row.by_seed(HEADLINE)
    low, high = math.inf, math.inf
    for left, right in pairwise(plain.points):
        ends = left.row.by_seed(HEADLINE), right.row.by_seed(HEADLINE)
        for step in range(_STEPS + 1):
            part = step / _STEPS
            share = math.exp((1 - part) * math.log(left.share) + part * math.log(right.share))
            between = {seed: (1 - part) * ends[0][seed] + part * ends[1][seed] for seed in ends[0].keys() & ends[1]}
            found = compare_paired(between, score)
            if share < point.share * (1 - 1e-9) or found is None or found.half_width is None:
                continue
            if found.mean + found.half_width >= 0:
                low = min(low, share)
            high = share if found.mean - found.half_width <= 0 else high
    at_end = compare_paired(plain.points[-1].row.by_seed(HEADLINE), score)
    beyond = at_end is None or at_end.half_width is None or at_end.mean - at_end.half_width <= 0
    return low, math.inf if beyond else high

"""What annotation tools draw: polygons and run-length masks, and which pixels they cover.

A pixel belongs to a polygon when its centre lies inside, by the even-odd rule: a ring that also runs round a hole, to
which it goes and returns on one line, leaves the hole out. Coordinates count from the upper left corner of the image;
the centre of the first pixel is at (0.5, 0.5). What lies outside the image is cut off.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_cache.images import LARGEST_IMAGE_PX

_FAR_PX = 1e8
"""Coordinates beyond are as good as this one: they lie outside of any image."""
_CURVE_POINTS = 128
"""Corners of the polygon that stands for a circle; of one of 1,000 px radius it is off by 0.3 px."""


class ShapeProblem(ValueError):
    """Why a shape covers nothing that is certain; the message completes the sentence "objects …"."""


class Polygon(NamedTuple):
    """One closed ring."""

    points: NDArray[np.float64]
    """(N, 2) x and y in px, N at least 3."""

    def measure(self) -> float:
        """Return its area, px."""
        x, y = self.points.T
        return abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2

    def lies_within(self, height: int, width: int) -> bool:
        """Whether nothing of it is outside an image, but for half a pixel of rounding."""
        low, high = self.points.min(axis=0), self.points.max(axis=0)
        return bool((low >= -0.5).all() and high[0] <= width + 0.5 and high[1] <= height + 0.5)

    def paint(self, labels: NDArray[np.int16], value: int) -> int:
        """Write a value into a label map (H, W) wherever the polygon covers it; return how many pixels that are."""
        (left, top), (right, bottom) = self.points.min(axis=0), self.points.max(axis=0)
        rows = slice(*_clip(top, bottom, labels.shape[0]))
        columns = slice(*_clip(left, right, labels.shape[1]))
        part = labels[rows, columns]
        if not part.size:
            return 0
        covered = _fill(self.points - (columns.start, rows.start), part.shape)
        part[covered] = value
        return int(np.count_nonzero(covered))


class RunMask(NamedTuple):
    """A mask as lengths of runs, first of pixels outside."""

    counts: NDArray[np.int64]
    """At least 0 each; their sum is height · width."""
    height: int
    width: int
    left: int = 0
    top: int = 0
    """Where in the image it begins, px."""
    by_columns: bool = False
    """Whether runs go down the columns, as in COCO, rather than along the rows."""

    def measure(self) -> float:
        """Return its area, px."""
        return float(self.counts[1::2].sum())

    def lies_within(self, height: int, width: int) -> bool:
        """Whether nothing of it is outside an image."""
        return min(self.left, self.top) >= 0 and self.left + self.width <= width and self.top + self.height <= height

    def paint(self, labels: NDArray[np.int16], value: int) -> int:
        """Write a value into a label map (H, W) wherever the mask covers it; return how many pixels that are."""
        flat = np.repeat(np.arange(len(self.counts)) % 2 == 1, self.counts)
        mask = flat.reshape(self.width, self.height).T if self.by_columns else flat.reshape(self.height, self.width)
        cut = mask[max(-self.top, 0) :, max(-self.left, 0) :]
        part = labels[max(self.top, 0) :, max(self.left, 0) :][: cut.shape[0], : cut.shape[1]]
        covered = cut[: part.shape[0], : part.shape[1]]
        part[covered] = value
        return int(np.count_nonzero(covered))


Shape = Polygon | RunMask


def build_polygon(points: Sequence[Sequence[float]] | NDArray[np.float64]) -> Polygon:
    """Return the polygon of some corners.

    Args:
        points: [[x, y], …] in px.

    Raises:
        ShapeProblem: they are no finite numbers, no pairs, or fewer than three.
    """
    if any(len(point) != 2 for point in points):
        raise ShapeProblem("whose corners are no pairs of numbers")
    array = np.asarray(points, dtype=np.float64)
    if not np.isfinite(array).all():
        raise ShapeProblem("with a corner that is no finite number")
    if len(array) < 3:
        raise ShapeProblem("with an outline of fewer than 3 points, which encloses nothing")
    return Polygon(np.clip(array, -_FAR_PX, _FAR_PX))


def build_box(left: float, top: float, right: float, bottom: float, *, degrees: float = 0.0) -> Polygon:
    """Return a rectangle, turned clockwise about its centre."""
    left, top, right, bottom = _limit(left, top, right, bottom)
    corners = [(left, top), (right, top), (right, bottom), (left, bottom)]
    return build_polygon(_turn(np.array(corners), ((left + right) / 2, (top + bottom) / 2), degrees))


def build_ellipse(x: float, y: float, radius_x: float, radius_y: float, *, degrees: float = 0.0) -> Polygon:
    """Return an ellipse about (x, y), turned clockwise."""
    x, y, radius_x, radius_y = _limit(x, y, radius_x, radius_y)
    angles = np.arange(_CURVE_POINTS) * (2 * np.pi / _CURVE_POINTS)
    curve = np.stack((x + radius_x * np.cos(angles), y + radius_y * np.sin(angles)), axis=1)
    return build_polygon(_turn(curve, (x, y), degrees))


def build_run_mask(
    counts: Sequence[int] | str, height: int, width: int, *, left: int = 0, top: int = 0, by_columns: bool = False
) -> RunMask:
    """Return the mask of run lengths.

    Args:
        counts: lengths, or COCO's text for them.
        height: px.
        width: px.
        left: where in the image it begins, px.
        top: likewise.
        by_columns: whether runs go down the columns.

    Raises:
        ShapeProblem: they do not fill the mask.
    """
    lengths = _unpack_counts(counts) if isinstance(counts, str) else counts
    total = height * width
    if min(height, width) < 0 or total > LARGEST_IMAGE_PX:
        raise ShapeProblem("whose mask is of a size that no image has")
    if sum(lengths) != total or min(lengths, default=0) < 0:
        raise ShapeProblem("whose run lengths do not add up to the size of their mask")
    return RunMask(np.array(lengths, dtype=np.int64), height, width, left, top, by_columns)


def encode_runs(mask: NDArray[np.bool_], *, left: int, top: int) -> RunMask:
    """Return a mask (h, w) that begins at a place in the image as run lengths."""
    flat = np.concatenate(([False], mask.ravel(), [not mask.ravel()[-1]]))
    ends = np.flatnonzero(flat[1:] != flat[:-1])
    height, width = mask.shape
    return RunMask(np.diff(ends, prepend=0), height, width, left, top)


def _unpack_counts(text: str) -> list[int]:
    """Return the lengths in COCO's text: 5 bits a letter, lowest first; from the fourth on less the one before last."""
    counts: list[int] = []
    value = shift = 0
    for code in (ord(letter) - 48 for letter in text):
        if not 0 <= code < 64 or shift > 60:
            raise ShapeProblem("whose run lengths are no text of COCO's")
        value |= (code & 0x1F) << shift
        shift += 5
        if code & 0x20:
            continue
        if code & 0x10:
            value -= 1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value = shift = 0
    if shift:
        raise ShapeProblem("whose run lengths are cut off")
    return counts


def _limit(*numbers: float) -> list[float]:
    """Return numbers none of which is too large to compute with."""
    return [min(max(number, -_FAR_PX), _FAR_PX) for number in numbers]


def _clip(low: float, high: float, size: int) -> tuple[int, int]:
    return min(max(math.floor(low), 0), size), min(max(math.ceil(high), 0), size)


def _fill(points: NDArray[np.float64], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Return the pixels (h, w) whose centres lie inside a ring."""
    height, width = shape
    # Each edge from its upper end, so that neighbours, who draw a line to and fro, share no pixel and leave none.
    ends = np.stack((points, np.roll(points, -1, axis=0)))
    (x, y), (end_x, end_y) = np.where(ends[:1, :, 1:] <= ends[1:, :, 1:], ends, ends[::-1]).transpose(0, 2, 1)
    first, last = (np.clip(np.ceil(end - 0.5), 0, height).astype(np.intp) for end in (y, end_y))
    edge = np.repeat(np.arange(len(points)), last - first)
    row = np.arange(len(edge)) - np.repeat(np.cumsum(last - first) - last, last - first)
    slope = (end_x[edge] - x[edge]) / (end_y[edge] - y[edge])
    column = np.ceil(x[edge] + (row + 0.5 - y[edge]) * slope - 0.5)
    crossings = np.zeros((height, width + 1), dtype=np.int32)
    np.add.at(crossings, (row, np.clip(column, 0, width).astype(np.intp)), 1)
    return np.cumsum(crossings, axis=1)[:, :width] % 2 == 1


def _turn(points: NDArray[np.float64], centre: tuple[float, float], degrees: float) -> NDArray[np.float64]:
    angle = math.radians(degrees)
    turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    return (points - centre) @ turn + centre

"""Whether masks lie on their images: borders between classes lie where an image changes, more than shifted ones do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data_cache.sample import IGNORE_INDEX

_SIDE = 256
"""Images are shrunk to at most this, px; shifts are told in shares of the longer side."""
_STEPS = (3, 6, 12)
"""Shifts that are tried, px of the shrunk image; less is the draughtsman's."""
_WINDOW = 8
"""Changes are compared with their mean so far around, or masks would seem to belong where trees are."""
_FEWEST_IMAGES = 5
_CLEARLY = 5.0
"""Standard errors by which a shifted mask must fit better than the one in place."""
_MOSTLY = 0.7
"""Share of the images in which it must."""
_GAIN = 0.15
"""How much better it must fit, and twice as well, in standard deviations of an image's changes.

Measured on CamVid: masks in place fit by 0.51 (val), 0.70 (train), and any move makes that worse by 0.19; masks moved
by 3 of 480 px fit by 0.10, and moved back by 0.50."""
_NO_FIT = 0.1
"""Below it masks have nothing to do with what can be seen: masks of other images of CamVid fit by 0.03."""

MOVES: tuple[str, ...] = (
    "",
    *(f"{y:+} {x:+}" for step in _STEPS for y in (-step, 0, step) for x in (-step, 0, step) if y or x),
    "mirrored",
    "upside down",
    "turned by half",
)
"""What is tried: "" is the mask in place; else rows and columns by which it is moved."""


def measure_fits(image: NDArray[np.uint8], labels: NDArray[np.uint8]) -> NDArray[np.float32] | None:
    """Return by how many standard deviations the image changes more at the borders of labels than elsewhere, by move.

    Args:
        image: (H, W, 3) RGB.
        labels: (H, W) train ids.

    Returns:
        (len(MOVES),); None where there is nothing to see.
    """
    height, width = labels.shape
    shrink = min(1.0, _SIDE / max(height, width))
    rows, columns = max(1, round(height * shrink)), max(1, round(width * shrink))
    grey = Image.fromarray(image).convert("L").resize((columns, rows), Image.Resampling.BOX)
    changes = _find_changes(np.asarray(grey, np.float32))
    places = ((np.arange(size) * length) // size for size, length in ((rows, height), (columns, width)))
    borders = _find_borders(labels[np.ix_(*places)])
    deviation = changes.std()
    if borders.sum() < _SIDE // 4 or deviation == 0:
        return None
    fits = [(_mean(changes, moved) - changes.mean()) / deviation if moved.any() else np.nan for moved in _move(borders)]
    return np.asarray(fits, np.float32)


def find_better_move(fits: Sequence[NDArray[np.float32]]) -> str | None:
    """Return the move after which masks fit clearly better than in place; None where there is none."""
    if len(fits) < _FEWEST_IMAGES:
        return None
    table = np.stack(fits)
    gains = table[:, 1:] - table[:, :1]
    counts = (~np.isnan(gains)).sum(axis=0)  # a move may take all borders out of an image
    means = np.where(counts >= _FEWEST_IMAGES, np.nansum(gains, axis=0) / np.maximum(counts, 1), -np.inf)
    best = int(means.argmax())
    gain = gains[:, best][~np.isnan(gains[:, best])]
    enough = len(gain) >= _FEWEST_IMAGES and gain.mean() >= max(_GAIN, table[:, 0].mean())
    if not enough or (gain > 0).mean() < _MOSTLY:
        return None
    return MOVES[1 + best] if gain.mean() > _CLEARLY * gain.std(ddof=1) / np.sqrt(len(gain)) else None


def follow_nothing(fits: Sequence[NDArray[np.float32]]) -> bool:
    """Whether masks hardly follow any edges of their images, so that nothing can be said of their places."""
    return len(fits) >= _FEWEST_IMAGES and float(np.mean([each[0] for each in fits])) < _NO_FIT


def describe_move(move: str) -> str:
    """Return what is wrong with masks that fit after a move, and what to do."""
    if " " not in move or move.startswith(("up", "turned")):
        return f"are {move}, it seems: {move}, they follow the edges of their images far better; turn them"
    down, right = (int(word) / _SIDE for word in move.split())
    words = [f"{abs(down):.1%} {'down' if down > 0 else 'up'}"] if down else []
    words += [f"{abs(right):.1%} {'right' if right > 0 else 'left'}"] if right else []
    return (
        f"are shifted, it seems: moved {' and '.join(words)} (of the longer side), they follow the edges of their "
        "images far better; make them anew from the images as they are"
    )


def _find_changes(grey: NDArray[np.float32]) -> NDArray[np.float32]:
    changes = np.zeros_like(grey)
    changes[:, :-1] += np.abs(np.diff(grey, axis=1))
    changes[:-1] += np.abs(np.diff(grey, axis=0))
    return changes - _blur(changes)


def _blur(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return means over a window, of what of it lies inside."""

    def add_up(of: NDArray[np.float32]) -> NDArray[np.float64]:
        sums = np.pad(of, ((_WINDOW + 1, _WINDOW), (_WINDOW + 1, _WINDOW))).cumsum(0, dtype=np.float64).cumsum(1)
        width = 2 * _WINDOW + 1
        return sums[width:, width:] - sums[:-width, width:] - sums[width:, :-width] + sums[:-width, :-width]

    return np.asarray(add_up(values) / add_up(np.ones_like(values)), np.float32)


def _find_borders(labels: NDArray[np.uint8]) -> NDArray[np.bool_]:
    borders = np.zeros(labels.shape, bool)
    seen = labels != IGNORE_INDEX
    borders[:, :-1] |= (labels[:, :-1] != labels[:, 1:]) & seen[:, :-1] & seen[:, 1:]
    borders[:-1] |= (labels[:-1] != labels[1:]) & seen[:-1] & seen[1:]
    return borders


def _move(borders: NDArray[np.bool_]) -> Iterator[NDArray[np.bool_]]:
    """Yield the borders moved in the order of ``MOVES``."""
    for move in MOVES:
        if move == "":
            yield borders
        elif move == "mirrored":
            yield borders[:, ::-1]
        elif move == "upside down":
            yield borders[::-1]
        elif move == "turned by half":
            yield borders[::-1, ::-1]
        else:
            down, right = map(int, move.split())
            moved = np.zeros_like(borders)
            rows, columns = borders.shape
            moved[max(0, down) : rows + min(0, down), max(0, right) : columns + min(0, right)] = borders[
                max(0, -down) : rows - max(0, down), max(0, -right) : columns - max(0, right)
            ]
            yield moved


def _mean(changes: NDArray[np.float32], where: NDArray[np.bool_]) -> float:
    return float(changes[where].mean())

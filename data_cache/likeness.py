"""Which images show nearly the same: frames of one film, the same photo saved twice or made smaller."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_SIDE = 16
"""Of the grid of brightness steps: 256 bits an image."""
_STEP = 2
"""Grey levels by which a cell must be brighter than the one before it; less is noise of flat areas."""
_FEWEST_STEPS = 16
"""Fewer say too little to compare: a wall, the night."""
NEAR = 0.3
"""Share of the brighter cells of either image that only one has, up to which two are nearly equal.

Measured on CamVid: 0.12 at most for a photo saved anew as JPEG of quality 30, 0.25 at half its size, 0.19 in the median
for frames of a slow film, 0.51 at least between images of train and val, which are of different films."""
_ROWS = 2048
"""Images compared with all others at a time."""

LookHash = NDArray[np.bool_]
"""(256,)."""


def compute_look_hash(image: NDArray[np.uint8]) -> LookHash:
    """Return a difference hash: where a 16x16 miniature gets brighter from left to right.

    Args:
        image: (H, W, 3) RGB.
    """
    small = Image.fromarray(image).convert("L").resize((_SIDE + 1, _SIDE), Image.Resampling.BOX, reducing_gap=2.0)
    grey = np.asarray(small, np.int16)
    return (np.diff(grey, axis=1) > _STEP).ravel()


def find_near_pairs(some: Sequence[LookHash], others: Sequence[LookHash]) -> Iterator[tuple[int, int]]:
    """Yield the places of images of one list that nearly equal those of another; featureless ones equal none."""
    if not len(some) or not len(others):
        return
    right = np.asarray(others)
    steps = right.sum(axis=1)
    for start in range(0, len(some), _ROWS):
        left = np.asarray(some[start : start + _ROWS])
        own = left.sum(axis=1, keepdims=True)
        common = left.astype(np.float32) @ right.T.astype(np.float32)
        either = own + steps - common
        near = (either - common <= NEAR * either) & (steps >= _FEWEST_STEPS) & (own >= _FEWEST_STEPS)
        for row, column in np.argwhere(near).tolist():
            yield start + row, column


def group_alike(hashes: Sequence[LookHash]) -> list[list[int]]:
    """Return the places of images in groups, each with all that are nearly equal to one of its own."""
    group_of = list(range(len(hashes)))

    def find(place: int) -> int:
        while group_of[place] != place:
            group_of[place] = group_of[group_of[place]]
            place = group_of[place]
        return place

    for one, other in find_near_pairs(hashes, hashes):
        group_of[max(find(one), find(other))] = min(find(one), find(other))
    groups: dict[int, list[int]] = {}
    for place in range(len(hashes)):
        groups.setdefault(find(place), []).append(place)
    return list(groups.values())

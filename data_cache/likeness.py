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


def find_near(some: Sequence[LookHash], others: Sequence[LookHash]) -> Iterator[tuple[int, NDArray[np.intp]]]:
    """Yield the places of images of one list, each with others that nearly equal it; of featureless ones none."""
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
        yield from ((start + row, np.flatnonzero(near[row])) for row in np.flatnonzero(near.any(axis=1)).tolist())


def group_alike(hashes: Sequence[LookHash]) -> list[list[int]]:
    """Return the places of images in groups, each with all that are nearly equal to one of its own."""
    group_of = np.arange(len(hashes))
    for _, near in find_near(hashes, hashes):
        merged = group_of[near]
        if (merged != merged[0]).any():
            group_of[np.isin(group_of, merged)] = merged.min()
    groups: dict[int, list[int]] = {}
    for place, group in enumerate(group_of.tolist()):
        groups.setdefault(group, []).append(place)
    return list(groups.values())

"""Predict pictures larger than memory allows: overlapping tiles whose rims are thrown away."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from data_cache.errors import UserError

GRID_PX = 32
"""Tiles start on multiples of the coarsest encoder stride, or features would be sampled elsewhere than in the whole."""

Segment = Callable[[NDArray[np.uint8]], NDArray[np.uint8]]
"""Maps an (h, w, 3) picture to its (h, w) labels."""


def check_tiling(tile: int, margin: int) -> None:
    """Refuse tile sizes that would shift features against the whole image.

    Raises:
        UserError: tile or margin is no multiple of GRID_PX; the message computes the nearest ones.
    """
    for what, value, least in (("tile", tile, 2 * GRID_PX), ("margin", margin, 0)):
        if value < least or value % GRID_PX:
            below = max(least, value // GRID_PX * GRID_PX)
            nearest = f"{below} or {below + GRID_PX}"
            raise UserError(f"--{what} {value} must be a multiple of {GRID_PX} and at least {least}; use {nearest}")


def segment_tiled(segment: Segment, image: NDArray[np.uint8], *, tile: int, margin: int) -> NDArray[np.uint8]:
    """Label an image tile by tile; each tile sees ``margin`` more pixels around it, mirrored at the image's border.

    With a network whose receptive radius is at most ``margin`` the result is that of the whole (mirrored) image; with
    deeper ones the difference shrinks as the margin grows. Networks with global pooling (PSPNet, DeepLab's ASPP,
    BiSeNet) see only their tile and never become equal.

    Args:
        image: (H, W, 3) RGB.
        tile: side of the kept centre, multiple of GRID_PX.
        margin: multiple of GRID_PX.

    Source: Ronneberger et al. 2015, figure 2 (overlap-tile strategy).
    """
    check_tiling(tile, margin)
    height, width = image.shape[:2]
    padded_height, padded_width = (max(tile, -(-side // GRID_PX) * GRID_PX) for side in (height, width))
    after = (padded_height - height + margin, padded_width - width + margin)
    padded = np.pad(image, ((margin, after[0]), (margin, after[1]), (0, 0)), mode="reflect")
    labels = np.zeros((padded_height, padded_width), dtype=np.uint8)
    for top in _starts(padded_height, tile):
        for left in _starts(padded_width, tile):
            window = padded[top : top + tile + 2 * margin, left : left + tile + 2 * margin]
            centre = segment(window)[margin : margin + tile, margin : margin + tile]
            labels[top : top + tile, left : left + tile] = centre
    return labels[:height, :width]


def _starts(length: int, tile: int) -> Iterator[int]:
    """Yield tile starts on the grid; the last one is moved back inside."""
    yield from range(0, length - tile, tile)
    yield length - tile

"""Fitting images to the sizes a network computes on, and its outputs back to the images."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def mirror_pad(images: Tensor, top: int, bottom: int, left: int, right: int) -> Tensor:
    """Continue images beyond their borders by reflection about the border pixels, as often as it takes.

    Equals ``F.pad(mode="reflect")``, which refuses margins as wide as the image; there the mirror is mirrored again.

    Args:
        images: (B, C, H, W).
        top, bottom, left, right: rows and columns to add, at least 0.

    Returns:
        (B, C, top + H + bottom, left + W + right).

    Source: Ronneberger et al. 2015, section 2, the overlap-tile strategy.
    """
    height, width = images.shape[-2:]
    rows = _mirror_indices(height, top, bottom, images.device)
    columns = _mirror_indices(width, left, right, images.device)
    return images.index_select(-2, rows).index_select(-1, columns)


def pad_to_multiple(images: Tensor, multiple: int) -> Tensor:
    """Mirror images at the right and bottom until both sides are multiples; no copy where they are already."""
    # Only positive numbers are divided: ONNX rounds towards 0 where Python rounds down, and tracing is much quicker.
    bottom, right = ((side + multiple - 1) // multiple * multiple - side for side in images.shape[-2:])
    # While exporting the sizes may be symbols, on which a branch would fix them.
    if not torch.compiler.is_exporting() and bottom == right == 0:
        return images
    return mirror_pad(images, 0, bottom, 0, right)


def crop_maps(maps: Tensor, size: tuple[int, ...], offset: int = 0) -> Tensor:
    """Return the (H, W) of (B, C, h, w) maps that begin ``offset`` rows and columns from the upper left."""
    if torch.compiler.is_exporting():
        # A slice would fix whether there is anything to cut off to what the traced size needs (torch 2.15).
        bottom, right = (wanted + offset - found for wanted, found in zip(size, maps.shape[-2:], strict=True))
        return F.pad(maps, (-offset, right, -offset, bottom))
    return maps[..., offset : offset + size[0], offset : offset + size[1]]


def resize_bilinear(maps: Tensor, size: tuple[int, ...]) -> Tensor:
    """Return (B, C, h, w) maps at another (H, W), the pixel centres keeping their place (``align_corners=False``)."""
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)


def _mirror_indices(size: int, before: int, after: int, device: torch.device) -> Tensor:
    positions = torch.arange(-before, size + after, device=device)
    # A triangle wave: 0 1 … n-1 n-2 … 1, and again. One pixel has nothing to reflect and is repeated.
    period = torch.sym_max(2 * (size - 1), 1)
    # A tensor as divisor: the ONNX exporter of torch 2.15 takes no symbolic size there.
    return (size - 1) - ((size - 1) - positions.remainder(torch.full_like(positions, period))).abs()

"""Where a pixel of the image lies in the depth map: sizes that fit the estimator.

Nothing is padded or cut: the image is resized to the exact size the estimator takes, the map it returns covers the same
field of view, and pixel centres lie at half-integers. So image and map are related by one scale per axis, and bilinear
resizing of the map (``align_corners=False``) puts every value where it belongs.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate


def compute_input_size(source_size: tuple[int, int], *, recommended: int, multiple: int) -> tuple[int, int]:
    """Return the input size: aspect kept as well as the multiple allows, with the smaller change of scale.

    Args:
        source_size: (H, W) of the image in pixels.
        recommended: side in pixels that one of the image's sides is brought to, whichever takes the smaller change.
        multiple: both sides of the result are multiples of this.

    Returns:
        (h, w) in pixels, each at least ``multiple``.

    Source: the rule of Depth Anything's published preprocessors (a VOC image of 375x500 becomes 392x518).
    """
    scales = [recommended / side for side in source_size]
    scale = min(scales, key=lambda scale: abs(1 - scale))
    height, width = (max(1, round(side * scale / multiple)) * multiple for side in source_size)
    return height, width


def resize_image(image: NDArray[np.uint8], size: tuple[int, int], *, mode: str = "bicubic") -> Tensor:
    """Return an image at the estimator's input size, antialiased.

    Args:
        image: (H, W, 3) RGB.
        size: (h, w) in pixels.
        mode: ``bicubic`` or ``bilinear``.

    Returns:
        (3, h, w) uint8.
    """
    pixels = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None]
    if pixels.shape[-2:] != size:
        pixels = interpolate(pixels, size=size, mode=mode, antialias=True)
    return pixels[0]

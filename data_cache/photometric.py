"""Light and colour that a camera could have made of the same scene; depth and labels stay as they are.

Brightness, contrast and saturation change on the device (``unpacking``); this is what one affine map of the pixels
cannot do. The functions are torchvision's; what they are given comes from a generator that the caller seeds.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from data_cache.settings import Photometric


class _Strength(NamedTuple):
    """How far things go at most, and how often they happen, in [0, 1]."""

    hue: float
    """Share of the colour circle, to either side."""
    grey: float
    autocontrast: float = 0.0
    blur: float = 0.0
    sharpness: float = 0.0


_STRENGTHS: dict[Photometric, _Strength] = {
    "colour": _Strength(hue=0.05, grey=0.1),
    "strong": _Strength(hue=0.1, grey=0.2, autocontrast=0.2, blur=0.3, sharpness=0.3),
}
_BLUR_PX = (0.3, 1.5)
"""Deviation of the Gaussian."""
_SHARPNESS = (0.0, 3.0)
"""Factors; 0 smooths, 1 changes nothing."""


class Recolouring(NamedTuple):
    """What is done to one image."""

    hue: float
    """Turn of the colour circle, of which 1 is the whole."""
    grey: bool
    autocontrast: bool
    blur: float | None
    """Deviation, px."""
    sharpness: float | None
    """Factor."""


def draw_recolouring(kind: Photometric, rng: np.random.Generator) -> Recolouring | None:
    """Draw what is done to an image; None when that is off, and then no number is drawn."""
    if kind == "none":
        return None
    strength = _STRENGTHS[kind]
    hue = float(rng.uniform(-strength.hue, strength.hue))
    grey, autocontrast, blurs, sharpens = (rng.random(4) < strength[1:]).tolist()
    blur, sharpness = float(rng.uniform(*_BLUR_PX)), float(rng.uniform(*_SHARPNESS))
    return Recolouring(hue, grey, autocontrast, blur if blurs else None, sharpness if sharpens else None)


def recolour(images: Tensor, recolouring: Recolouring) -> Tensor:
    """Return images in other colours.

    Args:
        images: (…, 3, H, W) uint8 RGB, without empty canvas.
        recolouring: the same for all of them.
    """
    if recolouring.autocontrast:
        images = F.autocontrast(images)
    images = F.rgb_to_grayscale(images, 3) if recolouring.grey else F.adjust_hue(images, recolouring.hue)
    if recolouring.sharpness is not None:
        images = F.adjust_sharpness(images, recolouring.sharpness)
    if recolouring.blur is not None and min(images.shape[-2:]) > 2 * math.ceil(2 * recolouring.blur):
        side = 2 * math.ceil(2 * recolouring.blur) + 1
        images = F.gaussian_blur(images, [side, side], [recolouring.blur, recolouring.blur])
    return images

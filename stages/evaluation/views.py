"""Several views of the same images, judged together: mirrored, smaller and larger (test-time augmentation)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from data_cache.errors import unknown_name
from data_cache.sample import SMALLEST_INPUT_PX
from stages.evaluation.forward import Precision, resize_depth, resize_logits, run_network
from stages.networks.interface import Outputs


class View(NamedTuple):
    """How a network is shown an image."""

    scale: float = 1.0
    mirrored: bool = False
    """Left and right exchanged."""


ONE_VIEW = (View(),)
SCALES = (0.75, 1.0, 1.25)
KINDS: Mapping[str, str] = {"flip": "the image and its mirror image", "scales": f"the image at {SCALES} of its size"}


def choose_views(text: str | None) -> tuple[View, ...]:
    """Return the views that names with commas between ask for: all combinations; None asks for the image itself.

    Raises:
        UserError: an unknown name.
    """
    names = [name.strip() for name in text.split(",")] if text is not None else []
    for name in names:
        if name not in KINDS:
            raise unknown_name("kind of view for --tta", name, KINDS)
    mirrored = (False, True) if "flip" in names else (False,)
    return tuple(View(*both) for both in product(SCALES if "scales" in names else (1.0,), mirrored))


def run_views(
    network: Callable[..., Any],
    images: Tensor,
    views: Sequence[View],
    *,
    precision: Precision = "float32",
    depth: bool = False,
) -> Outputs:
    """Return one forward pass, or what several views of the images give on average.

    Args:
        network: a ``Network``, or a segmentation-only module.
        images: (B, 3, H, W), normalised.
        views: one plain view is the forward pass itself, to the bit.
        precision: of the forward passes.
        depth: whether to compute depth.

    Returns:
        The logarithm of the mean softmax in place of logits, and the mean depth, at the size of the plain outputs.
    """
    if tuple(views) == ONE_VIEW:
        return run_network(network, images, precision=precision, depth=depth)
    logits: Tensor | None = None
    estimated: Tensor | None = None
    for view in views:
        outputs = run_network(network, _show(images, view), precision=precision, depth=depth)
        seen = outputs.seg_logits
        assert seen is not None
        upright = resize_logits(seen.flip(-1) if view.mirrored else seen, images.shape[-2:])
        found = upright.log_softmax(dim=1, dtype=torch.promote_types(upright.dtype, torch.float32))
        logits = found if logits is None else torch.logaddexp(logits, found)
        if outputs.depth is not None:
            near = resize_depth(outputs.depth.flip(-1) if view.mirrored else outputs.depth, images.shape[-2:])
            estimated = near if estimated is None else estimated + near
    assert logits is not None
    return Outputs(logits - math.log(len(views)), None if estimated is None else estimated / len(views))


def _show(images: Tensor, view: View) -> Tensor:
    """Return images as a view shows them."""
    if view.scale != 1:
        sides = (max(SMALLEST_INPUT_PX, round(side * view.scale)) for side in images.shape[-2:])
        images = F.interpolate(images, tuple(sides), mode="bilinear", antialias=True)
    return images.flip(-1) if view.mirrored else images

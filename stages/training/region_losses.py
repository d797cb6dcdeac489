"""Losses of regions rather than pixels, as segmentation_models_pytorch has them: of a whole batch, not means over it.

So neither parts of a batch nor ranks can add up to it. What is void leaves no trace; without any label they are 0.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

from torch import Tensor

from data_cache.sample import IGNORE_INDEX


def dice_loss(seg_logits: Tensor, seg_labels: Tensor) -> Tensor:
    """1 − 2·Σpg / (Σp + Σg) by class over the labelled pixels, as a mean over classes; 0 for one that is not there.

    Args:
        seg_logits: (B, C, H, W), unnormalised, any float type.
        seg_labels: (B, H, W), class index in [0, C) or IGNORE_INDEX.

    Returns:
        Scalar float32 in [0, 1]; 0 with gradient when no pixel is labelled.

    Source: Milletari et al. 2016 (V-Net).
    """
    return _build("DiceLoss")(seg_logits.float(), seg_labels)


def tversky_loss(seg_logits: Tensor, seg_labels: Tensor, *, beta: float) -> Tensor:
    """1 − Σpg / (Σpg + (1 − beta)·false positives + beta·false negatives); else as ``dice_loss``, which is beta 0.5.

    Args:
        beta: in [0, 1]; above 0.5, missed pixels cost more than wrongly found ones.

    Source: Salehi et al. 2017.
    """
    return _build("TverskyLoss", alpha=1 - beta, beta=beta)(seg_logits.float(), seg_labels)


def lovasz_loss(seg_logits: Tensor, seg_labels: Tensor) -> Tensor:
    """The Lovász extension of 1 − IoU, as a mean over the classes that are there; arguments as in ``dice_loss``.

    It asks for numbers on the way, so every step waits for the device.

    Returns:
        Scalar float32 in [0, 1]; 0 with gradient when no pixel is labelled.

    Source: Berman et al. 2018.
    """
    return _build("LovaszLoss")(seg_logits.float(), seg_labels).sum()  # of no pixel it is no scalar, but empty


@functools.cache
def _build(name: str, **settings: float) -> Callable[[Tensor, Tensor], Tensor]:
    from segmentation_models_pytorch import losses

    loss: Callable[[Tensor, Tensor], Tensor] = getattr(losses, name)(
        "multiclass", ignore_index=IGNORE_INDEX, **settings
    )
    return loss

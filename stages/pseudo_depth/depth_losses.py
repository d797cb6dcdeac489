"""Losses that compare a predicted map with depth one owns, in whichever space the estimator speaks.

Of several ranks each gets its share of the loss of all images; the shares add up.
"""

from __future__ import annotations

import torch
from torch import Tensor

from data_cache.ranks import add_others, as_share, sum_over_ranks

_GRADIENT_SCALES = 3
_EPSILON = 1e-6


def relative_depth_loss(predicted: Tensor, target: Tensor, valid: Tensor, *, anchor: float = 0.0) -> Tensor:
    """Loss on inverse depth that ignores scale and shift: 1 − correlation, aligned L1 and aligned gradient differences.

    Args:
        predicted: (B, H, W), inverse depth in any unit.
        target: (B, H, W), inverse depth, robustly normalised per image.
        valid: (B, H, W) bool.
        anchor: weight of the plain L1 difference, which keeps a network that starts from nothing in the target's range.

    Returns:
        Scalar; 0 exactly when the prediction is an increasing affine function of the target (and ``anchor`` is 0).

    Source: Ranftl et al. 2022 (MiDaS), eqs. 4 to 6 and 11, with the closed-form alignment; the correlation term is the
    least-squares residual of the same alignment.
    """
    weight = valid.float()
    count = weight.sum((1, 2), keepdim=True).clamp_min(1)
    predicted_mean = (predicted * weight).sum((1, 2), keepdim=True) / count
    target_mean = (target * weight).sum((1, 2), keepdim=True) / count
    predicted_offset = (predicted - predicted_mean) * weight
    target_offset = (target - target_mean) * weight
    covariance = (predicted_offset * target_offset).sum((1, 2), keepdim=True) / count
    variance = predicted_offset.square().sum((1, 2), keepdim=True) / count
    target_variance = target_offset.square().sum((1, 2), keepdim=True) / count
    correlation = covariance / (variance * target_variance + _EPSILON**2).sqrt()
    # never a negative scale: it would reward maps that are upside down
    scale = (covariance / (variance + _EPSILON)).clamp_min(_EPSILON)
    residual = scale * predicted_offset - target_offset
    num_images, num_valid = sum_over_ranks(count.new_tensor(len(count))), sum_over_ranks(weight.sum()).clamp_min(1)
    loss = (1 - correlation).sum() / num_images + residual.abs().sum() / num_valid
    loss = loss + 0.5 * _gradient_loss(residual, valid)
    if anchor:
        loss = loss + anchor * ((predicted - target).abs() * weight).sum() / num_valid
    return loss


def metric_depth_loss(predicted: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Scale-aware loss on metres: SiLog with λ 0.5 plus gradient differences of log depth.

    Args:
        predicted: (B, H, W) metres.
        target: (B, H, W) metres.
        valid: (B, H, W) bool.

    Returns:
        Scalar, 0 exactly when the maps are equal where valid.

    Source: Eigen et al. 2014, eq. 4, as in Depth Anything V2's metric fine-tuning.
    """
    weight = valid.float()
    count = sum_over_ranks(weight.sum()).clamp_min(1)
    safe_target = torch.where(valid, target, torch.ones_like(target))
    residual = (predicted.clamp_min(1e-3).log() - safe_target.clamp_min(1e-3).log()) * weight
    mean = add_others(residual.sum()) / count
    spread = add_others(residual.square().sum()) / count - 0.5 * mean.square()
    silog = (spread.clamp_min(0) + _EPSILON).sqrt() - _EPSILON**0.5
    return as_share(silog) + 0.5 * _gradient_loss(residual, valid)


def _gradient_loss(residual: Tensor, valid: Tensor) -> Tensor:
    """Mean absolute slope of the residual at several scales, over neighbours that are both valid."""
    total = residual.new_zeros(())
    for scale in range(_GRADIENT_SCALES):
        step = 2**scale
        part, mask = residual[:, ::step, ::step], valid[:, ::step, ::step]
        for first, second in (
            ((slice(None), slice(1, None)), (slice(None), slice(None, -1))),
            ((slice(None), slice(None), slice(1, None)), (slice(None), slice(None), slice(None, -1))),
        ):
            both = (mask[first] & mask[second]).float()
            total = total + ((part[first] - part[second]).abs() * both).sum() / sum_over_ranks(both.sum()).clamp_min(1)
    return total / _GRADIENT_SCALES

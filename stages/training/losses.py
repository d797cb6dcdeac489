"""Losses of the two tasks: each a float32 mean over the pixels with a target, and 0 with gradient when none has one.

Of several ranks each gets its share of the mean over all pixels; the shares add up.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from data_cache.errors import UserError
from data_cache.ranks import gather_over_ranks, gather_tensors, sum_over_ranks, world_size
from data_cache.sample import IGNORE_INDEX, Batch
from stages.networks.interface import Outputs
from stages.training.region_losses import dice_loss, lovasz_loss, tversky_loss
from stages.training.schedule import Phase
from stages.training.settings import LossSettings

OHEM_THRESHOLD = 0.7  # probability of the true class below which a pixel counts as hard; BiSeNet reference code
OHEM_MIN_KEPT = 1 / 16  # share of the labelled pixels kept at least; BiSeNet reference code
_SMALLEST_SPREAD = 1e-3  # keeps the gradient of `depth_ssi` tame while the prediction is still flat


def focal_loss(
    seg_logits: Tensor,
    seg_labels: Tensor,
    *,
    gamma: float = 2.0,
    alpha: float = 1.0,
    class_weights: Tensor | None = None,
) -> Tensor:
    """Mean softmax focal loss α·(1−p_t)^γ·CE over labelled pixels; equals cross-entropy at gamma 0 and alpha 1.

    Args:
        seg_logits: (B, C, H, W), unnormalised, any float type.
        seg_labels: (B, H, W), class index in [0, C) or IGNORE_INDEX.
        gamma: focusing strength, at least 0.
        alpha: factor on the whole loss.
        class_weights: (C,), at least 0; the mean is then weighted by them, as in ``F.cross_entropy``.

    Returns:
        Scalar float32, nats per pixel; 0 with gradient when no pixel is labelled.

    Source: Lin et al. 2017, eq. 4, with softmax in place of the sigmoid; the pseudo-depth paper, eq. 1, per pixel.
    """
    per_pixel = _cross_entropy_per_pixel(seg_logits, seg_labels)
    if gamma > 0:
        # 1 − p_t without cancellation; the floor keeps its gamma-th power differentiable where p_t is exactly 1
        per_pixel = (-torch.expm1(-per_pixel)).clamp_min(1e-12).pow(gamma) * per_pixel
    return alpha * _mean_over_labelled(per_pixel, seg_labels, class_weights)


def cross_entropy(seg_logits: Tensor, seg_labels: Tensor, *, class_weights: Tensor | None = None) -> Tensor:
    """Mean cross-entropy over labelled pixels; arguments and result as in ``focal_loss``."""
    return _mean_over_labelled(_cross_entropy_per_pixel(seg_logits, seg_labels), seg_labels, class_weights)


def ohem_cross_entropy(seg_logits: Tensor, seg_labels: Tensor, *, class_weights: Tensor | None = None) -> Tensor:
    """Mean cross-entropy over the hard pixels of the batch; arguments and result as in ``focal_loss``.

    Hard are those whose true class has probability below OHEM_THRESHOLD, or else the hardest OHEM_MIN_KEPT of them.

    Source: Shrivastava et al. 2016 as used by BiSeNet, Yu et al. 2018.
    """
    per_pixel = _cross_entropy_per_pixel(seg_logits, seg_labels)
    with torch.no_grad():
        labelled = seg_labels != IGNORE_INDEX
        losses = torch.where(labelled, per_pixel, -1.0)
        # Only the device knows how many pixels are labelled: the hardest of all that could be, then the least of them.
        hardest = _find_hardest(losses, OHEM_MIN_KEPT)
        least = torch.ceil(sum_over_ranks(labelled.sum()) * OHEM_MIN_KEPT).long()
        easiest_kept = hardest.gather(0, (least - 1).clamp_min(0).view(1))  # an index in brackets would be read here
        hard = labelled & ((losses > -math.log(OHEM_THRESHOLD)) | (losses >= easiest_kept))
        kept_labels = torch.where(hard, seg_labels, IGNORE_INDEX)
    return _mean_over_labelled(torch.where(hard, per_pixel, 0.0), kept_labels, class_weights)


def depth_mse(depth: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Mean squared error over valid pixels.

    Args:
        depth: (B, H, W), in the units of the target.
        target: (B, H, W); anything, even nan, where invalid.
        valid: (B, H, W) bool.

    Returns:
        Scalar float32, squared units of the target; 0 with gradient when no pixel is valid.

    Source: the pseudo-depth paper, eq. 2.
    """
    return _mean_over_valid(_difference(depth, target, valid).square(), valid)


def depth_l1(depth: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Mean absolute error over valid pixels; arguments as in ``depth_mse``, result in units of the target."""
    return _mean_over_valid(_difference(depth, target, valid).abs(), valid)


def depth_ssi(depth: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Mean absolute error after both maps of each image are shifted to median 0 and scaled to mean deviation 1.

    Unchanged when an image's prediction is multiplied by a positive number or shifted. Unlike a least-squares fit it
    does not reward a prediction that is upside down. Arguments as in ``depth_mse``.

    Returns:
        Scalar float32, without unit; 0 with gradient when no pixel is valid.

    Source: Ranftl et al. 2020 (MiDaS), eq. 5 to 7.
    """
    difference = _standardise(depth.float(), valid) - _standardise(target.float(), valid)
    return _mean_over_valid(torch.where(valid, difference.abs(), 0.0), valid)


def _cross_entropy_per_pixel(seg_logits: Tensor, seg_labels: Tensor) -> Tensor:
    return F.cross_entropy(seg_logits.float(), seg_labels, ignore_index=IGNORE_INDEX, reduction="none")


def _mean_over_labelled(per_pixel: Tensor, seg_labels: Tensor, class_weights: Tensor | None) -> Tensor:
    """Return the (weighted) mean of a (B, H, W) loss that is already 0 where nothing is labelled."""
    labelled = seg_labels != IGNORE_INDEX
    if class_weights is None:
        return per_pixel.sum() / sum_over_ranks(labelled.sum()).clamp_min(1)
    weights = _weigh(class_weights.to(per_pixel), seg_labels, labelled)
    return (per_pixel * weights).sum() / sum_over_ranks(weights.sum()).clamp_min(torch.finfo(torch.float32).tiny)


def _weigh(class_weights: Tensor, seg_labels: Tensor, labelled: Tensor) -> Tensor:
    """Return the weight of every pixel; 0 where nothing is labelled."""
    return class_weights[torch.where(labelled, seg_labels, 0)] * labelled


def _find_hardest(losses: Tensor, share: float) -> Tensor:
    """Return this share of all ranks' losses, the largest in descending order."""
    counts = gather_over_ranks(losses.numel())
    wanted = math.ceil(sum(counts) * share)
    own = losses.flatten().topk(min(wanted, losses.numel())).values
    if world_size() == 1:
        return own
    own = F.pad(own, (0, min(wanted, max(counts)) - len(own)), value=-1.0)
    return torch.cat(gather_tensors(own)).topk(wanted).values


def _difference(depth: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    return torch.where(valid, depth.float() - target.float(), 0.0)


def _mean_over_valid(per_pixel: Tensor, valid: Tensor) -> Tensor:
    return per_pixel.sum() / sum_over_ranks(valid.sum()).clamp_min(1)


def _standardise(maps: Tensor, valid: Tensor) -> Tensor:
    """Shift each (H, W) map to median 0 and scale it to mean absolute deviation 1 over its valid pixels."""
    flat = torch.where(valid, maps, torch.nan).flatten(1)
    median = flat.nanmedian(dim=1).values.nan_to_num()[:, None, None]
    shifted = torch.where(valid, maps - median, 0.0)
    spread = shifted.abs().sum((1, 2)) / valid.sum((1, 2)).clamp_min(1)
    return shifted / spread.clamp_min(_SMALLEST_SPREAD)[:, None, None]


SEG_LOSSES: dict[str, Callable[[Tensor, Tensor, LossSettings, Tensor | None], Tensor]] = {
    "focal": lambda logits, labels, settings, weights: focal_loss(
        logits, labels, gamma=settings.gamma, alpha=settings.alpha, class_weights=weights
    ),
    "cross-entropy": lambda logits, labels, _, weights: cross_entropy(logits, labels, class_weights=weights),
    "ohem": lambda logits, labels, _, weights: ohem_cross_entropy(logits, labels, class_weights=weights),
    "dice": lambda logits, labels, *_: dice_loss(logits, labels),
    "lovasz": lambda logits, labels, *_: lovasz_loss(logits, labels),
    "tversky": lambda logits, labels, settings, _: tversky_loss(logits, labels, beta=settings.tversky_beta),
}
"""Name → loss of (logits, labels, settings, class weights)."""


def segmentation_loss(
    seg_logits: Tensor, seg_labels: Tensor, settings: LossSettings, class_weights: Tensor | None
) -> Tensor:
    """Return the sum of the settings' segmentation losses times their weights; arguments as in ``focal_loss``."""
    found = {name: SEG_LOSSES[name](seg_logits, seg_labels, settings, class_weights) for name in settings.seg_terms}
    if isinstance(settings.seg, str):
        return found[settings.seg]
    return torch.stack([settings.seg_terms[name] * value for name, value in found.items()]).sum()


DepthLossFunction = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Of (depth, target, valid)."""
DEPTH_LOSSES: dict[str, DepthLossFunction] = {"mse": depth_mse, "l1": depth_l1, "ssi": depth_ssi}


class Terms(NamedTuple):
    """Unweighted losses of one batch; a term whose branch did not run is None."""

    seg: Tensor | None = None
    aux: Tensor | None = None
    """Sum over the auxiliary logits of networks that have them."""
    depth: Tensor | None = None
    mixed: Tensor | None = None
    """Segmentation loss of mixed images, times the share of their labels that is trusted."""

    def scaled(self, *, seg: Tensor, depth: Tensor) -> Terms:
        """Return the terms times a factor for the depth loss, and one for all others."""
        return Terms(**{name: (depth if name == "depth" else seg) * value for name, value in self.present().items()})

    def present(self) -> dict[str, Tensor]:
        """Return the terms that exist, by name."""
        return {name: value for name, value in self._asdict().items() if value is not None}


def compute_terms(
    outputs: Outputs,
    batch: Batch,
    phase: Phase,
    settings: LossSettings,
    class_weights: Tensor | None = None,
    depth_loss: DepthLossFunction | None = None,
) -> Terms:
    """Return the losses a phase asks for, ``depth_loss`` in place of the settings' if given; call it outside autocast.

    Args:
        outputs: of all rows of the batch; segmentation may be of the first rows alone, if no other is labelled.
        class_weights: those of ``settings``, on the device, see ``upload_class_weights``.

    Raises:
        UserError: the phase reads depth but the batch has none.
    """
    seg = aux = depth = None
    if phase.needs_seg:
        assert outputs.seg_logits is not None
        labels = batch.seg_labels[: len(outputs.seg_logits)]
        seg = segmentation_loss(outputs.seg_logits, labels, settings, class_weights)
        if outputs.aux_seg_logits:
            each = [segmentation_loss(logits, labels, settings, class_weights) for logits in outputs.aux_seg_logits]
            aux = torch.stack(each).sum()
    if phase.needs_depth:
        assert outputs.depth is not None
        if batch.inverse_depth is None or batch.depth_valid is None:
            raise UserError(
                f"phase {phase.name!r} trains on depth, but image {batch.image_ids[0]!r} was loaded without any; "
                "label the training split first with: pipeline pseudo-depth"
            )
        depth = (depth_loss or DEPTH_LOSSES[settings.depth])(outputs.depth, batch.inverse_depth, batch.depth_valid)
    return Terms(seg, aux, depth)


def count_targets(batch: Batch, phase: Phase, class_weights: Tensor | None) -> Tensor:
    """Return what the means of segmentation and depth loss divide by for a batch: (2,) float32; 0 where none is."""
    counts = [torch.zeros((), device=batch.images.device)] * 2
    if phase.needs_seg:
        labelled = batch.seg_labels != IGNORE_INDEX
        weights = labelled if class_weights is None else _weigh(class_weights, batch.seg_labels, labelled)
        counts[0] = weights.sum().float()
    if phase.needs_depth and batch.depth_valid is not None:
        counts[1] = batch.depth_valid.sum().float()
    return torch.stack(counts)


def upload_class_weights(settings: LossSettings, num_classes: int, device: torch.device) -> Tensor | None:
    """Return the class weights as a tensor, None where there are none.

    Raises:
        UserError: there is not one per class.
    """
    weights = settings.class_weights
    assert not isinstance(weights, str), "named weights became numbers before anything was trained"
    if weights is None:
        return None
    if len(weights) != num_classes:
        raise UserError(f"{len(weights)} class weights for {num_classes} classes; give one per class")
    return torch.tensor(weights, device=device)


def drop_misfits(seg_labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Return labels in which every class that the network has no output for is void, and how many pixels that were.

    On a GPU such a label ends the whole process from inside the loss, without a word about where it came from.
    """
    fits = (seg_labels >= 0) & (seg_labels < num_classes)
    misfits = (~fits & (seg_labels != IGNORE_INDEX)).sum()
    return torch.where(fits, seg_labels, IGNORE_INDEX), misfits

"""Mixed images: of two without masks, one is laid over the other, and labelled by a moving average of the network.

Three ways to say which pixels are whose: the nearer covers the farther (DepthMix, Hoyer et al. 2021), half of the
classes seen in one are laid over the other (ClassMix, Olsson et al. 2021), or a box (CutMix, French et al. 2020).
Images, labels and confidence are mixed alike. Nothing here waits for the device; what is drawn is drawn on the host,
from (seed, step), and shifts no other stream.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from data_cache.errors import UserError
from data_cache.sample import IGNORE_INDEX, Batch
from data_cache.unpacking import find_inside, restyle
from stages.networks.interface import Network
from stages.networks.precision import Dtype, autocast
from stages.training.schedule import Phase
from stages.training.settings import MixSettings

_STREAM = 7
"""First word of the random streams of mixing; orders, samples and choices of images have others."""
_INVALID, _EMPTY = -2.0, -torch.inf
"""What is not measured counts as farther than all that is, whatever the margin, and empty canvas as farther still."""
_SIGMA_PX = (0.15, 1.15)  # DepthMix and ClassMix reference code


class PoolView(NamedTuple):
    """Images without masks as they are, and what the moving average takes them for."""

    images: Tensor
    """(B, 3, H, W), normalised."""
    inside: Tensor
    """(B, H, W) bool: where an image lies on its canvas."""
    seg_labels: Tensor
    """(B, H, W) int64, void where the canvas is empty."""
    confidence: Tensor
    """(B, H, W), probability of the label."""
    nearness: Tensor | None
    """(B, H, W) inverse depth, -2 where it is not valid and -inf where the canvas is empty; only for "depth"."""


class MixedBatch(NamedTuple):
    """What a student learns beside labelled images."""

    images: Tensor
    """(B, 3, H, W), normalised, colours jittered and some blurred."""
    seg_labels: Tensor
    """(B, H, W) int64, void where the canvas is empty."""
    trusted: Tensor
    """Scalar: share of the labels, over the whole batch, with at least the confidence asked for; weight of the loss."""


def mask_by_depth(nearness: Tensor, partners: Tensor, margin: float) -> Tensor:
    """Return (B, H, W) bool: where an image is nearer than its partner, or farther by at most the margin.

    Source: Hoyer et al. 2021, section 3.3 (DepthMix).
    """
    return nearness >= nearness[partners] - margin


def mask_by_class(seg_labels: Tensor, chances: Tensor) -> Tensor:
    """Return (B, H, W) bool: where an image shows one of half of its classes, those with the highest chances.

    Args:
        seg_labels: (B, H, W), class index or IGNORE_INDEX.
        chances: (B, C), in [0, 1).

    Source: Olsson et al. 2021, algorithm 1 (ClassMix); an odd number of classes is rounded down.
    """
    num_classes = chances.shape[1]
    indices = torch.where(seg_labels == IGNORE_INDEX, num_classes, seg_labels).flatten(1)  # void is one class more
    seen = torch.zeros_like(F.pad(chances, (0, 1)), dtype=torch.bool).scatter_(1, indices, True)
    present = seen[:, :num_classes]
    ranks = torch.where(present, chances, -1.0).argsort(dim=1, descending=True).argsort(dim=1)
    chosen = F.pad(ranks < present.sum(1, keepdim=True) // 2, (0, 1))
    return chosen.gather(1, indices).view_as(seg_labels)


def draw_boxes(count: int, size: tuple[int, int], rng: np.random.Generator) -> list[tuple[int, int, int, int]]:
    """Draw top, left, height and width of boxes of half an area, of any shape that fits, anywhere.

    Source: French et al. 2020, section 4.1 (CutMix for segmentation): the height's logarithm is uniform.
    """
    boxes = []
    for high, up, left in rng.random((count, 3)).tolist():
        share = 0.5**high
        height, width = round(size[0] * share), round(size[1] * 0.5 / share)
        boxes.append((round(up * (size[0] - height)), round(left * (size[1] - width)), height, width))
    return boxes


def _by_depth(view: PoolView, partners: Tensor, settings: MixSettings, *_: object) -> Tensor:
    assert view.nearness is not None
    return mask_by_depth(view.nearness, partners, settings.margin)


def _by_class(
    view: PoolView, _partners: Tensor, _settings: MixSettings, num_classes: int, rng: np.random.Generator
) -> Tensor:
    chances = rng.random((len(view.images), num_classes), dtype=np.float32)
    return mask_by_class(view.seg_labels, _upload(chances.tolist(), view.images.device))


def _by_box(
    view: PoolView, _partners: Tensor, _settings: MixSettings, _num_classes: int, rng: np.random.Generator
) -> Tensor:
    size = view.images.shape[2], view.images.shape[3]
    return find_inside(_upload(draw_boxes(len(view.images), size, rng), view.images.device), size)


MASKS: dict[str, Callable[[PoolView, Tensor, MixSettings, int, np.random.Generator], Tensor]] = {
    "depth": _by_depth,
    "class": _by_class,
    "cut": _by_box,
}
"""Name → where (B, H, W) an image covers its partner, of (view, partners, settings, classes, random stream)."""


def draw_partners(count: int, rng: np.random.Generator) -> list[int]:
    """Return for each image another one, each once: the next in a random circle."""
    circle = rng.permutation(count).tolist()
    following = dict(zip(circle, circle[1:] + circle[:1], strict=True))
    return [following[place] for place in range(count)]


def lay_over(mask: Tensor, own: Tensor, partners: Tensor) -> Tensor:
    """Return (B, …) own values where the (B, H, W) mask says so, and the partners' elsewhere."""
    wide = mask[:, None] if own.dim() == 4 else mask  # images have channels
    return torch.where(wide, own, own[partners])


class Mixer:
    """Makes the mixed images of a phase's steps.

    Args:
        labeller: gives the labels, in evaluation mode: the moving average of the network that learns.
        phase: its ``mix``.
        settings: confidence, margin, jitter and blur.
        seed: of the phase; what is drawn in a step is a function of both.
        device: where to compute.
        dtype: of the labeller's forward pass.
    """

    def __init__(
        self, labeller: Network, phase: Phase, settings: MixSettings, *, seed: int, device: torch.device, dtype: Dtype
    ) -> None:
        self._labeller, self._phase, self._settings = labeller, phase, settings
        self._seed, self._device, self._dtype = seed, device, dtype

    @torch.no_grad()
    def mix(self, batch: Batch, step: int) -> MixedBatch:
        """Return the images of a batch that have no labels, each laid over another of them.

        Raises:
            UserError: depth is to decide, but the batch has none.
        """
        rng = np.random.default_rng((_STREAM, self._seed, step))
        view = self.label(batch)
        partners = _upload(draw_partners(len(view.images), rng), self._device)
        settings, num_classes = self._settings, self._labeller.num_classes
        mask = MASKS[self._phase.mix](view, partners, settings, num_classes, rng)
        images, inside, labels, confidence = (lay_over(mask, each, partners) for each in view[:4])
        jitter = rng.uniform(1 - settings.jitter, 1 + settings.jitter, (len(images), 3)).tolist()
        blurred = (rng.random(len(images)) < settings.blur).tolist()
        images = restyle(
            images,
            inside,
            self._labeller.normalisation,
            jitter=_upload(jitter, self._device),
            blurred=_upload(blurred, self._device),
            sigma=rng.uniform(*_SIGMA_PX),
        )
        labelled = labels != IGNORE_INDEX
        # Of the whole batch, not per image, as in the code of DepthMix and ClassMix.
        trusted = (labelled & (confidence >= settings.confidence)).sum() / labelled.sum().clamp_min(1)
        return MixedBatch(images, labels, trusted)

    def label(self, batch: Batch) -> PoolView:
        """Return the images of a batch that have no labels, as the moving average sees them."""
        unlabelled = slice(batch.num_labelled, None)
        images = batch.images[unlabelled]
        inside = torch.ones_like(images[:, 0], dtype=torch.bool) if batch.inside is None else batch.inside[unlabelled]
        with autocast(self._device, self._dtype):
            seg_logits = self._labeller(images, seg=True, depth=False).seg_logits
        assert seg_logits is not None
        confidence, labels = torch.softmax(seg_logits.float(), dim=1).max(dim=1)
        nearness = None
        if self._phase.mix == "depth":
            if batch.inverse_depth is None or batch.depth_valid is None:
                raise UserError(
                    f"phase {self._phase.name!r} mixes images by depth, but image {batch.image_ids[-1]!r} was loaded "
                    "without any; label the training split first with: pipeline pseudo-depth"
                )
            measured = torch.where(batch.depth_valid[unlabelled], batch.inverse_depth[unlabelled], _INVALID)
            nearness = torch.where(inside, measured, _EMPTY)
        return PoolView(images, inside, torch.where(inside, labels, IGNORE_INDEX), confidence, nearness)


def _upload(values: list, device: torch.device) -> Tensor:
    return torch.tensor(values).to(device, non_blocking=True)

"""How the losses of a phase are weighted: by fixed weights, by learned uncertainty, or by how fast each falls."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from data_cache.ranks import sum_over_ranks, world_size
from stages.training.losses import Terms
from stages.training.schedule import Phase
from stages.training.settings import LossSettings

_TASKS = ("seg", "depth")
_DWA_TEMPERATURE = 2.0  # Liu et al. 2019, section 3.3


class WeightedLosses(NamedTuple):
    """The sum to descend, and each term's contribution to it; all scalar float32."""

    total: Tensor
    """With learned uncertainty it holds the regulariser too."""
    weighted: dict[str, Tensor]
    """Loss times factor by term: seg, aux, depth."""


class LossWeighting(nn.Module):
    """Fixed weights: seg·seg loss + depth·depth loss, as the phase says.

    Args:
        phase: its ``seg`` and ``depth`` are the weights.
        aux_weight: weight of the auxiliary segmentation losses relative to the main one.
        device: where the losses will be.
        shares: whether the weights are shares of the sum at the start: the depth loss is scaled, once, so that both
            losses (what segmentation adds to its own included) begin equally large.
    """

    depth_scale: Tensor
    """0 before the first step with two losses to compare; only with ``shares``."""

    def __init__(self, phase: Phase, aux_weight: float, device: torch.device, *, shares: bool = False) -> None:
        super().__init__()
        self._weights = {"seg": phase.seg, "depth": phase.depth}
        self._aux_weight, self._shares = aux_weight, shares
        if shares:
            self.register_buffer("depth_scale", torch.zeros((), device=device))
            self._scale_here = self.depth_scale

    def forward(self, terms: Terms, share: float = 1.0) -> WeightedLosses:  # noqa: ARG002
        """Weight the terms of one batch, or of a ``share`` of one."""
        factors = self.task_factors()
        factors |= {"aux": self._aux_weight * factors["seg"], "mixed": factors["seg"]}
        if self._shares:
            factors["depth"] = factors["depth"] * self._find_depth_scale(terms)
        weighted = {name: factors[name] * value for name, value in terms.present().items()}
        return WeightedLosses(torch.stack(list(weighted.values())).sum(), weighted)

    def task_factors(self) -> dict[str, Tensor | float]:
        """Return the factor on the loss of each task."""
        return dict(self._weights)

    def observe(self, raw: Mapping[str, Tensor], holds: Tensor) -> None:  # noqa: ARG002
        """Take note of a finished step's unweighted losses, unless the step ``holds``: it is to change nothing."""
        if self._shares:
            known = holds | (self.depth_scale > 0)
            self.depth_scale.copy_(torch.where(known, self.depth_scale, self._scale_here))

    def _find_depth_scale(self, terms: Terms) -> Tensor:
        """Return what both losses, that of all ranks, are equally large by; 1 as long as one of them is 0."""
        present = {name: value.detach() for name, value in terms.present().items()}
        added = {"aux": self._aux_weight}
        seg = torch.stack([added.get(name, 1.0) * value for name, value in present.items() if name != "depth"]).sum()
        both = sum_over_ranks(torch.stack([seg, present["depth"]]))
        ratio = both[0] / both[1]
        self._scale_here = torch.where(torch.isfinite(ratio) & (ratio > 0), ratio, 0.0)
        scale = torch.where(self.depth_scale > 0, self.depth_scale, self._scale_here)
        return torch.where(scale > 0, scale, 1.0)


class UncertaintyWeighting(LossWeighting):
    """exp(−s)·seg + ½·exp(−s')·depth + (s + s')/2 with learned log variances s; it starts at the phase's weights.

    Source: Kendall et al. 2018, eq. 10.
    """

    def __init__(self, phase: Phase, aux_weight: float, device: torch.device, *, shares: bool = False) -> None:
        super().__init__(phase, aux_weight, device, shares=shares)
        start = [-math.log(phase.seg), -math.log(2 * phase.depth)]  # exp(−s) = seg and ½·exp(−s') = depth
        self.log_variances = nn.Parameter(torch.tensor(start, device=device))

    def forward(self, terms: Terms, share: float = 1.0) -> WeightedLosses:
        """Weight the terms of one batch, or of a ``share`` of one, and add as much of the regulariser to their sum."""
        total, weighted = super().forward(terms, share)
        return WeightedLosses(total + share * self.log_variances.sum() / (2 * world_size()), weighted)

    def task_factors(self) -> dict[str, Tensor | float]:
        """Return the learned precisions."""
        precision = torch.exp(-self.log_variances)
        return {"seg": precision[0], "depth": precision[1] / 2}


class DynamicWeightAverage(LossWeighting):
    """The phase's weights times 2·softmax(r/2), r being how far each loss fell from one window of steps to the next.

    Source: Liu et al. 2019, eq. 7.
    """

    running_sums: Tensor
    last_means: Tensor
    means_before: Tensor
    observed_steps: Tensor

    def __init__(
        self, phase: Phase, aux_weight: float, device: torch.device, *, shares: bool = False, window: int
    ) -> None:
        super().__init__(phase, aux_weight, device, shares=shares)
        self._window = window
        for name in ("running_sums", "last_means", "means_before"):
            self.register_buffer(name, torch.zeros(2, dtype=torch.float64, device=device))
        self.register_buffer("observed_steps", torch.zeros((), dtype=torch.int64, device=device))

    def observe(self, raw: Mapping[str, Tensor], holds: Tensor) -> None:
        """Add a finished step's unweighted losses to the current window."""
        super().observe(raw, holds)
        losses = torch.stack([raw[task] for task in _TASKS]).to(self.running_sums)
        sums = torch.where(holds, self.running_sums, self.running_sums + losses)
        self.observed_steps += ~holds
        full = ~holds & (self.observed_steps % self._window == 0)
        self.means_before.copy_(torch.where(full, self.last_means, self.means_before))
        self.last_means.copy_(torch.where(full, sums / self._window, self.last_means))
        self.running_sums.copy_(torch.where(full, 0.0, sums))

    def task_factors(self) -> dict[str, Tensor | float]:
        """Return the phase's weights until two windows are full, and from then on those times the shares."""
        ratios = self.last_means / self.means_before
        shares = len(_TASKS) * torch.softmax(ratios / _DWA_TEMPERATURE, 0)
        known = (self.means_before > 0).all()
        factors = torch.where(known, shares, 1.0).float()
        return {task: self._weights[task] * factor for task, factor in zip(_TASKS, factors, strict=True)}


WEIGHTINGS: dict[str, Callable[..., LossWeighting]] = {
    "fixed": LossWeighting,
    "uncertainty": UncertaintyWeighting,
    "dwa": DynamicWeightAverage,
}


def build_weighting(phase: Phase, settings: LossSettings, aux_weight: float, device: torch.device) -> LossWeighting:
    """Return the weighting of a phase; a single loss keeps its fixed weight, whatever the settings say.

    Args:
        phase: its ``seg`` and ``depth`` are the weights at the start.
        settings: ``weighting``, ``balance`` and ``dwa_window``.
        aux_weight: weight of the auxiliary segmentation losses relative to the main one.
        device: where the losses will be.
    """
    if not (phase.needs_seg and phase.needs_depth):
        return LossWeighting(phase, aux_weight, device)
    window = {"window": settings.dwa_window} if settings.weighting == "dwa" else {}
    return WEIGHTINGS[settings.weighting](phase, aux_weight, device, shares=settings.balance == "share", **window)

"""How the losses of a phase are weighted: by fixed weights, by learned uncertainty, or by how fast each falls."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from data_cache.ranks import world_size
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
    """

    def __init__(self, phase: Phase, aux_weight: float) -> None:
        super().__init__()
        self._weights = {"seg": phase.seg, "depth": phase.depth}
        self._aux_weight = aux_weight

    def forward(self, terms: Terms) -> WeightedLosses:
        """Weight the terms of one batch."""
        factors = self.task_factors()
        factors["aux"] = self._aux_weight * factors["seg"]
        weighted = {name: factors[name] * value for name, value in terms.present().items()}
        return WeightedLosses(torch.stack(list(weighted.values())).sum(), weighted)

    def task_factors(self) -> dict[str, Tensor | float]:
        """Return the factor on the loss of each task."""
        return dict(self._weights)

    def observe(self, raw: Mapping[str, Tensor], holds: Tensor) -> None:
        """Take note of a finished step's unweighted losses, unless the step ``holds``: it is to change nothing."""


class UncertaintyWeighting(LossWeighting):
    """exp(−s)·seg + ½·exp(−s')·depth + (s + s')/2 with learned log variances s; it starts at the phase's weights.

    Source: Kendall et al. 2018, eq. 10.
    """

    def __init__(self, phase: Phase, aux_weight: float, device: torch.device) -> None:
        super().__init__(phase, aux_weight)
        start = [-math.log(phase.seg), -math.log(2 * phase.depth)]  # exp(−s) = seg and ½·exp(−s') = depth
        self.log_variances = nn.Parameter(torch.tensor(start, device=device))

    def forward(self, terms: Terms) -> WeightedLosses:
        """Weight the terms of one batch, and add the regulariser to their sum."""
        total, weighted = super().forward(terms)
        return WeightedLosses(total + self.log_variances.sum() / (2 * world_size()), weighted)  # a share, as the losses

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

    def __init__(self, phase: Phase, aux_weight: float, window: int, device: torch.device) -> None:
        super().__init__(phase, aux_weight)
        self._window = window
        for name in ("running_sums", "last_means", "means_before"):
            self.register_buffer(name, torch.zeros(2, dtype=torch.float64, device=device))
        self.register_buffer("observed_steps", torch.zeros((), dtype=torch.int64, device=device))

    def observe(self, raw: Mapping[str, Tensor], holds: Tensor) -> None:
        """Add a finished step's unweighted losses to the current window."""
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


WEIGHTINGS: dict[str, Callable[[Phase, LossSettings, float, torch.device], LossWeighting]] = {
    "fixed": lambda phase, _settings, aux_weight, _device: LossWeighting(phase, aux_weight),
    "uncertainty": lambda phase, _settings, aux_weight, device: UncertaintyWeighting(phase, aux_weight, device),
    "dwa": lambda phase, settings, aux_weight, device: DynamicWeightAverage(
        phase, aux_weight, settings.dwa_window, device
    ),
}


def build_weighting(phase: Phase, settings: LossSettings, aux_weight: float, device: torch.device) -> LossWeighting:
    """Return the weighting of a phase; a single loss keeps its fixed weight, whatever the settings say.

    Args:
        phase: its ``seg`` and ``depth`` are the weights at the start.
        settings: ``weighting`` and ``dwa_window``.
        aux_weight: weight of the auxiliary segmentation losses relative to the main one.
        device: where the losses will be.
    """
    mode = settings.weighting if phase.needs_seg and phase.needs_depth else "fixed"
    return WEIGHTINGS[mode](phase, settings, aux_weight, device)

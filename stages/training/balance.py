"""How two losses are weighed: by fixed weights, by learned uncertainty, or by how fast each of them falls."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from stages.training.losses import LossSettings, Terms
from stages.training.schedule import Phase

_TASKS = ("seg", "depth")
_DWA_TEMPERATURE = 2.0  # Liu et al. 2019, section 3.3


class Weighed(NamedTuple):
    """The sum to descend, and each term's contribution to it; all scalar float32."""

    total: Tensor
    """With uncertainty balance it holds the regulariser too."""
    weighted: dict[str, Tensor]
    """Loss times factor by term: seg, aux, depth."""


class LossBalance(nn.Module):
    """Weighs the losses of one phase. Balancing acts only where both are present; a single loss keeps its fixed weight.

    - ``fixed``: focal·seg + mse·depth, the phase's weights.
    - ``uncertainty``: exp(−s)·seg + ½·exp(−s')·depth + (s + s')/2 with learned log variances s, which start where the
      factors are the phase's weights. Source: Kendall et al. 2018, eq. 10.
    - ``dwa``: the phase's weights times 2·softmax(r/2), r being how much each loss fell from the last but one window of
      steps to the last. Source: Liu et al. 2019, eq. 7.

    Args:
        phase: its ``focal`` and ``mse`` are the weights.
        settings: ``balance`` and ``dwa_window``.
        aux_weight: weight of the auxiliary segmentation losses relative to the main one.
        device: where the losses will be.
    """

    log_variances: nn.Parameter
    running_sums: Tensor
    last_means: Tensor
    means_before: Tensor
    observed_steps: Tensor

    def __init__(self, phase: Phase, settings: LossSettings, aux_weight: float, device: torch.device) -> None:
        super().__init__()
        self._weights = {"seg": phase.focal, "depth": phase.mse}
        self._aux_weight = aux_weight
        self._window = settings.dwa_window
        self.mode = settings.balance if phase.needs_seg and phase.needs_depth else "fixed"
        if self.mode == "uncertainty":
            # exp(−s) = focal and ½·exp(−s') = mse at the start
            start = [-math.log(phase.focal), -math.log(2 * phase.mse)]
            self.log_variances = nn.Parameter(torch.tensor(start, device=device))
        if self.mode == "dwa":
            for name in ("running_sums", "last_means", "means_before"):
                self.register_buffer(name, torch.zeros(2, dtype=torch.float64))
            self.register_buffer("observed_steps", torch.zeros((), dtype=torch.int64))

    def forward(self, terms: Terms) -> Weighed:
        """Weigh the terms of one batch."""
        factors = self._task_factors()
        weighted = {name: factors[name] * value for name, value in terms.present().items()}
        total = torch.stack(list(weighted.values())).sum()
        if self.mode == "uncertainty":
            total = total + self.log_variances.sum() / 2
        return Weighed(total, weighted)

    def observe(self, raw: dict[str, float]) -> None:
        """Take note of a step's unweighted losses; only ``dwa`` learns from them."""
        if self.mode != "dwa":
            return
        self.running_sums += torch.tensor([raw[task] for task in _TASKS], dtype=torch.float64)
        self.observed_steps += 1
        if int(self.observed_steps) % self._window == 0:
            self.means_before.copy_(self.last_means)
            self.last_means.copy_(self.running_sums / self._window)
            self.running_sums.zero_()

    def _task_factors(self) -> dict[str, Tensor | float]:
        factors: dict[str, Tensor | float] = dict(self._weights)
        if self.mode == "uncertainty":
            precision = torch.exp(-self.log_variances)
            factors = {"seg": precision[0], "depth": precision[1] / 2}
        elif self.mode == "dwa" and bool((self.means_before > 0).all()):
            ratios = self.last_means / self.means_before
            shares = len(_TASKS) * torch.softmax(ratios / _DWA_TEMPERATURE, 0)
            factors = {task: self._weights[task] * share for task, share in zip(_TASKS, shares.tolist(), strict=True)}
        return factors | {"aux": self._aux_weight * factors["seg"]}

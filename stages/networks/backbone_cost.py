"""What encoders cost: parameters, and the time of one forward pass on this machine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from segmentation_models_pytorch.encoders import get_encoder
from torch import nn

from stages.networks import count_parameters
from stages.networks.encoders import check_encoder_name

SIDE_PX = 256
REPEATS = 7


@dataclass(frozen=True)
class BackboneCost:
    """Cost of one encoder without its classifier."""

    encoder: str
    """Name in smp."""
    parameters: int
    milliseconds: float
    """Median of one forward pass: one image of ``SIDE_PX`` squared, float32, CPU, evaluation mode."""


@torch.no_grad()
def measure_backbones(
    encoders: Sequence[str], *, repeats: int = REPEATS, progress: Callable[[int], object] | None = None
) -> list[BackboneCost]:
    """Measure encoders with random weights; they take turns, so that a busy machine slows all alike.

    Args:
        encoders: names of smp.
        repeats: timed rounds after one to warm up.
        progress: called with the number of finished rounds.

    Raises:
        UserError: an unknown encoder.
    """
    built = {name: _build(name) for name in encoders}
    images = torch.zeros(1, 3, SIDE_PX, SIDE_PX)
    times_ms: dict[str, list[float]] = {name: [] for name in built}
    for round_ in range(repeats + 1):
        for name, encoder in built.items():
            started_at = time.perf_counter()
            encoder(images)
            if round_ > 0:
                times_ms[name].append(1000 * (time.perf_counter() - started_at))
        if progress:
            progress(round_)
    return [
        BackboneCost(name, count_parameters(encoder), round(statistics.median(times_ms[name]), 1))
        for name, encoder in built.items()
    ]


def _build(name: str) -> nn.Module:
    check_encoder_name(name)
    encoder: nn.Module = get_encoder(name, weights=None)
    return encoder.eval()

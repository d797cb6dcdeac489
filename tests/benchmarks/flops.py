"""What a device can multiply, and what a call multiplies."""

from __future__ import annotations

import time

import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.benchmarks.harness import Side, wait_for

SIDES = {"cpu": (1024, 2048), "cuda": (4096, 8192)}
"""Of the square matrices that are tried; the fastest counts."""


def measure_matmul_peak(device: torch.device, dtype: torch.dtype, *, seconds: float = 0.7) -> float:
    """Return the most FLOP/s that a product of square matrices reached, trying each size for so many seconds."""
    best = 0.0
    for side in SIDES[device.type]:
        left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        torch.mm(left, right)  # chooses its kernel
        until = time.perf_counter() + seconds
        while time.perf_counter() < until:
            wait_for(device)
            started_at = time.perf_counter()
            for _ in range(repeats := 5 if device.type == "cuda" else 1):
                torch.mm(left, right)
            wait_for(device)
            best = max(best, repeats * 2 * side**3 / (time.perf_counter() - started_at))
    return best


def count_flops(call: Side) -> int:
    """Return the floating-point operations of the matrix products, convolutions and attention of a call."""
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()

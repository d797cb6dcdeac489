"""Which float type a forward pass computes in. Imports no torch, so that plans can be made without it."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Literal, get_args

from data_cache.errors import unknown_name

Precision = Literal["auto", "bfloat16", "float32"]
Dtype = Literal["bfloat16", "float32"]

_NATIVE_FLAGS = {"avx512_bf16", "amx_bf16"}
_CPU_FLAGS = Path("/proc/cpuinfo")


def resolve_dtype(precision: Precision, device_type: str) -> Dtype:
    """Return the type of the forward pass; "auto" takes bfloat16 where the device multiplies it natively.

    On a CPU with AVX512-BF16 a ResNet18 U-Net training step (batch 8, 96×128, channels_last) took 0.55 of its float32
    time; without native support bfloat16 is emulated and slower.

    Args:
        precision: as a recipe says it.
        device_type: ``cpu``, ``cuda``, …

    Raises:
        UserError: unknown name.
    """
    if precision not in get_args(Precision):
        raise unknown_name("precision", precision, get_args(Precision))
    if precision != "auto":
        return precision
    return "bfloat16" if _multiplies_bfloat16(device_type) else "float32"


@cache
def _multiplies_bfloat16(device_type: str) -> bool:
    match device_type:
        case "cuda":
            import torch

            return torch.cuda.is_bf16_supported(including_emulation=False)
        case "cpu" if _CPU_FLAGS.exists():
            return not _NATIVE_FLAGS.isdisjoint(_CPU_FLAGS.read_text(encoding="utf8").split())
        case "cpu":
            import torch

            # newer than our lowest torch; without it the CPU counts as one that does not
            capabilities: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
            return any(capabilities.get(flag) for flag in _NATIVE_FLAGS)
        case _:
            return False

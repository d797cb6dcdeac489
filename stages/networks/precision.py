"""Which float type a forward pass computes in. Imports no torch, so that plans can be made without it."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from data_cache.errors import unknown_name

if TYPE_CHECKING:
    import torch

Precision = Literal["auto", "bfloat16", "float16", "float32"]
Dtype = Literal["bfloat16", "float16", "float32"]

_NATIVE_FLAGS = {"avx512_bf16", "amx_bf16"}
_CPU_FLAGS = Path("/proc/cpuinfo")
_FIRST_TENSOR_CORES = (7, 0)
"""Compute capability of the V100, the first GPU whose float16 is faster than its float32 by a class."""


def resolve_dtype(precision: Precision, device: str) -> Dtype:
    """Return the type of the forward pass; "auto" takes the narrowest one that the device multiplies quickly.

    That is bfloat16 where the hardware has it, float16 on GPUs that have tensor cores for it alone (V100, T4), and
    float32 otherwise. On a CPU with AVX512-BF16 a ResNet18 U-Net training step (batch 8, 96×128, channels_last) took
    0.55 of its float32 time; without native support bfloat16 is emulated and slower.

    Args:
        precision: as a recipe says it.
        device: ``cpu``, ``cuda``, ``cuda:1``, …

    Raises:
        UserError: unknown name.
    """
    if precision not in get_args(Precision):
        raise unknown_name("precision", precision, get_args(Precision))
    return _find_fastest(device) if precision == "auto" else precision


def autocast(device: torch.device, dtype: Dtype) -> torch.autocast:
    """Return the context of a forward pass in that type; in float32 it does nothing."""
    import torch

    lower = torch.float16 if dtype == "float16" else torch.bfloat16
    return torch.autocast(device.type, lower, enabled=dtype != "float32")


def set_tf32(allowed: bool) -> None:
    """Let float32 be multiplied as TF32 on GPUs that can, or not: torch allows it to convolutions by itself."""
    import torch

    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = allowed


def _find_fastest(device: str) -> Dtype:
    match device.partition(":")[0]:
        case "cuda":
            import torch

            with torch.cuda.device(torch.device(device)):  # of which the questions are
                if torch.cuda.is_bf16_supported(including_emulation=False):
                    return "bfloat16"
                return "float16" if torch.cuda.get_device_capability() >= _FIRST_TENSOR_CORES else "float32"
        case "cpu":
            return "bfloat16" if _cpu_multiplies_bfloat16() else "float32"
        case _:
            return "float32"


@cache
def _cpu_multiplies_bfloat16() -> bool:
    if _CPU_FLAGS.exists():
        return not _NATIVE_FLAGS.isdisjoint(_CPU_FLAGS.read_text(encoding="utf8").split())
    import torch

    # newer than our lowest torch; without it the CPU counts as one that does not
    capabilities: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    return any(capabilities.get(flag) for flag in _NATIVE_FLAGS)

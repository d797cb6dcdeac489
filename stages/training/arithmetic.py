"""How the device is to calculate while a phase trains, and what to do where it cannot."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from data_cache.errors import UserError
from stages.networks.precision import Dtype, set_tf32
from stages.training.settings import TrainingSettings

_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "ALLOC_FAILED")
"""How torch says it of GPUs, of the CPU, and of the libraries beneath it."""


@contextmanager
def training_arithmetic(settings: TrainingSettings, device: torch.device, dtype: Dtype) -> Iterator[None]:
    """Set torch's switches for the steps inside the block: TF32, search for the fastest kernels, determinism.

    Raises:
        UserError: the memory does not suffice, or something has no deterministic form.
    """
    cudnn, cudnn_was = torch.backends.cudnn, (torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic)
    was = torch.are_deterministic_algorithms_enabled()
    cudnn.benchmark, cudnn.deterministic = not settings.deterministic, settings.deterministic  # crops are of one size
    set_tf32(settings.tf32)
    if settings.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS refuses without it
        torch.use_deterministic_algorithms(True)
    try:
        yield
    except RuntimeError as problem:
        if explained := _explain(problem, settings, device, dtype):
            raise UserError(explained) from problem
        raise
    finally:
        torch.use_deterministic_algorithms(was)
        set_tf32(False)
        cudnn.benchmark, cudnn.deterministic = cudnn_was


def _explain(problem: RuntimeError, settings: TrainingSettings, device: torch.device, dtype: Dtype) -> str | None:
    said = str(problem).partition("\n")[0]
    if any(words in said for words in _OUT_OF_MEMORY):
        remedies = [
            *([f"--batch-size {settings.batch_size // 2}"] if settings.batch_size > 1 else []),
            "a smaller data.crop",
            *(["--precision bfloat16", "--precision float16"] if dtype == "float32" and device.type == "cuda" else []),
        ]
        return (
            f"the memory of {device} does not suffice for a step of {settings.batch_size} images in {dtype}; try "
            f"{' or '.join(remedies)} ({said[:200]})"
        )
    if settings.deterministic and "deterministic" in said:
        return (
            f"{said.partition(' does not have')[0]} has no deterministic form on {device}, and "
            "training.deterministic asks for one; leave --deterministic out, or choose another network or loss"
        )
    return None

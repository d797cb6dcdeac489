"""How the device is to calculate while a phase trains, and what to do where it cannot."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from data_cache.errors import UserError
from stages.networks.precision import set_tf32
from stages.training.settings import TrainingSettings


@contextmanager
def training_arithmetic(settings: TrainingSettings, device: torch.device) -> Iterator[None]:
    """Set torch's switches for the steps inside the block: TF32, search for the fastest kernels, determinism.

    Raises:
        UserError: something has no deterministic form.
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
        if not settings.deterministic or "does not have a deterministic" not in str(problem):
            raise
        raise UserError(
            f"{str(problem).partition(' does not have')[0]} has no deterministic form on {device}, and "
            "training.deterministic asks for one; leave --deterministic out, or choose another network or loss"
        ) from problem
    finally:
        torch.use_deterministic_algorithms(was)
        set_tf32(False)
        cudnn.benchmark, cudnn.deterministic = cudnn_was

"""What a format is written from, and what writers of all formats share."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from data_cache.errors import UserError
from data_cache.sample import SMALLEST_INPUT_PX
from stages.export.formats import INPUT_NAME
from stages.export.shape_safe import replace_adaptive_pooling
from stages.networks import segmentation_only
from stages.networks.interface import Network

TRACED_BATCH = 2  # a batch of 1 would be taken for a constant by torch.export

SegmentationFunction = Callable[[Tensor], Tensor]
"""Images (B, 3, H, W) float32 → logits (B, C, H, W) float32, on the CPU."""


@dataclass(frozen=True)
class ExportJob:
    """What a format is written from.

    Args:
        network: stripped, on the CPU, float32, in evaluation mode.
        folder: existing folder to write into.
        input_size: height and width in pixels that the model is meant for.
        dynamic: whether other sizes must work too, in formats that fix the size otherwise.
        opset: ONNX operator set.
    """

    network: Network
    folder: Path
    input_size: tuple[int, int]
    dynamic: bool
    opset: int

    def build_portable(self) -> nn.Module:
        """Return an images → logits module that an exporter can carry to other sizes where that is asked for."""
        module = segmentation_only(self.network).eval()
        return replace_adaptive_pooling(copy.deepcopy(module)) if self.dynamic else module

    def build_dynamic_shapes(self, *, dynamic_batch: bool) -> dict[str, dict[int, Any]]:
        """Return which axes of the input may change, in torch.export's words."""
        axes: dict[int, Any] = {0: torch.export.Dim("batch", min=1)} if dynamic_batch else {}
        if self.dynamic:
            axes |= {
                axis: torch.export.Dim(name, min=SMALLEST_INPUT_PX) for axis, name in ((2, "height"), (3, "width"))
            }
        return {INPUT_NAME: axes}


def without_gradient(module: nn.Module) -> SegmentationFunction:
    """Return a module as a function that keeps no graph."""

    def segment(images: Tensor) -> Tensor:
        with torch.no_grad():
            return module(images)

    return segment


def build_exporter_error(name: str, job: ExportJob, error: Exception) -> UserError:
    """Build the error for a network that an exporter cannot carry."""
    remedy = "export with the fixed size only" if job.dynamic else f"leave {name!r} out of the formats"
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return UserError(f"network {job.network.spec.name!r} cannot be exported as {name}: {reason}; {remedy}")


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Drop a library's chatter: stdout carries the one JSON object, and warnings are for who wrote the exporter."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)

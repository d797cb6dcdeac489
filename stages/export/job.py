"""What a format is written from, and what writers of all formats share."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from data_cache.errors import UserError
from data_cache.sample import SMALLEST_INPUT_PX
from data_cache.size_rule import SizeRule
from stages.export.formats import DEFAULT_MAX_DROP, INPUT_NAME
from stages.export.shape_safe import replace_adaptive_pooling
from stages.networks import segmentation_only
from stages.networks.interface import Network, Normalisation

TRACED_BATCH = 2  # a batch of 1 would be taken for a constant by torch.export

_CHATTY = ("torch.onnx", "torch.export", "torch.fx", "torch.utils", "onnxscript", "onnx_ir")

SegmentationFunction = Callable[[Tensor], Tensor]
"""Images (B, 3, H, W) float32 → logits (B, C, H, W) float32, on the CPU."""
LabelFunction = Callable[[NDArray[np.uint8]], NDArray[np.uint8]]
"""An upright image (H, W, 3) → class indices (H, W)."""


class ProofImage(NamedTuple):
    """A real image on which written files are compared with the network."""

    name: str
    pixels: NDArray[np.uint8]
    """(H, W, 3) RGB."""
    labels: NDArray[np.uint8] | None = None
    """(H, W), class index or IGNORE_INDEX."""


class Scored(NamedTuple):
    """What labels scored on images of the reported split."""

    miou_macro: float
    images: int
    """How many were labelled, from all over the split."""
    of: int
    """How many the split has."""
    split: str


ScoreLabels = Callable[[LabelFunction], Scored]


def normalise_image(image: NDArray[np.uint8], normalisation: Normalisation, rule: SizeRule) -> Tensor:
    """Return an (H, W, 3) image as a network's input (1, 3, h, w), at the size at which it enters."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in normalisation)
    pixels = torch.from_numpy(rule.fit(image)).permute(2, 0, 1).float() / 255
    return ((pixels - mean) / std).unsqueeze(0).contiguous()


@dataclass(frozen=True)
class ExportJob:
    """What a format is written from.

    Args:
        network: stripped, on the CPU, float32, in evaluation mode.
        folder: existing folder to write into.
        input_size: height and width in pixels at which it is traced; of a fixed rule the only ones.
        size_rule: how images enter; every format obeys it.
        opset: ONNX operator set.
        preprocess: content of preprocess.json, for formats that carry it themselves.
        samples: real images of the reported split, unlike those it was trained on.
        calibration: yields normalised training images (1, 3, H, W) at the size at which they enter.
        score: returns the macro mIoU of a function on the reported split under the size rule.
        score_labels: returns what a function from images to labels scores on images of the reported split.
        max_drop: by how much of it numbers of 8 bits may cost.
        force: whether files that cost more, or answer otherwise more often, are published all the same.
        folded: the network from images to logits with batch norm folded into convolutions; None leaves it as it is.
    """

    network: Network
    folder: Path
    input_size: tuple[int, int]
    size_rule: SizeRule
    opset: int
    preprocess: Mapping[str, Any]
    samples: Sequence[ProofImage] = ()
    calibration: Callable[[], Iterator[Tensor]] | None = None
    score: Callable[[SegmentationFunction], float] | None = None
    max_drop: float = DEFAULT_MAX_DROP
    force: bool = False
    folded: nn.Module | None = None
    score_labels: ScoreLabels | None = None

    @property
    def dynamic(self) -> bool:
        """Whether images enter at any size."""
        return self.size_rule.input_size is None

    def normalise(self, image: NDArray[np.uint8]) -> Tensor:
        """Return an (H, W, 3) image as the network's input (1, 3, h, w), at the size at which it enters."""
        return normalise_image(image, self.network.normalisation, self.size_rule)

    def build_portable(self) -> nn.Module:
        """Return an images → logits module that an exporter can carry to other sizes where that is asked for."""
        module = segmentation_only(self.network).eval() if self.folded is None else self.folded
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


class CannotExport(UserError):
    """A network that a format cannot carry.

    Args:
        reason: which network, which format, and why.
        job: what it should have been written from.
    """

    def __init__(self, name: str, reason: str, job: ExportJob) -> None:
        remedy = f"leave {name!r} out of the formats"
        super().__init__(f"{reason}; {f'export for one size (--fixed), or {remedy}' if job.dynamic else remedy}")
        self.reason = reason
        self.at_any_size = job.dynamic


def build_exporter_error(name: str, job: ExportJob, error: Exception) -> CannotExport:
    """Build the error for a network that an exporter cannot carry."""
    root: BaseException = error
    while root.__cause__ is not None:  # exporters wrap what names the operator
        root = root.__cause__
    said = str(root).strip().partition("\n")[0] or type(root).__name__
    sizes = " for images of any size" if job.dynamic else ""
    return CannotExport(name, f"network {job.network.spec.name!r} cannot be exported as {name}{sizes}: {said}", job)


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Drop a library's chatter: stdout carries the one JSON object, and warnings are for who wrote the exporter."""
    loggers = [logging.getLogger(name) for name in _CHATTY]
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

"""The file formats of an export: each row knows how to write itself and how to be opened again as a function."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

from data_cache.errors import UserError
from stages.export.shape_safe import replace_adaptive_pooling
from stages.export.strip import CONFIG_FILE, WEIGHTS_FILE, load_exported, write_weights
from stages.networks import segmentation_only
from stages.networks.interface import Network

ONNX_FILE = "model.onnx"
PT2_FILE = "model.pt2"
INPUT_NAME = "images"
OUTPUT_NAME = "seg_logits"
SMALLEST_PX = 64
"""Every network promises to take images of at least this many pixels a side."""
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
            axes |= {2: torch.export.Dim("height", min=SMALLEST_PX), 3: torch.export.Dim("width", min=SMALLEST_PX)}
        return {INPUT_NAME: axes}


class Format(NamedTuple):
    """One way to ship the network."""

    files: tuple[str, ...]
    write: Callable[[ExportJob], dict[str, Any]]
    """Writes the files and returns facts about them for proof.json."""
    open: Callable[[Path], SegmentationFunction]
    """Opens the written folder with the library that users of the format have."""
    max_difference: float
    """Largest difference of a logit to the network's, relative to the largest logit, with which it may be shipped."""
    min_agreement: float
    """Smallest share of pixels whose most likely class is the network's."""


def _write_safetensors(job: ExportJob) -> dict[str, Any]:
    write_weights(job.network, job.folder)
    return {}


def _open_safetensors(folder: Path) -> SegmentationFunction:
    return _without_gradient(segmentation_only(load_exported(folder)))


def _write_onnx(job: ExportJob) -> dict[str, Any]:
    try:
        program = _trace_onnx(job, dynamic_batch=True)
        dynamic_batch = True
    except torch.onnx.OnnxExporterError:
        # Some encoders fold the batch into other axes; a fixed batch of one is then what ONNX can carry.
        dynamic_batch = False
        try:
            program = _trace_onnx(job, dynamic_batch=False)
        except torch.onnx.OnnxExporterError as error:
            raise _build_exporter_error("onnx", job, error) from error
    size_bytes = sum(value.numel() * value.element_size() for value in job.build_portable().state_dict().values())
    with quiet_libraries():
        # protobuf cannot hold 2 GiB; then, and only then, the weights go into a file beside the graph.
        program.save(job.folder / ONNX_FILE, external_data=size_bytes > 1.9 * 2**30)
    return {"dynamic_batch": dynamic_batch, "dynamic_size": job.dynamic, "opset": job.opset}


def _trace_onnx(job: ExportJob, *, dynamic_batch: bool) -> torch.onnx.ONNXProgram:
    images = torch.zeros(TRACED_BATCH if dynamic_batch else 1, 3, *job.input_size)
    with quiet_libraries(), torch.no_grad():
        program = torch.onnx.export(
            job.build_portable(),
            (images,),
            dynamo=True,
            opset_version=job.opset,
            input_names=[INPUT_NAME],
            output_names=[OUTPUT_NAME],
            dynamic_shapes=job.build_dynamic_shapes(dynamic_batch=dynamic_batch),
            verbose=False,
        )
    assert program is not None
    return program


def _open_onnx(folder: Path) -> SegmentationFunction:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only; they are raised as exceptions besides
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(folder / ONNX_FILE, options, providers=["CPUExecutionProvider"])

    def segment(images: Tensor) -> Tensor:
        (seg_logits,) = session.run([OUTPUT_NAME], {INPUT_NAME: np.ascontiguousarray(images.numpy())})
        return torch.from_numpy(seg_logits)

    return segment


def _write_pt2(job: ExportJob) -> dict[str, Any]:
    images = torch.zeros(TRACED_BATCH, 3, *job.input_size)
    try:
        with quiet_libraries(), torch.no_grad():
            program = torch.export.export(
                job.build_portable(),
                (images,),
                dynamic_shapes=job.build_dynamic_shapes(dynamic_batch=True),
                # Odd sizes take other branches of shape arithmetic; checked when run, they need not hold for all sizes.
                prefer_deferred_runtime_asserts_over_guards=True,
            )
            torch.export.save(program, job.folder / PT2_FILE)
    except (torch._dynamo.exc.UserError, torch._dynamo.exc.Unsupported) as error:
        raise _build_exporter_error("pt2", job, error) from error
    return {"dynamic_batch": True, "dynamic_size": job.dynamic}


def _open_pt2(folder: Path) -> SegmentationFunction:
    with quiet_libraries():
        return _without_gradient(torch.export.load(folder / PT2_FILE).module())


# fmt: off
FORMATS = {
    "safetensors": Format((CONFIG_FILE, WEIGHTS_FILE), _write_safetensors, _open_safetensors, 0.0,  1.0),
    "onnx":        Format((ONNX_FILE,),                _write_onnx,        _open_onnx,        1e-3, 0.999),
    "pt2":         Format((PT2_FILE,),                 _write_pt2,         _open_pt2,         1e-3, 0.999),
}
# fmt: on
"""Name → how to write, open and judge it."""


def _without_gradient(module: nn.Module) -> SegmentationFunction:
    def segment(images: Tensor) -> Tensor:
        with torch.no_grad():
            return module(images)

    return segment


def _build_exporter_error(name: str, job: ExportJob, error: Exception) -> UserError:
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

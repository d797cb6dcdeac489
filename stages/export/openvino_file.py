"""model.xml and model.bin: a graph for OpenVINO, made from the ONNX one and opened with its runtime."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from data_cache.errors import UserError, say_reason
from data_cache.files import format_bytes
from stages.export.formats import ONNX_FILE, OPENVINO_FILE
from stages.export.job import ExportJob, SegmentationFunction, build_exporter_error, quiet_libraries
from stages.export.proof_file import EXPORT_AGAIN
from stages.export.runtimes import compile_openvino, open_openvino

if TYPE_CHECKING:
    import openvino

METADATA = ("model_info", "preprocess")
"""Where the graph keeps the content of preprocess.json."""


def write(job: ExportJob) -> dict[str, Any]:
    """Write model.xml and model.bin from model.onnx."""
    try:
        with quiet_libraries():
            graph = open_openvino().read_model(job.folder / ONNX_FILE)
            save(graph, job, OPENVINO_FILE)
    except RuntimeError as error:
        raise build_exporter_error("openvino", job, RuntimeError(_find_reason(str(error)))) from error
    return describe(graph)


def _find_reason(said: str) -> str:
    """Return which operators OpenVINO does not know, or the first of its lines that is no place in its code."""
    unknown = re.search(r"No conversion rule found for operations: (.+)", said)
    if unknown:
        return f"OpenVINO has no rule for the operator {unknown[1]}"
    return next((line for line in said.splitlines() if not line.startswith(("Exception from", "Check "))), said)


def save(graph: openvino.Model, job: ExportJob, name: str) -> None:
    """Write a graph, with the content of preprocess.json in it, and the file of its weights beside it.

    Raises:
        UserError: there is no room for them.
    """
    import openvino

    graph.set_rt_info(json.dumps(dict(job.preprocess)), list(METADATA))
    try:
        openvino.save_model(graph, job.folder / name, compress_to_fp16=False)
    except RuntimeError as error:  # an iostream error, which says no reason
        free = format_bytes(shutil.disk_usage(job.folder).free)
        raise UserError(
            f"OpenVINO cannot write {name} in {job.folder.parent} ({say_reason(error, -1)}), where {free} are free; "
            "free some space, or choose another place with --out, and repeat the command"
        ) from error


def describe(graph: openvino.Model) -> dict[str, Any]:
    """Return facts about a graph for proof.json."""
    batch, _, height, _ = graph.input(0).get_partial_shape()
    return {"dynamic_batch": batch.is_dynamic, "dynamic_size": height.is_dynamic}


def open_folder(folder: Path) -> SegmentationFunction:
    """Open model.xml with OpenVINO."""
    return open_file(folder / OPENVINO_FILE)


def open_file(path: Path) -> SegmentationFunction:
    """Open a graph with OpenVINO; images run one by one where it takes no batches.

    Raises:
        UserError: OpenVINO cannot open it, or it is no network from images to logits.
    """
    graph = read(path)
    shapes = [port.get_partial_shape() for port in (*graph.inputs, *graph.outputs)]
    if len(graph.inputs) != 1 or len(graph.outputs) != 1 or any(shape.rank != 4 for shape in shapes):
        found = ", ".join(f"{shape}" for shape in shapes)
        raise UserError(f"{path} is no network from images (B, 3, H, W) to logits (B, C, H, W); it has {found}")
    return run_compiled(compile_openvino(graph, torch.get_num_threads()))


def run_compiled(compiled: openvino.CompiledModel) -> SegmentationFunction:
    """Return a graph ready to run as a function."""
    first = compiled.input(0).get_partial_shape()[0]

    def segment(images: Tensor) -> Tensor:
        pieces = (images,) if first.is_dynamic else images.split(first.get_length())
        answers = [compiled(np.ascontiguousarray(piece.numpy()))[0].copy() for piece in pieces]
        return torch.from_numpy(np.concatenate(answers) if len(answers) > 1 else answers[0])

    return segment


def read(path: Path) -> openvino.Model:
    """Return the graph that a file and the file of weights beside it hold.

    Raises:
        UserError: OpenVINO cannot open them.
    """
    if not path.with_suffix(".bin").is_file():
        raise UserError(f"{path} comes with its weights, {path.with_suffix('.bin').name}, which is missing beside it")
    try:
        return open_openvino().read_model(path)
    except RuntimeError as error:
        raise UserError(f"OpenVINO cannot open {path} ({say_reason(error, -1)}); {EXPORT_AGAIN}") from error


def read_metadata(path: Path) -> dict[str, Any]:
    """Return the content of preprocess.json that the file carries; {} where it carries none.

    Raises:
        UserError: OpenVINO cannot open it, or what it carries is damaged.
    """
    graph = read(path)
    if not graph.has_rt_info(list(METADATA)):
        return {}
    try:
        return json.loads(graph.get_rt_info(list(METADATA)).astype(str))
    except ValueError as error:
        raise UserError(f"what {path} says of itself is damaged ({error}); {EXPORT_AGAIN}") from error

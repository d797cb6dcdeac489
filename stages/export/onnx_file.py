"""model.onnx: an ONNX graph, written by torch's exporter and opened with onnxruntime."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor

from data_cache.errors import UserError, say_reason
from stages.export.formats import INPUT_NAME, ONNX_FILE, OUTPUT_NAME
from stages.export.job import TRACED_BATCH, ExportJob, SegmentationFunction, build_exporter_error, quiet_libraries
from stages.export.preprocess import Preprocess
from stages.export.proof_file import EXPORT_AGAIN
from stages.export.runtimes import start_onnx


def write(job: ExportJob) -> dict[str, Any]:
    """Write model.onnx."""
    try:
        program = _trace(job, dynamic_batch=True)
        dynamic_batch = True
    except torch.onnx.OnnxExporterError:
        # Some encoders fold the batch into other axes; a fixed batch of one is then what ONNX can carry.
        dynamic_batch = False
        try:
            program = _trace(job, dynamic_batch=False)
        except torch.onnx.OnnxExporterError as error:
            raise build_exporter_error("onnx", job, error) from error
    size_bytes = sum(value.numel() * value.element_size() for value in job.build_portable().state_dict().values())
    program.model.metadata_props.update({name: json.dumps(value) for name, value in job.preprocess.items()})
    with quiet_libraries():
        # protobuf cannot hold 2 GiB; then, and only then, the weights go into a file beside the graph.
        program.save(job.folder / ONNX_FILE, external_data=size_bytes > 1.9 * 2**30)
    return {"dynamic_batch": dynamic_batch, "dynamic_size": job.dynamic, "opset": job.opset}


def _trace(job: ExportJob, *, dynamic_batch: bool) -> torch.onnx.ONNXProgram:
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


def open_folder(folder: Path) -> SegmentationFunction:
    """Open model.onnx with onnxruntime."""
    return open_file(folder / ONNX_FILE)


def open_file(path: Path) -> SegmentationFunction:
    """Open an ONNX file with onnxruntime; images run one by one where it takes no batches.

    Raises:
        UserError: onnxruntime cannot open it, or it is no network from images to logits.
    """
    return _as_function(start_session(path), str(path))


def open_graph(graph: onnx.ModelProto) -> SegmentationFunction:
    """Open a graph that is no file yet with onnxruntime; it is one of ours."""
    return _as_function(_start(graph.SerializeToString(), "the graph"), "the graph")


def _as_function(session: onnxruntime.InferenceSession, path: str) -> SegmentationFunction:
    inputs, outputs = session.get_inputs(), session.get_outputs()
    if [len(inputs), len(inputs[0].shape)] != [1, 4] or [len(outputs), len(outputs[0].shape)] != [1, 4]:
        found = ", ".join(f"{each.name} {each.shape}" for each in (*inputs, *outputs))
        raise UserError(f"{path} is no network from images (B, 3, H, W) to logits (B, C, H, W); it has {found}")
    at_once = inputs[0].shape[0]

    def segment(images: Tensor) -> Tensor:
        pieces = images.split(at_once) if isinstance(at_once, int) else (images,)
        answers = [session.run(None, {inputs[0].name: np.ascontiguousarray(piece.numpy())})[0] for piece in pieces]
        return torch.from_numpy(np.concatenate(answers) if len(answers) > 1 else answers[0])

    return segment


def describe_batch(graph: onnx.ModelProto) -> dict[str, Any]:
    """Return facts about a graph for proof.json."""
    batch, _, height, _ = graph.graph.input[0].type.tensor_type.shape.dim
    return {"dynamic_batch": bool(batch.dim_param), "dynamic_size": bool(height.dim_param)}


def read_metadata(path: Path) -> dict[str, Any]:
    """Return the content of preprocess.json that the file carries; {} where it carries none.

    Raises:
        UserError: onnxruntime cannot open it, or what it carries is damaged.
    """
    found = start_session(path).get_modelmeta().custom_metadata_map
    try:
        return {name: json.loads(found[name]) for name in Preprocess.model_fields if name in found}
    except ValueError as error:
        raise UserError(f"what {path} says of itself is damaged ({error}); {EXPORT_AGAIN}") from error


def start_session(path: Path) -> onnxruntime.InferenceSession:
    """Open an ONNX file on the CPU, with as many threads as torch has.

    Raises:
        UserError: onnxruntime cannot open it.
    """
    return _start(path, str(path))


def _start(content: Path | bytes, name: str) -> onnxruntime.InferenceSession:
    try:
        return start_onnx(content, torch.get_num_threads())
    except Exception as error:  # its exceptions have no common class of their own
        raise UserError(f"onnxruntime cannot open {name} ({say_reason(error)}); {EXPORT_AGAIN}") from error

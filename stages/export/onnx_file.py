"""model.onnx: an ONNX graph, written by torch's exporter and opened with onnxruntime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import Tensor

from stages.export.formats import INPUT_NAME, ONNX_FILE, OUTPUT_NAME
from stages.export.job import TRACED_BATCH, ExportJob, SegmentationFunction, build_exporter_error, quiet_libraries


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
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only; they are raised as exceptions besides
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(folder / ONNX_FILE, options, providers=["CPUExecutionProvider"])

    def segment(images: Tensor) -> Tensor:
        (seg_logits,) = session.run([OUTPUT_NAME], {INPUT_NAME: np.ascontiguousarray(images.numpy())})
        return torch.from_numpy(seg_logits)

    return segment

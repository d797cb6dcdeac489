"""model-fp16.onnx: the ONNX graph with numbers of 16 bits, half the size; images and logits stay float32."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.export import onnx_file
from stages.export.formats import ONNX_FILE, ONNX_FP16_FILE
from stages.export.job import ExportJob, SegmentationFunction, quiet_libraries

if TYPE_CHECKING:
    import onnx


def write(job: ExportJob) -> dict[str, Any]:
    """Write model-fp16.onnx from model.onnx."""
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    with quiet_libraries():
        model = convert_float_to_float16(onnx.load(job.folder / ONNX_FILE), keep_io_types=True)
        _drop_repeated(model.graph)
        onnx.save(model, job.folder / ONNX_FP16_FILE)
    return onnx_file.describe_batch(model)


def _drop_repeated(graph: onnx.GraphProto) -> None:
    """Keep one of each cast: the converter repeats it for every input of a node that is the same value."""
    nodes = list({tuple(node.output): node for node in graph.node}.values())
    del graph.node[:]
    graph.node.extend(nodes)


def open_folder(folder: Path) -> SegmentationFunction:
    """Open model-fp16.onnx with onnxruntime."""
    return open_file(folder / ONNX_FP16_FILE)


open_file, read_metadata = onnx_file.open_file, onnx_file.read_metadata

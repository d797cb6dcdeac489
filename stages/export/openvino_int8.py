"""model-int8.xml and model-int8.bin: OpenVINO's graph with weights and activations of 8 bits where its score allows."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.export import openvino_file
from stages.export.formats import ONNX_FILE, OPENVINO_FILE, OPENVINO_INT8_FILE
from stages.export.job import ExportJob, SegmentationFunction
from stages.export.onnx_int8 import name_layers
from stages.export.quantisation import check_images, judge, quantise

if TYPE_CHECKING:
    import openvino

NAME = "openvino-int8"
BETWEEN = ("Convert", "Subtract", "Multiply", "Reshape", "Transpose")
"""Nodes between weights of 8 bits and the layer that they belong to."""


check = partial(check_images, NAME)


def write(job: ExportJob) -> dict[str, Any]:
    """Write model-int8.xml and model-int8.bin from model.xml."""
    import onnx

    graph = openvino_file.read(job.folder / OPENVINO_FILE)
    layers = name_layers(onnx.load(job.folder / ONNX_FILE, load_external_data=False))
    quantised, float_score = quantise(NAME, job, graph, openvino_file.run_compiled)
    openvino_file.save(quantised, job, OPENVINO_INT8_FILE)
    nodes = {node.get_friendly_name(): node for node in quantised.get_ops()}
    found = {layer: next(nodes[name] for name in names if name in nodes) for layer, names in layers.items()}
    is_float = {layer: not _has_bytes(node) for layer, node in found.items()}
    return openvino_file.describe(graph) | judge(NAME, job, float_score, open_folder(job.folder), is_float)


def _has_bytes(layer: openvino.Node) -> bool:
    """Return whether the weights of a layer are stored with 8 bits."""
    while layer.get_type_name() == "Add":  # the bias has the name
        layer = layer.input(0).get_source_output().get_node()
    for port in layer.inputs():
        node = port.get_source_output().get_node()
        while node.get_type_name() in BETWEEN:
            node = node.input(0).get_source_output().get_node()
        if node.get_type_name() == "Constant" and node.get_element_type().size == 1:
            return True
    return False


def open_folder(folder: Path) -> SegmentationFunction:
    """Open model-int8.xml with OpenVINO."""
    return open_file(folder / OPENVINO_INT8_FILE)


open_file, read_metadata = openvino_file.open_file, openvino_file.read_metadata

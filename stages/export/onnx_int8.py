"""model-int8.onnx: the ONNX graph with weights and activations of 8 bits where its score allows."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.export import onnx_file
from stages.export.formats import ONNX_FILE, ONNX_INT8_FILE
from stages.export.job import ExportJob, SegmentationFunction
from stages.export.quantisation import check_images, judge, quantise

if TYPE_CHECKING:
    import onnx

NAME = "onnx-int8"
LAYERS = ("Conv", "ConvTranspose", "MatMul", "Gemm")


check = partial(check_images, NAME)


def write(job: ExportJob) -> dict[str, Any]:
    """Write model-int8.onnx from model.onnx."""
    import onnx

    graph = onnx.load(job.folder / ONNX_FILE)
    quantised, float_score = quantise(NAME, job, graph, onnx_file.open_graph)
    _keep_concatenated(quantised.graph)
    onnx.save(quantised, job.folder / ONNX_INT8_FILE)
    found = judge(NAME, job, float_score, open_folder(job.folder), _find_float(graph, quantised))
    return onnx_file.describe_batch(graph) | found


def name_layers(graph: onnx.ModelProto) -> dict[str, tuple[str, str]]:
    """Return the layers with weights in a float graph: name of the module → names of the node and its output."""
    weights = {tensor.name for tensor in graph.graph.initializer}
    layers = {}
    for node in graph.graph.node:
        if node.op_type in LAYERS and (own := [name for name in node.input[:2] if name in weights]):
            named = own[0].endswith(".weight")  # others are put together by the exporter
            layer = own[0].removeprefix("network.").removesuffix(".weight") if named else node.name
            layers[layer] = (node.name, node.output[0])
    return layers


def _keep_concatenated(graph: onnx.GraphProto) -> None:
    """Quantise what is concatenated of equally quantised parts once more by the same numbers, which changes no value.

    onnxruntime runs the layer behind it on bytes only then: a U-Net takes 0.50 instead of 0.72 of float's time so
    (onnxruntime 1.31, NNCF 3.4).
    """
    from onnx import helper, numpy_helper

    values = {it.name: (it.data_type, numpy_helper.to_array(it).tobytes()) for it in graph.initializer}
    restored = {node.output[0]: node for node in graph.node if node.op_type == "DequantizeLinear"}
    renamed: dict[str, str] = {}
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
        nodes.append(node)
        parts = [restored[name] for name in node.input if name in restored]
        kinds = {tuple(values.get(name) for name in part.input[1:]) for part in parts}
        if node.op_type != "Concat" or len(parts) < len(node.input) or len(kinds) != 1:
            continue
        name, numbers = node.output[0], parts[0].input[1:]
        between, renamed[name] = f"{name}_bytes", f"{name}_restored"
        nodes += [
            helper.make_node("QuantizeLinear", [name, *numbers], [between], name=f"{name}_quantise"),
            helper.make_node("DequantizeLinear", [between, *numbers], [renamed[name]], name=f"{name}_restore"),
        ]
        restored[renamed[name]] = nodes[-1]
    del graph.node[:]
    graph.node.extend(nodes)


def _find_float(graph: onnx.ModelProto, quantised: onnx.ModelProto) -> dict[str, bool]:
    restored = {name for node in quantised.graph.node if node.op_type == "DequantizeLinear" for name in node.output}
    nodes = {node.name: node for node in quantised.graph.node}
    layers = name_layers(graph).items()
    return {layer: not restored.intersection(nodes[node].input[1:2]) for layer, (node, _) in layers}


def open_folder(folder: Path) -> SegmentationFunction:
    """Open model-int8.onnx with onnxruntime."""
    return open_file(folder / ONNX_INT8_FILE)


open_file, read_metadata = onnx_file.open_file, onnx_file.read_metadata

"""model-embedded.onnx: from the bytes of an image to its labels, so that a device needs a runtime and no other code."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, compose, parser

from data_cache.sample import SMALLEST_INPUT_PX
from data_cache.size_rule import SizeRule
from stages.export.formats import EMBEDDED_FILE, INPUT_NAME, ONNX_FILE, OUTPUT_NAME
from stages.export.job import ExportJob, LabelFunction
from stages.export.onnx_file import start_session

IMAGE_NAME = "image"
LABELS_NAME = "labels"

_BEFORE = """
before (uint8[1, image_height, image_width, 3] image) => (float[1, 3, height, width] images)
<int64[2] one_of_three_channels = {{1, 3}}, float white = {{255}},
 float[1, 3, 1, 1] mean = {{{mean}}}, float[1, 3, 1, 1] std = {{{std}}}, {constants}> {{
  image_size = Shape <start = 1, end = 3> (image)
  {entering}
  entering_shape = Concat <axis = 0> (one_of_three_channels, entering_size)
  channels_first = Transpose <perm = [0, 3, 1, 2]> (image)
  pixels = Cast <to = 1> (channels_first)
  resized = Resize <mode = "linear", antialias = 1, exclude_outside = 1> (pixels, , , entering_shape)
  in_range = Div (resized, white)
  centred = Sub (in_range, mean)
  images = Div (centred, std)
}}
"""
"""Bytes to normalised images; like ``SizeRule.fit`` it resizes numbers, not bytes, which others round otherwise."""
_ENLARGE_SMALL = """
  shortest = ReduceMin <keepdims = 0> (image_size)
  short = Min (shortest, smallest)
  doubled = Mul (image_size, smallest_twice)
  rounding = Add (doubled, short)
  short_twice = Add (short, short)
  entering_size = Div (rounding, short_twice)
"""
"""In integers: size * smallest / short, rounded; of an image that is large enough, its size."""
_AFTER = """
after (float[1, classes, height, width] seg_logits) => (uint8[1, image_height, image_width] labels) {
  one_of_classes = Shape <start = 0, end = 2> (seg_logits)
  labelled_shape = Concat <axis = 0> (one_of_classes, image_size)
  at_image = Resize <mode = "linear"> (seg_logits, , , labelled_shape)
  classes_at = ArgMax <axis = 1, keepdims = 0> (at_image)
  labels = Cast <to = 2> (classes_at)
}
"""


def write(job: ExportJob) -> dict[str, Any]:
    """Write model-embedded.onnx around the graph of model.onnx."""
    embedded = embed_preprocess(onnx.load(job.folder / ONNX_FILE), job.size_rule, job.preprocess)
    onnx.save(embedded, job.folder / EMBEDDED_FILE)
    return {"dynamic_batch": False, "dynamic_size": True, "opset": job.opset}


def embed_preprocess(network: ModelProto, rule: SizeRule, preprocess: Mapping[str, Any]) -> ModelProto:
    """Put what comes before and after a network into its graph.

    Args:
        network: from normalised images to logits; it is changed.
        rule: how images enter.
        preprocess: content of preprocess.json, kept in the file as far as it means something there.
    """
    assert (INPUT_NAME, OUTPUT_NAME) == ("images", "seg_logits"), "as the graphs above call them"
    constants = f"int64 smallest = {{{SMALLEST_INPUT_PX}}}, int64 smallest_twice = {{{2 * SMALLEST_INPUT_PX}}}"
    entering = _ENLARGE_SMALL
    if rule.input_size is not None:
        height, width = rule.input_size
        constants = f"int64[2] fixed_size = {{{height}, {width}}}"
        entering = "entering_size = Identity (fixed_size)"
    numbers = {name: ", ".join(map(str, preprocess[name])) for name in ("mean", "std")}
    around = parser.parse_graph(_BEFORE.format(constants=constants, entering=entering, **numbers))
    after, num_before = parser.parse_graph(_AFTER), len(around.node)
    around.node.extend(after.node)
    around.input.extend(after.input)
    around.output.extend(after.output)
    # What lies inside may have the same names, such as "mean".
    around = compose.add_prefix_graph(around, "preprocess.", rename_inputs=False, rename_outputs=False)
    graph = network.graph
    inner = list(graph.node)
    del graph.node[:], graph.input[:], graph.output[:]
    graph.node.extend([*around.node[:num_before], *inner, *around.node[num_before:]])
    graph.initializer.extend(around.initializer)
    graph.input.append(around.input[0])
    graph.output.append(around.output[1])
    onnx.helper.set_model_props(network, {name: json.dumps(value) for name, value in _describe(preprocess).items()})
    onnx.checker.check_model(network)
    return network


def _describe(preprocess: Mapping[str, Any]) -> dict[str, Any]:
    own = {"layout": "NHWC", "dtype": "uint8", "input_name": IMAGE_NAME, "output_name": LABELS_NAME}
    return {**preprocess, "input_range": [0, 255], **own}


def open_labels(folder: Path) -> LabelFunction:
    """Open model-embedded.onnx with onnxruntime."""
    session = start_session(folder / EMBEDDED_FILE)

    def label(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        (labels,) = session.run([LABELS_NAME], {IMAGE_NAME: image[np.newaxis]})
        return labels[0]

    return label

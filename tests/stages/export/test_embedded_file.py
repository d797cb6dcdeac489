"""The file from bytes to labels says what predicting says. With nothing but a runtime: test_only_runtime.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image
from torch import nn

from data_cache.size_rule import ORIGINAL, SizeRule, fixed_size
from stages.evaluation.predict import Segmenter
from stages.export import onnx_file
from stages.export.embedded_file import embed_preprocess, open_labels
from stages.export.formats import EMBEDDED_FILE
from stages.export.preprocess import describe_preprocess, parse_preprocess
from stages.networks.interface import Normalisation

CLASSES = ("sky", "ground", "ball", "box")
PALETTE = ((0, 0, 0), (90, 60, 30), (250, 0, 0), (0, 0, 250))
NORMALISATION = Normalisation((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
SIZES = [(360, 480), (480, 360), (97, 131), (41, 200), (200, 63), (5, 64), (1, 1), (131, 97), (720, 300)]


def draw(height: int, width: int) -> np.ndarray:
    """Return coloured patches with soft borders and, so that filters differ, some noise."""
    random = np.random.default_rng(height * width)
    patches = random.integers(0, 256, (height // 24 + 2, width // 24 + 2, 3), np.uint8)
    image = np.array(Image.fromarray(patches).resize((width, height), Image.Resampling.BICUBIC))
    return (image // 8 * 7 + random.integers(0, 32, image.shape)).astype(np.uint8)


@pytest.fixture(scope="module", params=[ORIGINAL, fixed_size((64, 96)), fixed_size((256, 352))], ids=str)
def rule(request: pytest.FixtureRequest) -> SizeRule:
    return request.param


def build_network() -> nn.Conv2d:
    torch.manual_seed(0)
    return nn.Conv2d(3, len(CLASSES), 5, padding=2).eval()


def write_embedded(network: nn.Conv2d, rule: SizeRule, folder: Path) -> dict[str, Any]:
    """Write the file around a graph with the network's one node; return what preprocess.json would say."""
    float32, helper = onnx.TensorProto.FLOAT, onnx.helper
    graph = helper.make_graph(
        [helper.make_node("Conv", ["images", "weight", "bias"], ["seg_logits"], pads=[2, 2, 2, 2])],
        "network",
        [helper.make_tensor_value_info("images", float32, ["batch", 3, "height", "width"])],
        [helper.make_tensor_value_info("seg_logits", float32, ["batch", len(CLASSES), "height", "width"])],
        [onnx.numpy_helper.from_array(value.detach().numpy(), name) for name, value in network.named_parameters()],
    )
    inner = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 18)])
    said = describe_preprocess(NORMALISATION, rule, class_names=CLASSES, palette=PALETTE)
    onnx.save(embed_preprocess(inner, rule, said), folder / EMBEDDED_FILE)
    return said


@pytest.fixture(scope="module")
def network() -> nn.Conv2d:
    return build_network()


@pytest.fixture(scope="module")
def folder(network: nn.Conv2d, rule: SizeRule, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("export")
    write_embedded(network, rule, place)
    return place


def test_it_labels_as_predict_does_at_any_size(folder: Path, network: nn.Module, rule: SizeRule) -> None:
    label, segmenter = open_labels(folder), Segmenter(network, NORMALISATION, size_rule=rule)
    for size in SIZES:
        image = draw(*size)
        labels, expected = label(image), segmenter.segment(image).labels
        assert labels.dtype == np.uint8 and labels.shape == size
        assert (labels == expected).mean() >= 0.9998, size


def test_the_file_says_of_itself_what_its_labels_mean(folder: Path, rule: SizeRule) -> None:
    said = onnx_file.read_metadata(folder / EMBEDDED_FILE)
    assert said["class_names"] == list(CLASSES) and said["palette"] == [list(colour) for colour in PALETTE]
    assert parse_preprocess(said, folder / EMBEDDED_FILE).rule == rule
    session = onnxruntime.InferenceSession(folder / EMBEDDED_FILE)
    stored = session.get_modelmeta().custom_metadata_map
    (taken,), (answered,) = session.get_inputs(), session.get_outputs()
    assert [json.loads(stored[name]) for name in ("input_name", "output_name")] == [taken.name, answered.name]
    assert (taken.type, answered.type) == ("tensor(uint8)", "tensor(uint8)")

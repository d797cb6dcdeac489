"""What holds for DeepLabV3+, BiSeNet, both with fusion, and DCSA: the papers' counts, sizes, copies, weights files."""

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from segmentation_models_pytorch.encoders import get_encoder

from data_cache.errors import UserError
from stages.networks import build_network, count_parameters
from stages.networks.interface import Network
from stages.networks.parts import Part

RESNET10 = {"encoder": "tu-resnet10t", "encoder_weights": "none"}

SMALL = {
    "deeplabv3plus": {"width": 8, "low_level_width": 4, **RESNET10},
    "deeplabv3plus-mff": {"width": 8, "low_level_width": 4, "dilated": False, **RESNET10},
    "bisenet-mff": {"width": 16, **RESNET10},
    "dcsa-resnet": {"reduction": 8, "output_stride": 16, **RESNET10},
}
"""Name → options that make it small."""

COUNTS = [
    ("deeplabv3plus", {}, 54_710_947),
    ("deeplabv3plus", {"low_level_channels": 128}, 54_704_803),  # jfzhang95's own network
    ("deeplabv3plus-mff", {"middle": False}, 60_531_363),
    ("deeplabv3plus-mff", {"entry": False}, 60_531_363),
    ("deeplabv3plus-mff", {}, 66_351_779),
    ("deeplabv3plus-mff", {"dilated": False}, 41_254_051),
    ("bisenet", {}, 13_425_721),
    ("bisenet", {"auxiliary": False}, 13_275_539),
    ("bisenet-mff", {}, 14_918_713),
    ("dcsa-resnet", {}, 32_332_819),
    ("dcsa-resnet", {"encoder": "resnet18"}, 16_023_667),
]
"""Weights for 19 classes without the depth branch, counted from the papers' layers and their public code."""

DEPTH_COUNTS = {
    "deeplabv3plus": 16_839_009,
    "deeplabv3plus-mff": 28_479_841,
    "bisenet": 2_002_433,
    "dcsa-resnet": 2_049,
}
COPIED = {"deeplabv3plus": 16_838_752, "deeplabv3plus-mff": 28_479_584, "bisenet": 2_002_176}
"""Weights of what a depth branch duplicates, counted likewise; without the head, what a copy carries."""


def build_on_meta(name: str, num_classes: int = 19, *, with_depth: bool = False, **options) -> Network:
    with torch.device("meta"):
        return build_network(name, num_classes, with_depth=with_depth, **{"encoder_weights": "none", **options})


@pytest.mark.parametrize(("name", "options", "count"), COUNTS, ids=str)
def test_counts_of_the_papers(name, options, count):
    assert count_parameters(build_on_meta(name, **options)) == count


@pytest.mark.parametrize("name", DEPTH_COUNTS)
def test_counts_of_the_depth_branch(name):
    single, full = build_on_meta(name), build_on_meta(name, with_depth=True)
    assert count_parameters(full) - count_parameters(single) == DEPTH_COUNTS[name]


@pytest.mark.parametrize("name", COPIED)
def test_counts_of_what_a_copy_carries(name):
    parts = build_on_meta(name, with_depth=True).parts()
    decoders = parts[Part.SEG_DECODER], parts[Part.DEPTH_DECODER]
    assert [count_parameters(decoder) for decoder in decoders] == [COPIED[name]] * 2


@pytest.mark.parametrize("name", SMALL)
def test_a_batch_of_one_trains(name):
    torch.manual_seed(0)
    network = build_network(name, 4, **SMALL[name])
    outputs = network(torch.randn(1, 3, 64, 64))
    maps = (outputs.seg_logits, outputs.depth, *outputs.aux_seg_logits)
    sum(each.square().mean() for each in maps).backward()
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in network.parameters())
    assert all(value.isfinite().all() for value in network.state_dict().values())


def get_backbone(network: Network) -> torch.nn.Module:
    """The module that smp or timm built, wherever a network keeps it."""
    encoder = network.parts()[Part.ENCODER]
    return next((getattr(encoder, name) for name in ("context_path", "model") if hasattr(encoder, name)), encoder)


@pytest.mark.parametrize("name", ["deeplabv3plus-mff", "bisenet", "dcsa-resnet"])
def test_torchvisions_own_resnet18_fills_the_encoder(name, tmp_path):
    theirs = torchvision.models.resnet18(weights=None).state_dict()
    save_file(theirs, tmp_path / "resnet18.safetensors")
    network = build_network(name, 4, encoder="resnet18", encoder_weights=str(tmp_path / "resnet18.safetensors"))
    state = {name.replace(".layer.", "."): value for name, value in get_backbone(network).state_dict().items()}
    assert theirs.keys() - state.keys() == {"fc.weight", "fc.bias"}
    assert all(torch.equal(state[name], value) for name, value in theirs.items() if name in state)


def test_timms_own_xception65_fills_the_papers_encoder(tmp_path):
    theirs = timm.create_model("xception65").state_dict()
    save_file(theirs, tmp_path / "xception65.safetensors")
    network = build_network("deeplabv3plus", 19, width=8, encoder_weights=str(tmp_path / "xception65.safetensors"))
    state = get_backbone(network).state_dict()
    assert theirs.keys() - state.keys() == {"head.fc.weight", "head.fc.bias"}
    assert all(torch.equal(value, theirs[name]) for name, value in state.items())
    assert network.spec.options["stride_plan"] == "8-8-16-b"


@pytest.mark.parametrize("name", ["deeplabv3plus", "bisenet-mff", "dcsa-resnet"])
def test_a_file_of_another_encoder_shows_both_key_sets(name, tmp_path):
    file = tmp_path / "resnet10t.safetensors"
    save_file(get_encoder("tu-resnet10t", weights=None).state_dict(), file)
    options = {**SMALL[name], "encoder": "resnet18", "encoder_weights": str(file)}
    with pytest.raises(UserError, match=r"(?s)the file lacks \([1-9].*the encoder lacks \([1-9]"):
        build_network(name, 4, **options)


def test_an_unknown_option_is_named():
    with pytest.raises(UserError, match=r"has no option 'encodr' \(did you mean 'encoder'\?\)"):
        build_network("bisenet", 3, encodr="resnet18")

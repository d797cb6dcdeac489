"""What a network says was never pretrained is what a file of pretrained weights leaves as it was drawn."""

from __future__ import annotations

import pytest
import timm
import torch
from safetensors.torch import save_file
from segmentation_models_pytorch.encoders import get_encoder

from stages.networks import NETWORKS, build_network, count_parameters, network_options
from stages.networks.parts import ENCODER
from stages.networks.vgg import FullyConvolutional, build_vgg16_features

MARK = 0.123
RESNET18 = {"encoder": "resnet18"}
VGG = {"width": 4, "fc_width": 8}
CASES = [
    ("unet", RESNET18, 0),
    ("fcn32s", VGG, 0),
    ("fcn16s", {**VGG, "depth_branch": "full"}, 0),
    ("fcn8s", VGG, 0),
    ("conv-vgg", VGG, 0),
    ("segnet", {"width": 4}, 0),
    ("pspnet", RESNET18, 0),
    ("deeplabv3plus", {"encoder": "tu-xception41"}, 0),
    ("deeplabv3plus", {"encoder": "tu-xception41", "share_aspp": True}, None),
    ("deeplabv3plus-mff", {**RESNET18, "share_aspp": True}, None),
    ("bisenet", RESNET18, 91_968),
    ("bisenet-mff", RESNET18, 91_968),
    ("dcsa-resnet", {"encoder": "resnet50"}, 8_785_856),
    ("dcsa-resnet", {"encoder": "tu-mobilenetv3_small_050", "output_stride": 32, "place": "after_stage"}, None),
    ("dcsa-resnet", {**RESNET18, "place": "none"}, 0),
]
"""Network, options, and the number of fresh weights where a paper or count says it."""


def collect_pretrained(name: str, options: dict) -> dict[str, torch.Tensor]:
    """Return what is published for the encoder, under the library's names, with every value replaced by the mark."""
    if "encoder" in options:
        library = options["encoder"].startswith("tu-xception")
        module = timm.create_model(options["encoder"][3:]) if library else get_encoder(options["encoder"], weights=None)
        weights = module.state_dict()
    else:
        features = build_vgg16_features(width=4, batch_norm=name == "segnet")
        weights = {f"features.{key}": value for key, value in features.state_dict().items()}
        weights |= FullyConvolutional(32, 8, padding=3).state_dict()
    return {key: torch.full_like(value, MARK) if value.is_floating_point() else value for key, value in weights.items()}


def test_every_network_that_can_be_pretrained_has_a_case():
    assert {name for name, _, _ in CASES} == {name for name in NETWORKS if "encoder_weights" in network_options(name)}


@pytest.mark.parametrize(("name", "options", "count"), CASES, ids=str)
def test_what_is_declared_fresh_is_what_no_pretrained_weights_fill(name, options, count, tmp_path):
    file = tmp_path / "weights.safetensors"
    save_file(collect_pretrained(name, options), file)
    network = build_network(name, 3, with_depth=False, **options, encoder_weights=str(file))
    left = {id(weight) for weight in network.parts()[ENCODER].parameters() if not torch.all(weight == MARK)}
    fresh = list(network.fresh_modules().values())
    assert left == {id(weight) for module in fresh for weight in module.parameters()}
    if count is not None:
        assert sum(map(count_parameters, fresh)) == count

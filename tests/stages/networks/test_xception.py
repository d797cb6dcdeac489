"""Stride plans, taps and weight files of the DeepLab encoders."""

import re

import pytest
import torch
from safetensors.torch import save_file
from segmentation_models_pytorch.encoders import get_encoder
from timm.models.xception_aligned import XceptionAligned
from torch import nn

from data_cache.errors import UserError
from stages.networks import count_parameters
from stages.networks.xception import (
    STRIDE_PLANS,
    Taps,
    build_tapped_encoder,
    choose_stride_plan,
    load_xception_file,
)

SIZES_AT_512 = {"8-8-16-a": (128, 64, 64, 32), "8-8-16-b": (128, 64, 64, 32), "os16": (128, 32, 32, 32)}
SIZES_AT_512["os8"] = (128, 64, 64, 64)


def build(encoder: str = "tu-xception65", stride_plan: str = "8-8-16-a", low_level_channels: int = 256, weights="none"):
    return build_tapped_encoder(encoder, weights, stride_plan=stride_plan, low_level_channels=low_level_channels)


def build_on_meta(*args, **options):
    with torch.device("meta"):
        return build(*args, **options)


@pytest.mark.parametrize("stride_plan", STRIDE_PLANS)
def test_taps_are_where_the_plan_says(stride_plan):
    encoder = build_on_meta(stride_plan=stride_plan)
    seen = {}
    blocks = encoder.model.blocks
    hooked = {"low_level": blocks[1].stack.act3, "entry": blocks[2], "middle": blocks[18], "exit": blocks[20]}
    for name, module in hooked.items():
        module.register_forward_hook(lambda _, __, output, name=name: seen.update({name: output.shape}))
    taps = encoder(torch.empty(1, 3, 512, 512, device="meta"))
    expected = [(1, c, s, s) for c, s in zip((256, 728, 728, 2048), SIZES_AT_512[stride_plan], strict=True)]
    assert [tuple(seen[name]) for name in Taps._fields] == expected
    assert [tuple(tap.shape) for tap in taps] == expected
    assert tuple(encoder.channels) == (256, 728, 728, 2048)


def test_every_plan_takes_the_same_weights():
    encoders = [build_on_meta(stride_plan=plan) for plan in STRIDE_PLANS]
    shapes = [{name: value.shape for name, value in encoder.state_dict().items()} for encoder in encoders]
    assert all(other == shapes[0] for other in shapes[1:])
    assert count_parameters(encoders[0]) == 37_867_312


@pytest.mark.parametrize(
    ("stride_plan", "middle", "last"), [("8-8-16-a", 1, 2), ("8-8-16-b", 2, 2), ("os16", 1, 2), ("os8", 2, 4)]
)
def test_dilations_of_the_plans(stride_plan, middle, last):
    blocks = build_on_meta(stride_plan=stride_plan).model.blocks
    dilations = [
        {layer.dilation for layer in block.modules() if isinstance(layer, nn.Conv2d) and layer.groups > 1}
        for block in blocks
    ]
    assert dilations[3:19] == [{(middle, middle)}] * 16
    assert dilations[20] == {(last, last)}


def test_low_level_tap_of_128_channels_is_the_first_block():
    encoder = build_on_meta(low_level_channels=128)
    taps = encoder(torch.empty(1, 3, 512, 512, device="meta"))
    assert tuple(taps.low_level.shape) == (1, 128, 128, 128)
    assert encoder.channels.low_level == 128


def test_every_weight_reaches_a_tap():
    encoder = build_on_meta()
    taps = encoder(torch.empty(1, 3, 64, 64, device="meta"))
    gradients = torch.autograd.grad(sum(tap.sum() for tap in taps), list(encoder.parameters()), allow_unused=True)
    assert all(gradient is not None for gradient in gradients)


def test_taps_equal_the_features_of_smps_encoder():
    torch.manual_seed(0)
    ours, theirs = build("tu-xception41", "os16").eval(), get_encoder("tu-xception41", weights=None, output_stride=16)
    state = {re.sub(r"\b(stem|blocks)\.(\d+)\.", r"\1_\2.", name): value for name, value in ours.state_dict().items()}
    theirs.load_state_dict(state)
    images = torch.randn(1, 3, 64, 80)
    with torch.no_grad():
        taps, features = ours(images), theirs.eval()(images)
    torch.testing.assert_close(taps.low_level, features[2])
    torch.testing.assert_close(taps.exit, features[5])


@pytest.mark.parametrize("encoder", ["tu-xception41", "tu-xception71"])
def test_the_other_lengths_have_the_same_taps(encoder):
    taps = build_on_meta(encoder)(torch.empty(1, 3, 512, 512, device="meta"))
    assert [(tap.shape[1], tap.shape[2]) for tap in taps] == [(256, 128), (728, 64), (728, 64), (2048, 32)]


@pytest.mark.parametrize("stride_plan", STRIDE_PLANS)
@pytest.mark.parametrize(
    ("name", "channels"), [("resnet18", (64, 128, 256, 512)), ("resnet50", (256, 512, 1024, 2048))]
)
def test_resnets_follow_the_plans_by_stages(name, channels, stride_plan):
    encoder = build_on_meta(name, stride_plan=stride_plan)
    taps = encoder(torch.empty(1, 3, 512, 512, device="meta"))
    sizes = {"os16": (128, 64, 32, 32)}.get(stride_plan, SIZES_AT_512[stride_plan])
    assert [(tap.shape[1], tap.shape[2]) for tap in taps] == list(zip(channels, sizes, strict=True))


def test_auto_plan_keeps_the_receptive_fields_of_pretrained_weights():
    assert choose_stride_plan("tu-xception65", "imagenet", "auto") == "8-8-16-b"
    assert choose_stride_plan("tu-xception65.tf_in1k", "x.safetensors", "auto") == "8-8-16-b"
    assert choose_stride_plan("tu-xception65", "none", "auto") == "8-8-16-a"
    assert choose_stride_plan("resnet18", "imagenet", "auto") == "os16"


def test_impossible_choices_are_refused():
    with pytest.raises(UserError, match=r"unknown stride_plan 'os4'.*8-8-16-a"):
        choose_stride_plan("tu-xception65", "none", "os4")
    with pytest.raises(UserError, match=r"low_level_channels 64 .* 256 and 128"):
        build_on_meta(low_level_channels=64)
    with pytest.raises(UserError, match=r"'mobilenet_v2' has no stride_plan '8-8-16-a'.*os16"):
        build_on_meta("mobilenet_v2")
    with pytest.raises(UserError, match=r"'vgg16' cannot be built with output_stride 16.*Max Pooling"):
        build_on_meta("vgg16", stride_plan="os16")


@pytest.fixture
def small_xception() -> XceptionAligned:
    torch.manual_seed(0)
    blocks = [{"in_chs": 64, "out_chs": 8, "stride": 2}, {"in_chs": 8, "out_chs": 8, "stride": 1}]
    return XceptionAligned(blocks, num_classes=0, global_pool="")


def name_as_timm(name: str) -> str:
    return name


def name_as_fetched(name: str) -> str:
    return "model." + re.sub(r"^(stem|blocks)\.(\d+)\.", r"\1_\2.", name)


def name_as_exported(name: str) -> str:
    return f"encoder.model.{name}"


def name_as_shared(name: str) -> str:
    return f"encoder.backbone.model.{name}"


@pytest.mark.parametrize("rename", [name_as_timm, name_as_fetched, name_as_exported, name_as_shared])
def test_files_of_every_origin_load(small_xception, tmp_path, rename):
    weights = {name: torch.rand(value.shape) for name, value in small_xception.state_dict().items() if value.ndim}
    file = tmp_path / "weights.safetensors"
    others = {"head.fc.weight": torch.rand(10, 8)} if rename is name_as_timm else {}
    others |= {"seg_head.weight": torch.rand(2)} if rename is name_as_exported else {}
    save_file({rename(name): value for name, value in weights.items()} | others, file)
    load_xception_file(small_xception, "tu-xception65", file)
    assert all(torch.equal(small_xception.state_dict()[name], value) for name, value in weights.items())


def test_a_file_of_another_architecture_shows_both_key_sets(small_xception, tmp_path):
    file = tmp_path / "resnet.safetensors"
    save_file({"layer1.0.conv1.weight": torch.rand(2, 2)}, file)
    with pytest.raises(UserError, match=r"(?s)file lacks.*stem\.0\.conv\.weight.*encoder lacks.*layer1\.0\.conv1"):
        load_xception_file(small_xception, "tu-xception65", file)


def test_a_missing_file_is_named_and_nothing_is_downloaded(tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.safetensors' does not exist"):
        build("tu-xception41", weights=str(tmp_path / "nowhere.safetensors"))

"""Deformable self-attention by its formula, and its places in ResNet, VGG and MobileNet."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from data_cache.errors import UserError
from stages.networks import build_network, count_parameters
from stages.networks.deformable_attention import DeformableConv, DeformableSelfAttention
from stages.networks.dilated_encoder import build_encoder
from stages.networks.parts import Part
from stages.training.schedules import SCHEDULES
from stages.training.transfer import copy_part


def build_on_meta(**options):
    with torch.device("meta"):
        return build_network("dcsa-resnet", 19, **{"encoder_weights": "none", "with_depth": False, **options})


def collect_attention(network: nn.Module) -> list[DeformableSelfAttention]:
    return [module for module in network.modules() if isinstance(module, DeformableSelfAttention)]


def test_zero_offsets_make_a_plain_convolution():
    torch.manual_seed(0)
    deformable, features = DeformableConv(4), torch.randn(2, 4, 9, 11)
    expected = F.conv2d(features, deformable.weight, padding=1)
    torch.testing.assert_close(deformable(features), expected)
    modulated = DeformableConv(4, modulated=True)
    expected = F.conv2d(features, modulated.weight, padding=1)
    torch.testing.assert_close(modulated(features), expected / 2)


def test_a_constant_offset_shifts_what_is_sampled():
    torch.manual_seed(0)
    deformable, features = DeformableConv(3), torch.randn(1, 3, 8, 10)
    with torch.no_grad():
        deformable.offsets.bias[1::2] = 2.0  # rows first, then columns: two pixels to the right
    expected = F.conv2d(features, deformable.weight, padding=1)[..., 2:]
    torch.testing.assert_close(deformable(features)[..., 1:-3], expected[..., 1:-1])


def test_a_half_offset_samples_between_pixels():
    deformable = DeformableConv(1)
    with torch.no_grad():
        deformable.weight.zero_()
        deformable.weight[0, 0, 1, 1] = 1.0
        deformable.offsets.bias[0::2] = 0.5
    features = torch.randn(1, 1, 6, 6)
    between = (features[:, :, :-1] + features[:, :, 1:]) / 2
    torch.testing.assert_close(deformable(features)[:, :, :-1], between)


@pytest.mark.parametrize("modulated", [False, True])
def test_offsets_learn_from_the_first_step(modulated):
    torch.manual_seed(0)
    attention = DeformableSelfAttention(8, modulated=modulated)
    attention(torch.randn(2, 8, 9, 9)).square().sum().backward()
    for name, weight in attention.named_parameters():
        assert weight.grad.abs().max() > 0, name


@pytest.mark.parametrize("gain", [1.0, 2.0])
def test_spatial_gate_by_its_formula(gain):
    """K ⊙ σ(Σ_d softmax(mean(DC Q))_d DC(V)_d), with fresh deformable convolutions as plain ones."""
    torch.manual_seed(0)
    attention, features = DeformableSelfAttention(8, gain=gain), torch.randn(2, 8, 7, 9)
    weight = attention.project.weight[:, :, 0, 0]
    key, query, value = (torch.einsum("oc,bchw->bohw", part, features) for part in weight.split([8, 4, 4]))
    query = F.conv2d(query, attention.deform_query.weight, padding=1)
    value = F.conv2d(value, attention.deform_value.weight, padding=1)
    squeezed = torch.einsum("bdhw->bd", query) / (7 * 9)
    attended = torch.einsum("bd,bdhw->bhw", squeezed.exp() / squeezed.exp().sum(1, keepdim=True), value)
    expected = gain * torch.einsum("bchw,bhw->bchw", key, 1 / (1 + torch.exp(-attended)))
    torch.testing.assert_close(attention(features), expected)


@pytest.mark.parametrize("scale_attention", [False, True])
def test_elementwise_gate_by_its_formula(scale_attention):
    torch.manual_seed(0)
    options = {"gate": "elementwise", "reduction": 1, "scale_attention": scale_attention}
    attention, features = DeformableSelfAttention(6, **options), torch.randn(2, 6, 5, 5)
    key, query, value = attention.project(features).chunk(3, dim=1)
    weights = attention.deform_query(query).mean((2, 3)).softmax(1) * (6 if scale_attention else 1)
    expected = key * torch.einsum("bd,bdhw->bdhw", weights, attention.deform_value(value)).sigmoid()
    torch.testing.assert_close(attention(features), expected)


def test_softmax_weights_barely_gate_elementwise():
    """Why the spatial gate is the default: about 1/C of a value leaves every gate near one half."""
    torch.manual_seed(0)
    spatial = DeformableSelfAttention(64)
    elementwise = DeformableSelfAttention(64, gate="elementwise", reduction=1)

    def measure_gate_range(attention: DeformableSelfAttention) -> float:
        features = torch.randn(1, 64, 12, 12)
        gates = (attention(features) / attention.project(features)[:, :64]).detach()
        return float(gates.quantile(0.99) - gates.quantile(0.01))

    assert measure_gate_range(elementwise) < 0.25 * measure_gate_range(spatial)


def test_bfloat16_autocast_works_though_the_kernel_has_none():
    torch.manual_seed(0)
    attention, features = DeformableSelfAttention(8), torch.randn(1, 8, 9, 9)
    with torch.autocast("cpu", torch.bfloat16):
        lowered = attention(features)
        lowered.sum().backward()
    assert lowered.dtype == torch.bfloat16
    torch.testing.assert_close(lowered.float(), attention(features), atol=0.05, rtol=0.05)


@pytest.mark.parametrize(("width", "count"), [(64, 37_028), (128, 127_268), (256, 467_492), (512, 1_786_916)])
def test_counts_of_the_module(width, count):
    assert count_parameters(DeformableSelfAttention(width)) == count


@pytest.mark.parametrize(
    ("options", "modules", "count"),
    [
        ({}, 16, 8_785_856),
        ({"encoder": "resnet18"}, 8, 4_837_408),
        ({"gate": "elementwise"}, 16, 27_630_912),
        ({"place": "after_stage"}, 4, 14_933_904),
    ],
    ids=str,
)
def test_counts_of_all_modules(options, modules, count):
    attention = collect_attention(build_on_meta(**options))
    assert len(attention) == modules
    assert sum(count_parameters(module) for module in attention) == count


@pytest.mark.parametrize(
    ("encoder", "place", "modules"),
    [
        # one per block, in VGG one between every two convolutions of a stage
        ("resnet18", "inside", 8),
        ("resnet50", "inside", 16),
        ("tu-resnet10t", "inside", 4),
        ("tu-resnet26t", "inside", 8),
        ("vgg11", "inside", 3),
        ("mobilenet_v2", "inside", 17),
        ("tu-mobilenetv3_small_050", "inside", 10),
        # one per stage
        ("resnet18", "after_stage", 4),
        ("tu-resnet10t", "after_stage", 4),
        ("vgg16_bn", "after_stage", 5),
        ("mobilenet_v2", "after_stage", 4),
        ("tu-mobilenetv3_small_050", "after_stage", 4),
    ],
)
def test_insertion_changes_no_shape(encoder, place, modules):
    images = torch.empty(1, 3, 65, 97, device="meta")
    stride = 32 if encoder.startswith("vgg") else 16
    network = build_on_meta(encoder=encoder, place=place, reduction=8, output_stride=stride)
    with torch.device("meta"):
        plain = build_encoder(encoder, "none", output_stride=stride)
    assert [each.shape for each in network.encoder(images)] == [each.shape for each in plain(images)]
    assert len(collect_attention(network)) == modules


@pytest.mark.parametrize(
    ("encoder", "place"), [("vgg11", "inside"), ("resnet18", "after_stage"), ("mobilenet_v2", "inside")]
)
def test_attention_learns_in_every_family(encoder, place):
    """Also where layers work in place on what the attention keeps for its gradient."""
    torch.manual_seed(0)
    options = {"encoder": encoder, "place": place, "reduction": 8, "output_stride": 32, "encoder_weights": "none"}
    network = build_network("dcsa-resnet", 3, **options)
    outputs = network(torch.randn(2, 3, 32, 64))
    (outputs.seg_logits.square().mean() + outputs.depth.square().mean()).backward()
    for attention in collect_attention(network):
        assert all(weight.grad.abs().max() > 0 for weight in attention.parameters())


def test_inside_is_behind_the_3x3_convolution_of_a_bottleneck():
    network = build_on_meta()
    widths = [block.conv3.attention.widths[0] for block in network.encoder.layer1]
    assert widths == [64, 64, 64]
    assert isinstance(network.encoder.layer1[0].conv3.layer, nn.Conv2d)


def test_attention_reads_activations():
    """In front of the last convolution of a block is behind norm and ReLU of the one before."""
    network = build_network("dcsa-resnet", 2, encoder="tu-resnet10t", encoder_weights="none", with_depth=False)
    seen = []
    for attention in collect_attention(network):
        attention.register_forward_pre_hook(lambda _, inputs: seen.append(float(inputs[0].min())))
    with torch.no_grad():
        network(torch.randn(2, 3, 64, 64))
    assert seen == [0.0] * 4


@pytest.mark.parametrize("output_stride", [8, 16, 32])
def test_head_works_on_the_dilated_map(output_stride):
    network = build_on_meta(encoder="resnet18", output_stride=output_stride)
    seen = []
    network.seg_head.register_forward_hook(lambda _, __, output: seen.append(tuple(output.shape)))
    network(torch.empty(1, 3, 256, 256, device="meta"))
    assert seen == [(1, 19, 256 // output_stride, 256 // output_stride)]


def test_without_decoder_every_phase_finds_its_parts_and_a_copy_is_refused():
    network = build_on_meta(with_depth=True)
    parts = network.parts()
    assert list(parts) == list(Part)
    assert count_parameters(parts[Part.SEG_DECODER]) == count_parameters(parts[Part.DEPTH_DECODER]) == 0
    for schedule in SCHEDULES.values():
        for phase in schedule.phases:
            assert all(part in parts for part in Part if part in phase.trains)
    with pytest.raises(UserError, match='nothing to copy: there are no weights; set decoder = "unet", or run'):
        copy_part(network, Part.SEG_DECODER, Part.DEPTH_DECODER)


@pytest.mark.parametrize("encoder", ["vgg11", "mobilenet_v2"])
def test_a_unet_decoder_can_be_attached_and_copied(encoder):
    network = build_on_meta(encoder=encoder, decoder="unet", output_stride=32, with_depth=True, reduction=8)
    outputs = network(torch.empty(2, 3, 70, 99, device="meta"))
    assert outputs.seg_logits.shape == (2, 19, 70, 99)
    assert outputs.depth.shape == (2, 70, 99)
    assert copy_part(network, Part.DEPTH_DECODER, Part.SEG_DECODER).skipped == ()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"encoder": "vgg16"}, "'vgg16' cannot be built with output_stride 8 .*set output_stride = 32"),
        ({"encoder": "densenet121", "output_stride": 32}, "no place 'inside' in encoder 'densenet121'.*ResNets"),
        ({"output_stride": 4}, "cannot have output_stride 4; possible: 8, 16, 32"),
        ({"place": "before"}, "place must be one of 'inside', 'after_stage', 'none', found 'before'"),
        ({"gate": "channel"}, "gate must be one of 'spatial', 'elementwise', found 'channel'"),
        ({"gate": "elementwise", "reduction": 2}, "set reduction = 1 instead of 2"),
        ({"reduction": 0}, "reduction 0 is not possible"),
        ({"decoder": "fpn"}, "decoder must be one of 'none', 'unet', found 'fpn'"),
        ({"decoder": "unet", "decoder_channels": [8, 8]}, r"decoder_channels \[8, 8\] are not possible; give 5"),
    ],
    ids=str,
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        build_on_meta(**options)

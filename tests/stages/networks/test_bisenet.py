"""BiSeNet: auxiliary heads, toggles of the fusion, the attention modules by their formulas."""

import pytest
import torch

from data_cache.errors import UserError
from stages.networks import build_network, count_parameters
from stages.networks.bisenet import AttentionRefinement, FeatureFusion, TwoPathEncoder
from stages.networks.parts import Part

SMALL = {"encoder": "tu-resnet10t", "encoder_weights": "none", "width": 8}


def build_on_meta(name: str = "bisenet-mff", **options):
    with torch.device("meta"):
        return build_network(name, 19, **{"encoder_weights": "none", "with_depth": False, **options})


def test_auxiliary_heads_run_in_training_mode_only():
    network = build_network("bisenet", 3, **SMALL)
    images = torch.randn(2, 3, 64, 72)
    assert [tuple(each.shape) for each in network(images).aux_seg_logits] == [(2, 3, 64, 72)] * 2
    assert network(images, seg=False).aux_seg_logits == ()
    assert network.eval()(images).aux_seg_logits == ()
    assert network.aux_weight == 1.0


def test_auxiliary_heads_belong_to_the_segmentation_head():
    with_heads, without = build_on_meta("bisenet"), build_on_meta("bisenet", auxiliary=False)
    heads = [count_parameters(network.parts()[Part.SEG_HEAD]) for network in (with_heads, without)]
    assert heads[0] - heads[1] == 2 * 75_091
    assert without.aux_weight == 0.0
    assert without.train()(torch.empty(2, 3, 64, 64, device="meta")).aux_seg_logits == ()


def test_auxiliary_logits_come_from_the_context_path_alone():
    network = build_network("bisenet", 3, **SMALL)
    auxiliary = network(torch.randn(2, 3, 64, 64)).aux_seg_logits
    sum(logits.sum() for logits in auxiliary).backward()
    spatial = network.encoder.spatial_path.parameters()
    assert all(weight.grad is None for weight in [*spatial, *network.seg_decoder.fuse.parameters()])


@pytest.mark.parametrize(("side_px", "features_px"), [(64, 8), (65, 9), (100, 13), (513, 65)])
def test_both_paths_meet_at_an_eighth_of_any_size(side_px, features_px):
    with torch.device("meta"):
        paths = TwoPathEncoder("resnet18", "none", 128)(torch.empty(1, 3, side_px, side_px))
    assert paths.spatial.shape == (1, 128, features_px, features_px)
    assert paths.context8.shape == (1, 128, features_px, features_px)


@pytest.mark.parametrize("size", [(65, 97), (95, 64), (513, 600)], ids=str)
@pytest.mark.parametrize("encoder", ["vgg11", "tu-convnext_atto"])
def test_encoders_that_round_down_meet_the_spatial_path(encoder, size):
    """Their stage at 1/8 is then a pixel smaller than the spatial path, whose convolutions round up."""
    outputs = build_on_meta(encoder=encoder, with_depth=True)(torch.empty(2, 3, *size, device="meta"))
    assert outputs.seg_logits.shape == (2, 19, *size)
    assert outputs.depth.shape == (2, *size)


@pytest.mark.parametrize(
    ("options", "channels"),
    [({"entry": False, "middle": False}, 256), ({"entry": False}, 384), ({"middle": False}, 384), ({}, 512)],
    ids=str,
)
def test_toggles_widen_the_fusion(options, channels):
    network = build_on_meta(**options)
    assert network.seg_decoder.fuse.conv[0].in_channels == channels
    assert network(torch.empty(2, 3, 97, 64, device="meta")).seg_logits.shape == (2, 19, 97, 64)


def test_toggles_off_is_plain_bisenet():
    plain, fused = build_on_meta("bisenet"), build_on_meta(entry=False, middle=False)
    assert list(plain.state_dict()) == list(fused.state_dict())


def test_without_dilation_the_branches_are_1x1():
    decoder = build_on_meta(dilated=False).seg_decoder
    assert [decoder.entry[0].kernel_size, decoder.middle[0].kernel_size] == [(1, 1), (1, 1)]


def test_refinement_weighs_the_channels_of_its_convolution():
    torch.manual_seed(0)
    module, features = AttentionRefinement(3, 5).eval(), torch.randn(2, 3, 6, 6)
    convolved = module.conv(features)
    mean = convolved.mean((2, 3), keepdim=True)
    weights = torch.sigmoid(module.gate.norm(module.gate.conv(mean)))
    torch.testing.assert_close(module(features), convolved * weights)


def test_fusion_adds_its_weighed_channels_to_themselves():
    torch.manual_seed(0)
    module, spatial, context = FeatureFusion(7, 4).eval(), torch.randn(2, 3, 6, 6), torch.randn(2, 4, 6, 6)
    fused = module.conv(torch.cat([spatial, context], 1))
    weights = torch.sigmoid(module.gate.norm(module.gate.conv(fused.mean((2, 3), keepdim=True))))
    torch.testing.assert_close(module(spatial, context), fused * (1 + weights))


@pytest.mark.parametrize("width", [0, 7])
def test_impossible_widths_are_refused(width):
    with pytest.raises(UserError, match=rf"width {width} is not possible; give a positive multiple of 2"):
        build_on_meta(width=width)

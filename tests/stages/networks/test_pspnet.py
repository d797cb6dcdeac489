"""PSPNet: the paper's counts, pooling at four scales, the auxiliary head, batches of one, the warning below 500 px."""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.nn.functional as F

from data_cache.errors import UserError
from stages.networks import build_network, count_parameters, strip_depth
from stages.networks.parts import Part
from stages.networks.pspnet import EFFECTIVE_PX, pool_regions

SMALL = {"encoder": "resnet18", "encoder_weights": "none", "decoder_channels": 8}
pytestmark = pytest.mark.filterwarnings("ignore:PSPNet's pyramid")


def build(num_classes=5, **options):
    torch.manual_seed(0)
    return build_network("pspnet", num_classes, **{**SMALL, **options})


def build_on_meta(num_classes=21, **options):
    with torch.device("meta"):
        return build_network("pspnet", num_classes, **{"encoder_weights": "none", **options})


def draw_images(batch=2, height=64, width=96):
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("num_classes", "options", "count"),
    [
        (21, {}, 46_592_597),
        (19, {}, 46_591_571),
        (21, {"aux": True}, 48_957_802),
        (19, {"aux": True}, 48_956_262),
        (21, {"encoder": "resnet101"}, 65_584_725),
        (21, {"encoder": "resnet101", "aux": True}, 67_949_930),
    ],
)
def test_parameter_count_is_the_papers(num_classes, options, count):
    assert count_parameters(build_on_meta(num_classes, with_depth=False, **options)) == count


def test_depth_branch_duplicates_pyramid_bottleneck_and_head():
    counts = {part: count_parameters(module) for part, module in build_on_meta().parts().items()}
    assert counts[Part.ENCODER] == 23_508_032
    assert counts[Part.DEPTH_DECODER] == 23_073_792
    assert counts[Part.DEPTH_DECODER] + counts[Part.DEPTH_HEAD] == 23_074_305


def test_inner_shapes_at_512_px_are_the_papers():
    network, shapes = build_on_meta(), []
    features = network.encoder(torch.empty(1, 3, 512, 512, device="meta"))
    assert [tuple(maps.shape[1:]) for maps in features[-3:]] == [(512, 64, 64), (1024, 64, 64), (2048, 64, 64)]
    for branch in network.seg_decoder.branches:
        branch.register_forward_hook(lambda _, __, out: shapes.append(tuple(out.shape[1:])))
    fused = network.seg_decoder(features)
    assert shapes == [(512, bins, bins) for bins in (1, 2, 3, 6)]
    assert fused.shape == (1, 512, 64, 64)


@pytest.mark.parametrize("size", [(8, 12), (25, 13), (6, 6), (4, 3), (1, 1)])
@pytest.mark.parametrize("bins", [1, 2, 3, 6])
def test_region_pooling_is_adaptive_average_pooling(size, bins):
    maps = torch.randn(2, 3, *size)
    torch.testing.assert_close(pool_regions(maps, bins), F.adaptive_avg_pool2d(maps, bins), atol=1e-6, rtol=0)


def test_region_pooling_in_bfloat16_is_as_exact_as_torchs():
    maps = torch.rand(1, 4, 65, 33)
    exact = F.adaptive_avg_pool2d(maps, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = pool_regions(maps, 6)
    torch.testing.assert_close(found.float(), exact, atol=0, rtol=2**-7)


def test_auxiliary_logits_come_while_training_only_and_with_segmentation_only():
    network = build(aux=True)
    assert network.aux_weight == 0.4
    (auxiliary,) = network(draw_images()).aux_seg_logits
    assert auxiliary.shape == (2, 5, 64, 96)
    assert network(draw_images(), seg=False).aux_seg_logits == ()
    assert network.eval()(draw_images()).aux_seg_logits == ()


def test_without_auxiliary_head_there_is_no_auxiliary_loss():
    network = build()
    assert network.aux_weight == 0
    assert network(draw_images()).aux_seg_logits == ()


def test_a_batch_of_one_trains():
    network = build(aux=True)
    outputs = network(draw_images(batch=1, height=64, width=64))
    (outputs.seg_logits.square().mean() + outputs.depth.square().mean()).backward()
    branch = network.seg_decoder.branches[0]
    assert all(weight.grad.isfinite().all() and weight.grad.any() for weight in branch.parameters())


def test_stripping_keeps_the_auxiliary_head():
    stripped = strip_depth(build(aux=True).eval())
    assert stripped.aux_weight == 0.4
    assert stripped.seg_head.aux is not None


@pytest.mark.parametrize(("size", "warns"), [((499, 700), True), ((500, 500), False)])
def test_images_below_500_px_are_warned_about(size, warns):
    assert EFFECTIVE_PX == 500
    network = build_on_meta(encoder="resnet18")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        network(torch.empty(1, 3, *size, device="meta"))
    found = [str(warning.message) for warning in caught if "PSPNet" in str(warning.message)]
    assert len(found) == int(warns)
    assert all("500x500 px; these images have 499x700" in message for message in found)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"encoder": "vgg16"}, "encoder 'vgg16' cannot .* output_stride"),
        ({"encoder": "resnet5"}, "unknown encoder 'resnet5'.*resnet50"),
        ({"output_stride": 4}, "output_stride 4.*8, 16"),
        ({"decoder_channels": 0}, "decoder_channels 0 is not possible"),
    ],
)
def test_impossible_options_are_refused(options, match):
    with pytest.raises(UserError, match=match):
        build(**options)

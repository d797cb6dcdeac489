"""SegNet: the paper's count and shapes, unpooling to the pooled positions at even and odd sizes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from stages.networks import build_network, count_parameters
from stages.networks.parts import Part
from stages.networks.precision import autocast
from stages.networks.segnet import SegNetEncoder


def build(num_classes=5, **options):
    torch.manual_seed(0)
    return build_network("segnet", num_classes, **{"encoder_weights": "none", "width": 4, **options})


def build_on_meta(num_classes=21, **options):
    with torch.device("meta"):
        return build_network("segnet", num_classes, encoder_weights="none", **options)


def draw_images(height, width, batch=2):
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("num_classes", "count"), [(21, 29_455_125), (19, 29_453_971), (11, 29_449_355)])
def test_parameter_count_is_the_papers(num_classes, count):
    assert count_parameters(build_on_meta(num_classes, with_depth=False)) == count


def test_parts_have_the_papers_sizes():
    counts = {part: count_parameters(module) for part, module in build_on_meta().parts().items()}
    assert counts[Part.ENCODER] == 14_723_136
    assert counts[Part.SEG_DECODER] == counts[Part.DEPTH_DECODER] == 14_719_872
    assert counts[Part.DEPTH_DECODER] + counts[Part.DEPTH_HEAD] == 14_720_449


def test_decoder_shapes_at_512_px_are_the_papers():
    network, shapes = build_on_meta(), []
    for stage in network.seg_decoder.stages:
        stage.register_forward_hook(lambda _, __, out: shapes.append(tuple(out.shape[1:])))
    network(torch.empty(1, 3, 512, 512, device="meta"), depth=False)
    assert shapes == [(512, 32, 32), (256, 64, 64), (128, 128, 128), (64, 256, 256), (64, 512, 512)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [(64, 64), (90, 71)])
def test_unpooling_puts_every_maximum_back_where_it_was(size, dtype):
    pool_only = SegNetEncoder(nn.Sequential(nn.MaxPool2d(2)))
    images = draw_images(*size).to(dtype)
    pooled = pool_only(images)
    restored = nn.functional.max_unpool2d(pooled.end, pooled.indices[0], [2, 2], output_size=pooled.sizes[0])
    kept = restored != 0
    assert torch.equal(restored[kept], images[kept])
    per_window = nn.functional.avg_pool2d(kept.float(), 2, ceil_mode=True)
    assert (per_window > 0).all()  # also in the windows that the border of an odd map cuts


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_every_part_gets_a_finite_gradient_in_narrow_types(dtype):
    network = build().train()
    with autocast(torch.device("cpu"), dtype):
        outputs = network(draw_images(96, 64))
    (outputs.seg_logits.float().square().mean() + outputs.depth.float().square().mean()).backward()
    assert outputs.seg_logits.dtype == getattr(torch, dtype)
    for part, module in network.parts().items():
        gradients = torch.cat([parameter.grad.flatten() for parameter in module.parameters()])
        assert gradients.isfinite().all(), part
        assert gradients.any(), part


def test_both_decoders_unpool_with_the_same_indices():
    network = build()
    seen = []
    for decoder in (network.seg_decoder, network.depth_decoder):
        decoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].indices))
    network(draw_images(64, 64))
    assert all(one is other for one, other in zip(*seen, strict=True))


def test_memory_format_changes_nothing():
    network = build().eval()
    images = draw_images(70, 90)
    with torch.no_grad():
        expected = network(images).seg_logits
        network.to(memory_format=torch.channels_last)
        found = network(images.to(memory_format=torch.channels_last)).seg_logits
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_it_runs_in_bfloat16():
    network = build()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = network(draw_images(64, 64)).seg_logits
    logits.float().sum().backward()
    assert logits.isfinite().all()

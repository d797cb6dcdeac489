"""ConvVGG: the report's count, bilinear output, first loss."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from stages.networks import build_network, count_parameters
from stages.networks.parts import Part
from stages.training.transfer import copy_part

SMALL = {"encoder_weights": "none", "width": 4, "fc_width": 8}


def build(num_classes=5, **options):
    torch.manual_seed(0)
    return build_network("conv-vgg", num_classes, **{**SMALL, **options})


def draw_images(batch=2, height=64, width=96):
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(1))


def test_parameter_count_is_the_papers():
    with torch.device("meta"):
        network = build_network("conv-vgg", 21, with_depth=False, encoder_weights="none")
    assert count_parameters(network) == 134_346_581


def test_output_is_the_bilinear_interpolation_of_scores_at_stride_32():
    network = build().eval()
    nn.init.normal_(network.seg_head.weight)
    images = draw_images()
    with torch.no_grad():
        scores = network.seg_head(network.seg_decoder(network.encoder(images)))
        expected = F.interpolate(scores, size=(64, 96), mode="bilinear", align_corners=False)
        assert scores.shape == (2, 5, 2, 3)
        assert torch.equal(network(images).seg_logits, expected)


def test_first_loss_is_the_logarithm_of_the_number_of_classes():
    labels = torch.randint(5, (2, 64, 96), generator=torch.Generator().manual_seed(2))
    assert F.cross_entropy(build()(draw_images()).seg_logits, labels).item() == pytest.approx(math.log(5), abs=1e-5)


def test_a_copy_carries_fc6_and_fc7():
    network = build()
    report = copy_part(network, Part.DEPTH_DECODER, Part.SEG_DECODER)
    assert set(report.copied) == {"fc6.weight", "fc6.bias", "fc7.weight", "fc7.bias"}
    assert not report.skipped

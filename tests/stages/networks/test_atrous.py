"""The blocks of the multi-scale networks against torchvision, receptive fields, and batches of one."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models.segmentation.deeplabv3 import ASPP

from data_cache.errors import UserError
from stages.networks import count_parameters
from stages.networks.atrous import (
    ChannelGate,
    ImagePooling,
    MultiRateBranch,
    PooledBatchNorm2d,
    build_atrous_pyramid,
    build_conv,
)


def measure_extent(module: nn.Module, channels: int, side: int = 41) -> int:
    """Return over how many pixels of a row one output pixel looks, from the gradient of its sum."""
    image = torch.zeros(1, channels, side, side, requires_grad=True)
    torch.manual_seed(0)
    for weight in module.parameters():
        nn.init.uniform_(weight, 0.1, 1.0)
    module.eval()(image)[..., side // 2, side // 2].sum().backward()
    columns = image.grad.abs().sum((0, 1, 2)).nonzero().flatten()
    return int(columns.max() - columns.min()) + 1


def test_each_rate_sees_the_papers_extent():
    branch = MultiRateBranch(2, 3)
    assert [measure_extent(convolution, 2) for convolution in branch.convs] == [7, 13, 19]
    assert measure_extent(branch, 2) == 19


def test_pyramid_rates_see_13_25_37_px():
    pyramid = build_atrous_pyramid(2, 3)
    assert [measure_extent(convolution, 2) for convolution in list(pyramid.convs)[:4]] == [1, 13, 25, 37]


@pytest.mark.parametrize(
    ("options", "branches"),
    [({}, 3), ({"with_1x1": True}, 4), ({"with_pool": True}, 4), ({"with_1x1": True, "with_pool": True}, 5)],
)
def test_branch_options_add_their_convolutions(options, branches):
    branch = MultiRateBranch(4, 6, **options)
    assert len(branch.convs) == branches
    assert branch.project[0].in_channels == 6 * branches
    assert branch(torch.randn(2, 4, 9, 11)).shape == (2, 6, 9, 11)


def test_separable_branch_sees_as_far_with_fewer_weights():
    plain, separable = MultiRateBranch(16, 16), MultiRateBranch(16, 16, separable=True)
    assert count_parameters(separable) < count_parameters(plain)
    assert [measure_extent(convolution, 16) for convolution in separable.convs] == [7, 13, 19]


def test_papers_counts_of_the_blocks():
    with torch.device("meta"):
        assert count_parameters(build_atrous_pyramid(2048, 256)) == 15_535_104
        assert count_parameters(MultiRateBranch(728, 256)) == 5_230_592
        assert count_parameters(build_conv(728, 256)) == 186_880
        assert count_parameters(build_conv(2048, 256)) == 524_800
        assert count_parameters(build_conv(256, 48)) == 12_384
        assert count_parameters(MultiRateBranch(128, 128)) == 492_544  # BiSeNet, 1/8
        assert count_parameters(MultiRateBranch(256, 128)) == 934_912  # BiSeNet, 1/16


@pytest.mark.parametrize("training", [True, False])
def test_pyramid_computes_what_torchvisions_does(training):
    torch.manual_seed(0)
    theirs, ours = ASPP(4, (6, 12, 18), 8), build_atrous_pyramid(4, 8)
    with torch.no_grad():
        for mine, weight in zip(ours.parameters(), theirs.parameters(), strict=True):
            mine.copy_(weight)
    for pyramid in (theirs, ours):
        pyramid.train(training)
        pyramid.project[-1].p = 0.0
    features = torch.randn(2, 4, 15, 20)
    torch.testing.assert_close(ours(features), theirs(features))


def test_pooled_norm_equals_batch_norm_for_larger_batches():
    ours, theirs = PooledBatchNorm2d(3), nn.BatchNorm2d(3)
    pooled = torch.randn(4, 3, 1, 1)
    torch.testing.assert_close(ours(pooled), theirs(pooled), rtol=0, atol=0)
    torch.testing.assert_close(ours.running_var, theirs.running_var, rtol=0, atol=0)
    assert list(ours.state_dict()) == list(theirs.state_dict())


def test_pooled_norm_takes_its_running_statistics_for_a_batch_of_one():
    norm = PooledBatchNorm2d(3)
    norm(torch.randn(4, 3, 1, 1))
    before = {name: value.clone() for name, value in norm.named_buffers()}
    pooled = torch.randn(1, 3, 1, 1)
    trained = norm.train()(pooled)
    trained.sum().backward()
    assert norm.weight.grad.abs().max() > 0
    assert torch.equal(trained, norm.eval()(pooled))
    assert all(torch.equal(value, before[name]) for name, value in norm.named_buffers())


def test_image_pooling_is_the_projected_mean_everywhere():
    pooling = ImagePooling(3, 5).eval()
    features = torch.randn(2, 3, 6, 7)
    mean = F.adaptive_avg_pool2d(features, 1)
    expected = pooling[2](pooling[1](pooling[0](mean)))
    torch.testing.assert_close(pooling(features), expected.expand(2, 5, 6, 7))


def test_channel_gate_is_between_0_and_1_per_channel():
    weights = ChannelGate(5)(torch.randn(2, 5, 4, 4))
    assert weights.shape == (2, 5, 1, 1)
    assert 0 < weights.min() < weights.max() < 1


@pytest.mark.parametrize("rates", [[], [0, 3], [3.5], [-6]])
def test_impossible_rates_are_refused(rates):
    with pytest.raises(UserError, match=r"branch_rates .* give positive whole numbers"):
        MultiRateBranch(2, 2, rates)

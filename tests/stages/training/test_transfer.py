"""A copy takes every tensor of a decoder, by value."""

import pytest
import torch
from torch import nn
from toy_network import batches_from, build_toy

from data_cache.errors import UserError
from stages.networks.parts import Part
from stages.training.loop import train_phase
from stages.training.schedules import SEG
from stages.training.settings import LossSettings, TrainingSettings
from stages.training.transfer import copy_part, plan_copy

SEG_DECODER, DEPTH_DECODER = Part.SEG_DECODER, Part.DEPTH_DECODER
NAMES = {"0.weight", "0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var", "1.num_batches_tracked"}


def snapshot(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def equal(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture
def network():
    network = build_toy()
    for _ in range(3):
        network(torch.randn(2, 3, 16, 16), depth=False)  # moves statistics and counters of one side only
    return network


@pytest.mark.parametrize(("source", "target"), [(SEG_DECODER, DEPTH_DECODER), (DEPTH_DECODER, SEG_DECODER)])
def test_copied_decoders_are_equal_and_all_else_untouched(network, source, target):
    before = {part: snapshot(module) for part, module in network.parts().items()}
    assert not equal(before[source], before[target])
    report = copy_part(network, source, target)
    assert set(report.copied) == NAMES
    assert report.skipped == ()
    after = {part: snapshot(module) for part, module in network.parts().items()}
    assert equal(after[target], before[source])
    assert all(equal(after[part], before[part]) for part in after if part != target)


def test_copies_are_independent_once_one_of_them_trains(network):
    copy_part(network, SEG_DECODER, DEPTH_DECODER)
    copied = snapshot(network.depth_decoder)
    train_phase(
        network, SEG, batches_from, total_steps=2, seed=0, key="", settings=TrainingSettings(lr=0.01),
        losses=LossSettings(), device=torch.device("cpu"), dtype="float32",
    )  # fmt: skip
    assert equal(snapshot(network.depth_decoder), copied)
    assert not equal(snapshot(network.seg_decoder), copied)


@pytest.mark.parametrize("prefix", ["", "depth_decoder."])
def test_only_declared_names_are_skipped(network, prefix):
    network.depth_decoder.append(nn.Conv2d(8, 1, 1))
    network.seg_decoder.append(nn.Conv2d(8, 4, 1))
    network.uncopied = frozenset({f"{prefix}3.weight", f"{prefix}3.bias"})
    kept = network.depth_decoder[3].weight.clone()
    report = copy_part(network, SEG_DECODER, DEPTH_DECODER)
    assert set(report.copied) == NAMES
    assert set(report.skipped) == {"3.weight", "3.bias"}
    assert torch.equal(network.depth_decoder[3].weight, kept)


def test_undeclared_shape_is_explained_and_changes_nothing(network):
    network.depth_decoder[0] = nn.Conv2d(8, 8, 1)
    before = snapshot(network.depth_decoder)
    with pytest.raises(UserError, match=r"0\.weight is \(8, 8, 3, 3\) in the source and \(8, 8, 1, 1\) in the target"):
        copy_part(network, SEG_DECODER, DEPTH_DECODER)
    assert equal(snapshot(network.depth_decoder), before)


def test_undeclared_extra_tensor_is_explained(network):
    network.seg_decoder.append(nn.Conv2d(8, 8, 1))
    with pytest.raises(UserError, match=r"3\.bias is only in seg-decoder; 3\.weight is only in seg-decoder"):
        copy_part(network, SEG_DECODER, DEPTH_DECODER)


def test_nothing_to_copy_is_explained(network):
    network.uncopied = frozenset(NAMES)
    with pytest.raises(UserError, match="has nothing to copy: all 7 tensors"):
        plan_copy(network, SEG_DECODER, DEPTH_DECODER)


def test_decoder_without_tensors_has_nothing_to_copy(network):
    network.seg_decoder, network.depth_decoder = nn.Identity(), nn.Identity()
    with pytest.raises(UserError, match="has nothing to copy"):
        copy_part(network, SEG_DECODER, DEPTH_DECODER)


def test_missing_decoder_is_explained():
    with pytest.raises(UserError, match="no depth-decoder"):
        copy_part(build_toy(with_depth=False), SEG_DECODER, DEPTH_DECODER)

"""Freezing owns gradient and mode together and gives both back."""

import pytest
import torch
from toy_network import build_toy

from data_cache.errors import UserError
from stages.networks.parts import DEPTH_BRANCH, ENCODER, EVERYTHING, SEG_BRANCH, Part
from stages.training.freezing import training_parts


def learns(module):
    return {parameter.requires_grad for parameter in module.parameters()} == {True} and module.training


@pytest.mark.parametrize("parts", [ENCODER, SEG_BRANCH, ENCODER | DEPTH_BRANCH, EVERYTHING, Part.SEG_HEAD])
def test_exactly_the_named_parts_learn(parts):
    network = build_toy()
    with training_parts(network, parts):
        assert network.training
        for part, module in network.parts().items():
            assert learns(module) == (part in parts), part
            assert all(child.training == (part in parts) for child in module.modules())


def test_of_a_frozen_encoder_what_was_never_pretrained_can_learn():
    network = build_toy()
    network.fresh_in_encoder = ("1",)
    with training_parts(network, SEG_BRANCH, fresh=True):
        assert learns(network.encoder[1]) and learns(network.seg_decoder)
        assert not network.encoder[0].weight.requires_grad
        assert not any(module.training for module in (network.encoder, network.encoder[0], network.encoder[3]))


def test_flags_come_back_even_after_an_error():
    network = build_toy()
    network.depth_head.requires_grad_(False)
    network.encoder.eval()
    before = [module.training for module in network.modules()], [p.requires_grad for p in network.parameters()]
    with pytest.raises(ZeroDivisionError), training_parts(network, ENCODER):
        raise ZeroDivisionError
    assert before == (
        [module.training for module in network.modules()],
        [p.requires_grad for p in network.parameters()],
    )


@pytest.mark.parametrize("disturb", [torch.nn.Module.eval, torch.nn.Module.train])
def test_it_can_be_applied_again_after_an_evaluation(disturb):
    network = build_toy()
    with training_parts(network, SEG_BRANCH) as scope:
        disturb(network)
        scope.apply()
        assert learns(network.seg_decoder)
        assert not network.encoder.training
        assert not network.encoder[1].training


def test_frozen_batch_norm_stays_bit_identical_in_a_forward_pass():
    network = build_toy()
    before = {name: value.clone() for name, value in network.encoder.state_dict().items()}
    with training_parts(network, SEG_BRANCH):
        network(torch.randn(2, 3, 16, 16))
    assert all(torch.equal(value, before[name]) for name, value in network.encoder.state_dict().items())


def test_missing_part_is_explained():
    with (
        pytest.raises(UserError, match=r"no depth-decoder, depth-head; it has encoder, seg-decoder, seg-head"),
        training_parts(build_toy(with_depth=False), EVERYTHING),
    ):
        pass

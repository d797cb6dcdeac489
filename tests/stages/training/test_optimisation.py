"""Learning rates by formula, factors by part, averages by closed form."""

import math

import pytest
import torch
from toy_network import build_toy

from data_cache.errors import UserError
from stages.networks.parts import DEPTH_BRANCH, ENCODER, EVERYTHING, SEG_BRANCH, Part
from stages.training.encoder_policy import parts_to_train
from stages.training.freezing import trained_modules, training_parts
from stages.training.optimisation import (
    MovingAverage,
    PhaseOptimiser,
    compute_lr,
    compute_lr_factors,
)
from stages.training.schedule import Phase
from stages.training.schedules import DEPTH, JOINT, SEG
from stages.training.settings import LossSettings, TrainingSettings
from stages.training.weighting import build_weighting

CPU = torch.device("cpu")
GOES_ON = torch.tensor(False)


def build(network, phase, settings, total_steps=10):
    return PhaseOptimiser(network, phase, settings, total_steps, build_weighting(phase, LossSettings(), 0.0, CPU))


def update(optimiser, norm):
    optimiser.update(torch.tensor(norm), GOES_ON)


def fill_gradients(network, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        # in the parameter's memory layout, as autograd does it
        parameter.grad = torch.empty_like(parameter, requires_grad=False).copy_(
            torch.randn(parameter.shape, generator=generator)
        )


def put_channels_last(value):
    return value.contiguous(memory_format=torch.channels_last) if value.ndim == 4 else value


def reverse(value):
    """Return an equal tensor whose first index runs fastest."""
    return value.permute(*reversed(range(value.ndim))).contiguous().permute(*reversed(range(value.ndim)))


def leave_gaps(value):
    """Return an equal tensor that is every second number of another."""
    return torch.stack([value, torch.full_like(value, torch.nan)], dim=-1)[..., 0]


def test_poly_falls_from_the_initial_rate():
    poly = TrainingSettings(lr_schedule="poly")
    rates = [compute_lr(poly, 0.02, step, 1000) for step in (0, 500, 999)]
    assert rates == pytest.approx([0.02, 0.02 * 0.5**0.9, 0.02 * 0.001**0.9])
    assert rates[1] == pytest.approx(0.536 * 0.02, rel=1e-3)  # papers: never recursive
    assert compute_lr(poly, 0.02, 1000, 1000) == 0


def test_cosine_and_constant_rates():
    cosine = TrainingSettings(lr_schedule="cosine")
    assert [compute_lr(cosine, 2.0, step, 4) for step in range(4)] == pytest.approx(
        [1 + math.cos(math.pi * step / 4) for step in range(4)]
    )
    assert {compute_lr(TrainingSettings(), 0.1, step, 5) for step in range(5)} == {0.1}


def test_warmup_rises_linearly_and_then_the_schedule_starts():
    settings = TrainingSettings(lr_schedule="poly", warmup_steps=4)
    rates = [compute_lr(settings, 1.0, step, 14) for step in range(14)]
    assert rates[:5] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])
    assert rates[9] == pytest.approx(0.5**0.9)


@pytest.mark.parametrize("steps", [4, 3])
def test_warmup_longer_than_the_phase_is_explained(steps):
    with pytest.raises(UserError, match=f"phase 'seg' has {steps} steps, not more than the 4 of warm-up"):
        build(build_toy(), SEG, TrainingSettings(warmup_steps=4), steps)


@pytest.mark.parametrize(
    ("policy", "phase", "trains", "encoder_factor"),
    [
        ("train", SEG, ENCODER | SEG_BRANCH, 1.0),
        ("freeze", SEG, SEG_BRANCH, 1.0),
        ("freeze", DEPTH, DEPTH_BRANCH, 1.0),
        ("freeze", JOINT, EVERYTHING, 1.0),
        ("low-lr", DEPTH, ENCODER | DEPTH_BRANCH, 0.1),
        ("low-lr", JOINT, EVERYTHING, 1.0),
    ],
)
def test_encoder_policy_acts_on_phases_with_a_single_loss(policy, phase, trains, encoder_factor):
    assert parts_to_train(policy, phase) == trains
    assert compute_lr_factors(phase, TrainingSettings(encoder_policy=policy))[ENCODER] == pytest.approx(encoder_factor)


@pytest.mark.parametrize(("policy", "pretrained_factor"), [("low-lr", 0.1), ("freeze", 0.0), ("train", 1.0)])
def test_what_was_never_pretrained_learns_at_the_full_rate_under_every_policy(policy, pretrained_factor):
    network = build_toy()
    network.fresh_in_encoder = ("1",)
    before = {name: value.detach().clone() for name, value in network.encoder.named_parameters()}
    settings = TrainingSettings(
        optimizer="sgd", lr=0.5, momentum=0.0, encoder_policy=policy, lr_factors={"encoder": 0.2}
    )
    for parameter in network.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimiser = build(network, SEG, settings)
    optimiser.prepare(0)
    update(optimiser, 1.0)
    moved = {
        name: (before[name] - value.detach()).flatten()[0].item() for name, value in network.encoder.named_parameters()
    }
    expected = {"0.weight": 0.1 * pretrained_factor, "1.weight": 0.1, "1.bias": 0.1}
    assert moved == pytest.approx(expected, abs=1e-6)


def test_policy_that_leaves_nothing_to_train_is_explained():
    with pytest.raises(UserError, match="trains only the encoder, which encoder policy 'freeze' forbids"):
        parts_to_train("freeze", Phase("warm", trains=ENCODER, seg=1.0))


def test_narrower_factor_holds_whatever_the_order():
    for names in (("seg-branch", "seg-head", "everything"), ("seg-head", "everything", "seg-branch")):
        values = {"everything": 0.5, "seg-branch": 2.0, "seg-head": 10.0}
        factors = compute_lr_factors(SEG, TrainingSettings(lr_factors={name: values[name] for name in names}))
        assert factors[Part.SEG_HEAD] == 10
        assert factors[Part.SEG_DECODER] == 2
        assert factors[ENCODER] == factors[Part.DEPTH_HEAD] == 0.5


def test_factors_scale_the_updates_of_their_part():
    """Under plain SGD an update is rate times gradient, so the ratio of updates is the factor."""
    updates = []
    for factors in ({}, {"encoder": 0.1, "seg-head": 10.0}):
        network = build_toy()
        before = {part: [p.detach().clone() for p in module.parameters()] for part, module in network.parts().items()}
        optimiser = build(network, SEG, TrainingSettings(optimizer="sgd", momentum=0.0, lr=0.5, lr_factors=factors))
        fill_gradients(network)
        optimiser.prepare(0)
        update(optimiser, 1.0)
        updates.append(
            {part: torch.cat([(p - q).flatten() for p, q in zip(module.parameters(), before[part], strict=True)])
             for part, module in network.parts().items()}
        )  # fmt: skip
    plain, scaled = updates
    torch.testing.assert_close(scaled[ENCODER], 0.1 * plain[ENCODER], rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(scaled[Part.SEG_HEAD], 10 * plain[Part.SEG_HEAD], rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(scaled[Part.SEG_DECODER], plain[Part.SEG_DECODER])
    assert not plain[Part.DEPTH_DECODER].any()


@pytest.mark.parametrize("lay", [torch.clone, put_channels_last, reverse, leave_gaps])
@pytest.mark.parametrize("lay_gradient", [torch.clone, reverse])
@pytest.mark.parametrize(
    ("name", "oracle"),
    [
        ("adam", lambda p: torch.optim.Adam(p, 0.01, weight_decay=0.1, fused=False)),
        ("adamw", lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0.1, fused=False)),
        ("sgd", lambda p: torch.optim.SGD(p, 0.01, weight_decay=0.1, momentum=0.8, fused=False)),
    ],
)
def test_optimisers_are_torchs_plain_ones_however_numbers_lie_in_memory(name, oracle, lay, lay_gradient):
    ours, theirs = build_toy(), build_toy()
    for parameter in ours.parameters():
        parameter.data = lay(parameter.data)
    optimiser = build(ours, JOINT, TrainingSettings(optimizer=name, lr=0.01, weight_decay=0.1, momentum=0.8))
    plain = oracle(theirs.parameters())
    for step in range(3):
        fill_gradients(ours, step)
        fill_gradients(theirs, step)
        for parameter in ours.parameters():
            parameter.grad = lay_gradient(parameter.grad)
        optimiser.prepare(step)
        update(optimiser, 1.0)
        plain.step()
    for first, second in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(first, second)


def test_decay_can_spare_norms_and_biases():
    network = build_toy()
    before = {name: value.detach().clone() for name, value in network.named_parameters()}
    settings = TrainingSettings(optimizer="sgd", momentum=0.0, lr=1.0, weight_decay=0.5, decay_norm_and_bias=False)
    optimiser = build(network, JOINT, settings)
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimiser.prepare(0)
    update(optimiser, 0.0)
    for name, value in network.named_parameters():
        torch.testing.assert_close(value.detach(), before[name] * (0.5 if value.ndim > 1 else 1.0))


def test_clipping_is_torchs():
    network, oracle = build_toy(), build_toy()
    optimiser = build(network, JOINT, TrainingSettings(optimizer="sgd", momentum=0.0, lr=1.0, clip_norm=0.5))
    fill_gradients(network)
    fill_gradients(oracle)
    norm = torch.nn.utils.clip_grad_norm_(oracle.parameters(), 0.5)
    optimiser.prepare(0)
    optimiser.update(norm, GOES_ON)
    for first, second in zip(network.parameters(), oracle.parameters(), strict=True):
        torch.testing.assert_close(first.grad, second.grad)


def describe(state):
    """What fused kernels presume: momenta lie as weights do, and are counted on the device."""
    return {name: (value.shape, value.stride(), value.dtype, value.device) for name, value in state.items()}


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
def test_state_round_trip_continues_with_the_same_bits(optimizer):
    first, second = (
        build_toy().to(memory_format=torch.channels_last),
        build_toy(1).to(memory_format=torch.channels_last),
    )
    settings = TrainingSettings(optimizer=optimizer, lr=0.1)
    ours, resumed = build(first, JOINT, settings), build(second, JOINT, settings)
    for step in range(3):
        fill_gradients(first, step)
        ours.prepare(step)
        update(ours, 1.0)
    second.load_state_dict(first.state_dict())
    resumed.load_state({name: value.clone().contiguous() for name, value in ours.state().items()}, "a", "b")
    for network, optimiser in ((first, ours), (second, resumed)):
        fill_gradients(network, 3)
        optimiser.prepare(3)
        update(optimiser, 1.0)
    assert all(torch.equal(p, q) for p, q in zip(first.parameters(), second.parameters(), strict=True))
    assert describe(resumed.state()) == describe(ours.state())


def test_moving_average_is_its_recurrence_over_weights_and_statistics():
    network = build_toy()
    average = MovingAverage(network, trained_modules(network, SEG_BRANCH), decay=0.6)
    weight, mean = network.seg_head.weight, network.seg_decoder[1].running_mean
    expected = [weight.detach().clone(), mean.clone()]
    untouched = network.encoder[0].weight.detach().clone()
    for step in (1, 2, 3):
        with torch.no_grad():
            weight.add_(1.0)
            mean.add_(2.0)
            network.encoder[0].weight.add_(1.0)
            network.seg_decoder[1].num_batches_tracked.add_(1)
        decay = min(0.6, 1 - 1 / (step + 1))
        expected = [decay * old + (1 - decay) * new for old, new in zip(expected, (weight.detach(), mean), strict=True)]
        average.update(step, GOES_ON)
    average.hand_over()
    torch.testing.assert_close(weight.detach(), expected[0])
    torch.testing.assert_close(mean, expected[1])
    assert int(network.seg_decoder[1].num_batches_tracked) == 3
    torch.testing.assert_close(network.encoder[0].weight.detach(), untouched + 3)


def test_frozen_parts_get_no_optimiser_state():
    network = build_toy()
    with training_parts(network, ENCODER | SEG_BRANCH):
        names = build(network, SEG, TrainingSettings()).named_parameters
    assert {name.split(".")[0] for name in names} == {"encoder", "seg-decoder", "seg-head"}

"""Weighting two losses: fixed, by uncertainty (Kendall), by falling speed (DWA)."""

import math

import pytest
import torch

from stages.training.losses import Terms
from stages.training.schedules import JOINT, SEG
from stages.training.settings import LossSettings
from stages.training.weighting import build_weighting

CPU = torch.device("cpu")
TERMS = Terms(torch.tensor(2.0), torch.tensor(3.0), torch.tensor(0.5))


def observe(weighting, seg, depth, *, holds=False):
    weighting.observe({"seg": torch.tensor(seg), "depth": torch.tensor(depth)}, torch.tensor(holds))


def test_fixed_weighting_is_the_weighted_sum():
    losses = build_weighting(JOINT, LossSettings(), 0.4, CPU)(TERMS)
    assert float(losses.total) == pytest.approx(0.85 * 2 + 0.85 * 0.4 * 3 + 0.15 * 0.5)
    assert {name: pytest.approx(float(value)) for name, value in losses.weighted.items()} == {
        "seg": 1.7,
        "aux": 1.02,
        "depth": 0.075,
    }


@pytest.mark.parametrize("mode", ["uncertainty", "dwa"])
def test_single_loss_keeps_its_fixed_weight(mode):
    module = build_weighting(SEG, LossSettings(weighting=mode), 0.0, CPU)
    assert not list(module.parameters())
    assert float(module(Terms(torch.tensor(2.0), None, None)).total) == 2


def test_uncertainty_starts_at_the_weights_of_the_phase():
    losses = build_weighting(JOINT, LossSettings(weighting="uncertainty"), 0.0, CPU)(TERMS._replace(aux=None))
    assert float(losses.weighted["seg"].detach()) == pytest.approx(0.85 * 2)
    assert float(losses.weighted["depth"].detach()) == pytest.approx(0.15 * 0.5)


def test_uncertainty_finds_the_variance_that_minimises_it():
    """With constant losses the optimum of exp(−s)·L + s/2 is exp(s) = 2·L, and exp(s) = L for the half-weighted one."""
    weighting = build_weighting(JOINT, LossSettings(weighting="uncertainty"), 0.0, CPU)
    optimiser = torch.optim.Adam(weighting.parameters(), 0.05)
    for _ in range(400):
        optimiser.zero_grad()
        weighting(TERMS._replace(aux=None)).total.backward()
        optimiser.step()
    seg, depth = weighting.log_variances.exp().tolist()
    assert (seg, depth) == (pytest.approx(4.0, rel=0.02), pytest.approx(0.5, rel=0.02))


def test_dwa_favours_the_loss_that_falls_slower():
    weighting = build_weighting(JOINT, LossSettings(weighting="dwa", dwa_window=2), 0.0, CPU)
    terms = TERMS._replace(aux=None)
    for seg, depth in ((4.0, 1.0), (2.0, 1.0), (2.0, 0.8), (1.0, 0.8)):  # window means 3, 1.5 and 1, 0.8
        losses = weighting(terms)
        assert float(losses.weighted["seg"]) == pytest.approx(0.85 * 2)  # nothing to compare yet
        observe(weighting, seg, depth)
    share = 1 / (1 + math.exp((0.8 - 0.5) / 2))  # softmax of r/2 with r = 1.5/3 and 0.8/1
    losses = weighting(terms)
    assert float(losses.weighted["seg"]) == pytest.approx(0.85 * 2 * share * 2)
    assert float(losses.weighted["depth"]) == pytest.approx(0.15 * 2 * (1 - share) * 0.5)


@pytest.mark.parametrize("mode", ["fixed", "uncertainty", "dwa"])
def test_shares_hold_at_the_first_step_and_their_scale_from_then_on(mode):
    """Also after a step that is to change nothing, and for a phase whose first batch has no labelled pixel."""
    settings = LossSettings(weighting=mode, balance="share", dwa_window=1000)
    weighting = build_weighting(JOINT, settings, 0.4, CPU)
    nothing = weighting(Terms(torch.tensor(0.0), torch.tensor(0.0), torch.tensor(0.5), torch.tensor(0.0)))
    assert float(nothing.weighted["depth"].detach()) == pytest.approx(0.15 * 0.5)
    observe(weighting, 0.0, 0.5)
    weighting(Terms(torch.tensor(9.0), None, torch.tensor(0.001)))
    observe(weighting, 9.0, 0.001, holds=True)
    for terms in (TERMS, TERMS._replace(mixed=torch.tensor(0.7))):
        weighted = {name: value.detach().item() for name, value in weighting(terms).weighted.items()}
        assert weighted["depth"] / sum(weighted.values()) == pytest.approx(0.15, abs=1e-6)
    scale = (2 + 0.4 * 3 + 0.7) / 0.5
    observe(weighting, 2.0, 0.5)
    resumed = build_weighting(JOINT, settings, 0.4, CPU)
    resumed.load_state_dict(weighting.state_dict())
    for module in (weighting, resumed):
        later = module(Terms(torch.tensor(1.0), None, torch.tensor(0.1))).weighted
        assert float(later["seg"].detach()) == pytest.approx(0.85)
        assert float(later["depth"].detach()) == pytest.approx(0.15 * scale * 0.1)


def test_dwa_state_survives_a_round_trip():
    settings = LossSettings(weighting="dwa", dwa_window=3)
    ours, resumed = build_weighting(JOINT, settings, 0.0, CPU), build_weighting(JOINT, settings, 0.0, CPU)
    for step in range(7):
        observe(ours, 1 / (step + 1), 0.1 + step / 7)
    resumed.load_state_dict(ours.state_dict())
    for module in (ours, resumed):
        observe(module, 0.2, 0.3)
        observe(module, 0.1, 0.3)
    assert ours.task_factors() == resumed.task_factors()
    assert ours.task_factors() != {"seg": 0.85, "depth": 0.15}


def test_dwa_takes_no_note_of_a_step_that_is_to_change_nothing():
    settings = LossSettings(weighting="dwa", dwa_window=2)
    ours, undisturbed = build_weighting(JOINT, settings, 0.0, CPU), build_weighting(JOINT, settings, 0.0, CPU)
    for seg, depth in ((4.0, 1.0), (2.0, 1.0), (2.0, 0.8)):
        observe(undisturbed, seg, depth)
        observe(ours, seg, depth)
        observe(ours, math.nan, depth, holds=True)
    assert all(torch.equal(value, undisturbed.state_dict()[name]) for name, value in ours.state_dict().items())

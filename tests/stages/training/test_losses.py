"""Losses against torch, closed forms and cases computed by hand."""

import math

import pytest
import torch
import torch.nn.functional as F
from toy_network import make_batch

from data_cache.errors import UserError
from data_cache.sample import IGNORE_INDEX
from data_cache.unpacking import unpack
from stages.networks.interface import Outputs
from stages.training.losses import (
    SEG_LOSSES,
    compute_terms,
    cross_entropy,
    depth_l1,
    depth_mse,
    depth_ssi,
    focal_loss,
    ohem_cross_entropy,
    segmentation_loss,
    upload_class_weights,
)
from stages.training.region_losses import dice_loss, lovasz_loss, tversky_loss
from stages.training.schedules import JOINT, SEG
from stages.training.settings import REGION_LOSSES, LossSettings

CLASS_WEIGHTS = torch.tensor([0.5, 1.0, 2.0, 0.0, 3.0])


@pytest.fixture
def logits():
    return torch.randn(2, 5, 6, 7, generator=torch.Generator().manual_seed(0)).mul(3).requires_grad_()


@pytest.fixture
def labels():
    labels = torch.randint(0, 5, (2, 6, 7), generator=torch.Generator().manual_seed(1))
    labels[0, :2] = IGNORE_INDEX
    return labels


@pytest.mark.parametrize("weights", [None, CLASS_WEIGHTS])
@pytest.mark.parametrize("loss", [lambda *a, **k: focal_loss(*a, gamma=0.0, **k), cross_entropy])
def test_without_focusing_it_is_torch_cross_entropy(logits, labels, weights, loss):
    expected = F.cross_entropy(logits, labels, weight=weights, ignore_index=IGNORE_INDEX)
    ours = loss(logits, labels, class_weights=weights)
    torch.testing.assert_close(ours, expected)
    (ours_gradient,) = torch.autograd.grad(ours, logits)
    torch.testing.assert_close(ours_gradient, torch.autograd.grad(expected, logits)[0])


@pytest.mark.parametrize(("gamma", "alpha"), [(2.0, 1.0), (0.5, 1.0), (1.0, 0.25), (5.0, 2.0)])
def test_focal_loss_is_its_closed_form_in_float64(logits, labels, gamma, alpha):
    probabilities = logits.detach().double().softmax(1)
    values = []
    for image, row, column in (labels != IGNORE_INDEX).nonzero().tolist():
        p = float(probabilities[image, labels[image, row, column], row, column])
        values.append(alpha * (1 - p) ** gamma * -math.log(p))
    expected = sum(values) / len(values)
    assert float(focal_loss(logits.detach(), labels, gamma=gamma, alpha=alpha)) == pytest.approx(expected, rel=1e-5)


def test_focal_loss_by_hand():
    # two classes, p_t = 0.8: (1 - 0.8)² · -ln 0.8 = 0.04 · 0.22314
    logits = torch.tensor([math.log(0.8), math.log(0.2)]).view(1, 2, 1, 1)
    assert float(focal_loss(logits, torch.zeros(1, 1, 1, dtype=torch.long))) == pytest.approx(0.0089257, rel=1e-4)


def test_focal_loss_computes_in_float32_whatever_comes_in(logits, labels):
    coarse = logits.detach().bfloat16()
    loss = focal_loss(coarse, labels)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, focal_loss(coarse.float(), labels), rtol=0, atol=0)


@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0, 2.0])
def test_perfect_and_hopeless_pixels_have_finite_gradients(gamma):
    logits = torch.tensor([[200.0, -200.0], [-200.0, 200.0]]).view(2, 2, 1, 1).requires_grad_()
    loss = focal_loss(logits, torch.zeros(2, 1, 1, dtype=torch.long), gamma=gamma)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("weights", [None, CLASS_WEIGHTS])
@pytest.mark.parametrize("loss", SEG_LOSSES)
def test_all_void_batch_costs_nothing_and_has_a_gradient(logits, loss, weights):
    value = SEG_LOSSES[loss](logits, torch.full((2, 6, 7), IGNORE_INDEX), LossSettings(), weights)
    value.backward()
    assert float(value.detach()) == 0
    assert not logits.grad.any()


@pytest.mark.parametrize("loss", SEG_LOSSES)
def test_void_pixels_do_not_matter_and_class_weights_do(logits, labels, loss):
    changed = torch.where((labels == IGNORE_INDEX)[:, None], 1e3 * torch.randn_like(logits), logits)
    of_changed, ours, weighted = (
        SEG_LOSSES[loss](each, labels, LossSettings(), weights)
        for each, weights in ((changed, None), (logits, None), (logits, CLASS_WEIGHTS))
    )
    assert torch.equal(of_changed, ours) or loss == "ohem", "to the bit"
    torch.testing.assert_close(of_changed, ours)
    assert (float(weighted.detach()) == float(ours.detach())) == (loss in REGION_LOSSES)
    ours.backward()
    assert not logits.grad.movedim(1, -1)[labels == IGNORE_INDEX].any()


def test_region_losses_are_what_their_papers_say(logits, labels):
    shown = labels != IGNORE_INDEX
    truth = torch.stack([labels == number for number in range(5)], 1) & shown[:, None]
    found = logits.softmax(1) * shown[:, None]
    both, only_found, only_true = (
        (first * second).sum((0, 2, 3)) for first, second in ((found, truth), (found, ~truth), (1 - found, truth))
    )
    torch.testing.assert_close(dice_loss(logits, labels), 1 - (2 * both / (2 * both + only_found + only_true)).mean())
    expected = 1 - (both / (both + 0.3 * only_found + 0.7 * only_true)).mean()
    torch.testing.assert_close(tversky_loss(logits, labels, beta=0.7), expected)
    certain = 1e4 * torch.nn.functional.one_hot(logits.argmax(1), 5).movedim(-1, 1).float()
    guessed = certain.bool() & shown[:, None]
    iou = (guessed & truth).sum((0, 2, 3)) / (guessed | truth).sum((0, 2, 3))
    torch.testing.assert_close(lovasz_loss(certain, labels), 1 - iou.mean(), msg="where all is certain, 1 − IoU")


def test_several_losses_add_up_by_their_weights(logits, labels):
    settings = LossSettings(seg={"focal": 1.0, "dice": 0.5})
    expected = focal_loss(logits, labels, class_weights=CLASS_WEIGHTS) + 0.5 * dice_loss(logits, labels)
    torch.testing.assert_close(segmentation_loss(logits, labels, settings, CLASS_WEIGHTS), expected)
    assert settings.describe(JOINT) == "0.85 focal + 0.425 dice + 0.15 mse"


def test_ohem_keeps_the_pixels_below_the_threshold(logits, labels):
    per_pixel = F.cross_entropy(logits, labels, ignore_index=IGNORE_INDEX, reduction="none")
    hard = per_pixel[(labels != IGNORE_INDEX) & (torch.exp(-per_pixel) < 0.7)]
    assert 0 < len(hard) < int((labels != IGNORE_INDEX).sum())
    torch.testing.assert_close(ohem_cross_entropy(logits, labels), hard.mean())


def test_ohem_falls_back_to_the_hardest_sixteenth():
    labels = torch.zeros(1, 8, 8, dtype=torch.long)
    logits = torch.zeros(1, 2, 8, 8)
    logits[:, 0] = torch.linspace(2, 6, 64).view(8, 8)  # every pixel is easy: p > 0.88
    losses = F.cross_entropy(logits, labels, reduction="none").flatten().sort(descending=True).values
    torch.testing.assert_close(ohem_cross_entropy(logits, labels), losses[:4].mean())


@pytest.fixture
def maps():
    generator = torch.Generator().manual_seed(2)
    depth = torch.rand(2, 6, 7, generator=generator).requires_grad_()
    target = torch.rand(2, 6, 7, generator=generator)
    valid = torch.rand(2, 6, 7, generator=generator) > 0.3
    return depth, target, valid


@pytest.mark.parametrize(("loss", "oracle"), [(depth_mse, F.mse_loss), (depth_l1, F.l1_loss)])
def test_depth_losses_are_torchs_over_valid_pixels(maps, loss, oracle):
    depth, target, valid = maps
    torch.testing.assert_close(loss(depth, target, valid), oracle(depth[valid], target[valid]))


@pytest.mark.parametrize("loss", [depth_mse, depth_l1, depth_ssi])
def test_invalid_targets_may_be_anything(maps, loss):
    depth, target, valid = maps
    spoiled = torch.where(valid, target, torch.nan)
    value = loss(depth, spoiled, valid)
    value.backward()
    torch.testing.assert_close(value, loss(depth, target, valid))
    assert torch.isfinite(depth.grad).all()
    assert not depth.grad[~valid].any()


@pytest.mark.parametrize("loss", [depth_mse, depth_l1, depth_ssi])
def test_no_valid_pixel_costs_nothing_and_has_a_gradient(maps, loss):
    depth, target, valid = maps
    value = loss(depth, target, torch.zeros_like(valid))
    value.backward()
    assert float(value.detach()) == 0
    assert not depth.grad.any()


@pytest.mark.parametrize("loss", [depth_mse, depth_l1, depth_ssi])
def test_nan_in_a_prediction_is_not_hidden(maps, loss):
    depth, target, valid = maps
    broken = depth.detach().clone()
    broken[valid.nonzero()[0].split(1)] = torch.nan
    assert torch.isnan(loss(broken, target, valid))


def test_ssi_ignores_scale_and_shift_of_each_image_but_not_its_sign(maps):
    depth, target, valid = maps
    scale, shift = torch.tensor([0.5, 20.0])[:, None, None], torch.tensor([3.0, -7.0])[:, None, None]
    loss = depth_ssi(depth, target, valid)
    torch.testing.assert_close(depth_ssi(scale * depth + shift, target, valid), loss, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(depth_ssi(target * 3 - 1, target, valid), torch.tensor(0.0), rtol=0, atol=1e-5)
    assert depth_ssi(-target, target, valid) > 1


def test_flat_prediction_has_a_tame_ssi_gradient(maps):
    _, target, valid = maps
    flat = torch.zeros_like(target).requires_grad_()
    depth_ssi(flat, target, valid).backward()
    assert flat.grad.norm() < 1e3


def batch_of(**options):
    return unpack(make_batch(0, **options), ((0.5,) * 3, (0.25,) * 3), torch.device("cpu"))


def test_phase_asks_only_for_its_losses():
    outputs = Outputs(torch.zeros(2, 4, 16, 16), None, (torch.ones(2, 4, 16, 16),))
    terms = compute_terms(outputs, batch_of(with_depth=False), SEG, LossSettings(seg="cross-entropy"))
    assert set(terms.present()) == {"seg", "aux"}
    assert float(terms.seg) == pytest.approx(math.log(4))


def test_depth_phase_without_depth_targets_is_explained():
    outputs = Outputs(torch.zeros(2, 4, 16, 16), torch.zeros(2, 16, 16))
    with pytest.raises(UserError, match=r"phase 'joint' trains on depth, but image 'image-0-0'.*pipeline pseudo-depth"):
        compute_terms(outputs, batch_of(with_depth=False), JOINT, LossSettings())


def test_wrong_number_of_class_weights_is_explained():
    with pytest.raises(UserError, match="3 class weights for 4 classes"):
        upload_class_weights(LossSettings(class_weights=(1.0, 1.0, 1.0)), 4, torch.device("cpu"))

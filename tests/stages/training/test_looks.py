"""What two losses ask of the encoder: right, rarely, and without a trace in what is trained."""

from __future__ import annotations

import warnings

import pytest
import torch
from test_loop import assert_same_network, interrupt, train
from torch import nn
from toy_network import build_toy, make_batch

from data_cache.errors import Notice
from data_cache.training_log import read_log
from data_cache.unpacking import unpack
from stages.training.losses import depth_mse, focal_loss
from stages.training.metrics_log import MetricsLog
from stages.training.schedules import JOINT, SEG
from stages.training.settings import LossSettings

pytestmark = pytest.mark.filterwarnings("ignore::data_cache.errors.Notice")


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_norms_and_cosine_are_those_of_an_independent_computation(dtype):
    network, reports = build_toy(dropout=0.0), []
    batch = unpack(make_batch(0), network.normalisation, torch.device("cpu"))
    alone = build_toy(dropout=0.0).train()
    outputs = alone(batch.images)
    seg = 0.85 * focal_loss(outputs.seg_logits, batch.seg_labels)
    depth = 0.15 * depth_mse(outputs.depth, batch.inverse_depth, batch.depth_valid)
    flat = []
    for loss in (seg, depth):
        alone.zero_grad()
        loss.backward(retain_graph=True)
        flat.append(nn.utils.parameters_to_vector([each.grad for each in alone.encoder.parameters()]).double())
    train(network, JOINT, steps=1, log_gradients_every=1, on_step=reports.append, dtype=dtype)
    expected = (flat[0].norm(), flat[1].norm(), nn.functional.cosine_similarity(*flat, dim=0))
    close = 1e-4 if dtype == "float32" else 0.05
    assert tuple(reports[0].gradients) == pytest.approx([value.item() for value in expected], rel=close, abs=close / 10)
    assert reports[0].gradients.depth_share == pytest.approx(
        (expected[1] / (expected[0] + expected[1])).item(), rel=close
    )


@pytest.mark.parametrize("weighting", ["fixed", "uncertainty", "dwa"])
def test_looking_changes_no_bit(weighting):
    seen, unseen, reports = build_toy(aux=True), build_toy(aux=True), []
    options = {"steps": 5, "losses": LossSettings(weighting=weighting, dwa_window=2, balance="share"), "ema_decay": 0.9}
    train(unseen, JOINT, **options)
    train(seen, JOINT, log_gradients_every=2, on_step=reports.append, **options)
    assert_same_network(seen, unseen)
    assert [report.gradients is None for report in reports] == [True, False, True, False, True]


def test_what_has_one_loss_or_a_frozen_encoder_has_nothing_to_look_at():
    reports = []
    train(build_toy(), SEG, log_gradients_every=1, on_step=reports.append)
    train(build_toy(), JOINT, log_gradients_every=1, encoder_policy="always-freeze", on_step=reports.append)
    assert [report.gradients for report in reports] == [None] * 6


def test_looks_are_lines_of_the_log_whose_bytes_no_interruption_changes(tmp_path):
    whole, parts = tmp_path / "whole.jsonl", tmp_path / "parts.jsonl"
    options = {"steps": 8, "log_every": 4, "log_gradients_every": 3}
    with MetricsLog(whole, log_every=4) as log:
        train(build_toy(), JOINT, log=log, **options)
    with MetricsLog(parts, log_every=4) as log:
        interrupt(build_toy(), JOINT, tmp_path / "state", after=5, log=log, **options)
    with MetricsLog(parts, log_every=4) as log:
        train(build_toy(), JOINT, checkpoint_folder=tmp_path / "state", log=log, **options)
    assert parts.read_bytes() == whole.read_bytes()
    lines = list(read_log(whole))
    assert [(line.step, line.gradients is not None) for line in lines] == [(3, True), (4, False), (6, True), (8, False)]
    assert set(lines[0].gradients) == {"seg", "depth", "cosine"}


@pytest.mark.parametrize(("joint_depth", "said"), [(1e-6, 1), (1000.0, 1), (None, 0)])
def test_a_share_of_depth_that_hardly_counts_is_said_once(joint_depth, said):
    phase = JOINT if joint_depth is None else type(JOINT)("joint", JOINT.trains, seg=0.85, depth=joint_depth)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train(build_toy(), phase, steps=4, log_gradients_every=1)
    notices = [str(each.message) for each in caught if isinstance(each.message, Notice)]
    assert len(notices) == said
    assert all("of the gradients' norms on the encoder" in notice for notice in notices)

"""A bad step leaves no trace and sticks, whatever follows before it is noticed; float16's overflows come and go."""

from __future__ import annotations

import itertools
import json
import math
from contextlib import contextmanager

import pytest
import torch
from toy_network import build_toy, make_batch

from data_cache.errors import UserError
from stages.training.freezing import training_parts
from stages.training.metrics_log import MetricsLog
from stages.training.optimisation import OPTIMIZERS
from stages.training.reports import ReportQueue, StepFacts
from stages.training.schedule import Phase
from stages.training.schedules import JOINT, SEG
from stages.training.settings import LossSettings, TrainingSettings
from stages.training.trainer import PhaseTrainer

STEEP = Phase("steep", SEG.trains, seg=64.0)
"""A loss so heavy that its gradients overflow float16 at the first scales."""


@contextmanager
def training(phase, *, dtype="float32", losses=None, network=None, **settings):
    """Yield a trainer of the toy network."""
    network = (network or build_toy()).to(memory_format=torch.channels_last)
    with training_parts(network, phase.trains):
        yield PhaseTrainer(
            network, phase, total_steps=50, seed=0, settings=TrainingSettings(lr=0.01, **settings),
            losses=losses or LossSettings(), device=torch.device("cpu"), dtype=dtype,
        )  # fmt: skip


def copy_state(trainer, *, scaling=True):
    return {name: value.clone() for name, value in trainer.state().items() if scaling or "scaling/" not in name}


def assert_same(first, second):
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


def spoil(batch):
    batch.inverse_depth[1, 5, 5] = torch.inf
    return batch


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize(("optimizer", "weighting"), [*zip(OPTIMIZERS, ("uncertainty", "dwa", "fixed"), strict=True)])
def test_a_bad_step_and_all_after_it_change_nothing(optimizer, weighting, dtype):
    options = {"optimizer": optimizer, "clip_norm": 0.3, "ema_decay": 0.9, "weight_decay": 0.1, "log_every": 100}
    with training(JOINT, losses=LossSettings(weighting=weighting, dwa_window=2), dtype=dtype, **options) as trainer:
        for step in range(5):
            trainer.train_step(step, make_batch(step))
        before = copy_state(trainer)
        trainer.train_step(5, spoil(make_batch(5)))
        trainer.train_step(6, make_batch(6))
        assert_same(copy_state(trainer), before)
        reports = trainer.read_reports(wait=True)
        assert [next(reports).step for _ in range(5)] == [1, 2, 3, 4, 5]
        with pytest.raises(
            UserError, match="loss term 'depth' is inf in phase 'joint', step 6 of 50, images image-5-0"
        ):
            next(reports)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_step_that_overflows_float16_changes_nothing_but_the_scale(optimizer):
    with training(STEEP, dtype="float16", optimizer=optimizer, ema_decay=0.9) as trainer:
        fresh, scale = copy_state(trainer, scaling=False), trainer.state()["scaling/scale"].item()
        trainer.train_step(0, make_batch(0))
        state = copy_state(trainer, scaling=False)
        assert_same({name: state[name] for name in fresh}, fresh)
        assert not any(value.any() for name, value in state.items() if name.startswith("optimiser/"))
        assert trainer.state()["scaling/scale"].item() == scale / 2
        for step in range(1, 20):
            trainer.train_step(step, make_batch(step))
        norms = [report.grad_norm for report in trainer.read_reports(wait=True)]
        left_out = norms.index(next(norm for norm in norms if norm is not None))
        assert norms[:left_out] == [None] * left_out
        assert trainer.state()["scaling/scale"].item() == scale / 2 ** norms.count(None)
        assert not torch.equal(trainer.state()["network/seg_head.weight"], fresh["network/seg_head.weight"])


def test_float16_scale_grows_after_two_thousand_steps_without_overflow():
    with training(SEG, dtype="float16") as trainer:
        state = trainer.state()
        state["scaling/scale"].fill_(8.0)
        state["scaling/steps_since_change"].fill_(1998)
        for step, expected in enumerate((8.0, 16.0, 16.0)):
            trainer.train_step(step, make_batch(step))
            assert state["scaling/scale"].item() == expected


def test_gradients_that_no_scale_can_save_end_a_float16_training():
    network = build_toy()
    network.seg_head.weight.register_hook(lambda gradient: gradient * math.inf)
    with training(SEG, dtype="float16", network=network) as trainer, pytest.raises(UserError) as caught:
        for step in itertools.count():
            trainer.train_step(step, make_batch(step))
            list(trainer.read_reports(wait=True))
    assert "the gradient is" in str(caught.value)
    assert "step 17 of 50" in str(caught.value)  # the scale came down from 2**16 to 1 in 16


def test_float16_training_learns_what_float32_does():
    ends = []
    for dtype in ("float32", "float16"):
        with training(STEEP, dtype=dtype) as trainer:
            for step in range(30):
                trainer.train_step(step, make_batch(step))
            *_, last = trainer.read_reports(wait=True)
            ends.append(last.raw["seg"])
    assert ends[1] == pytest.approx(ends[0], rel=0.2)


def test_a_step_left_out_is_in_the_log_without_a_norm(tmp_path):
    with MetricsLog(tmp_path / "metrics.jsonl", log_every=1) as log, training(STEEP, dtype="float16") as trainer:
        for step in range(6):
            trainer.train_step(step, make_batch(step))
        for report in trainer.read_reports(wait=True):
            log.write(report)
        lines = [json.loads(line, parse_constant=pytest.fail) for line in log.path.read_text().splitlines()]
        assert lines[0]["grad_norm"] is None
        log.rewind("steep", 6)  # reads them
        assert [json.loads(line) for line in log.path.read_text().splitlines()] == lines


def test_reports_come_an_interval_late_in_order_and_all_when_waited_for():
    queue, told = ReportQueue(3, longest_s=math.inf), []
    for step in range(1, 9):
        facts = StepFacts("seg", step, 9, 0.1, ("a",), ("seg",), ("w",), 4)
        queue.add(facts, torch.tensor([step, step, step, 0, 1, 0, 0, 0], dtype=torch.float32))
        told.append([report.step for report in queue.read(wait=False)])
    assert told == [[], [], [], [], [], [1, 2, 3], [], []]
    assert [(report.step, report.total) for report in queue.read(wait=True)] == [(n, float(n)) for n in range(4, 9)]


def test_reports_of_slow_steps_come_one_step_late():
    queue, told = ReportQueue(100, longest_s=0.0), []
    for step in range(1, 4):
        queue.add(StepFacts("seg", step, 9, 0.1, ("a",), ("seg",), ("w",), 4), torch.zeros(8))
        told.append([report.step for report in queue.read(wait=False)])
    assert told == [[], [1], [2]]

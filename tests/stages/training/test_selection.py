"""Scores between steps leave no trace in a training; what is chosen by them survives an interruption to the bit."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from toy_network import NUM_CLASSES, batches_from, build_toy, make_batch

from data_cache.errors import UserError
from data_cache.metrics import HEADLINE
from stages.evaluation.evaluate import evaluate
from stages.training.interruption import Interrupted, StopFlag
from stages.training.loop import train_phase
from stages.training.metrics_log import MetricsLog
from stages.training.schedules import DEPTH, JOINT, SEG
from stages.training.settings import LossSettings, TrainingSettings

STEPS = 8


def train(network, phase=JOINT, *, log=None, validate=None, stop=None, on_step=None, folder=None, dtype="float32",
          **settings):  # fmt: skip
    return train_phase(
        network, phase, batches_from, total_steps=STEPS, key="a training", seed=7, dtype=dtype, losses=LossSettings(),
        settings=TrainingSettings(**{"lr": 0.01, "checkpoint_minutes": 1e-9} | settings), device=torch.device("cpu"),
        checkpoint_folder=folder, log=log, validate=validate, validate_every=2, stop=stop, on_step=on_step,
    )  # fmt: skip


def score(network):
    """Score as ``evaluate`` does, on images that no step reads."""
    found = evaluate(
        network, [make_batch(99), make_batch(98)], normalisation=network.normalisation, num_classes=NUM_CLASSES,
        class_names=list("abcd"),
    )  # fmt: skip
    return {HEADLINE: found.metrics[HEADLINE]}


def scripted(*scores):
    """Return a ``validate`` that gives these scores, and the weights that it saw."""
    seen, left = [], iter(scores)

    def validate(network):
        seen.append(copy.deepcopy(network.state_dict()))
        return {HEADLINE: next(left)}

    return validate, seen


def assert_same(first, second):
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


@pytest.mark.parametrize("settings", [{}, {"ema_decay": 0.5, "dtype": "bfloat16"}], ids=str)
def test_scoring_between_steps_changes_no_bit(tmp_path, settings):
    networks, logs = [build_toy(), build_toy()], [tmp_path / "plain", tmp_path / "scored"]
    for network, path, validate in zip(networks, logs, (None, score), strict=True):
        with MetricsLog(path, log_every=3) as log:
            train(network, log=log, validate=validate, **settings)
    assert_same(networks[0].state_dict(), networks[1].state_dict())
    lines = [json.loads(line) for line in logs[1].read_text().splitlines()]
    assert [line for line in lines if "val" not in line] == [json.loads(x) for x in logs[0].read_text().splitlines()]
    assert [line["step"] for line in lines if "val" in line] == [2, 4, 6, 8]
    outcome = score(networks[1])
    assert lines[-1]["val"] == outcome, "what the phase hands on is what was scored, moving average included"


def test_the_best_weights_are_kept_and_patience_ends_the_phase():
    network, (validate, seen) = build_toy(), scripted(0.1, 0.4, 0.4, 0.3)
    summary = train(network, validate=validate, keep="best")
    assert (summary.steps, summary.best_step, summary.best_score) == (8, 4, 0.4), "of equal ones the first"
    assert_same(network.state_dict(), seen[1])

    network, (validate, seen) = build_toy(), scripted(0.3, 0.2, 0.1)
    summary = train(network, validate=validate, patience=2)
    assert (summary.steps, summary.best_step, len(seen)) == (6, 2, 3)
    assert_same(network.state_dict(), seen[2])


def test_a_phase_without_segmentation_is_neither_scored_nor_ended():
    validate, seen = scripted()
    assert train(build_toy(), DEPTH, validate=validate, keep="best", patience=1).steps == STEPS and not seen


@pytest.mark.parametrize("dies", [False, True], ids=["between steps", "while scoring"])
def test_an_interrupted_choice_ends_as_if_undisturbed(tmp_path, dies):
    """Stopped wherever it can be, time and again: the best weights, their step and the log are the same bits."""

    def run(folder, interrupts):
        cut_off = set()
        for _ in range(2 * STEPS):
            network, stop = build_toy(), StopFlag()

            def validate(network, stop=stop):
                weights = network.seg_head.weight.detach().numpy().tobytes()
                if interrupts and dies and weights not in cut_off:
                    cut_off.add(weights)
                    stop.set()
                    raise RuntimeError("DataLoader worker (pid 7) exited unexpectedly")
                return score(network)

            on_step = (lambda _, stop=stop: stop.set()) if interrupts and not dies else None
            try:
                with MetricsLog(folder / "metrics.jsonl", log_every=3) as log:
                    summary = train(
                        network, SEG, log=log, validate=validate, folder=folder / "state", stop=stop, on_step=on_step,
                        keep="best", patience=3,
                    )  # fmt: skip
                return network, summary, (folder / "metrics.jsonl").read_bytes()
            except Interrupted:
                pass
        raise AssertionError("never finished")

    (first, plain, log), (second, resumed, other) = run(tmp_path / "a", False), run(tmp_path / "b", True)
    assert_same(first.state_dict(), second.state_dict())
    assert log == other
    assert (plain.steps, plain.best_step, plain.best_score) == (resumed.steps, resumed.best_step, resumed.best_score)
    assert resumed.resumed_from > 0


def test_a_state_without_the_scores_that_a_choice_needs_is_refused(tmp_path):
    stop = StopFlag()
    stop.set()
    with pytest.raises(Interrupted):
        train(build_toy(), validate=score, folder=tmp_path, stop=stop)
    with pytest.raises(UserError, match="not those of a training that chooses like this; delete"):
        train(build_toy(), validate=score, folder=tmp_path, keep="best")

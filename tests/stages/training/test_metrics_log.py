"""The log is plain lines that a resumed training rewinds."""

import builtins
import json

import pytest

from data_cache.errors import UserError
from data_cache.files import read_json_lines
from stages.training.metrics_log import MetricsLog, StepReport


def report(phase, step, total_steps=6):
    losses = {"seg": 1.0 / step}
    return StepReport(phase, step, total_steps, 1.0, losses, losses, {"seg": 1.0}, 1e-4, 0.5, 2)


def steps(path):
    return [(entry["phase"], entry["step"]) for entry in read_json_lines(path)]


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with MetricsLog(path, log_every=2) as log:
        for step in range(1, 7):
            log.write(report("seg", step))
    return path


def test_later_lines_are_rewound_and_the_others_take_the_name(path):
    with MetricsLog(path, log_every=2) as log:
        log.rewind("seg-2", 3)
        log.write(report("seg-2", 4))
    assert steps(path) == [("seg-2", 2), ("seg-2", 4)]


def test_broken_last_line_is_dropped(path):
    whole = path.read_text()
    path.write_text(whole + '{"phase": "seg", "st')
    with MetricsLog(path) as log:
        log.rewind("seg", 6)
    assert path.read_text() == whole


def test_line_cut_exactly_before_its_end_is_dropped(path):
    path.write_text(path.read_text()[:-1])
    with MetricsLog(path) as log:
        log.rewind("seg", 6)
        log.write(report("seg", 6))
    assert steps(path)[-2:] == [("seg", 4), ("seg", 6)]


def test_every_line_is_strict_json_without_clock_times(path):
    lines = [json.loads(line, parse_constant=pytest.fail) for line in path.read_text().splitlines()]
    assert set(lines[0]) == {"phase", "step", "total", "raw", "weighted", "share", "lr", "grad_norm", "mean"}


def test_mean_is_over_all_steps_since_the_line_before(tmp_path):
    with MetricsLog(tmp_path / "metrics.jsonl", log_every=4) as log:
        for step in range(1, 7):
            log.write(report("seg", step))
    first, last = list(read_json_lines(tmp_path / "metrics.jsonl"))
    assert first["mean"]["seg"] == pytest.approx((1 + 1 / 2 + 1 / 3 + 1 / 4) / 4)
    assert last["mean"]["seg"] == pytest.approx((1 / 5 + 1 / 6) / 2)


def test_sums_survive_a_resumption(tmp_path):
    whole, resumed = tmp_path / "whole.jsonl", tmp_path / "resumed.jsonl"
    with MetricsLog(whole, log_every=4) as log:
        for step in range(1, 7):
            log.write(report("seg", step))
    with MetricsLog(resumed, log_every=4) as log:
        for step in range(1, 4):
            log.write(report("seg", step))
        kept = log.state()
        log.write(report("seg", 4))
    with MetricsLog(resumed, log_every=4) as log:
        log.rewind("seg", 3)
        log.load_state(kept)
        for step in range(4, 7):
            log.write(report("seg", step))
    assert resumed.read_bytes() == whole.read_bytes()


def test_tensorboard_gets_the_same_numbers(tmp_path):
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    with MetricsLog(tmp_path / "metrics.jsonl", log_every=1, tensorboard=tmp_path / "board") as log:
        for step in (1, 2, 3):
            log.write(report("seg", step))
    board = accumulators.EventAccumulator(str(tmp_path / "board")).Reload()
    assert [event.step for event in board.Scalars("seg/raw/seg")] == [1, 2, 3]
    assert [event.value for event in board.Scalars("seg/raw/seg")] == pytest.approx([1, 1 / 2, 1 / 3])


def test_missing_tensorboard_is_explained(tmp_path, monkeypatch):
    real_import = builtins.__import__

    def without_tensorboard(name, *arguments, **keywords):
        if name.startswith(("tensorboard", "torch.utils.tensorboard")):
            raise ImportError(name)
        return real_import(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", without_tensorboard)
    with pytest.raises(UserError, match=r"tensorboard is not installed; .*pseudo-depth-pipeline\[tensorboard\]"):
        MetricsLog(tmp_path / "metrics.jsonl", tensorboard=tmp_path / "board")

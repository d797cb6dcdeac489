"""The log is plain lines that a resumed training rewinds."""

import json
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

from data_cache.errors import Notice, UserError
from data_cache.files import read_json_lines
from stages.training.metrics_log import MetricsLog, StepReport
from stages.training.selection import Validation
from stages.training.settings import TrainingSettings
from stages.training.trackers import TRACKERS, open_trackers


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
    trackers = open_trackers(TrainingSettings(tensorboard=True), tmp_path)
    with MetricsLog(tmp_path / "metrics.jsonl", log_every=1, trackers=trackers) as log:
        for step in (1, 2, 3):
            log.write(report("seg", step))
    board = accumulators.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in board.Scalars("seg/raw/seg")] == [1, 2, 3]
    assert [event.value for event in board.Scalars("seg/raw/seg")] == pytest.approx([1, 1 / 2, 1 / 3])


class Kept:
    """A tracker that keeps what it takes."""

    def __init__(self):
        self.numbers, self.closed = {}, False

    def add_scalar(self, name, value, step):
        self.numbers[name, step] = value

    def close(self):
        self.closed = True


def test_trackers_get_what_the_log_says(tmp_path):
    kept = Kept()
    with MetricsLog(tmp_path / "metrics.jsonl", log_every=1, trackers=[kept]) as log:
        log.write(report("seg", 1))
        log.write_validation(Validation("seg", 1, {"miou_macro": 0.25}, best=True))
    line, scores = read_json_lines(tmp_path / "metrics.jsonl")
    assert kept.closed and kept.numbers["seg/val/miou_macro", 1] == scores["val"]["miou_macro"] == 0.25
    assert kept.numbers["seg/raw/seg", 1] == line["raw"]["seg"] and kept.numbers["seg/lr", 1] == line["lr"]


def test_a_tracker_that_fails_ends_no_training(tmp_path, monkeypatch):
    class Broken(Kept):
        def add_scalar(self, *_):
            raise OSError("no route")

    opened = []
    for name in ("wandb", "mlflow"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(TRACKERS, "wandb", lambda _module, _folder: opened.append(Broken()) or opened[-1])
    with pytest.warns(Notice, match=r"wandb takes no more numbers of this phase \(no route\)") as told:
        log = MetricsLog(tmp_path / "m.jsonl", trackers=open_trackers(TrainingSettings(wandb=True), tmp_path))
        with log:
            log.write(report("seg", 6))
    assert len(told) == 1 and len(list(read_json_lines(tmp_path / "m.jsonl"))) == 1
    with pytest.raises(UserError, match=r"mlflow cannot be opened: .*MlflowClient.*switch training.mlflow off"):
        open_trackers(TrainingSettings(wandb=True, mlflow=True), tmp_path)
    assert opened[-1].closed


@pytest.mark.parametrize("name", TRACKERS)
def test_a_missing_tracker_is_named_with_its_extra(tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard" if name == "tensorboard" else name, None)
    with pytest.raises(UserError, match=rf"{name} is not installed; .*pseudo-depth-pipeline\[{name}\]"):
        open_trackers(TrainingSettings(**{name: True}), tmp_path)
    assert not list(tmp_path.iterdir())
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text(encoding="utf8"))["project"]
    assert name in project["optional-dependencies"]

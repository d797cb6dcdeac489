"""metrics.jsonl: one line per logged step of a phase, the same bytes whether the training was interrupted or not."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple

from data_cache.files import atomic_file, make_folder
from data_cache.training_log import read_log

if TYPE_CHECKING:
    from stages.training.selection import Validation
    from stages.training.trackers import Tracker


class EncoderGradients(NamedTuple):
    """What the weighted losses of two tasks ask of the encoder in one step."""

    seg: float
    """Norm of the gradient of all segmentation losses."""
    depth: float
    """Norm of that of the depth loss."""
    cosine: float
    """Between the two; 0 where one of them is 0."""

    @property
    def depth_share(self) -> float:
        """Depth's share of the norms' sum; 0 where both are 0."""
        return self.depth / (self.seg + self.depth) if self.depth else 0.0


class StepReport(NamedTuple):
    """What one finished optimiser step did. Losses by term: seg, aux (networks with auxiliary heads), depth, mixed
    (phases that mix images)."""

    phase: str
    step: int
    """Steps finished, counted from 1."""
    total_steps: int
    total: float
    """The sum that was descended."""
    raw: dict[str, float]
    """Unweighted losses."""
    weighted: dict[str, float]
    """Losses times their factors."""
    share: dict[str, float]
    """Weighted losses as fractions of their sum."""
    lr: float
    """Learning rate of factor 1."""
    grad_norm: float | None
    """Norm of all gradients before clipping; None in a step left out because they overflowed float16."""
    images: int
    """Images in the batch."""
    gradients: EncoderGradients | None = None
    """Only of steps in which they were looked at, and were finite."""


class MetricsLog:
    """Appends the step reports of one phase to a JSON-lines file, without clock times: equal trainings, equal files.

    A line tells its step's losses (``raw``) and their mean over the steps since the line before (``mean``).

    Args:
        path: file to append to; its folder is made.
        log_every: steps between lines; the last step of a phase is always logged, and every one whose gradients were
            looked at.
        trackers: get the same numbers, and are closed with the log.
    """

    def __init__(self, path: Path, *, log_every: int = 10, trackers: Sequence[Tracker] = ()) -> None:
        self.path = path
        self._log_every = log_every
        self._sums: dict[str, float] = {}
        self._num_summed = 0
        self._trackers = trackers
        make_folder(path.parent)
        self._file = path.open("a", encoding="utf8")

    def write(self, report: StepReport) -> None:
        """Log a step if its turn has come; every step must come by, because means are over all of them."""
        self._num_summed += 1
        for term, value in report.raw.items():
            self._sums[term] = self._sums.get(term, 0.0) + value
        looked = report.gradients
        if report.step % self._log_every and report.step != report.total_steps and looked is None:
            return
        line = report._asdict()
        del line["total_steps"], line["images"], line["gradients"]
        if looked is not None:
            line["gradients"] = looked._asdict()
        line["mean"] = {term: self._sums[term] / self._num_summed for term in report.raw}
        self._sums, self._num_summed = {}, 0
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        kinds = ("raw", "mean", "weighted", "share", "gradients")
        numbers = {f"{kind}/{term}": value for kind in kinds for term, value in line.get(kind, {}).items()}
        numbers |= {name: line[name] for name in ("total", "lr", "grad_norm") if line[name] is not None}
        self._track(report.phase, numbers, report.step)

    def write_validation(self, found: Validation) -> None:
        """Log what the weights scored, in a line of its own."""
        line = {"phase": found.phase, "step": found.step, "val": found.metrics}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        self._track(found.phase, {f"val/{name}": value for name, value in found.metrics.items()}, found.step)

    def _track(self, phase: str, numbers: Mapping[str, float], step: int) -> None:
        for tracker in self._trackers:
            for name, value in numbers.items():
                tracker.add_scalar(f"{phase}/{name}", value, step)

    def rewind(self, phase: str, step: int) -> None:
        """Drop what was logged after that step, and any broken last line a kill left behind.

        The other lines take the phase's name: the training may have begun under another one.

        Raises:
            UserError: a line is damaged.
        """
        self._sums, self._num_summed = {}, 0
        self._file.close()
        wanted = takewhile(lambda line: line.step <= step, read_log(self.path))
        kept = [line.to_json(phase) + "\n" for line in wanted]
        with atomic_file(self.path) as temporary:
            temporary.write_text("".join(kept), encoding="utf8")
        self._file = self.path.open("a", encoding="utf8")

    def state(self) -> dict[str, float]:
        """Return what is summed since the last line: the number of steps under "", and the losses by term."""
        return {"": float(self._num_summed), **self._sums}

    def load_state(self, state: Mapping[str, float]) -> None:
        """Take over what ``state`` returned; call it after ``rewind``."""
        self._num_summed = int(state.get("", 0.0))
        self._sums = {term: value for term, value in state.items() if term}

    def sync(self) -> None:
        """Return only when all lines are on the disk; called before a checkpoint that presumes them."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file and the trackers."""
        self._file.close()
        for tracker in self._trackers:
            tracker.close()

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

"""What steps came to, read from the device when it has long been there, so that no step waits for it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from math import isfinite, nan
from typing import NamedTuple

import torch
from torch import Tensor

from data_cache.arrival import Arrival
from data_cache.errors import UserError
from stages.training.metrics_log import EncoderGradients, StepReport


class StepFacts(NamedTuple):
    """What the host knows of a step when it has set it going."""

    phase: str
    step: int
    """Steps finished with it, counted from 1."""
    total_steps: int
    lr: float
    image_ids: tuple[str, ...]
    terms: tuple[str, ...]
    """Names of the losses."""
    gradients: tuple[str, ...]
    """Names of the parameters that got one."""
    num_classes: int


class StepNumbers(NamedTuple):
    """What only the device knows of it; in this order in one float32 tensor: losses, weighted losses, the rest."""

    total: float
    misfits: float
    """Labelled pixels of a class that the network has no output for."""
    grad_norm: float
    first_steep: float
    """Position of the first gradient that is not finite."""
    num_steep: float
    """How many are not."""
    broken: float
    """1 from the first step on that came out bad."""
    seg_norm: float = nan
    """Of the gradient of the segmentation losses on the encoder; not a number where nobody looked."""
    depth_norm: float = nan
    cosine: float = nan


class ReportQueue:
    """Steps whose numbers are under way; each interval's come in one transfer, and are read an interval later.

    Args:
        interval: steps between two transfers.
        longest_s: time after which a step ends an interval, too: people look at the progress.
    """

    def __init__(self, interval: int, longest_s: float = 1.0) -> None:
        self._interval, self._longest_s = interval, longest_s
        self._facts: list[StepFacts] = []
        self._numbers: list[Tensor] = []
        self._sent: deque[tuple[list[StepFacts], Arrival]] = deque()
        self._sent_at = time.monotonic()

    def add(self, facts: StepFacts, numbers: Tensor) -> None:
        """Take what is known of a step that was set going."""
        self._facts.append(facts)
        self._numbers.append(numbers)
        if len(self._facts) >= self._interval or time.monotonic() - self._sent_at >= self._longest_s:
            self._send()

    def read(self, *, wait: bool) -> Iterator[StepReport]:
        """Yield in order what the steps came to; those of the last interval or two only if ``wait``.

        Raises:
            UserError: a step came out bad: a loss or gradient is not finite, or labels do not fit the network.
        """
        if wait and self._facts:
            self._send()
        while len(self._sent) > (0 if wait else 1):
            facts, numbers = self._sent.popleft()
            for each, values in zip(facts, numbers.wait().tolist(), strict=True):
                yield _describe(each, values)

    def _send(self) -> None:
        self._sent.append((self._facts, Arrival(torch.stack(self._numbers))))
        self._facts, self._numbers, self._sent_at = [], [], time.monotonic()


def _describe(facts: StepFacts, values: list[float]) -> StepReport:
    num_terms = len(facts.terms)
    raw = dict(zip(facts.terms, values, strict=False))
    weighted = dict(zip(facts.terms, values[num_terms:], strict=False))
    numbers = StepNumbers(*values[2 * num_terms :])
    if numbers.broken:
        raise _explain(facts, raw, numbers)
    whole = sum(weighted.values())
    gradients = EncoderGradients(numbers.seg_norm, numbers.depth_norm, numbers.cosine)
    return StepReport(
        phase=facts.phase,
        step=facts.step,
        total_steps=facts.total_steps,
        total=numbers.total,
        raw=raw,
        weighted=weighted,
        share={name: value / whole if whole else 0.0 for name, value in weighted.items()},
        lr=facts.lr,
        grad_norm=numbers.grad_norm if isfinite(numbers.grad_norm) else None,
        images=len(facts.image_ids),
        gradients=gradients if all(map(isfinite, gradients)) else None,
    )


def _explain(facts: StepFacts, raw: dict[str, float], numbers: StepNumbers) -> UserError:
    where = f"in phase {facts.phase!r}, step {facts.step} of {facts.total_steps}, images {', '.join(facts.image_ids)}"
    if numbers.misfits:
        return UserError(
            f"{numbers.misfits:.0f} pixels have labels beyond the network's classes 0 to {facts.num_classes - 1} "
            f"{where}. This step changed nothing. Check the dataset with: pipeline datasets NAME --data-root DIR"
        )
    bad = [f"loss term {name!r} is {value}" for name, value in raw.items() if not isfinite(value)]
    if not bad and numbers.num_steep:
        first = facts.gradients[int(numbers.first_steep)]
        bad = [f"the gradient is {numbers.grad_norm} (in {first}; {numbers.num_steep:.0f} tensors)"]
    elif not bad:
        bad = [f"the sum of the losses is {numbers.total}, the gradient's norm {numbers.grad_norm}"]
    return UserError(
        f"{'; '.join(bad)} {where}. This step changed nothing. Lower the learning rate (--lr), set "
        "training.clip_norm, or try --precision float32; if it is always these images, look at them and at their "
        "depth maps"
    )

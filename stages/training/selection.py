"""Scores of a phase's weights while it is trained; where asked for, the best ones are kept, or the phase ends early."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from data_cache.errors import UserError
from data_cache.metrics import HEADLINE
from stages.networks.interface import Network
from stages.networks.tensor_files import fill_tensors
from stages.training.schedule import Phase
from stages.training.settings import TrainingSettings

Validate = Callable[[Network], Mapping[str, float]]
"""From a network to its metrics on images that it is not trained on, ``HEADLINE`` among them; on all ranks alike."""
_WEIGHTS = "weights/"


class Validation(NamedTuple):
    """What the weights scored after a step."""

    phase: str
    step: int
    """Steps finished."""
    metrics: dict[str, float]
    best: bool
    """Whether no step before scored as much."""


class Watch:
    """Scores a phase every so many steps and after its last one.

    Args:
        network: what is scored, and what the best weights are put into in the end.
        phase: its name is for people.
        settings: ``keep`` and ``patience``.
        validate: scores it.
        every: steps between two looks, at least 1.
        total_steps: of the phase.
    """

    def __init__(
        self,
        network: Network,
        phase: Phase,
        settings: TrainingSettings,
        validate: Validate,
        every: int,
        total_steps: int,
    ) -> None:
        self._network, self._phase, self._validate = network, phase.name, validate
        self._every, self._total_steps, self._patience = every, total_steps, settings.patience
        self._keeps, self._chooses = settings.keep == "best", settings.chooses
        self._score, self._best_step, self._in_vain, self._looked_at = -1.0, 0, 0, 0
        self._best: dict[str, Tensor] = {}
        self.elapsed_s = 0.0
        """Of all looks of this process."""

    @property
    def best_step(self) -> int:
        """Step after which the weights scored most; 0 before the first look."""
        return self._best_step

    @property
    def best_score(self) -> float:
        """``HEADLINE`` after that step."""
        return self._score

    @property
    def given_up(self) -> bool:
        """Whether ``patience`` looks in a row came to nothing better."""
        return self._patience is not None and self._in_vain >= self._patience

    def is_due(self, step: int) -> bool:
        """Whether the weights are still to be scored after so many steps."""
        return self._looked_at < step and (step % self._every == 0 or step == self._total_steps)

    def look(self, step: int, network: Network) -> Validation:
        """Score the weights after ``step`` steps.

        Args:
            network: with the weights that the phase would end with: the trained ones, or their moving average.
        """
        started_at = time.perf_counter()
        metrics = dict(self._validate(network))
        self._looked_at = step
        best = metrics[HEADLINE] > self._score
        self._in_vain = 0 if best else self._in_vain + 1
        if best:
            self._score, self._best_step = metrics[HEADLINE], step
            if self._keeps:
                self._best = {name: value.detach().cpu().clone() for name, value in network.state_dict().items()}
        self.elapsed_s += time.perf_counter() - started_at
        return Validation(self._phase, step, metrics, best)

    @torch.no_grad()
    def finish(self) -> None:
        """Put the best weights into the network, where they are kept."""
        for name, value in self._network.state_dict().items() if self._best else ():
            value.copy_(self._best[name])

    def state(self) -> dict[str, Tensor]:
        """Return what a resumed training must know by name; nothing where no choice depends on it."""
        if not self._chooses:
            return {}
        facts = [self._score, self._best_step, self._in_vain, self._looked_at]
        best = {f"{_WEIGHTS}{name}": value for name, value in self._best.items()}
        return {"facts": torch.tensor(facts, dtype=torch.float64), **best}

    def load_state(self, state: Mapping[str, Tensor], step: int, what: str, remedy: str) -> None:
        """Take over what ``state`` returned after ``step`` steps.

        Args:
            what: where it comes from, for people.
            remedy: what to do where it does not fit.

        Raises:
            UserError: it is of another network or another way to choose.
        """
        weights = {name.removeprefix(_WEIGHTS): value for name, value in state.items() if name != "facts"}
        facts = state["facts"].tolist() if "facts" in state and state["facts"].shape == (4,) else []
        if bool(facts) != self._chooses or not all(map(math.isfinite, facts)):
            raise UserError(f"the scores in {what} are not those of a training that chooses like this; {remedy}")
        if not facts:  # scores that nothing depends on may have begun, or ended, with this process
            self._looked_at = step
            return
        self._score, (self._best_step, self._in_vain, self._looked_at) = facts[0], map(int, facts[1:])
        if self._keeps and self._best_step:
            live = self._network.state_dict()
            self._best = {name: torch.empty_like(value, device="cpu") for name, value in live.items()}
        fill_tensors(self._best, weights, f"the best weights in {what}", remedy)

"""This process, which does one task after another."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from data_cache.errors import UserError
from data_cache.ranks import world_size
from pipeline.experiment.execute import perform
from pipeline.experiment.walk import Engine, Outcome, Task
from pipeline.session import Session


class Here(Engine):
    """Does one task after another in this process."""

    places = 1

    def __init__(self, session: Session, device: torch.device) -> None:
        self._session, self.device = session, device

    def start(self, task: Task) -> None:
        """Do a task."""
        self._outcome = perform(task, self._session, self.device)
        if self._outcome.state == "failed" and world_size() > 1:  # the others are in the midst of it
            raise UserError(f"{task.title}: {self._outcome.message}")

    def wait(self, timeout_s: float | None) -> Sequence[Outcome]:  # noqa: ARG002
        """Return what became of it."""
        return [self._outcome]

    def stop(self) -> Sequence[Outcome]:
        """Nothing is under way any more."""
        return []

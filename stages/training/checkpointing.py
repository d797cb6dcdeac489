"""When the state of a phase is saved, and how it is taken up again: trainer and log together."""

from __future__ import annotations

import time
from pathlib import Path

import torch

from data_cache.errors import UserError
from data_cache.ranks import broadcast_object, broadcast_tensors, is_speaker
from stages.training.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from stages.training.metrics_log import MetricsLog
from stages.training.schedule import Phase
from stages.training.selection import Watch
from stages.training.trainer import PhaseTrainer

_LOG = "log/"
"""In front of the names under which a checkpoint holds what the log has summed since its last line."""
_SELECTION = "selection/"
"""Likewise of the scores so far, where a choice depends on them, and of the best weights."""


class Checkpoints:
    """Saves and restores trainer and log; does nothing without a folder.

    Args:
        trainer: of the phase.
        folder: where the state is kept, or None.
        key: what the training is.
        minutes: between two that are due.
        log: of the phase.
        watch: what scores it; None does not.
    """

    def __init__(
        self,
        trainer: PhaseTrainer,
        folder: Path | None,
        key: str,
        minutes: float,
        log: MetricsLog | None,
        watch: Watch | None = None,
    ) -> None:
        self._trainer, self._folder, self._key, self._log = trainer, folder if is_speaker() else None, key, log
        self._watch = watch
        self._interval_s = 60 * minutes
        self._saved_at = time.monotonic()

    def resume(self, phase: Phase, total_steps: int) -> int:
        """Return how many steps are done; network, optimiser and log are then as they were after them."""
        checkpoint = read_checkpoint(self._folder, self._key, total_steps) if self._folder else None
        checkpoint = _share_checkpoint(checkpoint)
        step = checkpoint.step if checkpoint else 0
        tensors = dict(checkpoint.tensors) if checkpoint else {}
        summed, scores = _take(tensors, _LOG), _take(tensors, _SELECTION)
        if checkpoint:
            what, remedy = f"checkpoint {checkpoint.folder}", checkpoint.remedy
            if not all(value.shape == () and bool(torch.isfinite(value)) for value in summed.values()):
                raise UserError(f"the losses summed in {what} are no finite numbers; {remedy}")
            self._trainer.load_state(tensors, what, remedy)
            if self._watch:
                self._watch.load_state(scores, step, what, remedy)
        if self._log:
            self._log.rewind(phase.name, step)
            self._log.load_state({name: value.item() for name, value in summed.items()})
        return step

    def are_due(self) -> bool:
        """Whether the state was not saved lately."""
        return self._folder is not None and time.monotonic() - self._saved_at >= self._interval_s

    def save(self, step: int) -> str:
        """Save the state after ``step`` steps, all of them reported; return for people what was kept."""
        if self._folder is None:
            return "nothing was kept"
        if self._log:
            self._log.sync()  # a checkpoint presumes the lines before it
        summed = self._log.state() if self._log else {}
        tensors = {f"{_LOG}{name}": torch.tensor(value, dtype=torch.float64) for name, value in summed.items()}
        scores = self._watch.state() if self._watch else {}
        tensors |= {f"{_SELECTION}{name}": value for name, value in scores.items()}
        write_checkpoint(self._folder, step, self._trainer.state() | tensors, self._key)
        self._saved_at = time.monotonic()
        return f"the state is in {self._folder}; repeat the command to go on"


def _take(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """Take the tensors under a prefix out of the others; return them without it."""
    return {name.removeprefix(prefix): tensors.pop(name) for name in list(tensors) if name.startswith(prefix)}


def _share_checkpoint(own: Checkpoint | None) -> Checkpoint | None:
    """Return the speaker's checkpoint on all ranks."""
    facts = broadcast_object((own.step, str(own.folder), own.remedy) if own else None)
    if facts is None:
        return None
    step, folder, remedy = facts
    return Checkpoint(step, broadcast_tensors(own.tensors if own else None), Path(folder), remedy)

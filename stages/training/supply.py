"""Where a phase's batches come from, until it has them all or is to stop."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from data_cache.errors import UserError
from data_cache.ranks import world_size
from data_cache.sample import PackedBatch
from stages.training.distributed import SharedStop
from stages.training.interruption import StopFlag

_GRACE_S = 0.2
"""A signal to the whole process group may reach a loader worker so much earlier than this process."""


class Supply:
    """The batches of a phase, until it is to stop.

    Args:
        batches_from: those from a step on.
        first_step: the first one wanted.
        stop: asked for between two steps.
        parts: batches that make a step.
    """

    def __init__(
        self, batches_from: Callable[[int], Iterable[PackedBatch]], first_step: int, stop: StopFlag | None, parts: int
    ) -> None:
        self._batches_from, self._parts = batches_from, parts
        self._batches: Iterator[PackedBatch] | None = iter(batches_from(first_step))
        self._stop = SharedStop(stop)

    def fetch(self, step: int) -> list[PackedBatch] | None:
        """Return the batch of the next step, in its parts, or None when the training is to stop."""
        if self._stop.is_set():
            return None
        try:
            return self._take()
        except StopIteration:
            raise RuntimeError("batches_from ended before the phase") from None
        except (RuntimeError, UserError):
            if not self._stop.wait(_GRACE_S):
                raise
            if world_size() == 1:  # the group's signal ended the workers, too
                return None
            self._batches = iter(self._batches_from(step))  # the other ranks hear of it only before the next step
            return self._take()

    def _take(self) -> list[PackedBatch]:
        assert self._batches is not None
        batches = [next(self._batches)]
        while len(batches) < self._parts:
            batches.append(next(self._batches))
        return batches

    def was_stopped(self) -> bool:
        """Whether the end was asked for, or is in a moment, and this process may save its state by itself."""
        return world_size() == 1 and self._stop.wait(_GRACE_S)

    def end(self) -> None:
        """End the workers."""
        self._batches = None

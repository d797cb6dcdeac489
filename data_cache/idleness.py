"""How long a device had nothing to do because the host was still fetching what it is to do next."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch


class Mark(Protocol):
    """A place in a device's queue of work; ``torch.cuda.Event`` is one."""

    def query(self) -> bool:
        """Whether the device has passed it."""

    def elapsed_time(self, end_event: Any) -> float:
        """Return milliseconds from here to a later mark, on the device's clock; both are passed."""


class IdleClock:
    """Counts the seconds that a device idles during blocks of host work which give it nothing to do.

    A GPU works behind the host's back: while the host waits for data it may still have steps to do, and then nothing is
    lost. So a mark is put into its queue at each end of a block; between them lies nothing that it could do, and the
    time from one to the other on its own clock is what it idled. Marks are read once passed: nothing waits for the GPU.
    A CPU computes in this process and idles as long as the block takes.

    Args:
        put_mark: puts a mark behind what the device has been given so far; see ``find_marks``.
    """

    def __init__(self, put_mark: Callable[[], Mark]) -> None:
        self._put_mark = put_mark
        self._waiting: deque[tuple[Mark, Mark]] = deque()
        self._seconds = 0.0

    @contextmanager
    def count(self) -> Iterator[None]:
        """Count what the device idles during the block."""
        begins = self._put_mark()
        yield
        self._waiting.append((begins, self._put_mark()))
        self._settle()

    @property
    def seconds(self) -> float:
        """What was counted so far, of the blocks that the device has passed."""
        self._settle()
        return self._seconds

    def _settle(self) -> None:
        while self._waiting and self._waiting[0][1].query():
            begins, ends = self._waiting.popleft()
            self._seconds += begins.elapsed_time(ends) / 1000


def find_marks(device: torch.device) -> Callable[[], Mark]:
    """Return what puts a mark into the queue of a device."""

    def put_mark() -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(device))
        return event

    return put_mark if device.type == "cuda" else _HostMark


class _HostMark:
    """A mark of a device that has nothing queued: it is passed when it is put."""

    def __init__(self) -> None:
        self.at = time.perf_counter()

    def query(self) -> bool:
        return True

    def elapsed_time(self, end_event: _HostMark) -> float:
        return 1000 * (end_event.at - self.at)

"""Stop a training between two steps when the person or the machine asks for it."""

from __future__ import annotations

import os
import signal
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_ECHO_S = 0.2
"""A signal that comes again within this time is the same wish: ``timeout`` and other wrappers send it twice."""


class StopFlag:
    """Set once somebody wants the work to end at the next safe point."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def set(self) -> None:
        """Ask for the end."""
        self._event.set()

    def is_set(self) -> bool:
        """Whether the end was asked for."""
        return self._event.is_set()

    def wait(self, timeout_s: float) -> bool:
        """Return whether the end was asked for, or is within a time."""
        return self._event.wait(timeout_s)


class Interrupted(KeyboardInterrupt):
    """Work stopped at a safe point and what was done is kept; not an ``Exception``, so that nothing swallows it."""


@contextmanager
def ignoring_sigchld() -> Iterator[None]:
    """Keep torch from raising in the middle of this block because a loader worker was killed by a signal.

    A SIGTERM to the process group (a batch system, a container, ``timeout``) kills the workers too, and torch's SIGCHLD
    handler then raises RuntimeError wherever the main thread happens to be, even between an update and its bookkeeping.
    The death is still noticed by the next fetch from the loader.
    """
    if threading.current_thread() is not threading.main_thread():  # handlers run, and can be set, only there
        yield
        return
    handler = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, handler)


@contextmanager
def stop_on_signals() -> Iterator[StopFlag]:
    """Turn the first SIGINT, SIGTERM or SIGHUP inside the block into a set flag; the second ends the work at once.

    The former handlers come back on leaving. In another thread than the main one, where a program may train from
    Python, no signal is heard.
    """

    def interrupt() -> None:
        raise KeyboardInterrupt

    flag = StopFlag()
    if threading.current_thread() is not threading.main_thread():
        yield flag
        return
    former = hear_signals(lambda _: flag.set(), interrupt)
    try:
        yield flag
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def hear_signals(first: Callable[[FrameType | None], None], second: Callable[[], None]) -> dict[signal.Signals, Any]:
    """Call a function at the first SIGINT, SIGTERM or SIGHUP, and another one at each later one that is no echo.

    A signal that is ignored already (``nohup``) stays so.

    Args:
        first: takes the frame in which the signal came.

    Returns:
        The former handlers of the signals that are heard.
    """
    process, asked_at = os.getpid(), 0.0

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal asked_at
        if os.getpid() != process:  # a worker that was forked just now; its parent ends it
            if number == signal.SIGTERM:
                signal.signal(number, signal.SIG_DFL)
                signal.raise_signal(number)
            return
        if number == signal.SIGHUP:
            _leave_terminal()
        if not asked_at:
            asked_at = time.monotonic()
            first(frame)
        elif time.monotonic() - asked_at >= _ECHO_S:
            second()

    heard = [number for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    return {number: signal.signal(number, handle) for number in heard}


def _leave_terminal() -> None:
    """Let what is still said go nowhere: the terminal is gone, and writing to it would fail."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        if stat.S_ISCHR(os.fstat(stream).st_mode):
            os.dup2(nowhere, stream)

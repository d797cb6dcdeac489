"""SIGINT, SIGTERM and SIGHUP end every command alike: status 130, one message, and what was done is kept."""

from __future__ import annotations

import atexit
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

from data_cache.ranks import is_speaker
from stages.training.interruption import hear_signals

if TYPE_CHECKING:
    from sys import UnraisableHookArgs

KEPT = "what was done is kept, the same command continues"
_RETRY_S = 0.02
_LONGEST_IMPORT_S = 1.0
"""So long an interruption waits for an import to end."""
_SHOW_CURSOR = b"\x1b[?25h"


class _Interruption:
    """What the signals of one call of the command line have asked for."""

    def __init__(self, *, json_mode: bool) -> None:
        self.asked_at: float | None = None
        self.answering = False
        self._json_mode = json_mode
        self._on_terminal = os.isatty(2)

    def begin(self, frame: FrameType | None) -> None:
        """Raise KeyboardInterrupt, at once or as soon as that is safe."""
        self.asked_at = time.monotonic()
        self._raise_when_safe(frame)

    def catch_lost(self, lost: UnraisableHookArgs) -> None:
        """Raise again what was raised inside a destructor or a callback, where Python can only print it."""
        if issubclass(lost.exc_type, KeyboardInterrupt):
            self._raise_later()
        else:
            sys.__unraisablehook__(lost)

    def _raise_when_safe(self, frame: FrameType | None) -> None:
        """Raise KeyboardInterrupt, but never inside an import: some extension modules abort the process then."""
        if self.answering or self.asked_at is None:  # the work is done
            return
        if not _is_importing(frame):
            raise KeyboardInterrupt
        if time.monotonic() - self.asked_at < _LONGEST_IMPORT_S:
            self._raise_later()
        else:
            self.end_at_once()

    def _raise_later(self) -> None:
        signal.signal(signal.SIGALRM, lambda _, frame: self._raise_when_safe(frame))
        signal.setitimer(signal.ITIMER_REAL, _RETRY_S)

    def end_at_once(self) -> None:
        """End without waiting for anything; written past the streams, in whose middle the signal may have come."""
        processes = sys.modules.get("multiprocessing")
        for child in processes.active_children() if processes else ():
            child.kill()
        is_worker = processes is not None and processes.parent_process() is not None  # the first process speaks for it
        if not self.answering and is_speaker() and not is_worker:
            os.write(2, (_SHOW_CURSOR if self._on_terminal else b"") + f"interrupted: {KEPT}\n".encode())
            if self._json_mode:
                os.write(1, json.dumps({"interrupted": KEPT}).encode() + b"\n")
        os._exit(130)


_current: _Interruption | None = None


@contextmanager
def interruptible(*, json_mode: bool, last: bool) -> Iterator[None]:
    """Turn the first signal inside the block into KeyboardInterrupt, and end the process at the second.

    A signal that is ignored already (``nohup``) stays so. Does nothing outside the main thread.

    Args:
        json_mode: whether stdout is owed an object when the process is ended.
        last: whether the process ends after the block; a signal while it does so is then passed over.
    """
    global _current  # there is one set of signal handlers per process
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _current = current = _Interruption(json_mode=json_mode)
    former = hear_signals(current.begin, current.end_at_once)
    former_hook, sys.unraisablehook = sys.unraisablehook, current.catch_lost
    try:
        yield
    finally:
        current.answering = True
        if last:
            atexit.register(_ignore, list(former))
        else:
            _current, sys.unraisablehook = None, former_hook
            for number, handler in former.items():
                signal.signal(number, handler)


def start_answering() -> None:
    """Say that the work is done and its result is being shown: a signal no longer interrupts that."""
    if _current is not None:
        _current.answering = True


def was_interrupted() -> bool:
    """Whether a signal asked for the end, whatever a library has made of the KeyboardInterrupt since."""
    return _current is not None and _current.asked_at is not None


def _ignore(signals: list[signal.Signals]) -> None:
    """Keep the exit status: while Python takes itself down it gives every other handler back to the system."""
    for number in signals:
        signal.signal(number, signal.SIG_IGN)


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False

"""The stack that handlers of signals run on, which OpenVINO takes away."""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class SignalStack(ctypes.Structure):
    """Linux's ``stack_t``."""

    _fields_ = (("address", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


def read_signal_stack() -> SignalStack | None:
    """Return where this thread's handlers run; None on other systems than Linux."""
    if sys.platform != "linux":
        return None
    found = SignalStack()
    ctypes.CDLL(None).sigaltstack(None, ctypes.byref(found))
    return found


@contextmanager
def keeping_signal_stack() -> Iterator[None]:
    """Give this thread back its stack for signals after others have made engines of OpenVINO in the block.

    Each engine puts a stack of its own in the place of the thread's, and puts back what it found there when it is
    freed. Of two that are not freed in reverse order the second puts back what is no memory any more, and the next
    signal, be it the end of some child, kills the process without a word (seen with OpenVINO 2026.4).
    """
    before = read_signal_stack()
    try:
        yield
    finally:
        if before is not None:
            gc.collect()  # engines in cycles would put theirs back later
            ctypes.CDLL(None).sigaltstack(ctypes.byref(before), None)

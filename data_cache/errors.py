"""The one exception a person is meant to read."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from data_cache.escaping import quoted


class UserError(Exception):
    """Something the person can repair: shown as one message without a traceback, exit status 2.

    The message says what was found, where, what is possible, and what to do.
    """


class InUse(UserError):
    """What is wanted is held by another process, which will let go of it: whoever has time may wait."""


class Notice(UserWarning):
    """What a person should know although nothing failed; warned of, and shown by the command line as one line."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return " (did you mean 'x'?)" for the closest known name, or "" when none is close."""
    matches = difflib.get_close_matches(name[:80], list(known), n=1, cutoff=0.6)
    return f" (did you mean {matches[0]!r}?)" if matches else ""


def unknown_name(what: str, name: str, known: Iterable[str]) -> UserError:
    """Build the error for a name that is not in a table of names."""
    names = sorted(known)
    return UserError(f"unknown {what} {quoted(name)}{nearest(name, names)}; known: {', '.join(names)}")


def say_reason(problem: BaseException, line: int = 0) -> str:
    """Return one line of what an exception of a library says; its class where it says nothing."""
    return (str(problem).strip().splitlines() or [type(problem).__name__])[line]


_OUT_OF_MEMORY = (
    "DefaultCPUAllocator: ",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)
"""What a RuntimeError of torch's says of the CPU, of the driver, and of libraries that want memory beside torch's."""


def is_out_of_memory(problem: BaseException) -> bool:
    """Whether an exception says that memory ran out; torch has a class for its own memory on GPUs alone."""
    return (
        isinstance(problem, MemoryError)
        or type(problem).__name__ == "OutOfMemoryError"
        or (isinstance(problem, RuntimeError) and any(sign in str(problem) for sign in _OUT_OF_MEMORY))
    )


@contextmanager
def explaining_memory(message: str) -> Iterator[None]:
    """Raise a UserError with that message where memory runs out in the block."""
    try:
        yield
    except (RuntimeError, MemoryError) as problem:
        if not is_out_of_memory(problem):
            raise
        raise UserError(message) from problem

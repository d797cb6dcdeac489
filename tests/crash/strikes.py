"""Processes that are struck: forked from one that has imported everything, so that a kill costs no interpreter start.

What is forked calls the command line as the program does, and ends as the program ends.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import resource
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.cli import main

LONGEST_S = 300
SECOND_CTRL_C_S = 0.25
"""Later than what counts as an echo of the first, see ``pipeline/interruption.py``."""
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link")


@dataclass
class Ended:
    """How a process ended."""

    status: int
    """Exit status, or minus the signal that killed it."""
    stdout: str
    stderr: str
    seconds: float
    survivors: int = 0
    """Whether processes that it started outlived it."""

    @property
    def answer(self) -> dict[str, Any]:
        """The one object on stdout; empty when there is none, or not exactly one."""
        with contextlib.suppress(ValueError):
            return json.loads(self.stdout)
        return {}

    @property
    def clean(self) -> bool:
        """Whether nothing but messages was said."""
        return not any(word in self.stderr for word in ("Traceback", "Exception ignored", "Error:"))


def call(
    words: Sequence[str],
    work: Path,
    *,
    at_operation: tuple[int, signal.Signals] | None = None,
    after: Sequence[tuple[float, signal.Signals]] = (),
    largest_file: int | None = None,
    count_into: Path | None = None,
) -> Ended:
    """Call the command line in a forked process.

    Args:
        at_operation: a number, and the signal that comes just before the file operation of that number.
        after: seconds to wait and the signal to send then, one after another.
        largest_file: bytes at which files stop growing, as at a full disk.
        count_into: file that gets the number of file operations.
    """
    logs = work.parent.with_suffix(".logs")  # not beside it: that disk may be full
    logs.mkdir(exist_ok=True)
    out, err = logs / "stdout", logs / "stderr"
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.setsid()
            signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where this runs in the background
            redirect(out, err)
            if largest_file is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
            counted = _count_operations(work, at_operation)
            sys.argv = ["pipeline", "--json", "--workdir", str(work), *words]
            try:
                main()
            except SystemExit as ended:
                status = int(ended.code or 0)
            finally:
                if count_into:
                    count_into.write_text(str(counted()))
            threading._shutdown()  # type: ignore[attr-defined]
            atexit._run_exitfuncs()
            sys.stdout.flush()
        except BaseException:  # noqa: BLE001 - a fork must not run on as its parent
            traceback.print_exc()
        finally:
            with contextlib.suppress(BaseException):
                sys.stderr.flush()
            os._exit(status)
    with contextlib.suppress(ProcessLookupError):
        for wait_s, number in after:
            if _ended_within(child, wait_s):
                break
            os.kill(child, number)
    status = _wait(child)
    survivors = _survivors(child) if status >= 0 else 0
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # workers notice the death of their parent after seconds only
    return Ended(status, out.read_text(), err.read_text(), time.monotonic() - started, survivors)


def redirect(out: Path, err: Path) -> None:
    """Let this process read nothing, and write to files."""
    for stream, target in ((0, os.devnull), (1, out), (2, err)):
        descriptor = os.open(target, os.O_RDWR | os.O_CREAT | os.O_TRUNC if stream else os.O_RDONLY)
        os.dup2(descriptor, stream)


def _count_operations(work: Path, strike: tuple[int, signal.Signals] | None) -> Callable[[], int]:
    """Count what changes files below a folder: opening for writing, syncing, renaming, removing, making folders."""
    process, number = os.getpid(), 0
    prefix = str(work)

    def step() -> None:
        nonlocal number
        if os.getpid() != process:
            return
        number += 1
        if strike and number == strike[0]:
            os.kill(process, strike[1])

    def hear(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            if isinstance(arguments[2], int) and arguments[2] & _WRITING and str(arguments[0]).startswith(prefix):
                step()
        elif event in _CHANGES and str(arguments[0]).startswith(prefix):
            step()

    sync = os.fsync

    def count_and_sync(descriptor: int) -> None:
        step()
        sync(descriptor)

    os.fsync = count_and_sync
    sys.addaudithook(hear)
    return lambda: number


def _ended_within(child: int, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            return True
        time.sleep(min(left, 0.005))
    return False


def _wait(child: int) -> int:
    if not _ended_within(child, LONGEST_S):
        os.killpg(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _survivors(group: int) -> int:
    deadline = time.monotonic() + 2
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return 0
        except PermissionError:
            return 1
        time.sleep(0.01)
    return 1

"""What holds for all tests."""

from __future__ import annotations

import gc
import signal

import pytest


def pytest_configure() -> None:
    """Let the processes that tests start be interrupted.

    A shell starts what it puts into the background deaf to SIGINT, and nohup to SIGHUP; they would inherit that.
    """
    for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, handler)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Have each worker of xdist, which takes a piece of the list, begin with slow tests: short ones end together."""
    workers = getattr(config, "workerinput", {}).get("workercount", 1)
    slow = [item for item in items if item.get_closest_marker("slow")]
    fast = [item for item in items if not item.get_closest_marker("slow")]
    bounds = [(number / workers, (number + 1) / workers) for number in range(workers)]
    items[:] = [
        item
        for begin, end in bounds
        for kind in (slow, fast)
        for item in kind[round(begin * len(kind)) : round(end * len(kind))]
    ]


def pytest_collection_finish() -> None:
    """Keep the garbage collector from what was imported, through which it would go hundreds of times."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    """Let it have them in the end, or libraries complain of what was never freed."""
    gc.unfreeze()

"""What holds for all tests."""

from __future__ import annotations

import gc
import signal


def pytest_configure() -> None:
    """Let the processes that tests start be interrupted.

    A shell starts what it puts into the background deaf to SIGINT, and nohup to SIGHUP; they would inherit that.
    """
    for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, handler)


def pytest_collection_finish() -> None:
    """Keep the garbage collector from what was imported, through which it would go hundreds of times."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    """Let it have them in the end, or libraries complain of what was never freed."""
    gc.unfreeze()

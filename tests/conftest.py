"""What holds for all tests."""

from __future__ import annotations

import signal


def pytest_configure() -> None:
    """Let the processes that tests start be interrupted.

    A shell starts what it puts into the background deaf to SIGINT, and nohup to SIGHUP; they would inherit that.
    """
    for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, handler)

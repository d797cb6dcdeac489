"""What holds for all tests."""

from __future__ import annotations

import faulthandler
import gc
import signal
import tempfile
from pathlib import Path
from typing import Any

import pytest

_LAST_WORDS = pytest.StashKey[Path]()
"""Folder of what the processes that run tests write when they die."""


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    """Let the processes that tests start be interrupted, and keep what a worker of xdist says in dying.

    A shell starts what it puts into the background deaf to SIGINT, and nohup to SIGHUP; they would inherit that.
    """
    if folder := getattr(config, "workerinput", {}).get("last_words"):
        faulthandler.enable((Path(folder) / config.workerinput["workerid"]).open("w"))
    for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, handler)


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Tell a worker where to write."""
    if _LAST_WORDS not in node.config.stash:
        folder = tempfile.TemporaryDirectory()
        node.config.add_cleanup(folder.cleanup)
        node.config.stash[_LAST_WORDS] = Path(folder.name)
    node.workerinput["last_words"] = str(node.config.stash[_LAST_WORDS])


@pytest.hookimpl(optionalhook=True)
def pytest_handlecrashitem(report: Any) -> None:
    """Say how a worker ended, and where it was then."""
    node = report.node
    status = node.gateway._io.popen.wait(10)
    said = "\n".join((node.config.stash[_LAST_WORDS] / node.gateway.id).read_text().splitlines()[:40])
    report.longrepr = f"{report.longrepr}: exit status {status}\n{said}"


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

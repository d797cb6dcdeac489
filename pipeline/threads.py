"""How many threads the arithmetic gets, and how they wait: chosen before torch loads its OpenMP runtime."""

from __future__ import annotations

import math
import os
import re
from pathlib import Path

from data_cache.errors import UserError
from data_cache.escaping import quoted

_QUOTA_FILE = Path("/sys/fs/cgroup/cpu.max")
_MOST_THREADS = 4096
"""More than a process can have ends it from inside the OpenMP runtime."""
SPIN_COUNT = "10000"
"""Turns that a thread of GNU's OpenMP waits busily before it sleeps. Its own 300,000 are ruinous beside other work;
none at all (a passive wait policy) costs a fifth more time on an idle machine. Measured in docs/speed.md."""


def choose_thread_defaults() -> None:
    """Set how long OpenMP's threads spin, and how many there are, in the environment where the user has not.

    Does nothing for a runtime that is loaded already.
    """
    if not os.environ.get("OMP_NUM_THREADS", "").strip():  # what is empty says nothing, but OpenMP would complain
        os.environ.pop("OMP_NUM_THREADS", None)
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)
    if _torchrun_chose_threads():
        del os.environ["OMP_NUM_THREADS"]
    on_machine = os.environ.get("LOCAL_WORLD_SIZE", "")  # processes of this job, as torchrun tells it
    processes = max(1, int(on_machine)) if on_machine.isdecimal() else 1
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, count_usable_cpus() // processes)))


def _torchrun_chose_threads() -> bool:
    """Whether torchrun has set one thread for each of its processes, because the user has set none.

    What the user has set is in torchrun's own environment, which Linux shows as it was when torchrun began.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ or os.environ.get("OMP_NUM_THREADS") != "1":
        return False
    try:
        return b"OMP_NUM_THREADS=" not in Path(f"/proc/{os.getppid()}/environ").read_bytes()
    except OSError:
        return False


def check_threads() -> None:
    """Raise a UserError when OMP_NUM_THREADS is no number of threads, which OpenMP would pass over.

    A list like ``4,2`` is one, too: threads by level of nesting.
    """
    wanted = os.environ.get("OMP_NUM_THREADS", "1")
    numbers = wanted.split(",")
    if not all(re.fullmatch(r"\s*\+?[0-9]{1,9}\s*", each) and 1 <= int(each) <= _MOST_THREADS for each in numbers):
        raise UserError(
            f"OMP_NUM_THREADS is {quoted(wanted)}; it must be a number of threads from 1 to {_MOST_THREADS}, "
            f"or be unset: this process may use {count_usable_cpus()} CPUs"
        )


def share_threads(processes: int) -> str:
    """Return OMP_NUM_THREADS for each of several processes that compute at the same time."""
    wanted = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    return str(max(1, (int(wanted) if wanted.strip() else count_usable_cpus()) // processes))


def count_usable_cpus() -> int:
    """Return how many CPUs this process may really use: its affinity, within its control group's quota."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(affinity, read_cpu_quota(_QUOTA_FILE))))


def read_cpu_quota(file: Path) -> float:
    """Return the CPUs that a control group (version 2) grants, infinity where it grants all.

    Args:
        file: a ``cpu.max``: microseconds granted per period, or "max", and the period; what is not there grants all.
    """
    try:
        quota, period = file.read_text(encoding="ascii").split()
        return math.inf if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        return math.inf

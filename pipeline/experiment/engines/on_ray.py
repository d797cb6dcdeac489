"""The workers of a Ray cluster: each task is a Ray task, which Ray gives to another worker when its own dies.

The one place that knows Ray. All machines must see the same work directory; a file in it shows whether they do.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import re
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from data_cache.errors import UserError
from data_cache.escaping import quoted
from data_cache.files import make_folder
from data_cache.leftovers import name_temporary
from pipeline.console import Advance, Console
from pipeline.experiment.devices import choose_device
from pipeline.experiment.execute import perform
from pipeline.experiment.keys import TRAINING_VERSION
from pipeline.experiment.provenance import describe_environment
from pipeline.experiment.walk import Outcome, Task
from pipeline.session import Session
from pipeline.silence import showing_notices, silence_libraries
from pipeline.threads import choose_thread_defaults, count_usable_cpus
from pipeline.workspace import Workspace
from stages.networks.precision import resolve_dtype

if TYPE_CHECKING:
    from pipeline.experiment.config import RunConfig

CPUS_PER_TRAINING = 1
"""And threads, on every machine: a sum in other portions rounds otherwise."""
MOST_DEATHS = 3
"""So often a task is given to another worker before it has failed."""
_LOOK_S = 60.0
"""Between two marks that the command is still there."""
_CONNECT_TIMEOUT_S = 10.0
_FAREWELL_S = 120.0
"""So long workers may take to write the states of what they are training."""
_STORE_BYTES = 80 << 20
"""Shared memory of a Ray of our own, through which only small records pass."""
_ADDRESS = re.compile(r"(?P<host>[^:\s/]+|\[[0-9a-fA-F:]+\]):(?P<port>\d{1,5})")
_QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}


@dataclasses.dataclass(frozen=True)
class _Notepad(Console):
    """Keeps what a worker says, for the command to say it."""

    lines: list[str] = dataclasses.field(default_factory=list)

    def info(self, text: str) -> None:
        """Keep a line."""
        self.lines.append(text)

    @contextmanager
    def progress(self, what: str, total: int) -> Iterator[Advance]:  # noqa: ARG002
        """Show none."""
        yield lambda _, note="": None  # noqa: ARG005


class _Order(NamedTuple):
    """What a worker must know."""

    root: Path
    """The work directory."""
    folder: str
    """In which the command was called, so that relative paths lead to the same places."""
    command: list[str]
    host: str
    token: Path
    """In the work directory."""
    versions: dict[str, str]

    def begin(self) -> Session:
        """Be at work where and as the command was called.

        Raises:
            UserError: this worker sees another work directory, or has other software.
        """
        silence_libraries()
        choose_thread_defaults()
        torch.set_num_threads(CPUS_PER_TRAINING)
        sys.argv = list(self.command)
        with contextlib.suppress(OSError):  # where it is not, relative paths lead nowhere, and that is told
            os.chdir(self.folder)
        if not self.token.exists():
            raise UserError(
                f"work directory {self.root} is not the same on {socket.gethostname()} as on {self.host}, where the "
                "command was called; choose one on a disk that all machines of the cluster share (--workdir)"
            )
        here = _find_versions()
        if other := [name for name, value in self.versions.items() if here[name] != value]:
            listed = ", ".join(f"{name} {here[name]} instead of {self.versions[name]}" for name in other)
            raise UserError(f"{socket.gethostname()} has {listed} on {self.host}; install the same on all machines")
        return Session(Workspace(self.root), _Notepad())


class _Answer(NamedTuple):
    """What a worker returns."""

    value: Any = None
    problem: str | None = None
    """What went wrong before there was a value."""
    host: str = ""
    lines: Sequence[str] = ()
    """What it has to say."""


class RayTasks:
    """Has tasks done by the workers of a Ray cluster; a context manager, after which they are let go.

    Args:
        address: ``auto`` (the cluster this machine belongs to, or $RAY_ADDRESS), host:port, or ``local``: one of this
            machine alone, for this call.
        device: as a person says it.
        gpus_per_training: None is 1 where the cluster has GPUs.

    Raises:
        UserError: Ray is not installed, there is no such cluster, or it lacks the GPUs asked for.
    """

    def __init__(self, session: Session, address: str, device: str, gpus_per_training: float | None) -> None:
        self._ray = _connect(address)
        gpus = _count_gpus(self._ray.cluster_resources().get("GPU", 0), device, gpus_per_training)
        self.device = torch.device("cuda" if gpus else "cpu")
        self._gpus = gpus
        self.places = self._count_places()
        self._console, root = session.console, session.workspace.root.absolute()
        self._under_way: dict[Any, Task] = {}
        self._remote = self._ray.remote(num_cpus=CPUS_PER_TRAINING, num_gpus=gpus, max_retries=MOST_DEATHS)
        make_folder(root)
        self._order = _Order(
            root, str(Path.cwd()), sys.argv, socket.gethostname(), name_temporary(root / "token"), _find_versions()
        )
        self._order.token.touch()

    def __enter__(self) -> RayTasks:
        return self

    def __exit__(self, *_: object) -> None:
        self._ray.shutdown()
        self._order.token.unlink(missing_ok=True)

    def resolve(self, config: RunConfig) -> RunConfig:
        """Return the recipe with the precision that is best for a worker."""
        if config.training.precision != "auto":
            return config
        found = self._receive(self._remote(_find_precision).remote(self._order, self.device.type))
        if found.problem is not None:
            raise UserError(found.problem)
        return config.changed({"training.precision": found.value})

    def start(self, task: Task) -> None:
        """Hand a task to Ray."""
        self._under_way[self._remote(_perform).remote(self._order, task, self.device.type)] = task

    def wait(self, timeout_s: float | None) -> Sequence[Outcome]:
        """Return what became of tasks."""
        self._order.token.touch()  # else other machines would take it for abandoned after a day
        self.places = self._count_places()
        ready, _ = self._ray.wait([*self._under_way], timeout=_LOOK_S if timeout_s is None else timeout_s)
        return [self._settle(each) for each in ready]

    def stop(self) -> Sequence[Outcome]:
        """Have the workers keep the state of what they are training; return what became of it."""
        begun = [*self._under_way]
        for each in begun:
            self._ray.cancel(each)
        ended, _ = self._ray.wait(begun, num_returns=len(begun), timeout=_FAREWELL_S) if begun else ([], [])
        return [outcome for outcome in map(self._settle, ended) if outcome.state == "stopped"]

    def _count_places(self) -> int:
        """Return how many tasks the cluster has room for as it is now, and one more, for which it may grow."""
        there = self._ray.cluster_resources()
        rooms = [there.get("CPU", 0) / CPUS_PER_TRAINING, *([there.get("GPU", 0) / self._gpus] if self._gpus else [])]
        return int(min(rooms)) + 1

    def _settle(self, reference: Any) -> Outcome:
        """Say what a worker had to say, and return what became of its task."""
        task, answer = self._under_way.pop(reference), self._receive(reference)
        for line in answer.lines:
            self._console.info(f"[{answer.host}] {line}")
        if answer.problem is not None:
            return Outcome(task.name, "failed", answer.problem)
        outcome: Outcome = answer.value
        if outcome.state == "done":
            self._console.info(f"[{answer.host}] finished: {task.title}")
        return outcome

    def _receive(self, reference: Any) -> _Answer:
        """Return what a worker answers.

        Raises:
            ray.exceptions.RayTaskError: it met with a bug.
        """
        errors = self._ray.exceptions
        try:
            answer: _Answer = self._ray.get(reference)
        except errors.TaskCancelledError:
            return _Answer(problem="it was cancelled; repeat the command to go on")
        except errors.RayTaskError as problem:
            if "failed to import on the worker" not in str(problem):
                raise
            return _Answer(problem="a worker of the Ray cluster lacks this program; install it on all its machines")
        except errors.RayError as problem:
            reason = " ".join(str(problem).split())[:300]
            return _Answer(
                problem=f"its Ray worker was lost {MOST_DEATHS + 1} times ({reason}); if memory ran out, use a lower "
                "--batch-size. Its state is kept, repeat the command to go on"
            )
        return answer


def _connect(address: str) -> Any:
    """Return the module ``ray``, connected."""
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    try:
        import ray
    except ImportError as problem:
        raise UserError(
            f"--on ray needs Ray, which cannot be imported ({problem}); install it with: pip install "
            "'pseudo-depth-pipeline[ray]'"
        ) from problem
    wanted = (os.environ.get("RAY_ADDRESS") or address) if address == "auto" else address
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL}
    if wanted == "local":
        quiet |= {"num_cpus": count_usable_cpus(), "include_dashboard": False, "object_store_memory": _STORE_BYTES}
    elif wanted != "auto":
        _check_reachable(wanted)
    with _signals_as_they_are():
        try:
            ray.init(address=wanted, **quiet)
        except (OSError, RuntimeError, ValueError) as problem:  # ConnectionError is an OSError
            reason = "none runs here" if wanted == "auto" else " ".join(str(problem).split())[:300]
            raise UserError(
                f"no Ray cluster at --address {wanted} ({reason}); start one with: ray start --head, name another "
                "one's host:port, or use this machine alone: --address local"
            ) from problem
    return ray


def _check_reachable(address: str) -> None:
    """Refuse an address where nobody answers; Ray itself would try for minutes."""
    match = _ADDRESS.fullmatch(address)
    if match is None:
        raise UserError(f"--address {quoted(address)} is none; possible: auto, local, or host:port of a Ray cluster")
    try:
        socket.create_connection((match["host"].strip("[]"), int(match["port"])), _CONNECT_TIMEOUT_S).close()
    except (OSError, OverflowError) as problem:
        raise UserError(
            f"no Ray cluster can be reached at --address {address} ({problem}); start one there with: ray start "
            "--head, or use this machine alone: --address local"
        ) from problem


@contextmanager
def _signals_as_they_are() -> Iterator[None]:
    """Give signals back to whom Ray takes them from."""
    former = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def _count_gpus(there: float, device: str, wanted: float | None) -> float:
    """Return the GPUs of each training.

    Raises:
        UserError: the cluster has none, or the wishes exclude each other.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise UserError(f"--device {device} beside --on ray: Ray deals the GPUs out; use --device auto, cpu or cuda")
    if device == "cpu" and wanted:
        raise UserError(f"--device cpu beside --gpus-per-training {wanted:g}: give one of them")
    if device == "cpu" or wanted == 0 or (device == "auto" and wanted is None and not there):
        return 0.0
    gpus = 1.0 if wanted is None else wanted
    if there < gpus:
        raise UserError(
            f"the Ray cluster has {there:g} GPUs, and each training needs {gpus:g}; add machines with GPUs to it, or "
            "train on CPUs: --gpus-per-training 0"
        )
    return gpus


def _find_versions() -> dict[str, str]:
    """Return the versions that all machines must have."""
    versions = describe_environment()["versions"] | {"training version": str(TRAINING_VERSION)}
    del versions["platform"]
    return versions


def _perform(order: _Order, task: Task, device: str) -> _Answer:
    """Do a task on a worker. Ray calls it in the main thread, and a cancellation comes there as SIGINT."""

    def work(session: Session) -> Outcome:
        try:
            return perform(task, session, choose_device(device))
        except KeyboardInterrupt as interruption:
            return Outcome(task.name, "stopped", str(interruption))

    return _answer(order, work)


def _find_precision(order: _Order, device: str) -> _Answer:
    """Return the precision that is best for a worker."""
    return _answer(order, lambda _: resolve_dtype("auto", device))


def _answer(order: _Order, work: Callable[[Session], Any]) -> _Answer:
    host = socket.gethostname()
    try:
        session = order.begin()
    except UserError as problem:
        return _Answer(problem=str(problem), host=host)
    assert isinstance(session.console, _Notepad)
    with showing_notices(session.console.info):
        return _Answer(value=work(session), host=host, lines=session.console.lines)

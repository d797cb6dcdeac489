"""Several processes of this machine, each doing one task at a time; who is killed is replaced, and its task goes on."""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from pipeline.console import Console
from pipeline.experiment.walk import Engine, Outcome, Task
from pipeline.interruption import interruptible
from pipeline.silence import showing_notices, silence_libraries
from pipeline.threads import share_threads

if TYPE_CHECKING:
    from pipeline.session import Session

MOST_DEATHS = 3
"""A task whose process was killed so often has failed: something kills it every time, such as too little memory."""
_SIGNALS = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
_context = multiprocessing.get_context("spawn")  # a forked process could not use a GPU, nor be sure of its threads


class _Order(NamedTuple):
    """What a worker must know."""

    session: Session
    device: str


class _Worker:
    """A process and the way to it."""

    def __init__(self, order: _Order, environment: dict[str, str]) -> None:
        self.connection, its_end = _context.Pipe()
        self.task: Task | None = None
        self.process: SpawnProcess = _context.Process(target=_work, args=(its_end, order))
        with _environment(environment), _signals_kept_off():
            self.process.start()
        its_end.close()


class LocalJobs(Engine):
    """Does tasks in processes of this machine; a context manager, after which none of them is left.

    Args:
        jobs: how many processes, among which threads and GPUs are divided.
        device: of each, where ``cuda`` is one of all GPUs.
    """

    def __init__(self, jobs: int, session: Session, device: torch.device) -> None:
        self.places, self.device = jobs, device
        self._session = session
        num_gpus = torch.cuda.device_count() if device.type == "cuda" else 0
        self._environments = [share_machine(jobs, number, str(device), num_gpus) for number in range(jobs)]
        self._workers: list[_Worker | None] = [None] * jobs
        self._deaths: dict[str, int] = {}

    def __enter__(self) -> LocalJobs:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in filter(None, self._workers):
            if worker.task is not None:  # something went wrong here
                worker.process.terminate()
            worker.connection.close()
        for worker in filter(None, self._workers):
            worker.process.join()

    def start(self, task: Task) -> None:
        """Give a task to a process without one."""
        number = next(n for n, worker in enumerate(self._workers) if worker is None or worker.task is None)
        if (worker := self._workers[number]) is None or not worker.process.is_alive():
            worker = self._workers[number] = self._hire(number)
        worker.task = task
        with contextlib.suppress(OSError):  # it died just now, which ``wait`` sees
            worker.connection.send(task)

    def wait(self, timeout_s: float | None) -> Sequence[Outcome]:
        """Return what became of tasks; a killed process is replaced, and its task given to the next one."""
        busy = [worker for worker in self._workers if worker and worker.task]
        ready = wait([worker.connection for worker in busy], timeout_s)
        outcomes = [self._take(worker) for worker in busy if worker.connection in ready]
        return [outcome for outcome in outcomes if outcome is not None]

    def stop(self) -> Sequence[Outcome]:
        """End what is under way with its state kept; return what became of it."""
        busy = [worker for worker in self._workers if worker and worker.task]
        for worker in busy:
            worker.process.terminate()
        outcomes = []
        for worker in busy:
            if (outcome := _receive(worker.connection)) is not None:
                outcomes.append(outcome)
            worker.task = None
        return outcomes

    def _hire(self, number: int) -> _Worker:
        console = Console(quiet=self._session.console.quiet, name=str(number + 1))
        session = dataclasses.replace(self._session, console=console)
        return _Worker(_Order(session, str(self.device)), self._environments[number])

    def _take(self, worker: _Worker) -> Outcome | None:
        """Return what became of a worker's task; None where that was given to another worker."""
        task, worker.task = worker.task, None
        assert task is not None
        outcome: Outcome | None = _receive(worker.connection)
        if outcome is not None and outcome.state != "stopped":
            return outcome
        worker.process.join()
        code = worker.process.exitcode or 0
        if outcome is None and code >= 0:
            raise RuntimeError(f"a process of --jobs ended with status {code} by itself; what it said stands above")
        self._deaths[task.name] = deaths = self._deaths.get(task.name, 0) + 1
        if deaths < MOST_DEATHS:
            self.start(task)
            return None
        cause = f"signal {-code}" if code < 0 else "a signal"
        return Outcome(
            task.name,
            "failed",
            f"its process was ended by {cause} {deaths} times; if memory ran out, use fewer --jobs or a lower "
            "--batch-size. Its state is kept, repeat the command to go on",
        )


def share_machine(jobs: int, number: int, device: str, num_gpus: int) -> dict[str, str]:
    """Return the variables that give one of several processes its share of threads and, of several GPUs, one."""
    share = {"OMP_NUM_THREADS": share_threads(jobs)}
    if device == "cuda" and num_gpus > 1:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
        share["CUDA_VISIBLE_DEVICES"] = visible[number % num_gpus] if len(visible) > 1 else str(number % num_gpus)
    return share


def _receive(connection: Connection) -> Any:
    """Return what the other side sends, None where it is gone."""
    try:
        return connection.recv()
    except (EOFError, OSError):
        return None


@contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    """Have variables in the environment that a process is started with."""
    former = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in former.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _signals_kept_off() -> Iterator[None]:
    """Let no signal come before a process that is started in the block is ready for it."""
    former = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, former)


def _work(connection: Connection, order: _Order) -> None:
    """Do tasks until there are no more.

    Only SIGTERM is heard: what a terminal sends to all processes, the first one passes on.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    silence_libraries()
    with (
        contextlib.suppress(KeyboardInterrupt),
        interruptible(json_mode=False, last=True),
        showing_notices(order.session.console.info),
    ):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        threading.Thread(target=_end_with_parent, daemon=True).start()
        from pipeline.experiment.devices import choose_device
        from pipeline.experiment.execute import perform

        while (task := _receive(connection)) is not None:
            try:
                outcome = perform(task, order.session, choose_device(order.device))
            except KeyboardInterrupt as interruption:
                outcome = Outcome(task.name, "stopped", str(interruption))
            with contextlib.suppress(OSError):  # nobody is there to hear it
                connection.send(outcome)


def _end_with_parent() -> None:
    """Stop as at SIGTERM when the process that gives the tasks is gone, be it killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os.kill(os.getpid(), signal.SIGTERM)

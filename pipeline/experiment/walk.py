"""The walk over a table's tree: a training begins when its parent is finished, a run is scored with its last one.

Who does the work is an ``Engine``; what another process is doing meanwhile is left to it. Imports no torch.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

from data_cache.errors import InUse, UserError
from pipeline.experiment.plan import Node, Plan, PlannedRun

if TYPE_CHECKING:
    import torch

    from pipeline.experiment.config import RunConfig

_FIRST_PAUSE_S = 0.05
_LONGEST_PAUSE_S = 5.0
"""Between two looks at what others are working on; many may look at one network disk."""


@dataclass(frozen=True)
class Task:
    """One training, or the scoring of one run: what a process claims, does and finishes as a whole."""

    name: str
    """Folder of the node, or name of the run."""
    title: str
    """For people."""
    work: Node | PlannedRun
    after: str | None
    """Task that must be finished before."""
    asked_at: str
    """When the command began."""
    steps: int = 0
    """Optimiser steps on the longest way from here to the end, its own included."""
    reused: tuple[bool, ...] = ()
    """Of a run: which of its phases were trained before this call, or for an earlier row."""


class Outcome(NamedTuple):
    """What became of a task."""

    task: str
    state: Literal["done", "found", "busy", "failed", "stopped"]
    """``done`` just now, ``found`` finished, ``busy`` in another process, ``stopped`` by a signal with all kept."""
    message: str = ""


class Engine(Protocol):
    """A way to have tasks done."""

    places: int
    """How many tasks it takes at a time."""
    device: torch.device
    """On which each is done."""

    def resolve(self, config: RunConfig) -> RunConfig:
        """Return a recipe in which nothing is left open that only the place of work can tell: here none is."""
        return config

    def start(self, task: Task) -> None:
        """Begin a task; there is a free place."""
        ...

    def wait(self, timeout_s: float | None) -> Sequence[Outcome]:
        """Return what became of tasks that were begun, as soon as there is something or the time is up."""
        ...

    def stop(self) -> Sequence[Outcome]:
        """End what is under way and keep its state; return what became of it."""
        ...


def list_tasks(plan: Plan, finished: Iterable[str], asked_at: str) -> list[Task]:
    """Return the trainings and scorings of a plan, run after run.

    Args:
        finished: folders of nodes that need not be trained.
        asked_at: when the command began.
    """
    known = set(finished)
    below: dict[str, int] = {}
    for run in plan.runs:
        for place, node in enumerate(run.nodes):
            steps = sum(each.steps for each in run.nodes[place:])
            below[node.folder] = max(steps, below.get(node.folder, 0))
    tasks = []
    for run in plan.runs:
        reused = tuple(node.folder in known for node in run.nodes)
        for node in run.nodes:
            if node.folder not in known:
                known.add(node.folder)
                tasks.append(Task(node.folder, node.title, node, node.parent, asked_at, below[node.folder]))
        tasks.append(Task(run.name, run.name, run, run.nodes[-1].folder, asked_at, reused=reused))
    return tasks


def walk(
    tasks: Sequence[Task], finished: Iterable[str], engine: Engine, *, wait: bool, say: Callable[[str], object]
) -> set[str]:
    """Have all tasks done; return the names of those that were done here and not by another process.

    What fails stops only what depends on it. What another process is working on is passed over while there is other
    work.

    Args:
        finished: what tasks may come after and is none itself.
        wait: whether to wait for other processes in the end.
        say: takes a line on what failed or is waited for.

    Raises:
        InUse: another process is working on what is left.
        UserError: something failed; all that does not depend on it is done.
        KeyboardInterrupt: at a signal; the state of what was under way is kept.
    """
    if engine.places > 1 or wait:  # shared work ends soonest when the longest way comes first
        tasks = sorted(tasks, key=lambda task: (isinstance(task.work, Node), -task.steps))
    state = _State(tasks, finished, wait, say)
    try:
        while state.left:
            for task in state.find_free()[: engine.places - len(state.under_way)]:
                state.under_way.add(task.name)
                engine.start(task)
            if state.under_way:
                for outcome in engine.wait(state.find_pause() if len(state.under_way) < engine.places else None):
                    state.settle(outcome)
            elif not state.find_free() and not state.wait_for_others():
                break
    except KeyboardInterrupt as interruption:
        if said := [outcome.message for outcome in engine.stop() if outcome.message]:
            raise KeyboardInterrupt("\n".join(dict.fromkeys(said))) from interruption
        raise
    state.check_complete()
    return state.done_here


@dataclass
class _Busy:
    """A task that another process is working on."""

    message: str
    look_at: float
    pause_s: float


class _State:
    """How far a walk has come.

    Args:
        tasks: the preferred ones first.
    """

    def __init__(
        self, tasks: Sequence[Task], finished: Iterable[str], wait: bool, say: Callable[[str], object]
    ) -> None:
        self.left = {task.name: task for task in tasks}
        self.under_way: set[str] = set()
        self.done_here: set[str] = set()
        self._finished = set(finished)
        self._failed: dict[str, list[str]] = {}
        self._busy: dict[str, _Busy] = {}
        self._wait, self._say, self._told = wait, say, set[str]()
        self._several = sum(isinstance(task.work, PlannedRun) for task in tasks) > 1

    def find_free(self) -> list[Task]:
        """Return the tasks that may begin; what was busy a moment ago comes last."""
        ready = [task for task in self.left.values() if task.after is None or task.after in self._finished]
        ready = [task for task in ready if task.name not in self.under_way]
        again = [task for task in ready if task.name in self._busy]
        now = time.monotonic()
        return [
            *(task for task in ready if task not in again),
            *(task for task in again if self._busy[task.name].look_at <= now),
        ]

    def find_pause(self) -> float | None:
        """Return the seconds until a busy task is to be looked at again; None without any."""
        soonest = min((busy.look_at for name, busy in self._busy.items() if name not in self.under_way), default=None)
        return None if soonest in (None, math.inf) else max(0.0, soonest - time.monotonic())

    def settle(self, outcome: Outcome) -> None:
        """Take note of what became of a task."""
        self.under_way.remove(outcome.task)
        former = self._busy.pop(outcome.task, None)
        if outcome.state == "busy":
            pause_s = min(2 * former.pause_s, _LONGEST_PAUSE_S) if former else _FIRST_PAUSE_S
            look_at = time.monotonic() + pause_s if self._wait else math.inf
            self._busy[outcome.task] = _Busy(outcome.message, look_at, pause_s)
            return
        task = self.left.pop(outcome.task)
        if outcome.state in ("done", "found"):
            self._finished.add(task.name)
            self.done_here |= {task.name} if outcome.state == "done" else set()
            for busy in self._busy.values():  # meanwhile others may have come further, too
                busy.look_at = 0.0
            return
        self._failed.setdefault(outcome.message, []).append(task.title)
        self._drop_after(task.name)
        if self.left:
            self._say(f"failed: {task.title}: {outcome.message}; going on with what does not depend on it")

    def wait_for_others(self) -> bool:
        """Wait until it is time to look again at what others are working on; return whether there is such a time."""
        pause_s = self.find_pause()
        if pause_s is None:
            return False
        for message in sorted({busy.message for busy in self._busy.values()} - self._told):
            self._say(f"waiting: {message.rpartition('; ')[0]}")
            self._told.add(message)
        time.sleep(pause_s)
        return True

    def check_complete(self) -> None:
        """Raise a UserError that tells what failed, or what another process is working on."""
        if not self._failed and not self.left:
            return
        lines = [
            f"{', '.join(titles)}: {message}" if self._several else message for message, titles in self._failed.items()
        ]
        lines += sorted({busy.message for busy in self._busy.values()})
        if self._busy:
            lines.append("other processes are waited for with --wait")
        if self._several:
            lines.append("what is finished is kept; repeat the command to go on")
        raise (UserError if self._failed else InUse)("\n".join(lines))

    def _drop_after(self, name: str) -> None:
        for task in [task for task in self.left.values() if task.after == name]:
            del self.left[task.name]
            self._drop_after(task.name)

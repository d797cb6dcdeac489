"""The walk's laws, whoever does the work: parents first, everything once, failures stop only what depends on them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import pytest
import torch

from data_cache.errors import InUse, UserError
from pipeline.experiment.config import RunConfig, load_config
from pipeline.experiment.engines import Spread
from pipeline.experiment.engines.jobs import share_machine
from pipeline.experiment.plan import Node, Plan, Row, plan_runs
from pipeline.experiment.tables import TABLES
from pipeline.experiment.walk import Outcome, Task, list_tasks, walk
from tests.pipeline.drawn_facts import build_facts

FACTS = build_facts()
DoTask = Callable[[Task], Outcome]


def plan_table() -> Plan:
    config = load_config("demo", {"training.precision": "float32"})
    changed = {row.name: config.changed(row.changes) for row in TABLES["schedules"].rows}
    return plan_runs([Row(name, each, each.build_schedule()) for name, each in changed.items()], FACTS)


TASKS = list_tasks(plan_table(), (), "now")
SEG, JOINT = (TASKS[place].name for place in (0, 2))


class Places:
    """An engine with so many places; what was begun last ends first."""

    device = torch.device("cpu")

    def __init__(self, places: int, do: DoTask) -> None:
        self.places, self._do = places, do
        self.begun: list[Task] = []
        self._under_way: list[Task] = []

    def resolve(self, config: RunConfig) -> RunConfig:
        return config

    def start(self, task: Task) -> None:
        assert len(self._under_way) < self.places
        self.begun.append(task)
        self._under_way.append(task)

    def wait(self, timeout_s: float | None) -> Sequence[Outcome]:  # noqa: ARG002
        return [self._do(self._under_way.pop())]

    def stop(self) -> Sequence[Outcome]:
        return [Outcome(task.name, "stopped", f"kept {task.title}") for task in (*self._under_way, *self._under_way)]


def do(task: Task) -> Outcome:
    return Outcome(task.name, "done")


def unless(problem: Outcome, times: float = 1e9) -> DoTask:
    """Do every task but one, which comes to something else so many times."""
    left = itertools.count()
    return lambda task: problem if task.name == problem.task and next(left) < times else do(task)


@pytest.mark.parametrize("places", [1, 2, 100])
def test_every_task_is_begun_once_and_after_what_it_depends_on(places: int) -> None:
    engine = Places(places, do)
    assert walk(TASKS, (), engine, wait=False, say=print) == {task.name for task in TASKS}
    order = [task.name for task in engine.begun]
    assert len(set(order)) == len(order) == len(TASKS)
    assert all(task.after is None or order.index(task.after) < order.index(task.name) for task in TASKS)


def test_one_process_alone_finishes_run_after_run() -> None:
    engine = Places(1, do)
    walk(TASKS, (), engine, wait=False, say=print)
    assert engine.begun == TASKS


def test_shared_work_begins_with_the_longest_way() -> None:
    engine = Places(2, do)
    walk(TASKS, (), engine, wait=False, say=print)
    roots = [task for task in TASKS if task.after is None]
    assert engine.begun[0].steps == max(task.steps for task in roots)
    assert min(roots, key=lambda task: task.steps) not in engine.begun[:4]


def test_what_fails_stops_only_what_depends_on_it() -> None:
    said: list[str] = []
    engine = Places(1, unless(Outcome(SEG, "failed", "the loss is not finite")))
    with pytest.raises(UserError, match="the loss is not finite") as told:
        walk(TASKS, (), engine, wait=True, say=said.append)
    parents = {task.name: task.after for task in TASKS}

    def depends(name: str | None) -> bool:
        return name == SEG or (name is not None and depends(parents[name]))

    assert {task.name for task in engine.begun} == {t.name for t in TASKS if t.name == SEG or not depends(t.name)}
    assert not isinstance(told.value, InUse) and "repeat the command" in str(told.value)
    assert said == [f"failed: {TASKS[0].title}: the loss is not finite; going on with what does not depend on it"]


def test_what_is_busy_is_passed_over_and_named_in_the_end() -> None:
    engine = Places(1, unless(Outcome(SEG, "busy", "nodes/x is in use by another process; wait")))
    with pytest.raises(InUse, match=r"is in use by another process.*\n.*--wait"):
        walk(TASKS, (), engine, wait=False, say=print)
    assert JOINT in {task.name for task in engine.begun}


def test_what_is_busy_is_waited_for_and_told_once() -> None:
    said: list[str] = []
    engine = Places(1, unless(Outcome(SEG, "busy", "nodes/x is in use by another process; wait"), times=4))
    assert SEG in walk(TASKS, (), engine, wait=True, say=said.append)
    assert said == ["waiting: nodes/x is in use by another process"]


def test_what_others_have_done_is_not_counted_as_ours() -> None:
    done = walk(TASKS, (), Places(1, unless(Outcome(SEG, "found"))), wait=False, say=print)
    assert done == {task.name for task in TASKS} - {SEG}


def test_an_interruption_tells_what_every_place_has_kept() -> None:
    def interrupt(task: Task) -> Outcome:
        raise KeyboardInterrupt

    engine = Places(3, interrupt)
    with pytest.raises(KeyboardInterrupt) as told:
        walk(TASKS, (), engine, wait=False, say=print)
    words = [f"kept {task.title}" for task in engine.begun[:2]]
    assert str(told.value).splitlines() == words, "each once, whatever several places say"


def test_a_phase_is_reused_by_every_row_but_the_first() -> None:
    runs = [task for task in TASKS if not isinstance(task.work, Node)]
    assert sum(not old for task in runs for old in task.reused) == len(TASKS) - len(runs)
    again = list_tasks(plan_table(), [SEG], "now")
    assert SEG not in {task.name for task in again}
    assert next(task for task in again if task.after == SEG).reused == (True,)


def test_threads_and_gpus_are_divided(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert share_machine(3, 2, "cpu", 0) == {"OMP_NUM_THREADS": "2"}
    assert [share_machine(3, n, "cuda", 2)["CUDA_VISIBLE_DEVICES"] for n in range(3)] == ["0", "1", "0"]
    assert "CUDA_VISIBLE_DEVICES" not in share_machine(3, 1, "cuda:1", 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,GPU-7")
    assert [share_machine(16, n, "cuda", 2)["CUDA_VISIBLE_DEVICES"] for n in range(2)] == ["5", "GPU-7"]
    assert share_machine(16, 0, "cuda", 2)["OMP_NUM_THREADS"] == "1"


@pytest.mark.parametrize("spread", [Spread(jobs=2, on="ray"), Spread(address="local"), Spread(gpus_per_training=0.0)])
def test_wishes_that_exclude_each_other_are_refused(spread: Spread) -> None:
    with pytest.raises(UserError, match="--on"):
        spread.check()

"""Walk a plan: reuse what is trained, train what is not, evaluate each run's last weights, write it down."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, NamedTuple

import torch

from data_cache.errors import InUse, UserError
from data_cache.ranks import is_speaker
from pipeline.experiment.finishing import finish_run, read_own_run, recall_run, score_last_weights
from pipeline.experiment.nodes import read_node
from pipeline.experiment.plan import Node, Plan, PlannedRun
from pipeline.experiment.space import check_disk_need
from pipeline.experiment.together import announce, check_ranks, follow
from pipeline.experiment.training import finish_node, train_node
from pipeline.experiment.walk import Engine, Outcome, Task, list_tasks, walk
from pipeline.leftovers import tidy_finished
from pipeline.problems import explain_problem
from pipeline.session import Session


class Execution(NamedTuple):
    """What came of a plan."""

    records: list[dict[str, Any]]
    """Of every run, in the plan's order."""
    trained: int
    """Phases that were trained by this call, not before it and not by another process."""


def execute_plan(plan: Plan, session: Session, engine: Engine, *, wait: bool = False) -> Execution:
    """Train what is missing, score what is new.

    Args:
        engine: who does it.
        wait: whether to wait for what other processes are working on.

    Raises:
        UserError: before anything is trained where there is too little space, or what is finished is damaged; else what
            the stages say, after all that does not depend on it.
        KeyboardInterrupt: at SIGINT or SIGTERM, with the state of the phases in training saved.
    """
    check_ranks(plan, session.workspace, engine.device)
    if not is_speaker():
        follow(plan, lambda work: _take_part(work, session, engine.device))
    finished = _check_finished(plan, session)
    check_disk_need(plan, session, engine.places)
    tasks = list_tasks(plan, finished, datetime.now(UTC).isoformat(timespec="seconds"))
    done = walk(tasks, finished, engine, wait=wait, say=session.console.info)
    announce(None)
    reused = {task.name: task.reused for task in tasks}
    records = [recall_run(run, reused[run.name], session) for run in plan.runs]
    return Execution(records, len(done & plan.nodes.keys()))


def _check_finished(plan: Plan, session: Session) -> list[str]:
    """Return the folders of finished phases; damaged ones are refused, and runs, before hours are spent beside them."""
    hashes, problems, finished = session.workspace.content_hashes(), [], []
    for node in plan.nodes.values():
        folder = session.workspace.node(node.folder)
        if folder.finished:
            tidy_finished(folder)
            finished.append(node.folder)
            try:
                read_node(folder, key=node.key, remembered=hashes)
            except UserError as problem:
                problems.append(str(problem))
    for run in plan.runs:
        try:
            read_own_run(session.workspace.runs / run.name)
        except UserError as problem:
            problems.append(str(problem))
    hashes.save()
    if problems:
        raise UserError("\n".join(problems))
    return finished


def perform(task: Task, session: Session, device: torch.device) -> Outcome:
    """Do a task, unless it is done or another process is at it.

    Raises:
        KeyboardInterrupt: at a signal, with the state of a phase in training saved.
    """
    try:
        if isinstance(task.work, Node):
            done = finish_node(task.work, session, device)
        else:
            done = finish_run(task.work, task, session, device)
    except InUse as problem:
        return Outcome(task.name, "busy", str(problem))
    except (UserError, OSError, RuntimeError, MemoryError) as problem:
        message = explain_problem(problem)
        if message is None:
            raise
        return Outcome(task.name, "failed", message)
    return Outcome(task.name, "done" if done else "found")


def _take_part(work: Node | PlannedRun, session: Session, device: torch.device) -> None:
    """Do this rank's share of a task that the speaker has claimed, and records when it is done."""
    if isinstance(work, Node):
        train_node(work, session.workspace.node(work.folder), session, device)
    else:
        score_last_weights(work, session, device)

"""Walk a plan: reuse what is trained, train what is not, evaluate each run's last weights, write it down."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import torch

from data_cache.content import ContentHashes
from data_cache.errors import InUse, UserError
from data_cache.files import atomic_file, hold_folder, read_json, write_json
from data_cache.leftovers import remove
from data_cache.ranks import broadcast_object, is_speaker, world_size
from data_cache.samples import Source
from data_cache.split_depth import SplitDepth
from data_cache.training_log import read_log
from pipeline.console import Advance
from pipeline.experiment.artifacts import find_labels, open_split
from pipeline.experiment.config import RunConfig
from pipeline.experiment.feeding import Feed
from pipeline.experiment.models import build_untrained
from pipeline.experiment.nodes import NodeRecord, load_node, read_node
from pipeline.experiment.plan import Node, Plan, PlannedRun, Reported, describe_network
from pipeline.experiment.provenance import describe_environment, describe_numerics, describe_software
from pipeline.experiment.scoring import describe_evaluation, score_run
from pipeline.experiment.space import check_disk_need
from pipeline.experiment.together import announce, check_ranks, follow
from pipeline.experiment.walk import Engine, Outcome, Task, list_tasks, walk
from pipeline.leftovers import tidy_finished
from pipeline.problems import explain_problem
from pipeline.session import Session
from pipeline.workspace import NodeFolder, Workspace
from stages.comparison.record import RUN_FILE, RUN_FORMAT, RunFile, TrainedRun, read_run
from stages.evaluation.settings import EVALUATION_VERSION
from stages.networks import build_network, build_without_weights
from stages.networks.interface import Network
from stages.networks.precision import resolve_dtype
from stages.training.checkpoint import save_weights
from stages.training.distributed import copy_from_speaker
from stages.training.interruption import stop_on_signals
from stages.training.loop import PhaseSummary, train_phase
from stages.training.metrics_log import MetricsLog, StepReport
from stages.training.settings import TrainingSettings
from stages.training.transfer import CopyReport, copy_part

_SHOWN_SHARE = 0.05
"""Of the time; shorter waits for data are nobody's concern."""


class Execution(NamedTuple):
    """What came of a plan."""

    records: list[dict[str, Any]]
    """Of every run, in the plan's order."""
    trained: int
    """Phases that were trained by this call, not before it and not by another process."""


class Here:
    """Does one task after another in this process."""

    places = 1

    def __init__(self, session: Session, device: torch.device) -> None:
        self._session, self.device = session, device

    def resolve(self, config: RunConfig) -> RunConfig:
        """Return the recipe: the work is done on this machine."""
        return config

    def start(self, task: Task) -> None:
        """Do a task."""
        self._outcome = perform(task, self._session, self.device)
        if self._outcome.state == "failed" and world_size() > 1:  # the others are in the midst of it
            raise UserError(f"{task.title}: {self._outcome.message}")

    def wait(self, timeout_s: float | None) -> Sequence[Outcome]:  # noqa: ARG002
        """Return what became of it."""
        return [self._outcome]

    def stop(self) -> Sequence[Outcome]:
        """Nothing is under way any more."""
        return []


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
    records = [_recall_run(run, reused[run.name], session) for run in plan.runs]
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
            _read_own(session.workspace.runs / run.name)
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
            done = _finish_node(task.work, session, device)
        else:
            done = _finish_run(task.work, task, session, device)
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
        _train_node(work, session.workspace.node(work.folder), session, device)
    else:
        _score(work, session, device)


def _finish_run(run: PlannedRun, task: Task, session: Session, device: torch.device) -> bool:
    """Score a run whose phases are finished and write its record, unless it has one; return whether that was done."""
    folder, reported = session.workspace.runs / run.name, run.facts.reported
    if _find_record(run, session) is not None:
        return False
    with hold_folder(folder, "evaluating a run"):
        if _find_record(run, session) is not None:  # another process may have finished it
            return False
        nodes = _read_nodes(run, session)
        announce(run.name)
        content, scores = _score(run, session, device)
        phases = _describe_phases(run, nodes, task.reused)
        record = {"format": RUN_FORMAT, "started_at": task.asked_at} | _describe_run(run, phases, device) | scores
        record["evaluation"] = describe_evaluation(content, run.config, reported)
        record["identity"] = _identify(run, reported, [node.numerics for node in nodes])
        record["environment"] = nodes[-1].environment.model_dump()
        _gather_metrics(run, session, folder)
        write_json(folder / RUN_FILE, record)
    return True


def _score(run: PlannedRun, session: Session, device: torch.device) -> tuple[str, dict[str, Any]]:
    """Return the hash of a run's last weights, and what run.json says about how good they are."""
    last = session.workspace.node(run.nodes[-1].folder)
    network = build_untrained(run.config, run.facts.num_classes)
    content = load_node(network, last) if is_speaker() else ""
    copy_from_speaker(network)
    folder = session.workspace.runs / run.name
    return content, score_run(run.config, network, last.weights, session, folder, device, together=True)


def _recall_run(run: PlannedRun, reused: tuple[bool, ...], session: Session) -> dict[str, Any]:
    """Return the record of a finished run, which becomes the newest."""
    folder, nodes = session.workspace.runs / run.name, _read_nodes(run, session)
    record = _find_record(run, session)
    if record is None:
        raise UserError(
            f"{folder} was scored on other data than it has now; repeat the command when they stay as they are"
        )
    _follow_data(record, run.config, folder, session)
    session.workspace.mark_newest(folder)
    return record | {"phases": _describe_phases(run, nodes, reused)}


def _read_nodes(run: PlannedRun, session: Session) -> list[NodeRecord]:
    hashes = session.workspace.content_hashes()
    return [read_node(session.workspace.node(node.folder), key=node.key, remembered=hashes) for node in run.nodes]


def _describe_phases(run: PlannedRun, nodes: list[NodeRecord], reused: tuple[bool, ...]) -> list[dict[str, Any]]:
    """Return what run.json says of every phase."""
    return [
        {"name": node.phase.name, "key": node.folder, "reused": old, "steps": node.steps, **record.describe()}
        for node, record, old in zip(run.nodes, nodes, reused, strict=True)
    ]


def _find_record(run: PlannedRun, session: Session) -> dict[str, Any] | None:
    """Return what is known of a run, unless what its scores depend on has changed since."""
    folder, last = session.workspace.runs / run.name, session.workspace.node(run.nodes[-1].folder)
    known = _read_own(folder)
    if not isinstance(known, TrainedRun):
        return None
    weights = read_node(last, key=run.nodes[-1].key, remembered=session.workspace.content_hashes()).weights
    wanted = describe_evaluation(weights or ContentHashes().hash((last.weights,)), run.config, run.facts.reported)
    if (known.evaluation.version, known.evaluation.key) != (wanted["version"], wanted["key"]):
        return None
    return read_json(folder / RUN_FILE)


def _read_own(folder: Path) -> RunFile | None:
    """Return the record of a run below this work directory, None where there is none yet.

    Raises:
        UserError: it is damaged, of a newer version, or of another run.
    """
    if not (folder / RUN_FILE).exists():
        return None
    known = read_run(folder / RUN_FILE)
    if isinstance(known, TrainedRun) and known.run != folder.name:
        raise UserError(
            f"{folder / RUN_FILE} is of another run ({known.run}); remove it and repeat the command, which writes it "
            "anew"
        )
    return known


def _follow_data(record: dict[str, Any], config: RunConfig, folder: Path, session: Session) -> None:
    """Note where the data of a finished run lies now: it may have moved, and it is scored from there the next time."""
    now = _with_absolute_root(config)["data"]["root"]
    if record["config"]["data"]["root"] != now:
        with hold_folder(folder, "noting where its data lies", on_wait=session.console.info):
            record["config"]["data"]["root"] = now
            write_json(folder / RUN_FILE, record)


def _finish_node(node: Node, session: Session, device: torch.device) -> bool:
    """Train a node unless it is trained already; return whether that was done."""
    folder = session.workspace.node(node.folder)
    if folder.finished:
        return False
    with hold_folder(folder.path, "training this phase"):
        if folder.finished:  # another process may have finished it between the look and the lock
            return False
        announce(node.folder)
        _train_node(node, folder, session, device)
    return True


def _train_node(node: Node, folder: NodeFolder, session: Session, device: torch.device) -> None:
    config, training = node.config, node.config.training
    dataset = open_split(config, session.workspace, "train")
    store = find_labels(config, session.workspace, dataset) if node.phase.needs_depth else None
    network = build_start(node, session.workspace, len(dataset.classes))
    copies = [copy_part(network, copy.source, copy.target) for copy in node.copies]
    title = f"{config.network.label} s{config.seed} {config.loss.describe_step(node.phase)}"
    with (
        stop_on_signals() as stop,  # only here: elsewhere an interruption has nothing to save and may come at once
        session.console.progress(title, node.steps) as advance,
        _open_log(folder, training) as log,
    ):
        feed = Feed(node, Source(dataset, store, config.depth.target), device)
        summary = train_phase(
            network,
            node.phase,
            feed,
            total_steps=node.steps,
            seed=node.seed,
            key=node.key,
            settings=training,
            losses=config.loss,
            device=device,
            dtype=resolve_dtype(training.precision, str(device)),
            checkpoint_folder=folder.checkpoint,
            log=log,
            on_step=show_steps(advance, feed),
            stop=stop,
        )
        if is_speaker():
            folder.record.unlink(missing_ok=True)  # it may tell of weights that were removed
            save_weights(network, folder.weights)
            write_json(folder.record, _describe_node(node, folder, copies, summary, store, device) | feed.describe())
            remove(folder.checkpoint)
            feed.tell_long_waits()
    if broadcast_object(stop.is_set()):
        raise KeyboardInterrupt(f"phase {node.phase.name!r} was finished")


def _open_log(folder: NodeFolder, training: TrainingSettings) -> contextlib.AbstractContextManager[MetricsLog | None]:
    """Return the log of a phase, which is the speaker's to write."""
    if not is_speaker():
        return contextlib.nullcontext()
    board = folder.path / "tensorboard" if training.tensorboard else None
    return MetricsLog(folder.metrics, log_every=training.log_every, tensorboard=board)


def build_start(node: Node, workspace: Workspace, num_classes: int) -> Network:
    """Build the network a node starts from: its parent's last weights, or the one its seed gives.

    Only the speaker's has weights, which it gives to the other ranks when the training begins.
    """
    wanted = node.config.network
    begins = node.parent is None and is_speaker()
    build = build_network if begins else build_without_weights  # the parent's weights hold them already
    torch.manual_seed(node.config.seed)
    network = build(wanted.name, num_classes, **wanted.options)
    if not is_speaker():
        return network
    if node.parent is not None:
        load_node(network, workspace.node(node.parent))
    elif describe_network(wanted) != node.network:
        raise UserError(
            f"the weights file {wanted.options.get('encoder_weights')} has changed since this training was planned; "
            "repeat the command when it no longer changes"
        )
    return network


def show_steps(advance: Advance, feed: Feed | None = None) -> Callable[[StepReport], None]:
    """Return what tells a progress bar of every step: losses, their shares, images per second, waits for data."""
    started_at = time.perf_counter()
    images = 0

    def show(report: StepReport) -> None:
        nonlocal images
        images += report.images
        losses = " ".join(f"{name} {value:.4f} ({report.share[name]:.0%})" for name, value in report.raw.items())
        waits = f", {feed.wait_share:.0%} waiting for data" if feed and feed.wait_share >= _SHOWN_SHARE else ""
        advance(report.step, f"{losses} {images / (time.perf_counter() - started_at):.1f} images/s{waits}")

    return show


def _describe_node(
    node: Node,
    folder: NodeFolder,
    copies: list[CopyReport],
    summary: PhaseSummary,
    store: SplitDepth | None,
    device: torch.device,
) -> dict[str, Any]:
    return {
        "format": NodeRecord.VERSION,
        "weights": ContentHashes().hash((folder.weights,)),
        "phase": node.phase.name,
        "loss": node.config.loss.describe(node.phase),
        "trains": node.phase.trains.names(),
        "key": node.key,
        "parent": node.parent,
        "steps": node.steps,
        "copied": sum(len(copy.copied) for copy in copies),
        "depth_store": asdict(store.provenance) if store else None,
        "losses": summary.losses,
        "shares": summary.shares,
        "seconds": round(summary.seconds, 3),
        "images_per_second": round(summary.images_per_second, 3),
        "resumed_from": summary.resumed_from,
        "numerics": describe_numerics(device, node.config.training),
        "environment": describe_environment(),
    }


def _describe_run(run: PlannedRun, phases: list[dict[str, Any]], device: torch.device) -> dict[str, Any]:
    config = run.config
    steps = [config.loss.describe_step(step) for step in run.schedule.steps]
    return {
        "run": run.name,
        "name": run.row,
        "seed": config.seed,
        "network": config.network.label,
        "dataset": config.data.dataset,
        "recipe": Path(config.recipe).stem,
        "schedule": {"name": run.row, "steps": steps, "own": config.schedule.own},
        "phases": phases,
        "total_steps": run.steps,
        "selection": "last",
        "nodes": [node.folder for node in run.nodes],
        "depth_store": next((phase["depth_store"] for phase in phases if phase["depth_store"]), None),
        "config": _with_absolute_root(config),
        "device": str(device),
        "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
        **describe_software(),
    }


def _with_absolute_root(config: RunConfig) -> dict[str, Any]:
    """Return the resolved recipe, in which ``evaluate`` finds the data from any folder."""
    resolved = config.resolved()
    if config.data.root:
        resolved["data"]["root"] = str(Path(config.data.root).expanduser().absolute())
    return resolved


def _identify(run: PlannedRun, reported: Reported, numerics: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what must agree between runs that are pooled into one row.

    Args:
        numerics: of every phase; a reused one may have been trained on another device.
    """
    names = dict.fromkeys(name for each in numerics for name in each)
    found = {name: list(dict.fromkeys(each.get(name) for each in numerics)) for name in names}
    return {
        "data": run.facts.fingerprint,
        "split": reported.split,
        "depth": run.facts.depth,
        "numerics": {name: values[0] if len(values) == 1 else values for name, values in found.items()},
        "evaluation": EVALUATION_VERSION,
        "settings": run.describe_settings(),
    }


def _gather_metrics(run: PlannedRun, session: Session, folder: Path) -> None:
    """Put the logs of a run's phases one after another into its folder, each under the name it has in this run.

    Logs are for people to look at: a missing or damaged one is named and left out, and costs the run nothing else.
    """
    lines: list[str] = []
    for node in run.nodes:
        try:
            log = list(read_log(session.workspace.node(node.folder).metrics))
        except UserError as problem:
            session.console.info(f"the losses of phase {node.phase.name!r} are left out of {folder.name}: {problem}")
            continue
        lines += [line.to_json(node.phase.name) + "\n" for line in log]
    with atomic_file(folder / "metrics.jsonl") as temporary:
        temporary.write_text("".join(lines), encoding="utf8")

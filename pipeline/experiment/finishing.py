"""A run is finished when its phases are: its last weights are scored, and run.json says all that is known of it."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from data_cache.content import ContentHashes
from data_cache.errors import UserError
from data_cache.files import atomic_file, hold_folder, read_json, write_json
from data_cache.metrics import IMAGES_FILE
from data_cache.ranks import is_speaker
from data_cache.training_log import read_log
from pipeline.experiment.config import RunConfig
from pipeline.experiment.models import build_untrained
from pipeline.experiment.nodes import NodeRecord, load_node, read_node
from pipeline.experiment.plan import PlannedRun
from pipeline.experiment.provenance import describe_software
from pipeline.experiment.reading import Reported
from pipeline.experiment.scoring import describe_evaluation, score_run
from pipeline.experiment.together import announce
from pipeline.experiment.walk import Task
from pipeline.session import Session
from stages.comparison.record import RUN_FILE, RUN_FORMAT, RunFile, TrainedRun, read_run
from stages.evaluation.settings import EVALUATION_VERSION
from stages.training.distributed import copy_from_speaker


def finish_run(run: PlannedRun, task: Task, session: Session, device: torch.device) -> bool:
    """Score a run whose phases are finished and write its record, unless it has one; return whether that was done."""
    folder, reported = session.workspace.runs / run.name, run.facts.reported
    if _find_record(run, session) is not None:
        return False
    with hold_folder(folder, "evaluating a run"):
        if _find_record(run, session) is not None:  # another process may have finished it
            return False
        nodes = _read_nodes(run, session)
        announce(run.name)
        content, scores = score_last_weights(run, session, device)
        phases = _describe_phases(run, nodes, task.reused)
        record = {"format": RUN_FORMAT, "started_at": task.asked_at} | _describe_run(run, phases, device) | scores
        record["evaluation"] = describe_evaluation(content, run.config, reported)
        record["identity"] = _identify(run, reported, [node.numerics for node in nodes])
        record["environment"] = nodes[-1].environment.model_dump()
        _gather_metrics(run, session, folder)
        write_json(folder / RUN_FILE, record)
    return True


def score_last_weights(run: PlannedRun, session: Session, device: torch.device) -> tuple[str, dict[str, Any]]:
    """Return the hash of a run's last weights, and what run.json says about how good they are."""
    last = session.workspace.node(run.nodes[-1].folder)
    network = build_untrained(run.config, run.facts.num_classes)
    content = load_node(network, last) if is_speaker() else ""
    copy_from_speaker(network)
    folder = session.workspace.runs / run.name
    return content, score_run(run.config, network, last.weights, session, folder, device, together=True)


def recall_run(run: PlannedRun, reused: tuple[bool, ...], session: Session) -> dict[str, Any]:
    """Return the record of a finished run, which becomes the newest."""
    folder, nodes = session.workspace.runs / run.name, _read_nodes(run, session)
    record = _find_record(run, session)
    if record is None:
        raise UserError(
            f"{folder} was scored on other data than it has now; repeat the command when they stay as they are"
        )
    _follow_recipe(record, run, folder, session)
    session.workspace.mark_newest(folder)
    return record | {"phases": _describe_phases(run, nodes, reused)}


def _read_nodes(run: PlannedRun, session: Session) -> list[NodeRecord]:
    hashes = session.workspace.content_hashes()
    return [read_node(session.workspace.node(node.folder), key=node.key, remembered=hashes) for node in run.nodes]


def _describe_phases(run: PlannedRun, nodes: list[NodeRecord], reused: tuple[bool, ...]) -> list[dict[str, Any]]:
    """Return what run.json says of every phase."""
    return [
        {
            "name": node.phase.name,
            "key": node.folder,
            "reused": old,
            "steps": steps,
            "images_seen": node.count_images(steps),
            **record.describe(),
        }
        for node, record, old in zip(run.nodes, nodes, reused, strict=True)
        for steps in [node.steps if record.steps is None else record.steps]
    ]


def _find_record(run: PlannedRun, session: Session) -> dict[str, Any] | None:
    """Return what is known of a run, unless what its scores depend on has changed since."""
    folder, last = session.workspace.runs / run.name, session.workspace.node(run.nodes[-1].folder)
    known = read_own_run(folder)
    if not isinstance(known, TrainedRun) or not (folder / IMAGES_FILE).exists():
        return None
    weights = read_node(last, key=run.nodes[-1].key, remembered=session.workspace.content_hashes()).weights
    wanted = describe_evaluation(weights or ContentHashes().hash((last.weights,)), run.config, run.facts.reported)
    if (known.evaluation.version, known.evaluation.key) != (wanted["version"], wanted["key"]):
        return None
    return read_json(folder / RUN_FILE)


def read_own_run(folder: Path) -> RunFile | None:
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


def _follow_recipe(record: dict[str, Any], run: PlannedRun, folder: Path, session: Session) -> None:
    """Note by which recipe a finished run was asked for last: where its data lies now, and what its budget is of."""
    now = {"config": _with_absolute_root(run.config), **_describe_data(run)}
    now["identity"] = record["identity"] | {"settings": run.describe_settings()}
    if any(record.get(key) != value for key, value in now.items()):
        with hold_folder(folder, "noting its recipe", on_wait=session.console.info):
            record |= now
            write_json(folder / RUN_FILE, record)


def _describe_data(run: PlannedRun) -> dict[str, Any]:
    """Return how many training images' masks a run reads, and how its control correlates with depth; None is none."""
    masks = next((found.images for scope, found in run.facts.materials.items() if scope.masks), None)
    return {"labelled_images": masks, "control_correlation": run.facts.control}


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
        "total_steps": sum(phase["steps"] for phase in phases),
        "selection": config.training.keep if run.facts.selection else "last",
        "selected_on": _describe_selection(run),
        "nodes": [node.folder for node in run.nodes],
        "depth_store": next((phase["depth_store"] for phase in phases if phase["depth_store"]), None),
        "config": _with_absolute_root(config),
        **_describe_data(run),
        "device": str(device),
        "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
        **describe_software(),
    }


def _describe_selection(run: PlannedRun) -> dict[str, Any] | None:
    """Return on what weights were chosen; None where the last ones were taken."""
    selection, training = run.facts.selection, run.config.training
    if selection is None:
        return None
    every = [node.validate_every for node in run.nodes]
    facts = {"split": selection.split, "held_out": selection.held_out is not None, "images": selection.images}
    return {**facts, "val_every": every, "patience": training.patience}


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

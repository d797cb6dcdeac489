"""Walk a plan: reuse what is trained, train what is not, evaluate each run's last weights, write it down."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from data_cache.fingerprint import dataset_fingerprint
from data_cache.loaders import Augmentation, Source, build_training_loader
from data_cache.sample import Batch
from data_cache.split_depth import SplitDepth
from pipeline.commands.evaluate import inspect_evaluation, score_run
from pipeline.console import Advance
from pipeline.experiment.artifacts import find_labels, open_split
from pipeline.experiment.config import RunConfig, content_hash
from pipeline.experiment.plan import Node, Plan, PlannedRun
from pipeline.experiment.provenance import describe_software
from pipeline.session import Session
from pipeline.workspace import NodeFolder, Workspace, exclusive, read_json, write_json
from stages.networks import build_network, build_without_weights
from stages.networks.interface import Network, Normalisation
from stages.training.checkpoint import load_weights, remove_checkpoints, save_weights
from stages.training.interruption import stop_on_signals
from stages.training.loop import PhaseSummary, train_phase
from stages.training.losses import LossSettings
from stages.training.metrics_log import MetricsLog, StepReport
from stages.training.optimisation import OptimSettings
from stages.training.transfer import CopyReport, copy_part


@dataclass(frozen=True)
class FinishedNode:
    """A trained phase of a run."""

    node: Node
    reused: bool
    """Whether it was trained before this call, or for an earlier run of the same call."""
    record: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Return what run.json says about the phase."""
        return {
            "name": self.node.phase.name,
            "key": self.node.folder,
            "reused": self.reused,
            "steps": self.node.steps,
            **{key: self.record[key] for key in ("seconds", "losses", "copied", "depth_store")},
        }


def execute_plan(plan: Plan, session: Session, device: torch.device) -> list[dict[str, Any]]:
    """Train what is missing, evaluate what is new; return the record of every run, in the plan's order.

    Raises:
        UserError: before anything is trained where the reported split could not be evaluated; else what the stages say.
        KeyboardInterrupt: at SIGINT or SIGTERM, with the state of the phase in training saved.
    """
    inspections = [inspect_evaluation(run, session) for run in plan.runs]
    return [
        _execute_run(run, session, device, evaluated_on)
        for run, evaluated_on in zip(plan.runs, inspections, strict=True)
    ]


def _execute_run(
    run: PlannedRun, session: Session, device: torch.device, evaluated_on: dict[str, str | None]
) -> dict[str, Any]:
    folder = session.workspace.runs / run.name
    started_at = datetime.now(UTC).isoformat(timespec="seconds")
    phases = [finish_node(node, session, device).to_json() for node in run.nodes]
    if (record := _finished_record(folder, evaluated_on)) is not None:
        session.workspace.mark_newest(folder)
        return record | {"phases": phases}
    with exclusive(folder, "evaluating a run"):
        scores = score_run(run, session, folder, device)
        record = {"started_at": started_at} | _describe_run(run, phases, device) | scores
        record["evaluated_on"] = evaluated_on
        record |= _identify(run, session, device, record, evaluated_on)
        _gather_metrics(run, session, folder)
        write_json(folder / "run.json", record)
    return record


def _finished_record(folder: Path, evaluated_on: dict[str, str | None]) -> dict[str, Any] | None:
    """Return what is known of a run, unless the reported split or its depth has changed since."""
    if not (folder / "run.json").is_file():
        return None
    record: dict[str, Any] = read_json(folder / "run.json")
    return record if record.get("evaluated_on") in (None, evaluated_on) else None


def finish_node(node: Node, session: Session, device: torch.device) -> FinishedNode:
    """Train a node unless it is trained already."""
    folder = session.workspace.node(node.folder)
    if folder.finished:
        return FinishedNode(node, True, read_json(folder.record))
    with exclusive(folder.path, "training this phase"):
        if not folder.finished:  # another process may have finished it between the look and the lock
            _train_node(node, folder, session, device)
    return FinishedNode(node, False, read_json(folder.record))


def _train_node(node: Node, folder: NodeFolder, session: Session, device: torch.device) -> None:
    config, training = node.config, node.config.training
    dataset = open_split(config, session.workspace, "train")
    store = find_labels(config, session.workspace, dataset) if node.phase.needs_depth else None
    network = build_start(node, session.workspace, len(dataset.classes))
    copies = [copy_part(network, copy.source, copy.target) for copy in node.copies]
    title = f"{config.network.label} s{config.seed} {node.phase.name}"
    board = folder.path / "tensorboard" if training.tensorboard else None
    with (
        stop_on_signals() as stop,  # only here: elsewhere an interruption has nothing to save and may come at once
        session.console.progress(title, node.steps) as advance,
        MetricsLog(folder.metrics, log_every=training.log_every, tensorboard=board) as log,
    ):
        summary = train_phase(
            network,
            node.phase,
            _batches(node, Source(dataset, store, config.depth.target), network.normalisation),
            total_steps=node.steps,
            seed=node.seed,
            optim=_optim_settings(config),
            losses=_loss_settings(config),
            device=device,
            precision=training.precision,
            checkpoint_folder=folder.checkpoint,
            checkpoint_every=training.checkpoint_every,
            log=log,
            on_step=_show_steps(advance),
            stop=stop,
            compile=training.compile,
        )
        save_weights(network, folder.weights)
        write_json(folder.record, _describe_node(node, copies, summary, store))
        remove_checkpoints(folder.checkpoint)
    if stop.is_set():
        raise KeyboardInterrupt(f"phase {node.phase.name!r} was finished")


def build_start(node: Node, workspace: Workspace, num_classes: int) -> Network:
    """Build the network a node starts from: its parent's last weights, or the one its seed gives."""
    wanted = node.config.network
    build = build_network if node.parent is None else build_without_weights  # the parent's weights hold them already
    torch.manual_seed(node.config.seed)
    network = build(wanted.name, num_classes, **wanted.options)
    if node.parent is not None:
        load_weights(network, workspace.node(node.parent).weights)
    return network


def _batches(node: Node, source: Source, normalisation: Normalisation) -> Callable[[int], Iterable[Batch]]:
    """Return the function from a first step to the batches from there to the end of the phase."""
    data = node.config.data

    def from_step(first_step: int) -> Iterable[Batch]:
        return build_training_loader(
            source,
            normalisation=normalisation,
            augmentation=Augmentation(crop=data.crop, scale=data.scale, flip=data.flip, jitter=data.jitter),
            batch_size=node.config.training.batch_size,
            seed=node.seed,
            first_step=first_step,
            last_step=node.steps,
            workers=data.workers,
            with_depth=node.phase.needs_depth,
        )

    return from_step


def _show_steps(advance: Advance) -> Callable[[StepReport], None]:
    started_at = time.perf_counter()
    images = 0

    def show(report: StepReport) -> None:
        nonlocal images
        images += report.images
        losses = " ".join(f"{name} {value:.4f} ({report.share[name]:.0%})" for name, value in report.raw.items())
        advance(report.step, f"{losses} {images / (time.perf_counter() - started_at):.1f} images/s")

    return show


def _optim_settings(config: RunConfig) -> OptimSettings:
    training = config.training
    return OptimSettings(
        optimizer=training.optimizer,
        lr=training.lr,
        weight_decay=training.weight_decay,
        momentum=training.momentum,
        decay_norm_and_bias=training.decay_norm_and_bias,
        lr_schedule=training.lr_schedule,
        poly_power=training.poly_power,
        warmup_steps=training.warmup_steps,
        clip_norm=training.clip_norm,
        ema_decay=training.ema_decay,
        part_lr_factors=training.lr_factors,
        encoder_policy=training.encoder_policy,
    )


def _loss_settings(config: RunConfig) -> LossSettings:
    loss = config.loss
    assert not isinstance(loss.class_weights, str), "named weights became numbers before the plan was made"
    return LossSettings(
        seg=loss.seg,
        gamma=loss.gamma,
        alpha=loss.alpha,
        class_weights=loss.class_weights,
        depth=loss.depth,
        balance=loss.balance,
        dwa_window=loss.dwa_window,
    )


def _describe_node(
    node: Node, copies: list[CopyReport], summary: PhaseSummary, store: SplitDepth | None
) -> dict[str, Any]:
    return {
        "phase": node.phase.name,
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
    }


def _describe_run(run: PlannedRun, phases: list[dict[str, Any]], device: torch.device) -> dict[str, Any]:
    config = run.config
    compared = config.content()
    del compared["seed"], compared["schedule"]
    resolved = config.resolved()
    if config.data.root:  # so that `evaluate` finds it from any folder
        resolved["data"]["root"] = str(Path(config.data.root).expanduser().absolute())
    return {
        "run": run.name,
        "name": run.row,
        "seed": config.seed,
        "network": config.network.label,
        "dataset": config.data.dataset,
        "recipe": Path(config.recipe).stem,
        "schedule": {
            "name": run.row,
            "steps": [str(step) for step in run.schedule.steps],
            "own": bool(config.schedule.steps),
        },
        "phases": phases,
        "total_steps": run.steps,
        "selection": "last",
        "nodes": [node.folder for node in run.nodes],
        "depth_store": next((phase["depth_store"] for phase in phases if phase["depth_store"]), None),
        "settings": content_hash(compared, 8),
        "config": resolved,
        "device": str(device),
        "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
        **describe_software(),
    }


def _identify(
    run: PlannedRun, session: Session, device: torch.device, record: dict[str, Any], split: dict[str, str | None]
) -> dict[str, Any]:
    """Return what decides the scores besides name, network and seed, and what merely surrounded them."""
    config = run.config
    settings = {
        f"{section}.{key}": value
        for section, values in config.content().items()
        if section not in ("seed", "schedule")
        for key, value in values.items()
    }
    training = config.training
    identity = {
        "data": dataset_fingerprint(open_split(config, session.workspace, "train"), session.workspace.content_hashes()),
        "split": split["split"],
        "depth": (record["depth_store"] or {}).get("weights_sha256"),
        "numerics": {"device": device.type, "dtype": training.precision, "compile": training.compile},
        "evaluation": 1,
        "settings": settings,
    }
    return {
        "identity": identity,
        "environment": {"threads": torch.get_num_threads(), "versions": record["versions"]},
    }


def _gather_metrics(run: PlannedRun, session: Session, folder: Path) -> None:
    """Put the logs of a run's phases one after another into its folder."""
    logs = [session.workspace.node(node.folder).metrics.read_text(encoding="utf8") for node in run.nodes]
    (folder / "metrics.jsonl").write_text("".join(logs), encoding="utf8")

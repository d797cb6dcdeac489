"""Rows × seeds → a tree of training nodes with content keys, in which shared beginnings appear once. Imports no torch.

A node is one phase together with the copies just before it. Its key hashes everything that decides the weights it ends
with: data, depth store, network, first seed, and the path of steps so far with their budgets, losses and optimisers.
The random state of a phase is seeded from its key, so a node trained for a table and the same node trained alone are
the same bits.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_cache.errors import UserError
from data_cache.order import steps_per_epoch
from pipeline.experiment.config import NetworkConfig, RunConfig, content_hash
from stages.training.encoder_policy import parts_to_train
from stages.training.schedule import CopyWeights, Phase, Schedule

TRAINING_VERSION = 1
"""Raised by hand when the meaning of a training changes, so that nodes trained before are no longer reused."""


@dataclass(frozen=True)
class DataFacts:
    """What a plan must know about the data of a recipe."""

    num_images: int
    """Images in the training split."""
    num_classes: int
    dataset_fingerprint: str
    store_key: str | None
    """Fingerprint of the training split's depth store; None when no phase reads depth."""


@dataclass(frozen=True)
class Node:
    """One phase to train, with the copies just before it."""

    key: str
    folder: str
    """Name below ``nodes/``; the key, unless sharing was declined."""
    parent: str | None
    """Folder of the node whose last weights this one starts from; None starts from the seeded network."""
    copies: tuple[CopyWeights, ...]
    phase: Phase
    steps: int
    lr: float
    config: RunConfig = field(repr=False)

    @property
    def seed(self) -> int:
        """Seed of data order, augmentation and dropout in this phase."""
        return int(self.key[:8], 16)


@dataclass(frozen=True)
class PlannedRun:
    """One row of a table with one seed."""

    row: str
    config: RunConfig
    schedule: Schedule
    nodes: tuple[Node, ...]

    @property
    def name(self) -> str:
        """Folder name: network, row, seed, and a hash of all that decides the result."""
        config = self.config
        decided = {"config": config.content(), "nodes": [node.folder for node in self.nodes]}
        label = "" if self.row.startswith(config.network.name) else f"{config.network.label}-"
        readable = re.sub(r"[^\w.+-]+", "-", f"{label}{self.row}")  # own schedules and encoders may have any name
        return f"{readable}-s{config.seed}-{content_hash(decided, 8)}"

    @property
    def steps(self) -> int:
        """Optimiser steps of all phases together: the budget a comparison must state."""
        return sum(node.steps for node in self.nodes)


@dataclass(frozen=True)
class Plan:
    """Runs, and the distinct nodes they need; parents come before children."""

    runs: tuple[PlannedRun, ...]

    @property
    def nodes(self) -> dict[str, Node]:
        """Distinct nodes by folder."""
        return {node.folder: node for run in self.runs for node in run.nodes}

    @property
    def unshared(self) -> int:
        """How many trainings the same runs would need one by one."""
        return sum(len(run.nodes) for run in self.runs)


def plan_runs(
    rows: Iterable[tuple[str, RunConfig]], facts: DataFacts | Callable[[RunConfig], DataFacts], *, reuse: bool = True
) -> Plan:
    """Lay out the trainings of several runs.

    Args:
        rows: row name and configuration of each run.
        facts: what the data looks like; a function where it is not the same for all rows.
        reuse: whether runs share nodes; without it each run trains its own.
    """
    find = facts if callable(facts) else lambda _: facts
    return Plan(tuple(_plan_run(row, config, find(config), reuse) for row, config in rows))


def _plan_run(row: str, config: RunConfig, facts: DataFacts, reuse: bool) -> PlannedRun:
    schedule = config.build_schedule()
    if schedule.needs_depth and config.network.options.get("with_depth") is False:
        raise UserError(
            f"schedule {schedule.name!r} trains a depth branch, but network.with_depth is false; "
            "build the network with it, or choose a schedule without depth (seg-only)"
        )
    if schedule.needs_depth and facts.store_key is None:
        raise UserError(f"schedule {schedule.name!r} reads depth; label first with: pipeline pseudo-depth")
    _check_phases(schedule, config, facts)
    path: list[Any] = [_start(config, facts)]
    nodes: list[Node] = []
    copies: list[CopyWeights] = []
    for step in schedule.steps:
        if isinstance(step, CopyWeights):
            copies.append(step)
            path.append({"copy": [step.source.names(), step.target.names()]})
            continue
        steps = count_steps(step, config, len(schedule.phases), facts.num_images)
        path.append(_describe(step, steps, config, facts))
        key = content_hash(path, 16)
        folder = key if reuse else content_hash([key, row, config.seed, "alone"], 16)
        parent = nodes[-1].folder if nodes else None
        nodes.append(
            Node(key, folder, parent, tuple(copies), step, steps, step.lr or config.training.lr, config),
        )
        copies.clear()
    return PlannedRun(row, config, schedule, tuple(nodes))


def _check_phases(schedule: Schedule, config: RunConfig, facts: DataFacts) -> None:
    """Refuse what a later phase could not begin with, before an earlier one is trained for nothing."""
    training, weights = config.training, config.loss.class_weights
    problems = []
    if isinstance(weights, tuple) and len(weights) != facts.num_classes and any(p.needs_seg for p in schedule.phases):
        problems.append(
            f"loss.class_weights has {len(weights)} weights for {facts.num_classes} classes; give one per class"
        )
    for phase in schedule.phases:
        steps = count_steps(phase, config, len(schedule.phases), facts.num_images)
        if training.warmup_steps >= steps:
            problems.append(
                f"phase {phase.name!r} has {steps} steps, not more than the {training.warmup_steps} of warm-up; "
                "train longer or set training.warmup_steps lower"
            )
        try:
            parts_to_train(training.encoder_policy, phase)
        except UserError as problem:
            problems.append(str(problem))
    if problems:
        raise UserError("\n".join(problems))


def count_steps(phase: Phase, config: RunConfig, num_phases: int, num_images: int) -> int:
    """Return the optimiser steps of a phase under the recipe's budget."""
    training = config.training
    if phase.epochs is not None:
        return phase.epochs * steps_per_epoch(num_images, training.batch_size)
    whole = training.iterations or training.epochs * steps_per_epoch(num_images, training.batch_size)
    if training.budget == "total":
        return max(1, whole // num_phases)
    return whole * phase.budget_factor


def _start(config: RunConfig, facts: DataFacts) -> dict[str, Any]:
    """Describe the state before the first step: seeded network and the data it will see."""
    return {
        "version": TRAINING_VERSION,
        "dataset": facts.dataset_fingerprint,
        "network": describe_network(config.network),
        "classes": facts.num_classes,
        "seed": config.seed,
        "augmentation": config.data.model_dump(mode="json", include={"crop", "scale", "flip", "jitter"}),
    }


def describe_network(network: NetworkConfig) -> dict[str, Any]:
    """Describe a network by what decides its first state, as JSON-able data."""
    return {key: _content(value) for key, value in network.model_dump(mode="json").items()}


def _content(value: Any) -> Any:
    """Replace the path of a weights file by its hash: the key must follow the content."""
    if isinstance(value, str) and value.endswith(".safetensors") and Path(value).is_file():
        return hashlib.sha256(Path(value).read_bytes()).hexdigest()
    return value


_ELSEWHERE = {"epochs", "iterations", "budget", "lr", "encoder_policy", "transfer"}
"""Training settings that a phase's description says in its own way."""
_WITHOUT_EFFECT = {"checkpoint_every", "log_every", "tensorboard"}
"""Training settings that leave the weights as they are."""


def _describe(phase: Phase, steps: int, config: RunConfig, facts: DataFacts) -> dict[str, Any]:
    """Describe a phase by what decides its outcome, and by nothing else, so that equal work gets equal keys."""
    training, loss = config.training, config.loss
    described: dict[str, Any] = {
        "trains": phase.trains.names(),
        "weights": [phase.focal, phase.mse],
        "steps": steps,
        "lr": phase.lr or training.lr,
        "training": training.model_dump(mode="json", exclude=_ELSEWHERE | _WITHOUT_EFFECT),
    }
    if phase.needs_seg:
        described["seg-loss"] = loss.model_dump(mode="json", include={"seg", "gamma", "alpha", "class_weights"})
    if phase.needs_depth:
        described["depth"] = [facts.store_key, config.depth.target, loss.depth]
    if phase.needs_seg and phase.needs_depth:
        described["balance"] = [loss.balance, loss.dwa_window] if loss.balance == "dwa" else loss.balance
    if not (phase.needs_seg and phase.needs_depth) or training.encoder_policy.startswith("always-"):
        described["encoder-policy"] = training.encoder_policy
    return described

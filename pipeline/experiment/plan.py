"""Rows × seeds → a tree of training nodes with content keys, in which shared beginnings appear once. Imports no torch.

A node is one phase together with the copies just before it. Its key hashes everything that decides the weights it ends
with, as the settings declare it: data, depth, first weights, numerics, and the path of steps so far with their budgets,
losses and optimisers. Order, augmentation and dropout of a phase are seeded from the run's seed and its place in the
path: a node trained for a table and the same node trained alone are the same bits, and rows of one seed see common
random numbers where they do the same thing.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from data_cache.errors import UserError
from data_cache.order import steps_per_epoch
from data_cache.ranks import world_size
from data_cache.settings import Decides, parse_share
from pipeline.experiment.config import RunConfig, content_hash
from stages.evaluation.settings import EVALUATION_VERSION
from stages.networks.settings import NetworkSettings
from stages.training.encoder_policy import find_encoder_lr_factor, freezes_encoder, parts_to_train
from stages.training.schedule import CopyWeights, Phase, Schedule

TRAINING_VERSION = 4
"""Raised by hand when the meaning of a training changes, so that nodes trained before are no longer reused."""


class Row(NamedTuple):
    """One row of a table with one seed, or the recipe itself: what is asked for, nothing left to be resolved."""

    name: str
    config: RunConfig
    schedule: Schedule


class Reported(NamedTuple):
    """Fingerprints of what a run's scores depend on besides its weights."""

    split: str
    """Of the reported split's images, labels and classes."""
    depth: str | None
    """Of its depth maps; None without any."""


class Scope(NamedTuple):
    """Which images a phase reads, and how."""

    masks: bool
    """Whether it reads the masks of the labelled images."""
    pool: bool
    """Whether it reads images beside the labelled ones: without masks as one list, else in batches of both."""


class BatchSize(NamedTuple):
    """Images that each step of a phase reads."""

    labelled: int
    """With their masks."""
    unlabelled: int


class Material(NamedTuple):
    """What phases of one scope find."""

    images: int
    """Those an epoch is counted by: of batches of both kinds the labelled ones."""
    fingerprint: str
    """Of the images, and of the masks where they are read."""
    depth: str | None
    """Of their depth maps; None when no such phase reads depth."""


@dataclass(frozen=True)
class DataFacts:
    """What a plan must know about the data of a recipe."""

    num_classes: int
    materials: Mapping[Scope, Material]
    """By every scope that a phase has."""
    pool: int = 0
    """Images that can be read beside the labelled ones."""
    fingerprint: str = ""
    """Of the training split's images, labels and classes, whatever of it is used."""
    own_pool: str | None = None
    """Of the images that the dataset brings without masks; None where none are read."""
    depth: str | None = None
    """What the depth of runs of one row has in common; None when no phase reads depth."""
    labelled: tuple[str, ...] | None = None
    """Ids of the training images whose masks are used; None is all."""
    reported: Reported = field(default=Reported("", None))
    smallest: tuple[str, tuple[int, int]] | None = None
    """The reported image with the shortest side, and its (height, width)."""
    notes: tuple[str, ...] = ()
    """What a person should know about these data before hours are spent on them."""


@dataclass(frozen=True)
class Node:
    """One phase to train, with the copies just before it."""

    key: str
    folder: str
    """Name below ``nodes/``; the key, unless reuse was declined."""
    parent: str | None
    """Folder of the node whose last weights this one starts from; None starts from the seeded network."""
    copies: tuple[CopyWeights, ...]
    phase: Phase
    scope: Scope
    batch: BatchSize
    labelled: tuple[str, ...] | None = field(repr=False)
    """As in ``DataFacts``."""
    steps: int
    lr: float
    seed: int
    """Seed of data order, augmentation and dropout in this phase."""
    config: RunConfig = field(repr=False)
    network: dict[str, Any] = field(repr=False)
    """The network as its key describes it, weights files by their content."""

    @property
    def images_seen(self) -> dict[str, int]:
        """How many images all steps read, with their masks and without, each as often as it comes."""
        return {name: self.steps * number for name, number in self.batch._asdict().items()}


@dataclass(frozen=True)
class PlannedRun:
    """One row of a table with one seed."""

    row: str
    config: RunConfig
    schedule: Schedule
    nodes: tuple[Node, ...]
    facts: DataFacts

    @property
    def name(self) -> str:
        """Folder name: network, row, seed, and a hash of all that decides the result."""
        config = self.config
        label = "" if self.row.startswith(config.network.name) else f"{config.network.label}-"
        readable = re.sub(r"[^\w.+-]+", "-", f"{label}{self.row}")  # encoders may have any name
        scores = describe_scores(config, needs_depth=self.schedule.needs_depth)
        return f"{readable}-s{config.seed}-{content_hash([self.nodes[-1].folder, scores], 8)}"

    @property
    def steps(self) -> int:
        """Optimiser steps of all phases together: the budget a comparison must state."""
        return sum(node.steps for node in self.nodes)

    def describe_settings(self) -> dict[str, Any]:
        """Return every setting that decides weights or scores, seed and schedule left out, under dotted keys.

        What phases resolve (steps, rates, losses) is told per phase.
        """
        kinds = {Decides.FIRST_WEIGHTS, Decides.DATA, Decides.NUMERICS, Decides.SCORES}
        kinds |= {kind for node in self.nodes for kind in _kinds_of(node.phase, node.scope)}
        described = self.config.describe(*kinds, needs_depth=self.schedule.reads_depth)
        del described["seed"]
        losses, network = self.config.loss, describe_network(self.config.network)
        if self.facts.labelled is not None:
            described |= {"data.labelled_fraction": self._describe_fraction()}
        if any(node.scope.pool for node in self.nodes):
            described |= {"data.unlabelled": self.config.data.unlabelled, "data.pool": self.facts.own_pool}
        if self.schedule.reads_depth:
            depth = self.config.depth
            described |= {"depth.estimator": Path(depth.estimator).name, "depth.source": depth.source}
        return described | {
            **{f"network.{key}": value for key, value in network.items()},
            "training.steps": [node.steps for node in self.nodes],
            "training.lr": [node.lr for node in self.nodes],
            "training.encoder_policy": self.config.training.encoder_policy,
            "loss": [losses.describe(phase) for phase in self.schedule.phases],
        }

    def _describe_fraction(self) -> str:
        """Return the share of the masks that is used, and which ones where no lot decides."""
        share, by = parse_share(self.config.data.labelled_fraction), self.config.data.labelled_by
        chosen = f"list {content_hash(self.facts.labelled, 8)}"
        if share is None:
            return chosen
        # By lot every seed has other images, which are one row; what a teacher chose is the same for all seeds.
        return f"{share:g} by {by}" if by == "random" else f"{share:g} by {by}, {chosen}"


def describe_scores(config: RunConfig, *, needs_depth: bool) -> dict[str, Any]:
    """Describe what is measured on finished weights."""
    return config.describe(Decides.SCORES, needs_depth=needs_depth)


def evaluation_key(weights: str, config: RunConfig, split: str, depth: str | None, *, needs_depth: bool) -> str:
    """Return the key of a run's scores.

    Args:
        weights: hash of the run's last weights.
        split: fingerprint of what is scored on.
        depth: fingerprint of its depth maps, if there are any.
    """
    return content_hash(
        [EVALUATION_VERSION, weights, describe_scores(config, needs_depth=needs_depth), split, depth], 16
    )


@dataclass(frozen=True)
class Plan:
    """Runs, and the distinct nodes they need; parents come before children."""

    runs: tuple[PlannedRun, ...]

    @property
    def nodes(self) -> dict[str, Node]:
        """Distinct nodes by folder."""
        return {node.folder: node for run in self.runs for node in run.nodes}

    @property
    def notes(self) -> list[str]:
        """What a person should know about the data, each said once."""
        return list(dict.fromkeys(note for run in self.runs for note in run.facts.notes))

    @property
    def without_reuse(self) -> int:
        """How many trainings the same runs would need one by one."""
        return sum(len(run.nodes) for run in self.runs)


def plan_runs(rows: Iterable[Row], facts: DataFacts | Callable[[Row], DataFacts], *, reuse: bool = True) -> Plan:
    """Lay out the trainings of several runs.

    Args:
        rows: with everything resolved that would otherwise be looked up later.
        facts: what the data looks like; a function where it is not the same for all rows.
        reuse: whether runs share nodes; without it each run trains its own.

    Raises:
        UserError: a row asks for what cannot be trained; all its problems are listed.
    """
    find = facts if callable(facts) else lambda _: facts
    return Plan(tuple(_plan_run(row, find(row), reuse) for row in rows))


def _plan_run(row: Row, facts: DataFacts, reuse: bool) -> PlannedRun:
    _check_row(row, facts)
    name, config, schedule = row
    path: list[Any] = [_describe_start(config, facts)]
    nodes: list[Node] = []
    copies: list[CopyWeights] = []
    for step in schedule.steps:
        if isinstance(step, CopyWeights):
            copies.append(step)
            path.append({"copy": [step.source.names(), step.target.names()]})
            continue
        scope = find_scope(step, config, facts.pool)
        material = facts.materials[scope]
        steps, lr = count_steps(step, config, len(schedule.phases), material.images), step.lr or config.training.lr
        path.append({"steps": steps, "lr": lr} | _describe_phase(step, scope, config, material))
        key = content_hash(path, 16)
        folder = key if reuse else content_hash([key, name, config.seed, "alone"], 16)
        parent = nodes[-1].folder if nodes else None
        seed = _seed_of_phase(config.seed, len(nodes))
        nodes.append(
            Node(
                key, folder, parent, tuple(copies), step, scope, _size_batches(scope, config, material),
                facts.labelled, steps, lr, seed, config, path[0]["network"],
            )
        )  # fmt: skip
        copies.clear()
    return PlannedRun(name, config, schedule, tuple(nodes), facts)


def _check_row(row: Row, facts: DataFacts) -> None:
    """Refuse what a later phase could not begin with, before an earlier one is trained for nothing."""
    _, config, schedule = row
    training, weights = config.training, config.loss.class_weights
    problems = []
    if schedule.needs_depth and config.network.options.get("with_depth") is False:
        problems.append(
            f"schedule {schedule.name!r} trains a depth branch, but network.with_depth is false; build the network "
            "with it, or choose a schedule without depth (seg-only)"
        )
    elif any(p.reads_depth and _find_material(p, config, facts).depth is None for p in schedule.phases):
        problems.append(f"schedule {schedule.name!r} reads depth; label first with: pipeline pseudo-depth")
    if isinstance(weights, tuple) and len(weights) != facts.num_classes and any(p.needs_seg for p in schedule.phases):
        problems.append(
            f"loss.class_weights has {len(weights)} weights for {facts.num_classes} classes; give one per class"
        )
    for phase in schedule.phases:
        steps = count_steps(phase, config, len(schedule.phases), _find_material(phase, config, facts).images)
        if training.warmup_steps >= steps:
            problems.append(
                f"phase {phase.name!r} has {steps} steps, not more than the {training.warmup_steps} of warm-up; "
                "train longer or set training.warmup_steps lower"
            )
        problems += _find_mix_problems(phase, config, facts) if phase.mix != "none" else ()
        try:
            parts_to_train(training.encoder_policy, phase)
        except UserError as problem:
            problems.append(str(problem))
    if problems:
        raise UserError("\n".join(problems))


def _find_mix_problems(phase: Phase, config: RunConfig, facts: DataFacts) -> Iterator[str]:
    training, what = config.training, f"phase {phase.name!r} has mix {phase.mix!r}"
    share, scope = training.unlabelled_share, find_scope(phase, config, facts.pool)
    in_batch = _size_batches(scope, config, facts.materials[scope]).unlabelled
    if facts.pool < 2:
        yield (
            f"{what}, which lays images without masks over each other, but the data offer {facts.pool} of them; keep "
            "fewer masks (--labelled-fraction 1/8), add images without masks, or set mix to none"
        )
    elif in_batch < 2:
        yield (
            f"{what}, but a batch holds {in_batch} images without masks, and mixing takes two; raise "
            f"training.unlabelled_share (now {share:g}) or --batch-size (now {training.batch_size})"
        )
    if phase.mix == "depth" and config.depth.target in ("zscore", "metric"):
        yield (
            f"{what}, which compares inverse depth in [0, 1], but depth.target {config.depth.target!r} has other "
            "units; use robust, minmax or log, or mix by class or cut"
        )
    if world_size() > 1:
        yield (
            f"{what}, whose partners would lie in different processes; train it in one process, or on several GPUs "
            "one run each (pipeline table --jobs)"
        )


def find_scope(phase: Phase, config: RunConfig, pool: int) -> Scope:
    """Return what a phase reads; without a pool, or a share of it, one that asks for all reads the labelled images.

    Args:
        pool: images that can be read beside the labelled ones.
    """
    wanted = phase.reads == "all" and (not phase.needs_seg or config.training.unlabelled_share > 0)
    return Scope(phase.needs_seg, wanted and pool > 0)


def _size_batches(scope: Scope, config: RunConfig, material: Material) -> BatchSize:
    """Return the images of a step; images without masks come on top of labelled ones, as many as make their share."""
    training = config.training
    size = min(training.batch_size, material.images)
    if not scope.masks:
        return BatchSize(0, size)
    share = training.unlabelled_share
    return BatchSize(size, max(1, round(size * share / (1 - share))) if scope.pool else 0)


def _find_material(phase: Phase, config: RunConfig, facts: DataFacts) -> Material:
    return facts.materials[find_scope(phase, config, facts.pool)]


def count_steps(phase: Phase, config: RunConfig, num_phases: int, num_images: int) -> int:
    """Return the optimiser steps of a phase under the recipe's budget.

    Args:
        num_images: what an epoch of it is a pass over.
    """
    training = config.training
    if phase.epochs is not None:
        return phase.epochs * steps_per_epoch(num_images, training.batch_size)
    whole = training.iterations or training.epochs * steps_per_epoch(num_images, training.batch_size)
    if training.budget == "total":
        return max(1, whole // num_phases)
    return whole * phase.budget_factor


def _seed_of_phase(run_seed: int, position: int) -> int:
    """Return the seed of a phase's order, augmentation and dropout: rows pair wherever they are in the same place."""
    return int.from_bytes(hashlib.blake2b(f"{run_seed}:{position}".encode(), digest_size=4).digest(), "big")


def _describe_start(config: RunConfig, facts: DataFacts) -> dict[str, Any]:
    """Describe the state before the first step: seeded network, how images are cut, and what it computes in."""
    assert config.training.precision != "auto", "what is auto is resolved before it is hashed"
    return {
        "version": TRAINING_VERSION,
        "classes": facts.num_classes,
        "network": describe_network(config.network),
        **config.describe(Decides.DATA, Decides.NUMERICS),
    }


def describe_network(network: NetworkSettings) -> dict[str, Any]:
    """Describe a network by what decides its first state, as JSON-able data; weights files count by their content."""
    return {key: _hash_if_weights(value) for key, value in network.model_dump(mode="json").items()}


def _hash_if_weights(value: Any) -> Any:
    if isinstance(value, str) and value.endswith(".safetensors") and Path(value).is_file():
        state = Path(value).stat()
        return _hash_weights(Path(value), (state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino))
    return value


@lru_cache
def _hash_weights(path: Path, _state: tuple[int, ...]) -> str:
    """Return the hash of a weights file, computed once for each state of it: every row and seed asks."""
    with path.open("rb") as file:
        return f"sha256 {hashlib.file_digest(file, 'sha256').hexdigest()[:16]}"


def _describe_phase(phase: Phase, scope: Scope, config: RunConfig, material: Material) -> dict[str, Any]:
    """Describe a phase by what decides its outcome, and by nothing else, so that equal work gets equal keys."""
    policy = config.training.encoder_policy
    assert config.loss.class_weights != "median-frequency", "named weights become numbers before the plan is made"
    return {
        "trains": phase.trains.names(),
        "weights": [phase.seg, phase.depth],
        "encoder": [freezes_encoder(policy, phase), find_encoder_lr_factor(policy, phase)],
        "images": material.fingerprint,
        "depth": material.depth if phase.reads_depth else None,
        "mix": phase.mix,
        **config.describe(*_kinds_of(phase, scope)),
    }


def _kinds_of(phase: Phase, scope: Scope) -> set[Decides]:
    """Return what kinds of settings a phase reads beside those of the start."""
    read = {
        Decides.OPTIMISATION: True,
        Decides.SEG_LOSS: phase.needs_seg,
        Decides.DEPTH_LOSS: phase.reads_depth,
        Decides.JOINT_LOSS: phase.needs_seg and phase.needs_depth,
        Decides.POOL: scope.masks and scope.pool,
        Decides.MIX: phase.mix != "none",
    }
    return {kind for kind, needed in read.items() if needed}

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
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from data_cache.errors import UserError
from data_cache.ranks import world_size
from data_cache.settings import Decides, parse_share
from pipeline.experiment.config import RunConfig, content_hash
from pipeline.experiment.keys import (
    chooses_weights,
    describe_network,
    describe_phase,
    describe_scores,
    describe_start,
    kinds_of,
)
from pipeline.experiment.reading import (
    BatchSize,
    DataFacts,
    Scope,
    count_steps,
    count_validation,
    find_material,
    find_scope,
    size_batches,
)
from stages.training.encoder_policy import parts_to_train
from stages.training.schedule import CopyWeights, Phase, Schedule
from stages.training.settings import REGION_LOSSES


class Row(NamedTuple):
    """One row of a table with one seed, or the recipe itself: what is asked for, nothing left to be resolved."""

    name: str
    config: RunConfig
    schedule: Schedule
    class_weights: str | None = None
    """The rule by which the numbers in ``config`` were counted from the masks, None where a recipe gives numbers."""


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
    facts: DataFacts = field(repr=False)
    """Of the data that it is trained on."""
    steps: int
    lr: float
    seed: int
    """Seed of data order, augmentation and dropout in this phase."""
    config: RunConfig = field(repr=False)
    network: dict[str, Any] = field(repr=False)
    """The network as its key describes it, weights files by their content."""
    validate_every: int = 0
    """Steps between two scorings while it is trained; 0 is none. It decides something only where weights are chosen."""

    @property
    def title(self) -> str:
        """What is trained, for people."""
        return f"{self.config.network.label} s{self.config.seed} {self.config.loss.describe_step(self.phase)}"

    @property
    def images_seen(self) -> dict[str, int]:
        """How many images all steps read, with their masks and without, each as often as it comes."""
        return self.count_images(self.steps)

    def count_images(self, steps: int) -> dict[str, int]:
        """Return how many images so many steps read."""
        return {name: steps * number for name, number in self.batch._asdict().items()}


@dataclass(frozen=True)
class PlannedRun:
    """One row of a table with one seed."""

    row: str
    config: RunConfig
    schedule: Schedule
    nodes: tuple[Node, ...]
    facts: DataFacts
    class_weights: str | None = None
    """As of ``Row``."""

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
        kinds |= {kind for node in self.nodes for kind in kinds_of(node.phase, node.scope, self.config)}
        described = self.config.describe(*kinds, needs_depth=self.schedule.reads_depth)
        del described["seed"]
        losses, network = self.config.loss, describe_network(self.config.network)
        if self.class_weights and "loss.class_weights" in described:
            # Where every seed has masks of its own the rule counts other numbers of each; they are one row.
            described["loss.class_weights"] = self.class_weights
        if self.facts.labelled is not None:
            described |= {"data.labelled_fraction": self._describe_fraction()}
        if any(node.scope.pool for node in self.nodes):
            described |= {"data.unlabelled": self.config.data.unlabelled, "data.pool": self.facts.own_pool}
        if Decides.SELECTION in kinds:
            described |= {"training.val_every": [node.validate_every for node in self.nodes]}
            described |= {"training.selection": str(self.facts.selection)}
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
    name, config, schedule = row.name, row.config, row.schedule
    path: list[Any] = [describe_start(config, facts.num_classes)]
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
        every = count_validation(step, config, material.images)
        path.append({"steps": steps, "lr": lr} | describe_phase(step, scope, config, material, facts.selection))
        if chooses_weights(step, config):
            path[-1]["val_every"] = every
        key = content_hash(path, 16)
        folder = key if reuse else content_hash([key, name, config.seed, "alone"], 16)
        parent = nodes[-1].folder if nodes else None
        seed = _seed_of_phase(config.seed, len(nodes))
        nodes.append(
            Node(
                key, folder, parent, tuple(copies), step, scope, size_batches(scope, config, material),
                facts, steps, lr, seed, config, path[0]["network"], every,
            )
        )  # fmt: skip
        copies.clear()
    return PlannedRun(name, config, schedule, tuple(nodes), facts, row.class_weights)


def _check_row(row: Row, facts: DataFacts) -> None:
    """Refuse what a later phase could not begin with, before an earlier one is trained for nothing."""
    config, schedule = row.config, row.schedule
    training, weights = config.training, config.loss.class_weights
    problems = []
    if schedule.needs_depth and config.network.options.get("with_depth") is False:
        problems.append(
            f"schedule {schedule.name!r} trains a depth branch, but network.with_depth is false; build the network "
            "with it, or choose a schedule without depth (seg-only)"
        )
    elif any(p.reads_depth and find_material(p, config, facts).depth is None for p in schedule.phases):
        problems.append(f"schedule {schedule.name!r} reads depth; label first with: pipeline pseudo-depth")
    if isinstance(weights, tuple) and len(weights) != facts.num_classes and any(p.needs_seg for p in schedule.phases):
        problems.append(
            f"loss.class_weights has {len(weights)} weights for {facts.num_classes} classes; give one per class"
        )
    if world_size() > 1 and (regions := [name for name in config.loss.seg_terms if name in REGION_LOSSES]):
        problems.append(
            f"loss.seg has {', '.join(regions)}, which looks at a whole batch, of which each process has a part; train "
            "in one process, or on several GPUs one run each (pipeline table --jobs)"
        )
    for phase in schedule.phases:
        steps = count_steps(phase, config, len(schedule.phases), find_material(phase, config, facts).images)
        if training.warmup_steps >= steps:
            problems.append(
                f"phase {phase.name!r} has {steps} steps, not more than the {training.warmup_steps} of warm-up; "
                "train longer or set training.warmup_steps lower"
            )
        problems += _find_mix_problems(phase, config, facts) if phase.mix != "none" else ()
        problems += _find_part_problems(phase, config, facts) if training.accumulate > 1 else ()
        try:
            parts_to_train(training.encoder_policy, phase)
        except UserError as problem:
            problems.append(str(problem))
    if problems:
        raise UserError("\n".join(problems))


def _find_mix_problems(phase: Phase, config: RunConfig, facts: DataFacts) -> Iterator[str]:
    training, what = config.training, f"phase {phase.name!r} has mix {phase.mix!r}"
    share, scope = training.unlabelled_share, find_scope(phase, config, facts.pool)
    in_batch = size_batches(scope, config, facts.materials[scope]).unlabelled
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


def _find_part_problems(phase: Phase, config: RunConfig, facts: DataFacts) -> Iterator[str]:
    parts, scope = config.training.accumulate, find_scope(phase, config, facts.pool)
    what = f"phase {phase.name!r} with training.accumulate = {parts}"
    if (fewest := min(filter(None, size_batches(scope, config, facts.materials[scope])))) < parts:
        yield f"{what} has {fewest} images of a kind for each step, less than one a part; lower --accumulate"
    if phase.mix != "none":
        yield f"{what} has mix {phase.mix!r}, whose trust in labels is of a whole batch; drop one of the two"
    if config.loss.balance == "share" and phase.needs_seg and phase.needs_depth:
        yield f'{what}: loss.balance = "share" compares the losses of a whole batch; drop one of the two'


def _seed_of_phase(run_seed: int, position: int) -> int:
    """Return the seed of a phase's order, augmentation and dropout: rows pair wherever they are in the same place."""
    return int.from_bytes(hashlib.blake2b(f"{run_seed}:{position}".encode(), digest_size=4).digest(), "big")

"""What phases read and for how long: which images, in which batches, over how many steps. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from data_cache.order import steps_per_epoch
from pipeline.experiment.config import RunConfig
from stages.training.schedule import Phase


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


class Selection(NamedTuple):
    """The images on which weights are chosen; never the reported ones."""

    split: str
    fingerprint: str
    """Of them and their masks."""
    held_out: tuple[str, ...] | None
    """Ids of the training images that are kept for it; None where it is another split."""
    images: int

    def __str__(self) -> str:
        where = "of" if self.held_out is None else "held out of"
        return f"{self.images} image{'' if self.images == 1 else 's'} {where} {self.split}"


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
    selection: Selection | None = None
    """On what weights are chosen; None where the last ones are taken."""
    control: float | None = None
    """How a control's maps correlate with the estimator's; None without a control, and where that is not known."""


def find_scope(phase: Phase, config: RunConfig, pool: int) -> Scope:
    """Return what a phase reads; without a pool, or a share of it, one that asks for all reads the labelled images.

    Args:
        pool: images that can be read beside the labelled ones.
    """
    wanted = phase.reads == "all" and (not phase.needs_seg or config.training.unlabelled_share > 0)
    return Scope(phase.needs_seg, wanted and pool > 0)


def size_batches(scope: Scope, config: RunConfig, material: Material) -> BatchSize:
    """Return the images of a step; images without masks come on top of labelled ones, as many as make their share."""
    training = config.training
    size = min(training.images_per_step, material.images)
    if not scope.masks:
        return BatchSize(0, size)
    share = training.unlabelled_share
    return BatchSize(size, max(1, round(size * share / (1 - share))) if scope.pool else 0)


def find_material(phase: Phase, config: RunConfig, facts: DataFacts) -> Material:
    return facts.materials[find_scope(phase, config, facts.pool)]


def count_steps(phase: Phase, config: RunConfig, num_phases: int, num_images: int) -> int:
    """Return the optimiser steps of a phase under the recipe's budget.

    Args:
        num_images: what an epoch of it is a pass over.
    """
    training = config.training
    if phase.epochs is not None:
        return phase.epochs * steps_per_epoch(num_images, training.images_per_step)
    whole = training.iterations or training.epochs * steps_per_epoch(num_images, training.images_per_step)
    if training.budget == "total":
        return max(1, whole // num_phases)
    return whole * phase.budget_factor


def count_validation(phase: Phase, config: RunConfig, num_images: int) -> int:
    """Return the steps between two scorings of a phase; 0 where it is not scored while it is trained.

    Args:
        num_images: what an epoch of it is a pass over.
    """
    training = config.training
    if not phase.needs_seg:
        return 0
    if training.val_every is None:
        return steps_per_epoch(num_images, training.images_per_step) if training.chooses else 0
    return training.val_every

"""Disk space against the plan, before hours are spent. Imports no torch."""

from __future__ import annotations

import operator
from typing import NamedTuple

from data_cache.files import check_space, measure_free_space
from pipeline.experiment.facts import inspect_network
from pipeline.experiment.plan import Plan
from pipeline.session import Session

_STATES = 2
"""Training states of a phase that lie on the disk at the same time: the last one stays until the next is complete."""
_COPIES_PER_STATE = 3
"""A state holds the weights and, with Adam, two moments of each."""


class DiskNeed(NamedTuple):
    """What is still to be written, and what there is room for."""

    weights: int
    """Of the phases still to be trained, bytes."""
    peak: int
    """With the states of the largest phases in training, bytes."""
    free: int


def measure_disk_need(plan: Plan, session: Session, at_once: int = 1) -> DiskNeed:
    """Return what the trainings of a plan will write.

    Args:
        at_once: how many may be under way at the same time.
    """
    missing = [node for node in plan.nodes.values() if not session.workspace.node(node.folder).finished]
    networks = [inspect_network(node.config.network, node.facts.num_classes, session.workspace) for node in missing]
    weights = [sum(part["bytes"] for part in network.parts.values()) for network in networks]
    # Beside the last weights a state may hold the best ones.
    copies = [_COPIES_PER_STATE + (node.config.training.keep == "best") for node in missing]
    states = _STATES * sum(sorted(map(operator.mul, weights, copies))[-at_once:])
    return DiskNeed(sum(weights), sum(weights) + states, measure_free_space(session.workspace.root))


def check_disk_need(plan: Plan, session: Session, at_once: int) -> None:
    """Refuse trainings for whose weights and states there is no room; arguments as in ``measure_disk_need``.

    Raises:
        UserError: naming what is needed and what is free.
    """
    check_space(
        session.workspace.root, measure_disk_need(plan, session, at_once).peak, "the weights and training states"
    )

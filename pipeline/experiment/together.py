"""A plan that several ranks execute together: rank 0 walks over it and says what is next, the others take part in that.

They hold the same plan, but ask the disk for nothing: whether a phase is finished, who holds its lock and where it goes
on is rank 0's to say. So ranks cannot go different ways.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn

from data_cache.ranks import broadcast_object, check_alike, world_size
from pipeline.experiment.config import content_hash
from pipeline.experiment.plan import Node, Plan, PlannedRun
from pipeline.job import check_batch, check_shared_folder

if TYPE_CHECKING:
    import torch

    from pipeline.workspace import Workspace


def check_ranks(plan: Plan, workspace: Workspace, device: torch.device) -> None:
    """Raise a UserError on all ranks where they have not one plan, one work directory and one kind of device."""
    if world_size() == 1:
        return
    names = [*sorted(plan.nodes), *(run.name for run in plan.runs)]
    check_alike({"plan (recipe, data, depth)": content_hash(names, 12), "device": device.type})
    check_shared_folder(workspace.root)
    smallest = min((node.batch for node in plan.nodes.values()), key=lambda batch: min(filter(None, batch)))
    mixed = all(smallest)  # each rank has images of both kinds
    parts = max(node.config.training.accumulate for node in plan.nodes.values())
    check_batch(min(filter(None, smallest)) // parts, "images with masks, and those without," if mixed else "images")


def announce(name: str | None) -> None:
    """Tell the other ranks, who follow, that the task of this name begins; None that there are no more."""
    broadcast_object(name)


def follow(plan: Plan, take_part: Callable[[Node | PlannedRun], object]) -> NoReturn:
    """Take part in what rank 0 announces until there is no more, and leave the command: the rest is rank 0's."""
    tasks: dict[str, Node | PlannedRun] = {node.folder: node for node in plan.nodes.values()}
    tasks |= {run.name: run for run in plan.runs}
    while (name := broadcast_object()) is not None:
        take_part(tasks[name])
    raise SystemExit(0)

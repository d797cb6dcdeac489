"""`pipeline plan`: what a run or a table would do, without doing it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import click

from pipeline.options import RecipeCommand, device_option, no_reuse_option, seeds_option

if TYPE_CHECKING:
    from pipeline.experiment.config import RunConfig
    from pipeline.experiment.facts import NetworkFacts
    from pipeline.experiment.plan import Node, Plan
    from pipeline.session import Result, Session
    from stages.training.schedule import CopyWeights


@click.command(cls=RecipeCommand)
@click.argument("name", required=False)
@seeds_option
@no_reuse_option
@device_option
@click.pass_obj
def plan(
    session: Session,
    config: RunConfig,
    name: str | None,
    seeds: tuple[int, ...] | None,
    no_reuse: bool,
    device: str,
) -> None:
    """Print what a run, or the table NAME, would do; trains nothing."""
    session.show(preview_plan(config, session, name, seeds, device, reuse=not no_reuse))


def preview_plan(
    config: RunConfig, session: Session, table: str | None, seeds: tuple[int, ...] | None, device: str, *, reuse: bool
) -> Result:
    """Describe nodes, parts, batch-norm, copies, steps and disk; train nothing.

    Returns:
        ``nodes`` (distinct trainings), ``unshared``, ``phases``, ``runs``, ``notes``, ``disk_bytes`` (weights),
        ``disk_peak_bytes`` (with training states), ``disk_free_bytes``.
    """
    from rich.console import Group

    from pipeline.experiment.devices import find_device
    from pipeline.experiment.expand import expand_rows, make_plan
    from pipeline.experiment.space import measure_disk_need
    from pipeline.session import Result

    plan = make_plan(expand_rows(config, table, seeds, session, find_device(device)), session, reuse=reuse)
    classes = {node.folder: run.facts.num_classes for run in plan.runs for node in run.nodes}
    phases = [_describe(node, session, classes[node.folder]) for node in plan.nodes.values()]
    to_train = [phase for phase in phases if not phase["done"]]
    disk = measure_disk_need(plan, session)
    facts = {
        "nodes": len(phases),
        "to_train": len(to_train),
        "unshared": plan.without_reuse,
        "phases": phases,
        "runs": [{"row": run.row, "seed": run.config.seed, "name": run.name, "steps": run.steps} for run in plan.runs],
        "notes": [*plan.notes, *([] if disk.peak <= disk.free else ["too little disk space: a run would not begin"])],
        "disk_bytes": disk.weights,
        "disk_peak_bytes": disk.peak,
        "disk_free_bytes": disk.free,
    }
    return Result(facts, Group(*_render(plan, facts)))


def _describe(node: Node, session: Session, num_classes: int) -> dict[str, Any]:
    from pipeline.experiment.facts import inspect_network
    from stages.training.encoder_policy import find_encoder_lr_factor, parts_to_train, trains_fresh_only
    from stages.training.schedule import ENCODER, EVERYTHING

    network = inspect_network(node.config.network, num_classes, session.workspace)
    parts = network.parts
    policy = node.config.training.encoder_policy
    trains = parts_to_train(policy, node.phase)
    trained, frozen = list(trains.names()), [name for name in (EVERYTHING & ~trains).names() if name in parts]
    if network.fresh and trains_fresh_only(policy, node.phase):
        trained.insert(0, "encoder (fresh modules only)")
        frozen[0] = "encoder (pretrained modules)"
    return {
        "name": node.phase.name,
        "key": node.folder,
        "parent": node.parent,
        "done": session.workspace.node(node.folder).finished,
        "seed": node.config.seed,
        "network": node.config.network.label,
        "trains": trained,
        "frozen": frozen,
        "batch_norm": _describe_batch_norm(node),
        "losses": node.config.loss.describe(node.phase),
        "seg": node.phase.seg,
        "depth": node.phase.depth,
        "steps": node.steps,
        "lr": node.lr,
        "encoder_lr_factor": find_encoder_lr_factor(policy, node.phase) if ENCODER & trains else 0.0,
        "copies": [_describe_copy(copy, network) for copy in node.copies],
        "bytes": sum(count["bytes"] for count in parts.values()),
    }


def _describe_copy(copy: CopyWeights, network: NetworkFacts) -> dict[str, Any]:
    source, target = copy.source.names()[0], copy.target.names()[0]
    return {"from": source, "to": target, "tensors": network.count_copied(copy)}


def _describe_batch_norm(node: Node) -> str:
    from stages.training.encoder_policy import trains_fresh_only

    policy = node.config.training.encoder_policy
    if trains_fresh_only(policy, node.phase):
        return f"statistics move in trained modules; those of the pretrained encoder are frozen (policy {policy})"
    return "statistics move in trained parts and are frozen elsewhere"


def _name_trained(phase: dict[str, Any]) -> str:
    """Name the parts that learn, and how gently the encoder does."""
    gently = f" (rate x{phase['encoder_lr_factor']:g})" if phase["encoder_lr_factor"] not in (0.0, 1.0) else ""
    return " ".join(f"{name}{gently if name == 'encoder' else ''}" for name in phase["trains"])


def _render(plan: Plan, facts: dict[str, Any]) -> Iterable[Any]:
    from rich.text import Text

    from data_cache.files import format_bytes
    from pipeline.console import plain_table

    several = len({phase["network"] for phase in facts["phases"]}) > 1
    columns = [
        "phase",
        *(["network"] if several else []),
        "seed",
        "trains",
        "losses",
        "steps",
        "copied before",
        "key",
        "state",
    ]
    rows = [
        [
            phase["name"],
            *([phase["network"]] if several else []),
            phase["seed"],
            _name_trained(phase),
            phase["losses"],
            phase["steps"],
            ", ".join(f"{c['from']} -> {c['to']} ({c['tensors']} tensors)" for c in phase["copies"]) or "-",
            phase["key"],
            "trained" if phase["done"] else "to train",
        ]
        for phase in facts["phases"]
    ]
    yield plain_table("Trainings", columns, rows)
    yield Text()
    yield plain_table("Runs", ["row", "seed", "steps"], [[run.row, run.config.seed, run.steps] for run in plan.runs])
    fits = facts["disk_peak_bytes"] <= facts["disk_free_bytes"]
    yield Text(
        f"\n{facts['nodes']} distinct trainings ({facts['unshared']} if every run trained its own), "
        f"{facts['to_train']} still to train; weights need {format_bytes(facts['disk_bytes'])}, with training states "
        f"{format_bytes(facts['disk_peak_bytes'])}; {format_bytes(facts['disk_free_bytes'])} are free"
        f"{'' if fits else ', which is too little: a run would not begin'}.\n"
        "Batch-norm statistics move only in the parts that a phase trains."
    )

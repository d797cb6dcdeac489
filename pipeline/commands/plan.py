"""What a run or a table would do, without doing it."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from typing import Any

from rich.console import Group
from rich.text import Text

from data_cache.errors import unknown_name
from pipeline.console import plain_table
from pipeline.experiment.artifacts import gather_facts, open_split
from pipeline.experiment.class_weights import resolve_class_weights
from pipeline.experiment.config import RunConfig, content_hash
from pipeline.experiment.expand import choose_copyable_forms
from pipeline.experiment.facts import NetworkFacts, inspect_network
from pipeline.experiment.plan import DataFacts, Node, Plan, plan_runs
from pipeline.experiment.tables import find_table, table_rows
from pipeline.experiment.transfer import apply_transfer
from pipeline.session import Result, Session
from stages.networks import NETWORKS
from stages.training.encoder_policy import find_encoder_lr_factor, parts_to_train, trains_fresh_only
from stages.training.schedule import ENCODER, EVERYTHING, CopyWeights

Rows = list[tuple[str, RunConfig]]


def rows_of(config: RunConfig, table: str | None, seeds: tuple[int, ...] | None) -> Rows:
    """Return the rows of a table, or the one row that the recipe itself is, with transfer modes spelled out.

    Where no seeds are given, it is the one that the recipe or an override names, else they are the table's own.
    """
    if table is not None:
        found = find_table(table)
        own = None if "seed" in config.model_fields_set else found.seeds  # set, be it to 0: asked for
        rows = table_rows(found, config, seeds or own or (config.seed,))
    else:
        name = config.build_schedule().name
        rows = [(name, config.changed({"seed": seed})) for seed in seeds or (config.seed,)]
    for _, changed in rows:
        if changed.network.name not in NETWORKS:
            raise unknown_name("network", changed.network.name, NETWORKS)
    return [(name, apply_transfer(changed)) for name, changed in rows]


def make_plan(rows: Rows, session: Session, *, reuse: bool) -> Plan:
    """Look at the data of every row and lay out the trainings."""
    rows = choose_copyable_forms(rows, session.console.say)
    weighed = [(name, resolve_class_weights(config, session)) for name, config in rows]
    known: dict[str, DataFacts] = {}

    def find_facts(config: RunConfig) -> DataFacts:
        needs_depth = config.build_schedule().needs_depth
        data = config.data.model_dump(include={"dataset", "root", "options"})
        key = content_hash([data, config.depth.model_dump() if needs_depth else None], 16)
        if key not in known:
            known[key] = gather_facts(config, session.workspace, needs_depth=needs_depth)
        return known[key]

    plan = plan_runs(weighed, find_facts, reuse=reuse)
    for run in plan.runs:  # a network that cannot be built, or a copy that cannot be done, is told before any training
        network = inspect_network(run.config.network, find_facts(run.config).num_classes, session.workspace)
        for copy in (copy for node in run.nodes for copy in node.copies):
            network.count_copied(copy)
    return plan


def preview_plan(
    config: RunConfig, session: Session, table: str | None, seeds: tuple[int, ...] | None, *, reuse: bool
) -> Result:
    """Describe nodes, parts, batch-norm, copies, steps and disk; train nothing.

    Returns:
        ``nodes`` (distinct trainings), ``unshared``, ``phases``, ``runs``, ``disk_bytes``, ``disk_free_bytes``.
    """
    plan = make_plan(rows_of(config, table, seeds), session, reuse=reuse)
    phases = [_describe(node, session, _find_network(node, session)) for node in plan.nodes.values()]
    to_train = [phase for phase in phases if not phase["done"]]
    disk = sum(phase["bytes"] for phase in to_train)
    session.workspace.root.mkdir(parents=True, exist_ok=True)
    facts = {
        "nodes": len(phases),
        "to_train": len(to_train),
        "unshared": plan.unshared,
        "phases": phases,
        "runs": [{"row": run.row, "seed": run.config.seed, "name": run.name, "steps": run.steps} for run in plan.runs],
        "disk_bytes": disk,
        "disk_free_bytes": shutil.disk_usage(session.workspace.root).free,
    }
    return Result(facts, Group(*_render(plan, facts)))


def _find_network(node: Node, session: Session) -> NetworkFacts:
    num_classes = len(open_split(node.config, session.workspace, "train").classes)
    return inspect_network(node.config.network, num_classes, session.workspace)


def _describe(node: Node, session: Session, network: NetworkFacts) -> dict[str, Any]:
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
        "focal": node.phase.focal,
        "mse": node.phase.mse,
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
    policy = node.config.training.encoder_policy
    if trains_fresh_only(policy, node.phase):
        return f"statistics move in trained modules; those of the pretrained encoder are frozen (policy {policy})"
    return "statistics move in trained parts and are frozen elsewhere"


def _name_trained(phase: dict[str, Any]) -> str:
    """Name the parts that learn, and how gently the encoder does."""
    gently = f" (rate x{phase['encoder_lr_factor']:g})" if phase["encoder_lr_factor"] not in (0.0, 1.0) else ""
    return " ".join(f"{name}{gently if name == 'encoder' else ''}" for name in phase["trains"])


def _render(plan: Plan, facts: dict[str, Any]) -> Iterable[Any]:
    several = len({phase["network"] for phase in facts["phases"]}) > 1
    columns = [
        "phase",
        *(["network"] if several else []),
        "seed",
        "trains",
        "focal",
        "mse",
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
            phase["focal"],
            phase["mse"],
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
    yield Text(
        f"\n{facts['nodes']} distinct trainings ({facts['unshared']} if every run trained its own), "
        f"{facts['to_train']} still to train; weights need {facts['disk_bytes'] / 1e6:.0f} MB, "
        f"{facts['disk_free_bytes'] / 1e9:.1f} GB are free.\n"
        "Batch-norm statistics move only in the parts that a phase trains."
    )

"""Lists of what there is: datasets, networks, schedules, estimators, recipes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.text import Text

from data_cache.errors import UserError
from pipeline.console import count, plain_table
from pipeline.experiment.config import load_config, recipe_names
from pipeline.experiment.tables import paper_scores
from pipeline.session import Result, Session
from stages.training.schedule import Phase
from stages.training.schedules import CONTROLS, TABLE_ROWS, resolve_schedule

if TYPE_CHECKING:
    from data_cache.datasets.doctor import DoctorReport

LISTED_CLASSES = 21
"""Number of classes that parameters are listed for: PASCAL VOC's, as in the papers' counts."""


def list_schedules() -> Result:
    """List the ten rows of the paper and our controls."""
    facts: list[dict[str, Any]] = []
    for name in TABLE_ROWS:
        steps = [_describe_step(step) for step in resolve_schedule(name).steps]
        origin = "control (ours)" if name in CONTROLS else "paper"
        facts.append({"name": name, "steps": steps, "origin": origin, "paper": paper_scores(name)})
    rows = [[fact["name"], " · ".join(fact["steps"]), fact["origin"], fact["paper"].get("miou", "-")] for fact in facts]
    return Result({"schedules": facts}, plain_table("Schedules", ["row", "steps", "origin", "paper mIoU"], rows))


def _describe_step(step: object) -> str:
    if not isinstance(step, Phase):
        return str(step)
    losses = " + ".join(f"{weight:g} {name}" for name, weight in (("focal", step.focal), ("mse", step.mse)) if weight)
    return f"{step.name} ({losses}{f', ×{step.budget_factor} epochs' if step.budget_factor > 1 else ''})"


def list_recipes() -> Result:
    """List the bundled recipes with their cards."""
    facts: list[dict[str, Any]] = []
    for name in recipe_names():
        config = load_config(name)
        facts.append({"name": name, **config.card.model_dump(), "dataset": config.data.dataset})
    rows = [[fact["name"], fact["dataset"], fact["hardware"], fact["time"], fact["expected"]] for fact in facts]
    return Result({"recipes": facts}, plain_table("Recipes", ["name", "dataset", "hardware", "time", "expected"], rows))


def list_estimators() -> Result:
    """List the estimators with an alias."""
    from stages.pseudo_depth.aliases import ESTIMATORS

    facts = [
        {
            "name": spec.alias,
            "hub_id": spec.hub_id,
            "revision": spec.revision,
            "kind": str(spec.kind),
            "unit": spec.unit,
            "size_multiple": spec.size_multiple,
            "recommended_size": spec.recommended_size,
            "licence": spec.licence,
            "noncommercial": spec.noncommercial,
        }
        for spec in ESTIMATORS.values()
    ]
    columns = ["name", "kind", "size_multiple", "recommended_size", "revision", "licence"]
    rows = [
        [str(fact[column] or "-")[:12] if column == "revision" else fact[column] for column in columns]
        for fact in facts
    ]
    title = "Estimators (or: any Hub id or folder with --kind; `dataset` for a dataset's ground-truth depth)"
    return Result({"estimators": facts}, plain_table(title, columns, rows))


def list_networks() -> Result:
    """List the networks with their papers, parameters, what copies between their decoders, and options."""
    from stages.networks import NETWORKS

    facts = [_describe_network(name) for name in NETWORKS]
    columns = ["name", "paper", "what", "parameters", "with depth", "copied"]
    keys = ("name", "paper", "summary", "parameters", "parameters_with_depth", "copied")
    rows = [[fact[key] for key in keys] for fact in facts]
    options = [[fact["name"], ", ".join(fact["options"])] for fact in facts]
    title = f"Networks (parameters for {LISTED_CLASSES} classes; tensors that a copy carries from decoder to decoder)"
    tables = (plain_table(title, columns, rows), Text(), plain_table("Their options", ["name", "options"], options))
    return Result({"networks": facts}, Group(*tables))


def _describe_network(name: str) -> dict[str, Any]:
    """Return the facts of a network at its defaults, built without memory for its weights."""
    import torch

    from stages.networks import NETWORKS, build_without_weights, count_parameters, network_options
    from stages.networks.parts import Part
    from stages.training.transfer import plan_copy

    def build(**options: Any) -> Any:
        with torch.device("meta"):
            return build_without_weights(name, LISTED_CLASSES, **options)

    def count_copied(**options: Any) -> int:
        try:
            return len(plan_copy(build(**options), Part.DEPTH_DECODER, Part.SEG_DECODER).copied)
        except UserError:
            return 0

    form = NETWORKS[name].copyable_form
    return {
        "name": name,
        "paper": NETWORKS[name].paper,
        "summary": NETWORKS[name].summary,
        "parameters": count_parameters(build(with_depth=False)),
        "parameters_with_depth": count_parameters(build()),
        "copied": count_copied(),
        "copied_with": {**form, "copied": count_copied(**form)} if form else None,
        "options": {option: str(value) for option, value in network_options(name).items()},
    }


def list_datasets() -> Result:
    """List the datasets."""
    from data_cache.datasets import DATASETS

    facts = [
        {"name": name, "summary": kind.summary, "splits": list(kind.splits), "needs_root": kind.needs_root}
        for name, kind in DATASETS.items()
    ]
    rows = [[name, " ".join(kind.splits), kind.summary] for name, kind in DATASETS.items()]
    return Result({"datasets": facts}, plain_table("Datasets", ["name", "splits", "what"], rows))


def examine_dataset(session: Session, name: str, data_root: str | None) -> Result:
    """Examine every split of a dataset; problems are listed together."""
    from data_cache.datasets import choose_root
    from data_cache.datasets.doctor import examine

    root = choose_root(name, data_root, session.workspace.root)
    session.console.say(f"examining {name}: every file is read once")
    report = examine(name, root)
    facts = asdict(report)
    return Result(facts, Group(*_render_report(report)))


def _render_report(report: DoctorReport) -> Iterator[Any]:
    """Show splits, classes, the id table and what is wrong."""
    splits = [
        [split, num_images, report.labelled[split], f"{report.void[split]:.1%}", _list_sizes(report.sizes[split])]
        for split, num_images in report.images.items()
        if num_images
    ]
    if splits:
        columns = ["split", "images", "labelled", "void", "sizes (width x height, px)"]
        yield plain_table(report.dataset, columns, splits)
        names = list(next(iter(report.classes.values()), {}))
        shares = [[name, *(f"{report.classes[split][name]:.2%}" for split in report.classes)] for name in names]
        yield plain_table("\nShare of labelled pixels", ["class", *report.classes], shares)
        yield Text(f"\nids in mask files: {report.id_table}")
    for note in report.notes:
        yield Text(f"note: {note}")
    for problem in report.problems:
        yield Text(f"problem: {problem}")
    yield Text(count(len(report.problems), "problem") if report.problems else "no problems")


def _list_sizes(sizes: dict[str, int]) -> str:
    return ", ".join(f"{size} ({count})" for size, count in sizes.items())

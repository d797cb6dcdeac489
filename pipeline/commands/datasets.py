"""`pipeline datasets`: list datasets, or examine one before anything is trained on it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from data_cache.errors import UserError

if TYPE_CHECKING:
    from data_cache.datasets.doctor import DoctorReport
    from pipeline.session import Result, Session


@click.command()
@click.argument("name", required=False)
@click.option("--data-root", help="Folder of the dataset.")
@click.option("--recipe", help="Examine the dataset of a recipe, with its options.")
@click.pass_obj
def datasets(session: Session, name: str | None, data_root: str | None, recipe: str | None) -> None:
    """List datasets; with NAME examine one: pairing, ids, palette, void, sizes, classes."""
    if data_root and name is None and recipe is None:
        raise UserError(f"--data-root {data_root} is the folder of which dataset? Name it: pipeline datasets NAME …")
    listed = name is None and recipe is None
    session.show(list_datasets() if listed else examine_dataset(session, name, data_root, recipe))


def list_datasets() -> Result:
    """List the datasets."""
    from data_cache.datasets import DATASETS
    from data_cache.plugins import list_installed
    from pipeline.console import plain_table
    from pipeline.session import Result

    facts = [
        {
            "name": name,
            "summary": kind.summary,
            "splits": list(kind.splits),
            "pool": kind.pool_split,
            "needs_root": kind.needs_root,
        }
        for name, kind in DATASETS.items()
    ]
    rows = [[name, " ".join(kind.splits), kind.pool_split or "-", kind.summary] for name, kind in DATASETS.items()]
    installed = {name: f"{each.module}:{each.attribute}" for name, each in list_installed("dataset").items()}
    rows += [[name, "-", "-", f"installed: {place}"] for name, place in installed.items()]
    table = plain_table("Datasets", ["name", "splits", "without masks", "what"], rows)
    return Result({"datasets": facts, "installed": installed}, table)


def examine_dataset(
    session: Session, name: str | None, data_root: str | None = None, recipe: str | None = None
) -> Result:
    """Examine every split of a dataset; problems are listed together.

    Args:
        name: None is the recipe's.
        data_root: None is the recipe's.
        recipe: whose options of the dataset hold.
    """
    from rich.console import Group

    from data_cache.datasets import choose_root
    from data_cache.datasets.doctor import examine
    from pipeline.experiment.config import load_config
    from pipeline.session import Result

    options: dict[str, Any] = {}
    if recipe is not None:
        config = load_config(recipe)
        data = config.data
        if name not in (None, data.dataset):
            raise UserError(f"recipe {recipe} is of dataset {data.dataset!r}, not {name!r}; leave one of them out")
        name, data_root = data.dataset, data_root or data.root
        options = data.options | {
            "needed": ("train", config.evaluation.split),
            "weighted": config.loss.class_weights is not None,
        }
    assert name is not None, "one of name and recipe is given"
    root = choose_root(name, data_root, session.workspace.root)
    session.console.info(f"examining {name}: every file is read once")
    report = examine(name, root, **options)
    return Result(asdict(report), Group(*_render_report(report)), failed=bool(report.problems))


def _render_report(report: DoctorReport) -> Iterator[Any]:
    """Show splits, classes, the id table and what is wrong."""
    from rich.text import Text

    from pipeline.console import count, plain_table

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

"""`pipeline estimators`: depth estimators with an alias."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from pipeline.session import Result, Session


@click.command()
@click.pass_obj
def estimators(session: Session) -> None:
    """List depth estimators with kind, size multiple and licence."""
    session.show(list_estimators())


def list_estimators() -> Result:
    """List the estimators with an alias."""
    from pipeline.console import plain_table
    from pipeline.session import Result
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

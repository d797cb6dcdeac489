"""`pipeline compare`: runs side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from data_cache.metrics import explain_metrics
from pipeline.options import LazyChoice, comparison_options

if TYPE_CHECKING:
    from pipeline.session import Session
    from stages.comparison.table import Table


def _list_formats() -> Sequence[str]:
    from stages.comparison.formats import FORMATS

    return tuple(FORMATS)


@click.command(epilog="Metrics:\n\n" + "\n\n".join(explain_metrics()))
@click.argument("runs", nargs=-1, metavar="[RUN…]")
@click.option("--format", "form", type=LazyChoice(_list_formats), default="text")
@comparison_options
@click.option("--across", is_flag=True, help="Show runs of different data or numerics, too, without differences.")
@click.pass_obj
def compare(
    session: Session,
    runs: Sequence[str],
    form: str,
    baseline: str | None,
    of_table: str | None,
    paper: bool,
    across: bool,
) -> None:
    """Put runs side by side; all finished runs by default."""
    from pipeline.session import Result
    from stages.comparison.formats import FORMATS, summarise

    compared = compare_runs(session, runs, baseline, of_table, across=across, paper=paper)
    session.show(Result(summarise(compared), FORMATS[form](compared)))


def compare_runs(
    session: Session,
    references: Sequence[str],
    baseline: str | None = None,
    table: str | None = None,
    *,
    across: bool = False,
    paper: bool = False,
) -> Table:
    """Put runs side by side.

    Args:
        references: runs; none means all finished ones.
        baseline: row name; None is the table's own.
        table: name of a table, of whose rows the runs must be; None takes any.
        across: whether runs of different data, splits or numerics may stand one under another.
        paper: whether the papers' scores stand beside ours whatever those are of.

    Raises:
        UserError: there is no such run, or they cannot stand in one table.
    """
    from pipeline.experiment.tables import find_table
    from pipeline.experiment.tabulate import check_one_place, find_runs, tabulate

    spec = find_table(table) if table else None
    found = find_runs(session, references, spec)
    if not across:
        check_one_place(found.records)
    return tabulate(found.records, spec, baseline, found.notes, paper=paper)

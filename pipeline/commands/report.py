"""`pipeline report`: runs as one self-contained page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from data_cache.errors import UserError
from pipeline.options import comparison_options

if TYPE_CHECKING:
    from pipeline.session import Result, Session


@click.command()
@click.argument("runs", nargs=-1, metavar="[RUN…]")
@click.option("--out", type=click.Path(path_type=Path), help="HTML file; default <workdir>/report.html.")
@comparison_options
@click.pass_obj
def report(session: Session, runs: Sequence[str], out: Path | None, baseline: str | None, of_table: str | None) -> None:
    """Write one self-contained page about runs; all finished runs by default."""
    session.show(report_runs(session, runs, out, baseline, of_table))


def report_runs(
    session: Session, references: Sequence[str], out: Path | None, baseline: str | None, table: str | None = None
) -> Result:
    """Write one self-contained page about runs; arguments as in ``compare_runs``.

    Returns:
        ``report``, ``rows``.
    """
    from pipeline.experiment.tables import find_table, tables_of
    from pipeline.experiment.tabulate import SCHEDULES, find_folders, freshen, tabulate
    from pipeline.session import Result
    from stages.comparison.report import write_report

    spec = find_table(table) if table else None
    folders = find_folders(session, references, spec)
    freshen(folders, session)
    compared = tabulate(folders, spec, baseline)
    titles = [found.title for found in tables_of(row.name for row in compared.rows) if found is not SCHEDULES]
    out = out or session.workspace.root / (f"report-{table}.html" if table else "report.html")
    if out.is_dir():
        raise UserError(f"--out {out} is a folder; name the file, for example {out / 'report.html'}")
    file = write_report(compared, out, title=titles[0]) if len(titles) == 1 else write_report(compared, out)
    return Result({"report": str(file), "rows": compared.to_json()["rows"]}, f"report: {file}")

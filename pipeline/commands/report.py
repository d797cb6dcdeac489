"""`pipeline report`: runs as one self-contained page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipeline.options import GivenPath, comparison_options, overwrite_option

if TYPE_CHECKING:
    from pipeline.session import Result, Session


@click.command()
@click.argument("runs", nargs=-1, metavar="[RUN…]")
@click.option("--out", type=GivenPath(), help="HTML file; default <workdir>/report.html.")
@overwrite_option
@comparison_options
@click.pass_obj
def report(
    session: Session,
    runs: Sequence[str],
    out: Path | None,
    overwrite: bool,
    baseline: str | None,
    of_table: str | None,
    paper: bool,
) -> None:
    """Write one self-contained page about runs; all finished runs by default."""
    session.show(report_runs(session, runs, out, baseline, of_table, overwrite=overwrite, paper=paper))


def report_runs(
    session: Session,
    references: Sequence[str],
    out: Path | None,
    baseline: str | None,
    table: str | None = None,
    *,
    overwrite: bool = False,
    paper: bool = False,
) -> Result:
    """Write one self-contained page about runs; arguments as in ``compare_runs``.

    Returns:
        ``report``, ``answer``, ``rows``, ``notes``.

    Raises:
        UserError: ``out`` is a file that this program did not write, and ``overwrite`` was not asked for.
    """
    from data_cache.escaping import printable_text
    from data_cache.outputs import check_page
    from pipeline.experiment.illustrate import illustrate
    from pipeline.experiment.tables import find_table, tables_of
    from pipeline.experiment.tabulate import SCHEDULES, check_one_place, find_runs, tabulate
    from pipeline.session import Result
    from stages.comparison.answer import find_answer
    from stages.comparison.report import TITLE, write_report

    out = out or session.workspace.root / (f"report-{Path(table).stem}.html" if table else "report.html")
    session.workspace.check_output(out, "--out")
    check_page(out, overwrite=overwrite)
    spec = find_table(table) if table else None
    found = find_runs(session, references, spec)
    check_one_place(found.records)
    compared = tabulate(found.records, spec, baseline, found.notes, paper=paper)
    of_tables = [spec] if spec else tables_of(row.name for row in compared.rows)
    titles = [each.title for each in of_tables if each is not SCHEDULES]
    title = titles[0] if len(titles) == 1 else TITLE
    answer = find_answer(compared)
    shown = illustrate(answer, compared.rows, session)
    file = write_report(
        compared, out, title=title, illustrations=shown, overwrite=overwrite, on_wait=session.console.info
    )
    facts = {
        "report": str(file),
        "answer": answer.text,
        "rows": compared.to_json()["rows"],
        "notes": list(compared.notes),
    }
    return Result(facts, f"{printable_text(answer.text)}\nreport: {file}")

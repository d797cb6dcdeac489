"""`pipeline paper-check`: what the pseudo-depth paper's printed scores can have meant."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.console import Group

    from pipeline.session import Result, Session
    from stages.evaluation.paper_check import PaperCheck, Span


@click.command("paper-check")
@click.pass_obj
def paper_check(session: Session) -> None:
    """Hold the scores printed in the pseudo-depth paper against each other, to see what they can be of."""
    session.show(check_printed_scores())


def check_printed_scores() -> Result:
    """Check the rows of the schedule table as printed.

    Returns:
        ``rows``, ``void_share``, ``spread``, ``simulation``, ``fit``, ``misprint``, ``findings``.
    """
    from pipeline.session import Result
    from stages.evaluation.paper_check import check_paper
    from stages.training.schedules import PAPER_ROWS, PAPER_TABLE_2

    check = check_paper(PAPER_ROWS, PAPER_TABLE_2)
    findings = check.list_findings()
    facts = {
        "rows": [row._asdict() | {"classes": list(row.classes), "collapsed": row.collapsed} for row in check.rows],
        "void_share": check.void_share,
        "spread": check.spread,
        "simulation": check.simulation._asdict(),
        "fit": check.fit._asdict(),
        "misprint": check.misprint._asdict() | {"sentence": check.misprint.sentence},
        "findings": findings,
    }
    return Result(facts, _render(check, findings))


def _render(check: PaperCheck, findings: list[str]) -> Group:
    """Show the rows above what follows from them."""
    from rich.console import Group
    from rich.text import Text

    from pipeline.console import plain_table

    heads = ["row", "table", "mIoU", "p", "acc", "C=20", "off by", "C=21", "off by", "C needed", "background IoU"]
    rows = [
        [
            row.name, f"{row.table}", f"{row.miou:.4f}", f"{row.p:.4f}", f"{row.acc:.{3 if row.table == 2 else 4}f}",
            *(cell for acc in row.predicted.values() for cell in (f"{acc:.4f}", f"{row.acc - acc:+.4f}")),
            _show_span(row.classes), f"{row.background_iou:.3f}",
        ]
        for row in check.rows
    ]  # fmt: skip
    lines = [Text(f"{number}. {finding}") for number, finding in enumerate(findings, start=1)]
    title = "Printed mIoU read as pooled micro IoU: p = 2m/(1+m), acc = 1-2(1-p)/C"
    return Group(plain_table(title, heads, rows), Text(), *lines)


def _show_span(span: Span) -> str:
    return f"{span.low:.2f}" if span.low == span.high else f"{span.low:.1f} to {span.high:.1f}"

"""`pipeline demo`: the whole way in one command."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from pipeline.options import device_option, paper_option

if TYPE_CHECKING:
    from pipeline.session import Result, Session

ROWS = ("depth-first+copy", "seg-only")


@click.command()
@click.option("--recipe", default="demo", show_default=True, help="Bundled recipe or path of a TOML file.")
@device_option
@paper_option
@click.pass_obj
def demo(session: Session, recipe: str, device: str, paper: bool) -> None:
    """Run everything offline on drawn scenes: label, train two schedules, compare, export, report."""
    session.show(run_demo(session, recipe, device, paper=paper))


def run_demo(session: Session, recipe: str, device: str, *, paper: bool = False) -> Result:
    """Run everything: label, train two schedules, compare, export, report.

    Returns:
        ``runs``, ``rows``, ``export``, ``report``, ``stores``, ``seconds``.
    """
    from pipeline.commands.export import export_run, headlines
    from pipeline.commands.pseudo_depth import label_splits
    from pipeline.commands.report import report_runs
    from pipeline.commands.run import train_one
    from pipeline.experiment.config import load_config
    from pipeline.experiment.tabulate import tabulate
    from pipeline.session import Result
    from stages.comparison.formats import FORMATS
    from stages.comparison.record import RunRecord

    started_at = time.perf_counter()
    config = load_config(recipe)
    labels = label_splits(config, session, (), device)
    runs = []
    for row in ROWS:
        changed = config.changed({"schedule": {"name": row}})
        runs.append(train_one(changed, session, device, reuse=True))
    folders = [run.folder for run in runs]
    table = tabulate([RunRecord.from_json(folder) for folder in folders], paper=paper)
    exported = export_run(session, runs[0].run, None)
    report = report_runs(session, [str(folder) for folder in folders], None, None, paper=paper)
    seconds = time.perf_counter() - started_at
    facts = {
        "runs": [run.to_json() for run in runs],
        "rows": table.to_json()["rows"],
        "export": exported.to_json(),
        "report": report.json["report"],
        "stores": [str(each.store) for each in labels],
        "seconds": round(seconds, 1),
    }
    lines = [
        FORMATS["text"](table),
        "",
        *(f"{name}: {value}" for name, value in headlines(exported.report.proof)),
        "",
        *(f"depth store  {each.store}" for each in labels),
        *(f"run          {folder}" for folder in folders),
        f"export       {exported.out}",
        f"report       {facts['report']}",
        f"\ndone in {seconds:.0f} s",
    ]
    return Result(facts, "\n".join(lines))

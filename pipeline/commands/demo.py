"""The whole way in one command: label, train two schedules, compare, export, report."""

from __future__ import annotations

import time

from pipeline.commands.compare import report_runs, tabulate
from pipeline.commands.export import export_run, headlines
from pipeline.commands.run import train_one
from pipeline.experiment.artifacts import label_splits
from pipeline.experiment.config import load_config
from pipeline.session import Result, Session
from stages.comparison.formats import FORMATS

ROWS = ("depth-first+copy", "seg-only")


def run_demo(session: Session, recipe: str, device: str) -> Result:
    """Run everything: label, train two schedules, compare, export, report.

    Returns:
        ``runs``, ``rows``, ``export``, ``report``, ``stores``, ``seconds``.
    """
    started_at = time.perf_counter()
    config = load_config(recipe)
    labels = label_splits(config, session, (), device)
    runs = []
    for row in ROWS:
        base, _, copy = row.partition("+")
        changed = config.changed({"schedule.name": base, "schedule.copy_weights": bool(copy)})
        runs.append(train_one(changed, session, device, reuse=True).json)
    folders = [session.workspace.runs / run["run"] for run in runs]
    table = tabulate(folders)
    exported = export_run(session, runs[0]["run"], None)
    report = report_runs(session, [str(folder) for folder in folders], None, None)
    seconds = time.perf_counter() - started_at
    facts = {
        "runs": runs,
        "rows": table.to_json()["rows"],
        "export": exported.json,
        "report": report.json["report"],
        "stores": labels.json["stores"],
        "seconds": round(seconds, 1),
    }
    lines = [
        FORMATS["text"](table),
        "",
        *(f"{name}: {value}" for name, value in headlines(exported.json["proof"])),
        "",
        *(f"depth store  {store}" for store in facts["stores"]),
        *(f"run          {folder}" for folder in folders),
        f"export       {exported.json['out']}",
        f"report       {facts['report']}",
        f"\ndone in {seconds:.0f} s",
    ]
    return Result(facts, "\n".join(lines))

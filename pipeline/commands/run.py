"""Train one run, or all rows of a table."""

from __future__ import annotations

from pipeline.commands.compare import tabulate
from pipeline.commands.plan import make_plan, rows_of
from pipeline.experiment.config import RunConfig
from pipeline.experiment.devices import choose_device
from pipeline.experiment.execute import execute_plan
from pipeline.experiment.tables import find_table
from pipeline.session import Result, Session
from stages.comparison.formats import FORMATS


def train_one(config: RunConfig, session: Session, device: str, *, reuse: bool) -> Result:
    """Train and evaluate the recipe's schedule.

    Returns:
        ``run``, ``schedule``, ``phases``, ``metrics``, ``folder``.
    """
    plan = make_plan(rows_of(config, None, (config.seed,)), session, reuse=reuse)
    (record,) = execute_plan(plan, session, choose_device(device))
    folder = session.workspace.runs / record["run"]
    facts = {
        "run": record["run"],
        "schedule": record["name"],
        "phases": record["phases"],
        "metrics": record["metrics"],
        "folder": str(folder),
    }
    return Result(facts, f"{FORMATS['text'](tabulate([folder]))}\n\nrun: {folder}")


def train_table(
    name: str, config: RunConfig, session: Session, device: str, seeds: tuple[int, ...] | None, *, reuse: bool
) -> Result:
    """Train all rows of a table with all seeds; without seeds with its own.

    Returns:
        ``rows`` with the paper's scores, ``trained`` and ``reused`` (distinct trainings), ``unshared`` (trainings the
        same runs would need one by one).
    """
    table = find_table(name)
    plan = make_plan(rows_of(config, name, seeds), session, reuse=reuse)
    finished = [key for key in plan.nodes if session.workspace.node(key).finished]
    records = execute_plan(plan, session, choose_device(device))
    folders = [session.workspace.runs / record["run"] for record in records]
    compared = tabulate(folders, table)
    facts = {
        **compared.to_json(),
        "trained": len(plan.nodes) - len(finished),
        "reused": len(finished),
        "unshared": plan.unshared,
    }
    summary = (
        f"{facts['trained']} phases trained, {facts['reused']} reused ({plan.unshared} had every run trained its own)"
    )
    return Result(facts, f"{table.title}\n{FORMATS['text'](compared)}\n\n{summary}")

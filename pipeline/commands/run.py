"""`pipeline run`: train one schedule and score it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from pipeline.options import RecipeCommand, device_option, no_reuse_option, wait_option

if TYPE_CHECKING:
    from pipeline.experiment.config import RunConfig
    from pipeline.session import Result, Session


@click.command(cls=RecipeCommand)
@no_reuse_option
@device_option
@wait_option
@click.pass_obj
def run(session: Session, config: RunConfig, no_reuse: bool, device: str, wait: bool) -> None:
    """Train one schedule and evaluate it."""
    session.show(train_one(config, session, device, reuse=not no_reuse, wait=wait))


def train_one(config: RunConfig, session: Session, device: str, *, reuse: bool, wait: bool = False) -> Result:
    """Train and evaluate the recipe's schedule.

    Returns:
        ``run``, ``schedule``, ``phases``, ``metrics``, ``folder``, ``notes``.
    """
    from data_cache.ranks import speaker_first
    from pipeline.experiment.artifacts import wait_for_stores
    from pipeline.experiment.devices import choose_device
    from pipeline.experiment.engines.here import Here
    from pipeline.experiment.execute import execute_plan
    from pipeline.experiment.expand import expand_rows, make_plan
    from pipeline.experiment.tabulate import tabulate
    from pipeline.session import Result
    from stages.comparison.formats import FORMATS
    from stages.comparison.record import RunRecord

    chosen = choose_device(device)
    if wait:
        wait_for_stores(config, session)
    with speaker_first():
        plan = make_plan(expand_rows(config, None, (config.seed,), session, str(chosen)), session, reuse=reuse)
    (record,) = execute_plan(plan, session, Here(session, chosen), wait=wait).records
    folder = session.workspace.runs / record["run"]
    facts = {
        "run": record["run"],
        "schedule": record["name"],
        "phases": record["phases"],
        "metrics": record["metrics"],
        "folder": str(folder),
        "notes": plan.notes,
    }
    return Result(facts, f"{FORMATS['text'](tabulate([RunRecord.from_json(folder)]))}\n\nrun: {folder}")

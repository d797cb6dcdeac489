"""`pipeline schedules`: the schedule table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from pipeline.session import Result, Session


@click.command()
@click.pass_obj
def schedules(session: Session) -> None:
    """List schedules with their phases and the paper's scores."""
    session.show(list_schedules())


def list_schedules() -> Result:
    """List the ten rows of the paper and our controls."""
    from pipeline.console import plain_table
    from pipeline.experiment.config import RunConfig
    from pipeline.experiment.tables import TABLES
    from pipeline.session import Result

    facts: list[dict[str, Any]] = []
    for row in TABLES["schedules"].rows:
        config = RunConfig().changed(row.changes)
        steps = [config.loss.describe_step(step) for step in config.build_schedule().steps]
        steps += [f"depth is {config.depth.source}"] if config.depth.source != "teacher" else []
        origin = "paper" if row.paper else "control (ours)"
        facts.append({"name": row.name, "steps": steps, "origin": origin, "paper": dict(row.paper)})
    rows = [[fact["name"], " · ".join(fact["steps"]), fact["origin"], fact["paper"].get("miou", "-")] for fact in facts]
    return Result({"schedules": facts}, plain_table("Schedules", ["row", "steps", "origin", "paper mIoU"], rows))

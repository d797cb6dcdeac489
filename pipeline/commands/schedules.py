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
    from pipeline.experiment.tables import paper_scores
    from pipeline.session import Result
    from stages.training.schedules import CONTROLS, TABLE_ROWS
    from stages.training.settings import LossSettings, ScheduleSettings

    losses = LossSettings()
    facts: list[dict[str, Any]] = []
    for name in TABLE_ROWS:
        steps = [losses.describe_step(step) for step in ScheduleSettings(name=name).build(losses).steps]
        origin = "control (ours)" if name in CONTROLS else "paper"
        facts.append({"name": name, "steps": steps, "origin": origin, "paper": paper_scores(name)})
    rows = [[fact["name"], " · ".join(fact["steps"]), fact["origin"], fact["paper"].get("miou", "-")] for fact in facts]
    return Result({"schedules": facts}, plain_table("Schedules", ["row", "steps", "origin", "paper mIoU"], rows))

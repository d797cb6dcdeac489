"""`pipeline table`: train every row of a table and compare them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from pipeline.options import RecipeCommand, device_option, no_reuse_option, seeds_option

if TYPE_CHECKING:
    from pipeline.experiment.config import RunConfig
    from pipeline.session import Result, Session


@click.command(cls=RecipeCommand, sections=("data", "depth", "network", "training"))
@click.argument("name")
@seeds_option
@no_reuse_option
@device_option
@click.pass_obj
def table(
    session: Session, config: RunConfig, name: str, seeds: tuple[int, ...] | None, no_reuse: bool, device: str
) -> None:
    """Train all rows of the table NAME and compare them."""
    session.show(train_table(name, config, session, device, seeds, reuse=not no_reuse))


def train_table(
    name: str, config: RunConfig, session: Session, device: str, seeds: tuple[int, ...] | None, *, reuse: bool
) -> Result:
    """Train all rows of a table with all seeds; without seeds with its own.

    Returns:
        ``rows`` with the paper's scores, ``trained`` and ``reused`` (distinct trainings), ``unshared`` (trainings the
        same runs would need one by one).
    """
    from pipeline.experiment.devices import choose_device
    from pipeline.experiment.execute import execute_plan
    from pipeline.experiment.expand import expand_rows, make_plan
    from pipeline.experiment.tables import find_table
    from pipeline.experiment.tabulate import tabulate
    from pipeline.session import Result
    from stages.comparison.formats import FORMATS
    from stages.comparison.record import RunRecord

    wanted, chosen = find_table(name), choose_device(device)
    plan = make_plan(expand_rows(config, name, seeds, session, chosen.type), session, reuse=reuse)
    finished = [key for key in plan.nodes if session.workspace.node(key).finished]
    records = execute_plan(plan, session, chosen)
    compared = tabulate([RunRecord.from_json(session.workspace.runs / record["run"]) for record in records], wanted)
    facts = {
        **compared.to_json(),
        "notes": [*compared.notes, *plan.notes],
        "trained": len(plan.nodes) - len(finished),
        "reused": len(finished),
        "unshared": plan.without_reuse,
    }
    summary = (
        f"{facts['trained']} phases trained, {facts['reused']} reused "
        f"({plan.without_reuse} if every run trained its own)"
    )
    return Result(facts, f"{wanted.title}\n{FORMATS['text'](compared)}\n\n{summary}")

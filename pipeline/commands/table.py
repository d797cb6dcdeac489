"""`pipeline table`: train every row of a table and compare them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from pipeline.options import RecipeCommand, device_option, no_reuse_option, paper_option, seeds_option, spread_options

if TYPE_CHECKING:
    from pipeline.experiment.config import RunConfig
    from pipeline.experiment.engines import Spread
    from pipeline.session import Result, Session


@click.command(cls=RecipeCommand, sections=("data", "depth", "network", "training"))
@click.argument("name")
@seeds_option
@no_reuse_option
@device_option
@paper_option
@spread_options
@click.pass_obj
def table(
    session: Session,
    config: RunConfig,
    name: str,
    seeds: tuple[int, ...] | None,
    no_reuse: bool,
    device: str,
    paper: bool,
    **wishes: Any,
) -> None:
    """Train all rows of the table NAME, or of a TOML file, and compare them.

    A file's rows are its [[table.rows]], with a name, a baseline and changes under the recipe's keys. Several calls on
    one work directory share the work, if --wait is given.
    """
    from pipeline.experiment.engines import Spread

    spread = Spread(**wishes)
    session.show(train_table(name, config, session, device, seeds, reuse=not no_reuse, spread=spread, paper=paper))


def train_table(
    name: str,
    config: RunConfig,
    session: Session,
    device: str,
    seeds: tuple[int, ...] | None,
    *,
    reuse: bool,
    spread: Spread,
    paper: bool = False,
) -> Result:
    """Train all rows of a table with all seeds; without seeds with its own.

    Returns:
        ``rows``, ``trained`` and ``reused`` (distinct trainings), ``unshared`` (trainings the same runs would need one
        by one). Rows have the paper's scores with ``paper``, or where ours are of its data set.
    """
    from data_cache.ranks import speaker_first
    from pipeline.experiment.artifacts import wait_for_stores
    from pipeline.experiment.engines import open_engine
    from pipeline.experiment.execute import execute_plan
    from pipeline.experiment.expand import expand_rows, make_plan
    from pipeline.experiment.tables import find_table
    from pipeline.experiment.tabulate import tabulate
    from pipeline.session import Result
    from stages.comparison.formats import FORMATS, summarise
    from stages.comparison.record import RunRecord

    wanted = find_table(name)
    with open_engine(spread, session, device) as engine:
        if spread.wait:
            wait_for_stores(config, session)
        with speaker_first():
            rows = expand_rows(engine.resolve(config), name, seeds, session, str(engine.device))
            plan = make_plan(rows, session, reuse=reuse)
        done = execute_plan(plan, session, engine, wait=spread.wait)
    folders = [session.workspace.runs / record["run"] for record in done.records]
    compared = tabulate([RunRecord.from_json(folder) for folder in folders], wanted, paper=paper)
    facts = {
        **summarise(compared),
        "notes": [*compared.notes, *plan.notes],
        "trained": done.trained,
        "reused": len(plan.nodes) - done.trained,
        "unshared": plan.without_reuse,
    }
    summary = (
        f"{facts['trained']} phases trained, {facts['reused']} reused "
        f"({plan.without_reuse} if every run trained its own)"
    )
    return Result(facts, f"{wanted.title}\n{FORMATS['text'](compared)}\n\n{summary}")

"""`pipeline run`: train one schedule and score it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from pipeline.options import RecipeCommand, device_option, no_reuse_option, wait_option

if TYPE_CHECKING:
    from pipeline.experiment.config import RunConfig
    from pipeline.session import Session


@click.command(cls=RecipeCommand)
@no_reuse_option
@device_option
@wait_option
@click.pass_obj
def run(session: Session, config: RunConfig, no_reuse: bool, device: str, wait: bool) -> None:
    """Train one schedule and evaluate it."""
    from pipeline.experiment.tabulate import tabulate
    from pipeline.session import Result
    from stages.comparison.formats import FORMATS
    from stages.comparison.record import RunRecord

    trained = train_one(config, session, device, reuse=not no_reuse, wait=wait)
    table = tabulate([RunRecord.from_json(trained.folder)])
    session.show(Result(trained.to_json(), f"{FORMATS['text'](table)}\n\nrun: {trained.folder}"))


class Trained(NamedTuple):
    """A finished run: one schedule, one seed, scored. It stands for its folder wherever a path is taken."""

    run: str
    """Name of its folder."""
    schedule: str
    """Its row: the schedule, with ``+copy`` and a control behind it."""
    phases: list[dict[str, Any]]
    """Of each phase ``name``, ``key`` (folder below nodes/), ``reused`` (trained before), ``steps``, ``seconds``, …"""
    metrics: dict[str, float]
    """Of the last weights on the reported split, by name; shares are in [0, 1]."""
    folder: Path
    notes: list[str]
    """What a person should know about the data."""

    def __fspath__(self) -> str:
        return str(self.folder)

    def to_json(self) -> dict[str, Any]:
        """Return the same as JSON values."""
        return {**self._asdict(), "folder": str(self.folder)}


def train_one(config: RunConfig, session: Session, device: str, *, reuse: bool, wait: bool = False) -> Trained:
    """Train the recipe's schedule, but for what is trained already, and score its last weights.

    Args:
        device: auto, cpu, cuda, cuda:1, …
        reuse: whether phases that other runs have trained count.
        wait: whether to wait for what other processes are working on.

    Raises:
        UserError: what the person can repair, before anything is trained where that can be.
    """
    from data_cache.ranks import speaker_first
    from pipeline.experiment.artifacts import wait_for_stores
    from pipeline.experiment.devices import choose_device
    from pipeline.experiment.engines.here import Here
    from pipeline.experiment.execute import execute_plan
    from pipeline.experiment.expand import expand_rows, make_plan

    chosen = choose_device(device)
    if wait:
        wait_for_stores(config, session)
    with speaker_first():
        plan = make_plan(expand_rows(config, None, (config.seed,), session, str(chosen)), session, reuse=reuse)
    (record,) = execute_plan(plan, session, Here(session, chosen), wait=wait).records
    folder = session.workspace.runs / record["run"]
    return Trained(record["run"], record["name"], record["phases"], record["metrics"], folder, plan.notes)

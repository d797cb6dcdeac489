"""What keeps runs from being compared, or from standing in one table, and the words for it. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from stages.comparison.identity import PHASES, differing, join_values, show_value
from stages.comparison.record import RunRecord

THE_ROWS = "those of the row"
_UNSEEN = {"depth": "depth: other maps", "data.pool": "data.pool: other images without masks"}
"""Parts of an identity whose values, fingerprints, are not shown: what is said instead."""
MAX_NAMED = 6
"""Differing settings that a note names; of more it gives the number."""
OF_THE_SCHEDULE = ("training.steps", "loss")
"""Settings with a value per phase that follow from the schedule, and from what ``RunRecord.budget`` says."""
COMES_WITH = {
    "network.name": ("network",),
    "training.transfer": ("network", "training.encoder_policy"),
    "data.labelled_fraction": ("data.pool", "data.unlabelled", "depth"),
    "data.labelled_by": ("data.labelled_fraction",),
    "data.unlabelled": ("data.pool", "depth"),
}
"""Key that a table's row sets → what else it changes."""


def find_obstacles(run: RunRecord, base: RunRecord, declared: Collection[str]) -> list[str]:
    """Return in what a run and its baseline differ that none of them is said to change; empty where they compare.

    Settings that only one of them reads, as of depth, do not count, nor what follows from their schedules.

    Args:
        declared: keys of the recipe that rows of their names change.
    """
    obstacles = differing([run.measurement, base.measurement])
    mine, theirs = run.comparable, base.comparable
    free = {*declared, *(name for key in declared for name in COMES_WITH.get(key, ()))}

    def is_declared(name: str) -> bool:
        return any(f"{name}.".startswith(f"{key}.") or f"{key}.".startswith(f"{name}.") for key in free)

    for name in mine.keys() & theirs.keys() - set(OF_THE_SCHEDULE):
        one, other = mine[name], theirs[name]
        per_phase = name == "training.lr" and isinstance(one, list) and isinstance(other, list)
        if one != other and not is_declared(name) and not (per_phase and any(value in other for value in one)):
            obstacles.append(name)
    return sorted(obstacles, key=[*base.measurement, *mine].index)


def describe_differences(runs: Sequence[RunRecord], names: Iterable[str] | None = None) -> str:
    """Return in words where runs differ, values in the order of the runs; "" where nowhere.

    Args:
        names: what to look at; None is everything that keeps runs out of one row.
    """
    facts = [run.facts if names is None else {**run.facts, **run.comparable} for run in runs]
    found = differing(facts) if names is None else list(names)
    fingerprints = [name for name in ("data", "reported split") if name in found]
    others = [name for name in found if name not in fingerprints]
    if "depth" in others and any(name.startswith(("depth.", "data.")) for name in (*others, *fingerprints)):
        others.remove("depth")
    words = [
        *([_describe_places(" and ".join(fingerprints), runs)] if fingerprints else []),
        *(_describe(name, [each.get(name) for each in facts]) for name in others[:MAX_NAMED]),
        *([f"{len(others) - MAX_NAMED} more settings"] if len(others) > MAX_NAMED else []),
    ]
    return "; ".join(words)


def group_runs(runs: Iterable[RunRecord]) -> list[list[RunRecord]]:
    """Return runs by what one table must have in common, each group in its order; older runs go by names alone."""
    groups: dict[str, list[RunRecord]] = {}
    of_names: dict[tuple[str, str], str] = {}
    for run in sorted(runs, key=lambda run: run.identity is None):
        names = run.dataset, run.split
        key = of_names.get(names, str(names)) if run.identity is None else json.dumps(run.identity.place())
        of_names.setdefault(names, key)
        groups.setdefault(key, []).append(run)
    return list(groups.values())


def _describe_places(what: str, runs: Sequence[RunRecord]) -> str:
    """Return the words for data of other fingerprints, which say nothing to people: where they lie."""
    one_split = len({run.split for run in runs}) == 1
    places = dict.fromkeys(run.place if one_split else f"{run.split} of {run.place}" for run in runs)
    return f"{what}: other images or masks ({', '.join(places)}{', changed in between' if len(places) == 1 else ''})"


def _describe(name: str, values: Sequence[Any]) -> str:
    if name == PHASES:
        return f"{name}: {join_values(', '.join(value) if value else THE_ROWS for value in values)}"
    return _UNSEEN.get(name) or f"{name} {join_values(map(show_value, values))}"

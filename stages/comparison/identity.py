"""What must agree for runs to be averaged or compared, and the words for where they do not. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stages.comparison.record import RunRecord

PHASES = "phases"
"""Name of the steps of a recipe's own schedule among the facts of a run; those of a table's row go by its name."""
THE_ROWS = "those of the row"
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


@dataclass(frozen=True)
class Identity:
    """Everything besides name, network and seed that decides a run's scores."""

    data: str
    """Fingerprint of the training split's content."""
    split: str
    """Fingerprint of the reported split's content."""
    depth: str | None
    """Key of the depth store; None where none was used."""
    numerics: Mapping[str, Any]
    """Device type, dtype, TF32, compilation."""
    evaluation: int
    """Version of the evaluation that scored it."""
    settings: Mapping[str, Any]
    """Flat ``section.key`` → value of every setting that decides weights or scores, seed and schedule left out."""

    def place(self) -> dict[str, Any]:
        """Return what the runs of one table have in common: data with their classes, reported split, numerics."""
        numerics = {f"numerics: {name}": value for name, value in self.numerics.items()}
        return {"data": self.data, "reported split": self.split, **numerics}

    def measurement(self) -> dict[str, Any]:
        """Return what must agree for two scores to be held against each other."""
        return self.place() | {"evaluation version": self.evaluation}

    def flat(self) -> dict[str, Any]:
        """Return everything under names for people."""
        return {**self.measurement(), "depth": self.depth, **self.settings}


def differing(facts: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the names under which not all of the mappings have the same value, in order of appearance."""
    names = dict.fromkeys(name for each in facts for name in each)
    return [name for name in names if len({json.dumps(each.get(name), sort_keys=True) for each in facts}) > 1]


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
    return "depth: other maps" if name == "depth" else f"{name} {join_values(map(show_value, values))}"


def join_values(values: Iterable[str]) -> str:
    """Return the distinct values side by side."""
    return " / ".join(dict.fromkeys(values))


def show_value(value: Any) -> str:
    """Return a setting's value as a person writes it."""
    return value if isinstance(value, str) else "none" if value is None else json.dumps(value, sort_keys=True)

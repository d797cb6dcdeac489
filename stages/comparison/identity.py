"""What must agree for runs to be averaged or compared, and the words for where they do not. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stages.comparison.record import RunRecord

PHASES = "phases"
"""Name of the steps of a recipe's own schedule among the facts of a run; those of a table's row go by its name."""
THE_ROWS = "those of the row"
MAX_NAMED = 6
"""Differing settings that a note names; of more it gives the number."""


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

    def measurement(self) -> dict[str, Any]:
        """Return what must agree for two scores to be held against each other."""
        numerics = {f"numerics: {name}": value for name, value in self.numerics.items()}
        return {"data": self.data, "reported split": self.split, **numerics, "evaluation version": self.evaluation}

    def flat(self) -> dict[str, Any]:
        """Return everything under names for people."""
        return {**self.measurement(), "depth": self.depth, **self.settings}


def differing(facts: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the names under which not all of the mappings have the same value, in order of appearance."""
    names = dict.fromkeys(name for each in facts for name in each)
    return [name for name in names if len({json.dumps(each.get(name), sort_keys=True) for each in facts}) > 1]


def describe_differences(runs: Sequence[RunRecord], *, measured: bool = False) -> str:
    """Return in words where the identities of runs differ, values in the order of the runs; "" where nowhere.

    Args:
        measured: look only at what must agree for scores to be compared.
    """
    facts = [run.measurement if measured else run.facts for run in runs]
    names = differing(facts)
    fingerprints = [name for name in ("data", "reported split") if name in names]
    others = [name for name in names if name not in fingerprints]
    words = [
        *([_describe_places(" and ".join(fingerprints), runs)] if fingerprints else []),
        *(_describe(name, [each.get(name) for each in facts]) for name in others[:MAX_NAMED]),
        *([f"{len(others) - MAX_NAMED} more settings"] if len(others) > MAX_NAMED else []),
    ]
    return "; ".join(words)


def _describe_places(what: str, runs: Sequence[RunRecord]) -> str:
    """Return the words for data of other fingerprints, which say nothing to people: where they lie."""
    one_split = len({run.split for run in runs}) == 1
    places = dict.fromkeys(run.place if one_split else f"{run.split} of {run.place}" for run in runs)
    return f"{what}: other images or masks ({', '.join(places)}{', changed in between' if len(places) == 1 else ''})"


def _describe(name: str, values: Sequence[Any]) -> str:
    if name == PHASES:
        return f"{name}: {join_values(', '.join(value) if value else THE_ROWS for value in values)}"
    shown = join_values(map(show_value, values))
    return f"depth: other maps ({shown})" if name == "depth" else f"{name} {shown}"


def join_values(values: Iterable[str]) -> str:
    """Return the distinct values side by side."""
    return " / ".join(dict.fromkeys(values))


def show_value(value: Any) -> str:
    """Return a setting's value as a person writes it."""
    return value if isinstance(value, str) else "none" if value is None else json.dumps(value, sort_keys=True)

"""Everything besides name, network and seed that decides a run's scores. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

PHASES = "phases"
"""Name of the steps of a recipe's own schedule among the facts of a run; those of a table's row go by its name."""


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


def join_values(values: Iterable[str]) -> str:
    """Return the distinct values side by side."""
    return " / ".join(dict.fromkeys(values))


def show_value(value: Any) -> str:
    """Return a setting's value as a person writes it."""
    return value if isinstance(value, str) else "none" if value is None else json.dumps(value, sort_keys=True)


def show_short(value: Any) -> str:
    """Return a setting's value in few letters: of one that is the same for all phases it once."""
    alike = isinstance(value, list | tuple) and len(value) > 0 and all(each == value[0] for each in value)
    return show_value(value[0] if alike else value).replace('"', "")

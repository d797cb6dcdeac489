"""What comparison knows of a run: the typed reading of run.json. Imports no torch."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_cache.errors import UserError
from data_cache.files import read_json
from stages.comparison.identity import PHASES, Identity


@dataclass(frozen=True)
class PhaseRecord:
    """One phase of a run."""

    name: str
    steps: int
    elapsed_s: float
    """Seconds the training took when it was done, whether by this run or by the one it is shared with."""
    reused: bool
    """Whether this run found the phase trained already."""


@dataclass(frozen=True)
class ClassRecord:
    """One class of a run."""

    name: str
    iou: float | None
    """In [0, 1]; None when the class is in neither truth nor prediction."""
    acc: float | None
    """Recall; None when the truth has no such pixel."""
    pixels: int


@dataclass(frozen=True)
class RunRecord:
    """One run: one schedule, one seed, and what it scored."""

    name: str
    """Row name, e.g. ``depth-first+copy``."""
    seed: int
    network: str
    dataset: str
    recipe: str
    metrics: Mapping[str, float]
    """By the names of ``METRICS``; finite."""
    phases: tuple[PhaseRecord, ...] = ()
    total_steps: int = 0
    """Optimiser steps of all phases, reused ones included."""
    per_class: tuple[ClassRecord, ...] = ()
    parameters: int | None = None
    """Of the network as trained, depth branch included."""
    folder: Path | None = None
    """The run's folder, with ``metrics.jsonl`` and ``panels/``; None when it is not on disk."""
    started_at: str = ""
    """ISO 8601 instant."""
    split: str = "val"
    """The split the metrics are of."""
    command: str | None = None
    """The command line that repeats the run."""
    identity: Identity | None = None
    """None for a run of an older version, which did not record it."""
    environment: Mapping[str, Any] = field(default_factory=dict)
    """Threads and versions by name; they move last digits at most."""
    own_schedule: bool = False
    """Whether the schedule is one of the recipe's own steps, whatever it is called."""
    steps: tuple[str, ...] = ()
    """The steps of the schedule, in words."""
    data_root: str | None = None
    """Folder of the dataset; None for those that need none."""

    @property
    def place(self) -> str:
        """The dataset and where it lies."""
        return f"{self.dataset} at {self.data_root}" if self.data_root else self.dataset

    @property
    def facts(self) -> dict[str, Any]:
        """Everything besides name, network and seed that must agree for runs to be averaged, under names for people."""
        found = {} if self.identity is None else self.identity.flat()
        return found | ({PHASES: list(self.steps)} if self.own_schedule else {})

    @property
    def measurement(self) -> dict[str, Any]:
        """What must agree for scores to be compared, under names for people; empty for a run of an older version."""
        return {} if self.identity is None else self.identity.measurement()

    @property
    def row_key(self) -> str:
        """What the runs of one row have in common; a run of an older version has it with no other."""
        unknown = str(self.folder or id(self)) if self.identity is None else ""
        return json.dumps([self.name, self.network, self.facts, unknown], sort_keys=True)

    @classmethod
    def from_json(cls, path: Path) -> RunRecord:
        """Read a run's ``run.json``, or the one in a run's folder; keys for other readers are left alone.

        A schedule counts as the recipe's own unless run.json says it is none.

        Raises:
            UserError: the file is missing, damaged, or lacks what a comparison needs.
        """
        path = path / "run.json" if path.is_dir() else path
        facts = read_json(path, "name a run's folder or its run.json, or repeat the run")
        needed = ("name", "seed", "network", "dataset", "recipe", "metrics")
        if missing := [key for key in needed if facts.get(key) is None]:
            raise UserError(f"{path} lacks {', '.join(missing)}, so the run cannot be compared; repeat the run")
        try:
            phases = tuple(map(_phase, facts.get("phases", ())))
            environment, schedule = facts.get("environment", {}), facts.get("schedule", {})
            identity = facts.get("identity")
            return cls(
                name=str(facts["name"]),
                seed=int(facts["seed"]),
                network=str(facts["network"]),
                dataset=str(facts["dataset"]),
                recipe=str(facts["recipe"]),
                metrics=_numbers(facts["metrics"]),
                phases=phases,
                total_steps=int(facts.get("total_steps", sum(phase.steps for phase in phases))),
                per_class=tuple(map(_class, facts.get("per_class", ()))),
                parameters=facts.get("parameters"),
                folder=path.parent,
                started_at=str(facts.get("started_at", facts.get("finished_at", ""))),
                split=str(facts.get("split", "val")),
                command=facts.get("command"),
                identity=None if identity is None else Identity.from_dict(identity),
                environment={"threads": environment.get("threads"), **environment.get("versions", {})},
                own_schedule=bool(schedule.get("own", True)),
                steps=tuple(map(str, schedule.get("steps", ()))),
                data_root=facts.get("config", {}).get("data", {}).get("root"),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as problem:
            raise UserError(
                f"{path} is not understood ({type(problem).__name__}: {problem}); repeat the run"
            ) from problem


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """Return the finite numbers among the values; a confusion matrix beside them is not a metric."""
    return {
        name: float(value)
        for name, value in values.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }


def _phase(facts: Mapping[str, Any]) -> PhaseRecord:
    return PhaseRecord(
        str(facts["name"]), int(facts["steps"]), float(facts.get("seconds", 0.0)), bool(facts.get("reused", False))
    )


def _class(facts: Mapping[str, Any]) -> ClassRecord:
    return ClassRecord(str(facts["name"]), facts.get("iou"), facts.get("acc"), int(facts.get("pixels", 0)))

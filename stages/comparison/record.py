"""What run.json holds, and what comparison knows of a run. Imports no torch."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import AliasChoices, ConfigDict, Field, field_validator, model_validator

from data_cache.files import read_json
from data_cache.metrics import METRICS
from data_cache.records import Record, parse_record
from stages.comparison.identity import PHASES, Identity

RUN_FILE = "run.json"
RUN_FORMAT = 2
"""Of run.json; raised when its keys change their meaning, so that older ones get a message and never a wrong answer."""

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0, le=10**15)]
Side = Annotated[int, Field(ge=1, le=1 << 16)]
Byte = Annotated[int, Field(ge=0, le=255)]
BUDGET = ("training.epochs", "training.iterations", "training.budget", "loss.joint_seg", "loss.joint_depth")
"""Settings that phases resolve into steps and weights of their own."""
NodeName = Annotated[str, Field(pattern=r"^[0-9a-f]{8,64}$")]
"""Of a folder below nodes/; nothing that could lead out of there."""


@dataclass(frozen=True)
class PhaseRecord:
    """One phase of a run."""

    name: str
    steps: Count
    elapsed_s: Annotated[float, Field(ge=0, validation_alias=AliasChoices("seconds", "elapsed_s"))] = 0.0
    """Seconds the training took when it was done, whether by this run or by the one it is shared with."""
    reused: bool = False
    """Whether this run found the phase trained already."""
    images_seen: Mapping[str, Count] = field(default_factory=dict)
    """How many images its steps read with masks (``labelled``) and without; empty in what older versions wrote."""


def add_images(seen: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """Return how many images phases read with their masks and without, one after another."""
    found = list(seen)
    return {kind: sum(each.get(kind, 0) for each in found) for kind in ("labelled", "unlabelled")}


@dataclass(frozen=True)
class ClassRecord:
    """One class of a run."""

    name: str
    iou: Share | None = None
    """None when the class is in neither truth nor prediction."""
    acc: Share | None = None
    """Recall; None when the truth has no such pixel."""
    pixels: Count = 0


class DepthOrigin(Record):
    """Where a run's depth came from, as far as licences and cards tell it."""

    model_config = ConfigDict(extra="allow")

    estimator: str
    licence: str
    revision: str
    weights_sha256: str


class Environment(Record):
    """What moves last digits at most."""

    threads: int | None = None
    versions: dict[str, str | None] = Field(default_factory=dict)


class ScheduleFacts(Record):
    """The schedule of a run; it counts as the recipe's own unless run.json says it is none."""

    name: str = ""
    steps: tuple[str, ...] = ()
    own: bool = True


class EvaluationFacts(Record):
    """How the scores were made."""

    version: int
    key: str
    weights: str | None = None
    """Hash of the weights that were scored; None where an older version did not write it."""


class RunFile(Record):
    """run.json of any version, as far as a comparison reads it."""

    VERSION: ClassVar[int] = RUN_FORMAT

    format: int = 1
    name: str
    seed: int
    network: str
    dataset: str
    recipe: str
    metrics: dict[str, Any]
    phases: tuple[PhaseRecord, ...] = ()
    total_steps: Count | None = None
    per_class: tuple[ClassRecord, ...] = ()
    parameters: Count | None = None
    started_at: str | None = None
    finished_at: str = ""
    split: str = "val"
    command: str | None = None
    identity: Identity | None = None
    evaluation: EvaluationFacts | None = None
    environment: Environment = Environment()
    schedule: ScheduleFacts = ScheduleFacts()
    config: dict[str, Any] = Field(default_factory=dict)
    confusion: tuple[tuple[Count, ...], ...] = ()
    labelled_images: Count | None = None
    control_correlation: float | None = None


class TrainedRun(RunFile):
    """run.json of this version, with what it takes to open the model and to tell its origin."""

    run: str
    metrics: dict[str, float]
    schedule: ScheduleFacts
    config: dict[str, Any]
    identity: Identity
    evaluation: EvaluationFacts
    nodes: tuple[NodeName, ...] = Field(min_length=1)
    """Folders of the trained phases, first to last."""
    classes: tuple[str, ...] = Field(min_length=1)
    palette: tuple[tuple[Byte, Byte, Byte], ...]
    image_size: tuple[Side, Side]
    depth_store: DepthOrigin | None

    @field_validator("metrics")
    @classmethod
    def _check_metrics(cls, metrics: dict[str, float]) -> dict[str, float]:
        """Refuse shares beyond [0, 1]."""
        for name, value in metrics.items():
            if name in METRICS and METRICS[name].unit == "fraction" and not 0 <= value <= 1:
                raise ValueError(f"{name} is {value}, no share between 0 and 1")
        return metrics

    @field_validator("config")
    @classmethod
    def _check_config(cls, config: dict[str, Any]) -> dict[str, Any]:
        """Refuse a recipe without its sections, in whose place there would be defaults."""
        if missing := [name for name in ("data", "network", "schedule", "evaluation") if name not in config]:
            raise ValueError(f"{', '.join(missing)} is missing")
        return config

    @model_validator(mode="after")
    def _check_colours(self) -> TrainedRun:
        if len(self.palette) != len(self.classes):
            raise ValueError(f"{len(self.palette)} colours for {len(self.classes)} classes")
        return self


_SHARED = (
    "name", "seed", "network", "dataset", "recipe", "phases", "per_class", "parameters", "split", "command", "identity",
    "confusion", "labelled_images", "control_correlation",
)  # fmt: skip
"""What a comparison takes from run.json as it is."""


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
    evaluation: int = 0
    """Version of the metrics that scored it; 0 where that was not written down."""
    budget: Mapping[str, Any] = field(default_factory=dict)
    """BUDGET as the recipe had it when the run was last asked for."""
    confusion: tuple[tuple[int, ...], ...] = ()
    """Pixels by truth, then prediction."""
    labelled_images: int | None = None
    """Training images whose masks were used; None where that was not written down."""
    control_correlation: float | None = None
    """Of what was learned in place of depth, with the estimator's maps; None without it, or where nobody knows."""

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
    def comparable(self) -> dict[str, Any]:
        """What must agree between a row and its baseline, unless the table says otherwise, under names for people."""
        if self.identity is None:
            return {}
        depth = {} if self.identity.depth is None else {"depth": self.identity.depth}
        every = {"network": self.network, "data.labelled_fraction": "1"}  # which is not written down
        return {**every, **self.identity.settings, **self.budget, **depth}

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

        Raises:
            UserError: the file is missing, damaged, or lacks what a comparison needs.
        """
        path = path / RUN_FILE if path.is_dir() else path
        facts = read_run(path)
        data = facts.config.get("data")
        root = data.get("root") if isinstance(data, dict) else None
        as_they_are: dict[str, Any] = {name: getattr(facts, name) for name in _SHARED}
        return cls(
            **as_they_are,
            metrics=_numbers(facts.metrics),
            total_steps=sum(phase.steps for phase in facts.phases) if facts.total_steps is None else facts.total_steps,
            folder=path.parent,
            started_at=facts.finished_at if facts.started_at is None else facts.started_at,
            environment={"threads": facts.environment.threads, **facts.environment.versions},
            own_schedule=facts.schedule.own,
            steps=facts.schedule.steps,
            data_root=root if isinstance(root, str) else None,
            evaluation=facts.evaluation.version if facts.evaluation else 0,
            budget=_find_budget(facts.config),
        )


def read_run(path: Path) -> RunFile:
    """Return what run.json says: a ``TrainedRun`` where this version wrote it, less where an older one did.

    Raises:
        UserError: it is missing, damaged or of a newer version.
    """
    remedy = "remove it and repeat its run, which writes it anew, or name a run's folder or its run.json"
    value = read_json(path, remedy)
    return parse_record(value, TrainedRun if value.get("format") == RUN_FORMAT else RunFile, str(path), remedy)


def _find_budget(config: Mapping[str, Any]) -> dict[str, Any]:
    found = {}
    for key in BUDGET:
        section, _, name = key.partition(".")
        settings = config.get(section)
        if isinstance(settings, dict) and name in settings:
            found[key] = settings[name]
    if found.get("training.iterations") is not None:
        found.pop("training.epochs", None)
    return found


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """Return the finite numbers among the values; a confusion matrix beside them is not a metric."""
    return {
        name: float(value)
        for name, value in values.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }

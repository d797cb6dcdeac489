"""A row of a table, and the words that tell rows of one name apart. Imports no torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NamedTuple

from stages.comparison.identity import PHASES, differing, join_values, show_short
from stages.comparison.record import RunRecord, add_images
from stages.comparison.row_name import RowName
from stages.comparison.statistics import Difference, Estimate, compare_paired

FACTS = ("dataset", "split", "recipe", "network")
"""What tables show in columns of their own where rows differ in it."""
OPAQUE = ("data", "reported split", "depth", "data.pool")
"""Parts of an identity that are fingerprints: their values say nothing to people."""
REAL_SOURCES = ("teacher", "dataset")
"""Values of ``depth.source`` that are depth of the image itself."""
ALIKE_STEPS = 0.99
"""Share of another row's steps that counts as equally many: a budget divided among phases loses a few."""
MAX_WORDS = 3
"""Differing settings that a label shows."""


class Control(NamedTuple):
    """A row that another must leave behind."""

    row: Row
    found: Difference
    """The other row minus this one, by the headline metric."""


@dataclass(frozen=True)
class Row:
    """One schedule on one network under one identity, over seeds."""

    name: str
    runs: tuple[RunRecord, ...]
    """One per seed, in order of seeds."""
    metrics: Mapping[str, Estimate]
    paper: Mapping[str, float] = field(default_factory=dict)
    """The paper's scores of this row; empty for rows of our own."""
    base: Row | None = None
    """The row the differences are to, known by its ``runs``; None for that row itself and where there is none."""
    differences: Mapping[str, Difference] = field(default_factory=dict)
    controls: Mapping[str, Control] = field(default_factory=dict)
    """Name of a row that the table says must stay behind, too, → that row, and how far it does."""

    @property
    def first(self) -> RunRecord:
        """The run of the first seed; in everything but its seed and scores it stands for the row."""
        return self.runs[0]

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(run.seed for run in self.runs)

    @property
    def total_steps(self) -> int:
        """Optimiser steps of one run."""
        return max(run.total_steps for run in self.runs)

    @property
    def images_seen(self) -> dict[str, int] | None:
        """Images that the steps of one run read with their masks and without; None where that was not written down."""
        seen = [phase.images_seen for phase in self.first.phases]
        return add_images(seen) if seen and all(seen) else None

    @property
    def labelled_images(self) -> int | None:
        """Training images whose masks were used; None where that was not written down, or seeds differ in it."""
        found = {run.labelled_images for run in self.runs}
        return found.pop() if len(found) == 1 else None

    @property
    def depth_source(self) -> str:
        """What was learned in the place of the image's depth; "" where nothing was, whatever the row is called."""
        known = self.first.identity.settings.get("depth.source") if self.first.identity else None
        found = str(known) if known else RowName.parse(self.name).source
        return "" if found in REAL_SOURCES else found

    @property
    def control_correlation(self) -> float | None:
        """How ``depth_source`` correlates with the estimator's maps; None where no run knows, or seeds differ in it."""
        found = {run.control_correlation for run in self.runs} - {None}
        return found.pop() if len(found) == 1 else None

    @property
    def baseline(self) -> str | None:
        """Name of the row the differences are to."""
        return self.base.name if self.base else None

    def is_measured_as(self, other: Row) -> bool:
        """Return whether scores of the two rows can be held against each other."""
        return self.first.measurement == other.first.measurement

    def fact(self, name: str) -> str:
        """Return one of FACTS; runs of one row may come from recipes of other names."""
        return join_values(str(getattr(run, name)) for run in self.runs)

    def by_seed(self, metric: str) -> dict[int, float]:
        """Return the metric of every seed that has it."""
        return {run.seed: run.metrics[metric] for run in self.runs if metric in run.metrics}

    def with_difference(self, base: Row) -> Row:
        """Return this row compared with another; unchanged without a seed in common."""
        found = {name: compare_paired(self.by_seed(name), base.by_seed(name)) for name in self.metrics}
        differences = {name: difference for name, difference in found.items() if difference is not None}
        return replace(self, base=base, differences=differences) if differences else self

    def to_json(self) -> dict[str, Any]:
        """Return the row as JSON values.

        ``metrics`` holds means, ``intervals`` the half widths of their 95 % intervals (null for one seed), ``by_seed``
        the single values, ``difference`` the paired difference to ``baseline`` as a ``Difference``; all by metric name.
        """
        return {
            "name": self.name,
            **{fact: self.fact(fact) for fact in FACTS},
            "identity": None if self.first.identity is None else asdict(self.first.identity),
            "seeds": list(self.seeds),
            "total_steps": self.total_steps,
            "images_seen": self.images_seen,
            "labelled_images": self.labelled_images,
            "parameters": self.first.parameters,
            "metrics": {name: estimate.mean for name, estimate in self.metrics.items()},
            "intervals": {name: estimate.half_width for name, estimate in self.metrics.items()},
            "by_seed": {
                name: {str(seed): value for seed, value in self.by_seed(name).items()} for name in self.metrics
            },
            "paper": dict(self.paper),
            "baseline": self.baseline,
            "controls": {
                name: {"mean": found.mean, "half_width": found.half_width, "seeds": list(found.seeds)}
                for name, (_, found) in self.controls.items()
            },
            "difference": {
                name: found._asdict()
                | {"seeds": list(found.seeds), "images": found.images._asdict() if found.images else None}
                for name, found in self.differences.items()
            },
        }


def varying_facts(rows: Sequence[Row]) -> list[str]:
    """Return those of FACTS in which rows differ."""
    return [fact for fact in FACTS if len({row.fact(fact) for row in rows}) > 1]


def label_rows(rows: Sequence[Row], *, shown: Collection[str] = ()) -> list[str]:
    """Return each row's name, with as many words behind it as tell rows of one name apart.

    Args:
        shown: those of FACTS that stand beside the label anyway.
    """
    labels = [
        " · ".join([row.name, *_words(row, [other for other in rows if other.name == row.name], shown)]) for row in rows
    ]
    facts = [(label, *(row.fact(fact) for fact in shown)) for label, row in zip(labels, rows, strict=True)]
    total, seen = Counter(facts), Counter[tuple[str, ...]]()
    for place, fact in enumerate(facts):
        seen[fact] += 1
        if total[fact] > 1:
            labels[place] += f" · {seen[fact]} of {total[fact]}"
    return labels


def _words(row: Row, namesakes: Sequence[Row], shown: Collection[str]) -> Iterator[str]:
    """Yield what a row has otherwise than its namesakes."""
    for fact in ("network", "dataset", "split"):
        if fact not in shown and len({other.fact(fact) for other in namesakes}) > 1:
            yield row.fact(fact)
    places = {other.first.place for other in namesakes if other.first.dataset == row.first.dataset}
    if len(places) > 1:
        yield row.first.data_root or row.first.dataset
    if row.first.identity is None and any(other.first.identity for other in namesakes):
        yield "older version"
    yield from differing_words(row.first, [other.first for other in namesakes])


def differing_words(run: RunRecord, namesakes: Sequence[RunRecord]) -> Iterator[str]:
    """Yield the settings, few of them, that a run has otherwise than its namesakes, for example "lr=0.001"."""
    known = [other.facts for other in namesakes if other.identity]
    names = [name for name in differing(known) if name not in OPAQUE] if run.identity else []
    if PHASES in names and run.own_schedule:
        yield "own phases"
    for name in names[:MAX_WORDS]:
        if name != PHASES:
            yield f"{name.rpartition(': ')[2].rpartition('.')[2]}={show_short(run.facts.get(name))}"

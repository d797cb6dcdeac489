"""What a table of runs is: its rows, what each changes in the recipe, and what it is compared with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from data_cache.metrics import HEADLINE


@dataclass(frozen=True)
class TableRow:
    """One row: its name, its changes to the recipe under dotted keys, and the paper's scores for it."""

    name: str
    """Unique over all tables."""
    changes: Mapping[str, Any]
    paper: Mapping[str, float] = field(default_factory=dict)
    """By the paper's own columns (miou, iiou, acc), as fractions."""
    budget: int = 1
    """Multiplies the recipe's epochs or iterations."""
    baseline: str | None = None
    """Row that it is compared with; None is the table's."""
    controls: tuple[str, ...] = ()
    """Rows that must stay behind, too, if a gain is to be credited to what this one adds."""
    needs_own_pool: bool = False
    """Left out where the dataset brings no images without masks: it would be the same as another row."""

    @property
    def declared(self) -> set[str]:
        """Keys of the recipe in which this row is another than those it is compared with."""
        return {*self.changes, *(("training.epochs", "training.iterations") if self.budget != 1 else ())}


class PaperFigures(NamedTuple):
    """Of what the scores are that rows have from a paper; beside scores of other data they would mislead."""

    dataset: str
    """Key of ``DATASETS``."""
    note: str
    """How to read them."""


@dataclass(frozen=True)
class TableSpec:
    """Rows to be trained on one recipe and compared with one of them."""

    title: str
    baseline: str
    rows: tuple[TableRow, ...]
    note: str
    """What must be said of the rows whatever they are trained on; "" is nothing."""
    metrics: tuple[str, ...] | None = None
    """What people read first, None takes the metrics declared so; every metric is in the CSV and JSON."""
    compared_metrics: tuple[str, ...] = (HEADLINE,)
    """Whose differences to the baseline they read, too: the headline's, and what the paper makes a claim of."""
    seeds: tuple[int, ...] | None = None
    """Seeds it is trained with where neither recipe nor command names any; None is the usual one."""
    paper: PaperFigures | None = None
    """None where no row has a paper's scores."""
    shared_epochs: float | None = None
    """So many times the recipe's epochs, over all training images with masks or without, are divided among the phases
    of every row, so that all have equal steps; None leaves each the recipe's budget."""

    @property
    def order(self) -> list[str]:
        """Names of the rows."""
        return [row.name for row in self.rows]

    @property
    def decided(self) -> set[str]:
        """Keys of the recipe that any row sets."""
        keys = {key for row in self.rows for key in row.changes}
        return keys | ({"training.budget"} if self.shared_epochs else set())

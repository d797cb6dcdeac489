"""Tables of runs: which rows, what each changes in the recipe, and what the paper printed. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from data_cache.errors import unknown_name
from pipeline.config import RunConfig
from stages.training.schedules import PAPER_ROWS, TABLE_ROWS


@dataclass(frozen=True)
class TableRow:
    """One row: its name, its changes to the recipe under dotted keys, and the paper's scores for it."""

    name: str
    changes: Mapping[str, Any]
    paper: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class TableSpec:
    """Rows to be trained on one recipe and compared with one of them."""

    title: str
    baseline: str
    rows: tuple[TableRow, ...]


def _schedule_row(name: str) -> TableRow:
    base, _, copy = name.partition("+")
    changes = {"schedule": {"name": base, "copy_weights": bool(copy), "steps": ()}}
    return TableRow(name, changes, paper_scores(name))


def paper_scores(row: str) -> dict[str, float]:
    """Return the paper's mIoU, iIoU and acc of a schedule row; empty for our own rows."""
    printed = PAPER_ROWS.get(row)
    return dict(printed._asdict()) if printed else {}


TABLES = {
    "schedules": TableSpec("Training schedules", "seg-only", tuple(_schedule_row(name) for name in TABLE_ROWS)),
}


def find_table(name: str) -> TableSpec:
    """Return a table; UserError names the nearest one."""
    if name not in TABLES:
        raise unknown_name("table", name, TABLES)
    return TABLES[name]


def table_rows(table: TableSpec, config: RunConfig, seeds: tuple[int, ...]) -> list[tuple[str, RunConfig]]:
    """Return row name and configuration for every row and seed, seeds innermost."""
    return [(row.name, config.changed({**row.changes, "seed": seed})) for row in table.rows for seed in seeds]

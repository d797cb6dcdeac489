"""The command line with one more table: ``few``, three rows of the schedules that share beginnings."""

from __future__ import annotations

import dataclasses

from pipeline.cli import main
from pipeline.experiment.table_spec import TableSpec
from pipeline.experiment.tables import TABLES

NAMES = ("seg-only", "seg-first-direct", "depth-first-direct")
SCHEDULES = TABLES["schedules"]
FEW: TableSpec = dataclasses.replace(
    SCHEDULES, rows=tuple(row for row in SCHEDULES.rows if row.name in NAMES), seeds=None
)

if __name__ == "__main__":
    TABLES["few"] = FEW
    main()

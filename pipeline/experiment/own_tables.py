"""A table that a person wrote: rows, what each changes in a recipe, what it is compared with. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from data_cache.errors import UserError, unknown_name
from data_cache.escaping import quoted
from data_cache.settings import Decides, Section, setting
from pipeline.experiment.config import flatten_changes, validate
from pipeline.experiment.table_spec import TableRow, TableSpec
from pipeline.experiment.toml_text import read_recipe_file
from stages.comparison.row_name import find_controls

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 .+:@/_=-]{0,59}")
"""Of a row: folders are called after it."""


class OwnRow(Section):
    """One row."""

    name: str = setting("", Decides.NOTHING, validate_default=True)
    """What it is called."""
    baseline: str | None = setting(None, Decides.NOTHING)
    """Row that it is compared with; the table's where it is not given."""
    changes: dict[str, Any] = setting({}, Decides.NOTHING)
    """What it changes in the recipe, under dotted keys."""

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str) -> str:
        if not name:
            raise ValueError("the row has no name; each needs one of its own")
        if not _NAME.fullmatch(name):
            raise ValueError(
                f"{quoted(name)} must begin with a letter or digit and hold only those of ASCII, spaces and "
                ". + : @ / _ = -, at most 60: it becomes the name of a folder"
            )
        return name


class OwnTable(Section):
    """The section ``table`` of a file."""

    title: str = setting("", Decides.NOTHING, max_length=200)
    """Heading; the name of the file where it is not given."""
    baseline: str | None = setting(None, Decides.NOTHING)
    """Row that the others are compared with; the first where it is not given."""
    seeds: tuple[Annotated[int, Field(ge=0, lt=2**63)], ...] | None = setting(None, Decides.NOTHING, max_length=1000)
    """Seeds of every row, unless the command names others; the recipe's where they are not given."""
    note: str = setting("", Decides.NOTHING, max_length=2000)
    """What a reader must know."""
    rows: tuple[OwnRow, ...] = setting((), Decides.NOTHING, max_length=1000)
    """What is compared."""

    @model_validator(mode="after")
    def _check_seeds(self) -> OwnTable:
        if self.seeds is not None and (not self.seeds or len(set(self.seeds)) < len(self.seeds)):
            raise ValueError(f"seeds {list(self.seeds)} must be different numbers, at least one")
        return self


class OwnFile(Section):
    """What of a file is read here; its other sections are a recipe."""

    table: OwnTable = OwnTable()


def read_table(path: Path) -> TableSpec:
    """Return the table of a TOML file.

    Raises:
        UserError: it is none, two rows have one name, or a baseline is no row.
    """
    tree = read_recipe_file(path)
    table = validate(OwnFile, {key: value for key, value in tree.items() if key == "table"}, f"table {path}").table
    if not table.rows:
        raise UserError(
            f"{path} has no rows; each begins with [[table.rows]], has a name, and its changes under the recipe's keys"
        )
    names = [row.name for row in table.rows]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"table {path}: {', '.join(map(repr, twice))} is the name of several rows; each needs its own")
    for baseline in (table.baseline, *(row.baseline for row in table.rows)):
        if baseline is not None and baseline not in names:
            raise UserError(f"table {path}: {unknown_name('baseline row', baseline, names)}")
    return TableSpec(
        table.title or path.stem,
        table.baseline or names[0],
        tuple(
            TableRow(row.name, _replace(row, path), baseline=row.baseline, controls=find_controls(row.name, names))
            for row in table.rows
        ),
        table.note,
        seeds=table.seeds,
    )


def choose_recipe(path: Path, recipe: str, *, given: bool) -> str:
    """Return the recipe that a table's rows change: the other sections of its file, where there are any.

    Args:
        recipe: what the command says.
        given: whether a person said it.

    Raises:
        UserError: there are two.
    """
    sections = [key for key in read_recipe_file(path) if key != "table"]
    if sections and given:
        raise UserError(
            f"{path} is a recipe itself (it has {', '.join(sections)}), and --recipe {recipe} is another; drop either"
        )
    return str(path) if sections else recipe


def _replace(row: OwnRow, path: Path) -> Mapping[str, Any]:
    """Return the changes of a row, with what gives way to them: as with the command line's options of these names."""
    changes = flatten_changes(row.changes)
    if refused := [key for key in changes if key.partition(".")[0] in ("seed", "recipe", "card", "row_changes")]:
        raise UserError(
            f"table {path}: row {row.name!r} changes {', '.join(refused)}, which is not a row's to change"
            + ("; seeds are the table's: seeds = [0, 1, 2]" if "seed" in refused else "")
        )
    if "schedule.name" in changes:
        of_it = {key: changes.pop(key) for key in list(changes) if key.startswith("schedule.")}
        changes["schedule"] = {key.removeprefix("schedule."): value for key, value in of_it.items()}
    if "data.dataset" in changes:
        changes = {"data.root": None, "data.options": {}, **changes}
    if "training.epochs" in changes:
        changes = {"training.iterations": None, **changes}
    return changes

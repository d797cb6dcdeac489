"""`pipeline recipes`: the bundled recipes, and every key that a recipe can have."""

from __future__ import annotations

import json
import types
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin

import click

if TYPE_CHECKING:
    from pipeline.session import Result, Session


@click.command()
@click.option("--keys", is_flag=True, help="List every key of a recipe: kind, default, what it decides, flag.")
@click.pass_obj
def recipes(session: Session, keys: bool) -> None:
    """List recipes with their cards."""
    session.show(list_keys() if keys else list_recipes())


def list_recipes() -> Result:
    """List the bundled recipes with their cards."""
    from pipeline.console import plain_table
    from pipeline.experiment.config import load_config, recipe_names
    from pipeline.session import Result

    facts: list[dict[str, Any]] = []
    for name in recipe_names():
        config = load_config(name)
        facts.append({"name": name, **config.card.model_dump(), "dataset": config.data.dataset})
    rows = [[fact["name"], fact["dataset"], fact["hardware"], fact["time"], fact["expected"]] for fact in facts]
    return Result({"recipes": facts}, plain_table("Recipes", ["name", "dataset", "hardware", "time", "expected"], rows))


def list_keys() -> Result:
    """List every key of a recipe.

    Returns:
        ``keys``: list of ``key``, ``kind``, ``default``, ``decides``, ``flag`` (or None), ``help``.
    """
    from data_cache.settings import Declaration, find_declaration
    from pipeline.console import plain_table
    from pipeline.experiment.config import iterate_keys
    from pipeline.session import Result

    facts: list[dict[str, Any]] = []
    for path, field in iterate_keys():
        declaration = find_declaration(field)
        assert isinstance(declaration, Declaration), "a field without one fails at import"
        facts.append(
            {
                "key": path,
                "kind": _describe_kind(field.annotation),
                "default": field.get_default(call_default_factory=True),
                "decides": [str(kind) for kind in declaration.decides],
                "flag": declaration.flag,
                "help": field.description or "",
            }
        )
    shown = ("key", "kind", "default", "decides", "flag", "help")
    rows = [[_show_cell(column, fact[column]) for column in shown] for fact in facts]
    return Result({"keys": facts}, plain_table("Keys", ["key", "kind", "default", "decides", "flag", "what"], rows))


def _show_cell(column: str, value: Any) -> str:
    """Return a cell of the table of keys: a default as a recipe would write it, "-" for nothing."""
    if value is None:
        return "-"
    if column == "decides":
        return ", ".join(value)
    return json.dumps(value, ensure_ascii=False) if column == "default" else str(value)


def _describe_kind(annotation: Any) -> str:
    """Return a type in the words of a recipe, for example ``"adam" | "sgd"`` or ``int (may be left out)``."""
    from data_cache.settings import is_section

    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " | ".join(f'"{choice}"' for choice in inner)
    if origin in (Union, types.UnionType):
        kinds = [_describe_kind(each) for each in inner if each is not type(None)]
        return " or ".join(kinds) + (" (may be left out)" if len(kinds) < len(inner) else "")
    if origin is tuple:
        return f"list of {_describe_kind(inner[0])}"
    return "table" if origin is dict or is_section(annotation) else annotation.__name__

"""Whether an option that came from a recipe is of the kind its constructor's annotation asks for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin


def fits(value: Any, wanted: Any) -> bool:
    """Return whether a JSON value suits an annotation; which numbers are possible, the constructor says.

    Args:
        value: text, number, truth value, None, list or mapping.
        wanted: as ``typing.get_type_hints`` returns it.
    """
    origin, arguments = get_origin(wanted), get_args(wanted)
    if origin in (Union, UnionType):
        return any(fits(value, argument) for argument in arguments)
    if wanted is Any:
        return True
    if origin is Literal:
        return value in arguments
    if origin in (Sequence, list, tuple):
        return isinstance(value, list | tuple) and all(fits(item, each) for item in value for each in arguments[:1])
    if origin is Mapping:
        return isinstance(value, Mapping)
    if wanted is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if wanted is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return not isinstance(wanted, type) or isinstance(value, wanted)


def describe(wanted: Any) -> str:
    """Return an annotation in words that fit behind "must be"."""
    origin, arguments = get_origin(wanted), get_args(wanted)
    if origin in (Union, UnionType):
        return " or ".join(describe(argument) for argument in arguments if argument is not NoneType)
    if origin is Literal:
        return "one of " + ", ".join(map(repr, arguments))
    if origin in (Sequence, list, tuple):
        return f"a list of {_name(arguments[0])}s"
    if origin is Mapping:
        return "a table"
    return "text" if wanted is str else f"a {_name(wanted)}"


def _name(wanted: Any) -> str:
    names = {str: "text", int: "whole number", float: "number", bool: "truth value (true or false)"}
    return names.get(wanted, str(wanted))

"""TOML that a person wrote, a recipe or the value of ``--set``, read within bounds. Imports no torch."""

from __future__ import annotations

import json
import os
import re
import stat
import tomllib
from collections.abc import Iterator, Mapping
from datetime import date, time
from math import isfinite
from pathlib import Path
from typing import Any

from data_cache.errors import UserError

MAX_BYTES = 100_000
MAX_DEPTH = 16
MAX_NUMBER = 2**63
_DEEP_KEY = re.compile(r"""(?:[\w"'-]{1,40}[ \t]{0,2}\.[ \t]{0,2}){50}""")
"""So many parts of one key; the parser's time and memory grow with their square."""


def read_recipe_file(path: Path) -> dict[str, Any]:
    """Return what a recipe's file says.

    Raises:
        UserError: it is no readable file, too large, no TOML, empty, or says what no recipe can (``check_plain``).
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe or a device would be read for ever
            raise UserError(f"cannot read recipe {path}: it is no file; give the path of a .toml file")
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as problem:
        raise UserError(f"cannot read recipe {path}: {problem.strerror}") from problem
    if len(content) > MAX_BYTES:
        raise UserError(f"cannot read recipe {path}: it is larger than {MAX_BYTES:,} bytes, so it must be another file")
    try:
        tree = parse_toml(content.decode("utf-8-sig"), f"recipe {path}")
    except UnicodeDecodeError as problem:
        raise UserError(
            f"recipe {path} is not valid TOML: byte {problem.start} is not UTF-8; save the file as UTF-8"
        ) from problem
    except tomllib.TOMLDecodeError as problem:
        raise UserError(f"recipe {path} is not valid TOML: {problem}") from problem
    if not tree:
        raise UserError(
            f"recipe {path} is empty; it names at least a dataset, as the ones that `pipeline recipes` lists do"
        )
    check_plain(tree, f"recipe {path}")
    return tree


def parse_toml(text: str, what: str) -> dict[str, Any]:
    """Return the tables of a text.

    Raises:
        tomllib.TOMLDecodeError: it is no TOML.
        UserError: it is nested too deeply, or holds a number of thousands of digits; ``what`` says where.
    """
    if len(text) > MAX_BYTES:
        raise UserError(f"{what} is longer than {MAX_BYTES:,} characters")
    too_deep = f"{what} is nested more than {MAX_DEPTH} levels deep; no setting is"
    if _DEEP_KEY.search(text):
        raise UserError(too_deep)
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        raise
    except RecursionError:
        raise UserError(too_deep) from None
    except ValueError as problem:  # Python's own, of numbers and dates
        raise UserError(f"{what} has a number that no setting can take: {str(problem).partition(';')[0]}") from problem


def check_plain(value: Any, what: str, where: str = "") -> None:
    """Refuse values that no setting takes: dates, numbers beyond 64 bits or not finite, NUL characters, deep nests.

    Args:
        what: what they are part of, for the message.
        where: the dotted key of ``value``.

    Raises:
        UserError: listing all.
    """
    if problems := list(_find_odd(value, where, 0)):
        raise UserError("\n  ".join([f"{what}:", *problems]))


def _find_odd(value: Any, where: str, depth: int) -> Iterator[str]:
    if depth > MAX_DEPTH:
        yield f"{where[:60]}… is nested more than {MAX_DEPTH} levels deep; no setting is"
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _find_odd(inner, f"{where}.{key}" if where else str(key), depth + 1)
    elif isinstance(value, list | tuple):
        for place, inner in enumerate(value):
            yield from _find_odd(inner, f"{where}.{place}", depth + 1)
    elif isinstance(value, date | time):
        yield f"{where}: {value} is a date or time for TOML; where text is meant, put it in quotes"
    elif isinstance(value, float) and not isfinite(value):
        yield f"{where}: Input should be a finite number, found {value}"
    elif isinstance(value, int) and not -MAX_NUMBER <= value < MAX_NUMBER:
        yield f"{where}: a number of {value.bit_length()} bits is more than any setting can take"
    elif isinstance(value, str) and "\0" in value:
        yield f"{where}: text cannot hold a NUL character, found {value[:60]!r}"


def write_value(value: Any) -> str:
    """Return a setting as TOML on one line; paths and tuples as text and lists."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{write_value(str(key))} = {write_value(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(write_value, value))}]"
    text = json.dumps(os.fspath(value) if isinstance(value, os.PathLike) else value, ensure_ascii=False)
    return text.replace("\x7f", "\\u007f")

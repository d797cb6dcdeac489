"""Records of our own, parsed rather than trusted: a strict model with a version, one message for whatever is wrong.

Imports no torch.
"""

from __future__ import annotations

import json
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from data_cache.errors import UserError
from data_cache.escaping import printable_text
from data_cache.files import read_json

_SHOWN_PROBLEMS = 3
_SHOWN_CHARACTERS = 80


class Record(BaseModel):
    """A file that this program wrote and reads again.

    Values have their own types and none is converted; numbers are finite. Unknown keys are left alone: a record may
    tell people more than programs read.
    """

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore", allow_inf_nan=False)

    VERSION: ClassVar[int] = 1
    """Raised by hand when what the keys mean changes."""
    VERSION_KEY: ClassVar[str] = "format"
    """Key that holds the version; a record without it is of version 1."""


AnyRecord = TypeVar("AnyRecord", bound=Record)
_PLAIN_OF_RAW_BYTE = {0xDC00 + byte: chr(0xF0000 + byte) for byte in range(0x80, 0x100)}
"""Python's sign for a byte in a file name that is no UTF-8, which pydantic's JSON lacks → one for private use."""
_RAW_BYTE_OF_PLAIN = {ord(plain): chr(raw) for raw, plain in _PLAIN_OF_RAW_BYTE.items()}


def read_record(path: Path, model: type[AnyRecord], remedy: str = "remove it and repeat the command") -> AnyRecord:
    """Return the record that a JSON file holds.

    Args:
        remedy: what to do about a file that is missing or damaged.

    Raises:
        UserError: it cannot be read, is of a newer version, or is no such record; the message names the file, the
            first keys that are wrong, and the remedy.
    """
    return parse_record(read_json(path, remedy), model, str(path), remedy)


def parse_record(value: dict[str, Any], model: type[AnyRecord], where: str, remedy: str) -> AnyRecord:
    """Return the record that an object holds; ``where`` names its place in the message.

    Raises:
        UserError: as in ``read_record``.
    """
    version = value.get(model.VERSION_KEY, 1)
    if isinstance(version, int) and version > model.VERSION:
        raise UserError(
            f"{where} has {model.VERSION_KEY} {version}, this program reads up to {model.VERSION}: "
            "a newer program wrote it; update this one"
        )
    try:  # strict about JSON's types: a tuple is a list there
        text = json.dumps(value, ensure_ascii=False)
        found = model.model_validate_json(text.translate(_PLAIN_OF_RAW_BYTE))
        return found if text.isascii() else _restore(found)
    except ValidationError as problem:
        raise UserError(f"{where} is damaged ({explain_invalid(problem)}); {remedy}") from problem


def explain_invalid(problem: ValidationError) -> str:
    """Return the first problems of a record: key, what it should be, what it is."""
    errors = problem.errors(include_url=False)
    lines = [_explain_one(error) for error in errors[:_SHOWN_PROBLEMS]]
    if len(errors) > _SHOWN_PROBLEMS:
        lines.append(f"and {len(errors) - _SHOWN_PROBLEMS} more")
    return "; ".join(lines)


def _explain_one(error: Any) -> str:
    where = printable_text(".".join(str(part) for part in error["loc"]) or "the whole")
    if error["type"] == "missing":
        return f"{where} is missing"
    if error["type"] == "value_error":  # our own validators say what they found
        return f"{where}: {error['msg'].removeprefix('Value error, ')}"
    found = printable_text(repr(error["input"]))
    if len(found) > _SHOWN_CHARACTERS:
        found = f"{found[:_SHOWN_CHARACTERS]}…"
    return f"{where}: {error['msg']}, found {found}"


def _restore(value: Any) -> Any:
    """Return a value with Python's signs for raw bytes in its texts."""
    if isinstance(value, str):
        return value.translate(_RAW_BYTE_OF_PLAIN)
    if isinstance(value, dict):
        return {_restore(key): _restore(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(_restore, value))
    if isinstance(value, BaseModel):
        return value.model_copy(update={name: _restore(each) for name, each in value})
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{each.name: _restore(getattr(value, each.name)) for each in fields(value)})
    return value

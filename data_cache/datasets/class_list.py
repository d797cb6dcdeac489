"""Names of classes as people write them: a line each, in the order of the ids, optionally with a colour."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from data_cache.content import read_text
from data_cache.datasets.interface import RGB
from data_cache.errors import UserError
from data_cache.sample import IGNORE_INDEX

_LARGEST_LIST = 1 << 20
"""Bytes; 255 names need far less."""
_LONGEST_NAME = 200
_NUMBERED = re.compile(r"\d+[\s,;:.=)-]*[^\s\d,;:.=)-]")
_OTHER_LINE_ENDS = re.compile("[\v\f\x1c-\x1e\x85\u2028\u2029]")
_COLOUR_AND_COMMENT = re.compile(r"\s\d+\s+\d+\s+\d+\s+#")


def read_classes(path: Path) -> tuple[tuple[str, ...], tuple[RGB, ...] | None]:
    """Read class names, and colours when every class has one.

    Raises:
        UserError: the file is missing or no text, names no class or two that look the same, has a blank line between
            classes, numbers its lines, or gives a broken colour.
    """
    text = read_text(
        path,
        largest_bytes=_LARGEST_LIST,
        remedy="write one class name per line, as UTF-8, in the order of the mask ids; the first line is id 0",
    )
    return parse_classes(re.split("\r\n|\r|\n", text), str(path))


def parse_classes(lines: Iterable[str], path: str) -> tuple[tuple[str, ...], tuple[RGB, ...] | None]:
    """Return class names, and colours when every class has one.

    Args:
        lines: a class each.
        path: where they stand, for messages.

    Raises:
        UserError: as ``read_classes``.
    """
    names: list[str] = []
    colours: list[RGB] = []
    blank = None
    for number, line in enumerate(lines, start=1):
        words = line.split()
        if not words:
            blank = blank or number
            continue
        if words[0].startswith("#"):
            continue
        if blank is not None:
            raise UserError(
                f"{path} line {blank} is blank, but the order of the lines gives the ids: remove it, or write a name "
                "there if that id is a class of its own"
            )
        if _COLOUR_AND_COMMENT.search(line):
            raise UserError(f"{path} line {number}: a comment stands on a line of its own, before or after the class")
        if _OTHER_LINE_ENDS.search(line.strip()):
            raise UserError(
                f"{path} line {number} holds a control character that some programs take for the end of a line; "
                "remove it, or begin a new line there"
            )
        if len(words) > 3 and all(word.isdecimal() for word in words[-3:]):
            colours.append(_check_colour(path, number, words[-3:]))
            words = words[:-3]
        names.append(" ".join(words))
    check_class_names(path, names)
    if colours and len(colours) != len(names):
        raise UserError(f"{path} gives a colour to {len(colours)} of {len(names)} classes; give it to all or to none")
    if len(set(colours)) != len(colours):
        raise UserError(f"{path} gives two classes the same colour; RGB masks could not tell them apart")
    return tuple(names), tuple(colours) or None


def _check_colour(path: str, number: int, words: list[str]) -> RGB:
    red, green, blue = (int(word) if len(word) <= 3 else 256 for word in words)
    if max(red, green, blue) > 255:
        raise UserError(f"{path} line {number}: a colour has three numbers from 0 to 255, got {' '.join(words)[:40]}")
    return red, green, blue


def check_class_names(path: Path | str, names: Sequence[str]) -> None:
    """Refuse names that tables could not show, or could not tell apart.

    Args:
        path: where they stand, for the message.
        names: by id.

    Raises:
        UserError: naming those that are wrong.
    """
    if not names:
        raise UserError(f"{path} names no class; write one name per line in the order of the mask ids")
    if len(names) > IGNORE_INDEX:
        raise UserError(f"{path} names {len(names)} classes; at most {IGNORE_INDEX} fit, as {IGNORE_INDEX} means void")
    long = next((name for name in names if len(name) > _LONGEST_NAME), None)
    if long is not None:
        raise UserError(
            f"{path} has a class name of {len(long)} characters ({long[:20]}…); at most {_LONGEST_NAME} fit into tables"
        )
    seen = Counter(map(_appearance, names))
    twice = sorted({name for name in names if seen[_appearance(name)] > 1})
    if twice:
        raise UserError(f"{path} names a class twice: {', '.join(twice)}; give every id a name of its own")
    if len(names) > 1 and all(map(_NUMBERED.match, names)):
        raise UserError(
            f"{path} begins every line with a number ({names[0]}), but the order of the lines gives the ids: leave the "
            "numbers out, write a line for every id, and set data.options.first_id if the first id is not 0"
        )


def _appearance(name: str) -> str:
    """Return what a reader sees of a name: letters written as one code or two, nothing invisible."""
    return "".join(letter for letter in unicodedata.normalize("NFC", name) if unicodedata.category(letter) != "Cf")

"""Names of files, rows, classes and data sets as literal text in each kind of output. Imports no torch."""

from __future__ import annotations

import json
import re
import unicodedata
from html import escape
from typing import Any

_LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "_": r"\_", "&": r"\&", "%": r"\%", "#": r"\#", "$": r"\$",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", "\0": "{}", "[": "{[}", "*": "{*}", "–": "--",
    "±": r"$\pm$", "·": r"$\cdot$", "↑": r"$\uparrow$", "↓": r"$\downarrow$",
}  # fmt: skip
_LIGATURE = re.compile(r"-(?=-)|[`'](?=[`'])|[?!](?=`)|,(?=,)")
_PLAIN = {
    "·": "-", "–": "-", "—": "-", "─": "-", "−": "-", "±": "+-", "×": "x", "…": "...", "→": "->", "↑": "(up)",
    "↓": "(down)", "\xa0": " ",
}  # fmt: skip
"""Signs of our own → what a terminal shows that has only ASCII."""


def printable_text(text: str) -> str:
    """Return text that a terminal only shows: control characters, direction marks and line ends are written out."""
    return "".join(
        letter
        if letter.isprintable() or unicodedata.category(letter) == "Zs"
        else letter.encode("unicode_escape").decode()
        for letter in text
    )


def printable_lines(text: str) -> str:
    """Return what ``printable_text`` makes of each line of a text of several lines."""
    return "\n".join(map(printable_text, text.split("\n")))


def encodable_text(text: str, encoding: str | None) -> str:
    """Return text that an encoding can write: other letters become ASCII where they are signs of ours, else codes.

    Args:
        encoding: of a stream; None takes everything.
    """
    if encoding is None or _fits(text, encoding):
        return text
    return "".join(
        letter if _fits(letter, encoding) else _PLAIN.get(letter) or json.dumps(letter)[1:-1] for letter in text
    )


def json_text(value: Any, *, indent: int | None = None) -> str:
    """Return JSON of valid UTF-8 that says what the value says, and does nothing to a terminal."""
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    return "".join(each if each.isprintable() or each == "\n" else json.dumps(each)[1:-1] for each in text)


def _fits(text: str, encoding: str) -> bool:
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return False
    return True


def quoted(value: object) -> str:
    """Return a value as Python writes it, for a message; of a long one the middle is left out."""
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:100]}…{text[-19:]}"


def width_of(text: str) -> int:
    """Return how many columns of a terminal the text takes; Chinese, Japanese and Korean letters take two."""
    return sum(
        0 if unicodedata.combining(letter) else 1 + (unicodedata.east_asian_width(letter) in "WF") for letter in text
    )


def markdown_text(text: str) -> str:
    """Return text that GitHub's Markdown shows as it is, also inside a table and at the beginning of a line."""
    escaped = re.sub(r"[\\`*{}\[\]<>|~$&#!]|(?<![^\W_])_|_(?![^\W_])", r"\\\g<0>", printable_text(text))
    return re.sub(r"^(\d*)([-+.)])(?=\s)", r"\1\\\2", escaped)  # else a list would begin


def csv_text(text: str) -> str:
    """Return text that a spreadsheet shows as it is; what would be a formula gets an apostrophe in front."""
    text = printable_text(text)
    return f"'{text}" if text.lstrip()[:1] in tuple("=+-@＝＋－＠") else text


def latex_text(text: str) -> str:
    """Return text that LaTeX typesets as it is; letters beyond Latin need XeLaTeX or LuaLaTeX."""
    apart = _LIGATURE.sub("\\g<0>\0", printable_text(text))
    return "".join(_LATEX.get(letter, letter) for letter in apart)


def html_text(text: str) -> str:
    """Return text that a browser shows as it is, also inside an attribute."""
    return escape(printable_text(text))

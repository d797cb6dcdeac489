"""Write docs/bad-input.md: ``python -m tests.bad_input``."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

from data_cache.escaping import markdown_text
from tests.bad_input.cases import all_cases

PAGE = Path(__file__).parents[2] / "docs" / "bad-input.md"
INTRODUCTION = """\
# Bad input, and what comes of it

Generated from `tests/bad_input/` by `python -m tests.bad_input`; `pytest tests/bad_input` runs every row on a small
world of its own (own images, labelled, trained, exported) and checks the exit status, the words of the message, that no
traceback and no warning of a library was shown, that stdout is one JSON object, and that no file of the user's changed.
Exit 2: the user can repair it; exit 0: the input is legitimate and the result was checked to be the right one.
"""


def page_lines() -> Iterator[str]:
    """Yield the lines of the page."""
    cases = all_cases()
    yield from INTRODUCTION.splitlines()
    yield f"{len(cases)} cases."
    for heading, group in groupby(cases, key=lambda pair: pair[0]):
        yield from ("", f"## {heading}", "", "| input | exit | the message says |", "|---|---:|---|")
        for _, case in group:
            words = " · ".join(markdown_text(word) for word in case.words)
            yield f"| {markdown_text(case.input)} | {case.exit} | {words} |"


if __name__ == "__main__":
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text("\n".join(page_lines()) + "\n", encoding="utf8")

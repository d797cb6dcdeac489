"""What exceptions of libraries are turned into."""

from __future__ import annotations

import pytest

from data_cache.errors import say_reason


@pytest.mark.parametrize(
    ("problem", "first", "last"),
    [
        (EOFError(), "EOFError", "EOFError"),
        (RuntimeError("\n"), "RuntimeError", "RuntimeError"),
        (RuntimeError("one\ntwo\n"), "one", "two"),
    ],
)
def test_a_reason_is_one_line_be_there_a_message_or_none(problem: Exception, first: str, last: str) -> None:
    assert (say_reason(problem), say_reason(problem, -1)) == (first, last)

"""What the name of a row says: a schedule, the source of its depth, the share of the masks. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

_SOURCE = re.compile("@[^:@]*")


class RowName(NamedTuple):
    """A name like ``depth-first+copy@shuffled:1/4``."""

    base: str
    """The schedule, with what else the row does."""
    source: str = ""
    """Of the depth, where it is none of the image."""
    share: str = ""
    """Of the masks."""

    @classmethod
    def parse(cls, name: str) -> RowName:
        """Return the parts of a name, whatever it is."""
        bare = _SOURCE.sub("", name)
        base, mark, share = bare.rpartition(":")
        source = "".join(_SOURCE.findall(name)).removeprefix("@")
        return cls(base, source, share) if mark else cls(bare, source)


def name_control(name: str, source: str) -> str:
    """Return what a row is called that learns from another source of depth, and is otherwise the row of this name."""
    return f"{name}@{source}"


def find_controls(name: str, names: Iterable[str]) -> tuple[str, ...]:
    """Return those of the names that ``name_control`` gives to controls of a row."""
    return tuple(other for other in names if other.startswith(name_control(name, "")))

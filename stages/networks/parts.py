"""Names of the parts of a network: what can be trained, frozen, copied or dropped. Imports no torch."""

from __future__ import annotations

from enum import Flag, auto


class Part(Flag):
    """One part, or with ``|`` a set of parts. Single parts are the keys of ``Network.parts()``."""

    ENCODER = auto()
    SEG_DECODER = auto()
    SEG_HEAD = auto()
    DEPTH_DECODER = auto()
    DEPTH_HEAD = auto()

    def names(self) -> tuple[str, ...]:
        """Return the kebab-case names of the single parts in this set, in declaration order."""
        return tuple((part.name or "").lower().replace("_", "-") for part in Part if part in self)

    @classmethod
    def parse(cls, name: str) -> Part:
        """Return the part or branch of that kebab-case name; ValueError names the possible ones."""
        if name not in NAMED_PARTS:
            raise ValueError(f"unknown part {name!r}; possible: {', '.join(NAMED_PARTS)}")
        return NAMED_PARTS[name]


ENCODER = Part.ENCODER
SEG_BRANCH = Part.SEG_DECODER | Part.SEG_HEAD
DEPTH_BRANCH = Part.DEPTH_DECODER | Part.DEPTH_HEAD
EVERYTHING = ENCODER | SEG_BRANCH | DEPTH_BRANCH

NAMED_PARTS = {part.names()[0]: part for part in Part} | {
    "seg-branch": SEG_BRANCH,
    "depth-branch": DEPTH_BRANCH,
    "everything": EVERYTHING,
}

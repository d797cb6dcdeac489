"""Reading metrics.jsonl, which training writes and pages draw. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from pydantic import Field, model_validator

from data_cache.files import read_json_lines
from data_cache.records import Record, parse_record

_REMEDY = "remove the file: what it tells was for people to look at, and nothing else depends on it"


class LogLine(Record):
    """What is logged of a step, in the order of its keys."""

    phase: str
    step: int = Field(ge=0, le=10**12)
    """Steps finished, counted from 1."""
    total: float | None = None
    raw: dict[str, float] = Field(default_factory=dict)
    """Unweighted losses of the step; none in a line of scores."""
    weighted: dict[str, float] | None = None
    share: dict[str, float] | None = None
    lr: float | None = None
    grad_norm: float | None = None
    gradients: dict[str, float] | None = None
    """What the two losses ask of the encoder, where that was looked at: norms under seg and depth, and their cosine."""
    mean: dict[str, float] | None = None
    """Unweighted losses, means over the steps since the line before; None in files from before there were means."""

    val: dict[str, float] | None = None
    """What the weights scored after the step."""

    @model_validator(mode="after")
    def _check_told(self) -> LogLine:
        if not self.raw and not self.val:
            raise ValueError("raw is missing")
        return self

    @property
    def losses(self) -> dict[str, float]:
        """What is drawn."""
        return self.raw if self.mean is None else self.mean

    def to_json(self, phase: str) -> str:
        """Return the line as it was, under the name that the phase has in a run."""
        return json.dumps(self.model_dump(exclude_unset=True) | {"phase": phase})


def read_log(path: Path) -> Iterator[LogLine]:
    """Yield the lines of a log; a last one that a kill cut off is left out.

    Raises:
        UserError: a line is damaged, or the file cannot be read.
    """
    for number, line in enumerate(read_json_lines(path, _REMEDY), start=1):
        yield parse_record(line, LogLine, f"line {number} of {path}", _REMEDY)

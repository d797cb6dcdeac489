"""What every command needs: where to work and how to speak."""

from __future__ import annotations

from dataclasses import dataclass
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.console import Console, LoggingConsole
from pipeline.workspace import Workspace

if TYPE_CHECKING:
    from rich.console import RenderableType


@dataclass(frozen=True)
class Result:
    """What a command found or did: once for programs, once for people."""

    json: dict[str, Any]
    text: RenderableType
    failed: bool = False
    """Whether something in it is bad: the exit status then is 2."""


@dataclass(frozen=True)
class Session:
    """One call of the command line."""

    workspace: Workspace
    console: Console

    @classmethod
    def start(cls, workdir: str | Path | None, *, json_mode: bool = False, quiet: bool = False) -> Session:
        """Choose the work directory and the way to speak."""
        return cls(Workspace.choose(workdir), Console(json_mode=json_mode, quiet=quiet))

    @classmethod
    def for_library(cls, workdir: str | PathLike[str] | None) -> Session:
        """Return one for a call from Python: nothing is printed, and progress goes to the logger ``pipeline``."""
        return cls(Workspace.choose(None if workdir is None else fspath(workdir)), LoggingConsole())

    def show(self, result: Result) -> None:
        """Print a result to stdout; end the command where it has failed."""
        self.console.result(result.json, result.text)
        if result.failed:
            raise SystemExit(2)

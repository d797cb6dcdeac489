"""What every command needs: where to work and how to speak."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.console import Console
from pipeline.workspace import Workspace

if TYPE_CHECKING:
    from rich.console import RenderableType


@dataclass(frozen=True)
class Result:
    """What a command found or did: once for programs, once for people."""

    json: dict[str, Any]
    text: RenderableType


@dataclass(frozen=True)
class Session:
    """One call of the command line."""

    workspace: Workspace
    console: Console

    @classmethod
    def start(cls, workdir: str | None, *, json_mode: bool = False, quiet: bool = False) -> Session:
        """Choose the work directory and the way to speak."""
        return cls(Workspace.choose(workdir), Console(json_mode=json_mode, quiet=quiet))

    def show(self, result: Result) -> None:
        """Print a result to stdout."""
        self.console.result(result.json, result.text)

"""What killed processes left behind in the work directory."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from data_cache.errors import UserError
from data_cache.files import hold_folder
from data_cache.leftovers import is_abandoned, is_temporary, measure, remove, walk
from pipeline.workspace import NodeFolder, Workspace


class Leftover(NamedTuple):
    """A file or folder that nothing needs any more."""

    path: Path
    bytes: int

    def to_json(self) -> dict[str, Any]:
        """Return it for programs."""
        return {"path": str(self.path), "bytes": self.bytes}


def find_leftovers(workspace: Workspace) -> list[Leftover]:
    """Return temporary files and folders whose processes are gone, and training states of finished phases."""
    found = [path for path in walk(workspace.root) if is_abandoned(path)]
    found += [node.checkpoint for node in _finished_nodes(workspace) if node.checkpoint.is_dir()]
    return [Leftover(path, measure(path)) for path in sorted(found)]


def remove_leftovers(workspace: Workspace) -> list[Leftover]:
    """Remove them, except where another process is at work; return what is gone."""
    found = find_leftovers(workspace)
    for node in _finished_nodes(workspace):
        tidy_finished(node)
    for path, _ in found:
        if is_temporary(path):
            remove(path)
    return [one for one in found if not one.path.exists()]


def tidy_finished(node: NodeFolder) -> None:
    """Remove what killed attempts left in a finished phase, unless another process holds it."""
    if node.checkpoint.exists() or any(map(is_temporary, node.path.glob(".*.tmp"))):
        with contextlib.suppress(UserError, OSError), hold_folder(node.path, "tidying up"):
            remove(node.checkpoint)


def _finished_nodes(workspace: Workspace) -> Iterator[NodeFolder]:
    nodes = (NodeFolder(path.parent) for path in sorted(workspace.root.glob("nodes/*/node.json")))
    return (node for node in nodes if node.finished)

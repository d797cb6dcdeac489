"""What finished runs hold on the disk, what they share, and how one is removed without harm to another."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from data_cache.errors import UserError
from data_cache.files import hold_folder, read_json
from data_cache.leftovers import measure, remove
from pipeline.workspace import Workspace
from stages.comparison.record import RUN_FILE, TrainedRun, read_run


@dataclass(frozen=True)
class Removal:
    """What goes with a run, and what stays because something else needs it."""

    run: Path
    nodes: tuple[Path, ...]
    kept: dict[str, str]
    """Name of a node that stays → why."""

    @property
    def bytes(self) -> int:
        """What is freed."""
        return sum(measure(path) for path in (self.run, *self.nodes))


def list_nodes(workspace: Workspace, run: Path) -> tuple[Path, ...]:
    """Return the folders of a run's trained phases, first to last; none where an older version wrote the run."""
    record = read_run(run / RUN_FILE)
    return tuple(workspace.node(name).path for name in record.nodes) if isinstance(record, TrainedRun) else ()


def plan_removal(workspace: Workspace, run: Path) -> Removal:
    """Return what can go with a run of this work directory: its folder, and the phases that nothing else rests on.

    Raises:
        UserError: it lies elsewhere.
    """
    if run.resolve().parent != workspace.runs.resolve():
        raise UserError(f"{run} is no run of {workspace.runs}; name its work directory: pipeline --workdir DIR runs rm")
    users = dict(_find_users(workspace, run))
    nodes = [path for path in list_nodes(workspace, run) if path.is_dir()]
    kept = {path.name: users[path.name] for path in nodes if path.name in users}
    if unreadable := users.get(""):
        kept |= {path.name: unreadable for path in nodes}
    return Removal(run, tuple(path for path in nodes if path.name not in kept), kept)


def remove_run(plan: Removal, workspace: Workspace) -> int:
    """Remove a run and what goes with it; return the bytes that are free now.

    Raises:
        InUse: another process is working on it; nothing is gone then.
        UserError: meanwhile another run rests on one of its phases.
    """
    with ExitStack() as held:
        for folder in (plan.run, *plan.nodes):
            held.enter_context(hold_folder(folder, "removing a run"))
        if plan_removal(workspace, plan.run).nodes != plan.nodes:
            raise UserError(f"what rests on the phases of {plan.run.name} has changed meanwhile; repeat the command")
        freed = plan.bytes
        for folder in (plan.run, *reversed(plan.nodes)):
            remove(folder)
            if folder.exists():
                raise UserError(f"{folder} cannot be removed; look at who owns it, and repeat the command")
    return freed


def _find_users(workspace: Workspace, run: Path) -> Iterator[tuple[str, str]]:
    """Yield by node what else needs it: other runs, and phases of none that were trained from it.

    Under "" it says which run cannot be read, so that nobody knows what it needs.
    """
    own = {path.name for path in list_nodes(workspace, run)}
    known = set(own)
    for other in sorted(workspace.runs.glob(f"*/{RUN_FILE}")):
        if other.parent.name == run.name:
            continue
        try:
            record = read_run(other)
        except UserError:
            yield "", f"{other} cannot be read, and may need it"
            continue
        if isinstance(record, TrainedRun):
            known |= set(record.nodes)
            yield from ((name, f"shared with {other.parent.name}") for name in record.nodes)
    seen: set[str] = set()
    for path in sorted((workspace.root / "nodes").glob("*")):
        if path.name in known or not path.is_dir():
            continue
        parent = _read_parent(path)
        if parent is None:  # in training, or interrupted: nobody knows from what it starts
            yield from ((name, f"{path.name} is being trained, perhaps from it") for name in own)
        while parent and parent not in seen:  # a run of it would train the whole path anew
            yield parent, f"{path.name} was trained from it"
            seen.add(parent)
            parent = _read_parent(path.with_name(parent))


def _read_parent(node: Path) -> str | None:
    """Return the name of the phase that a node starts from, "" where it starts anew; None while it is not finished."""
    facts = node / "node.json"
    return str(read_json(facts).get("parent") or "") if facts.is_file() else None

"""What killed processes leave behind, and what only looks like it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from data_cache.leftovers import name_temporary
from tests.bad_input.world import Answer, Case, World


def _name_of_dead(path: Path) -> Path:
    """Return the name a process that is gone would have given to its temporary file."""
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    mine = name_temporary(path)
    return mine.with_name(f".{child}-{mine.name.partition('-')[2]}")


def _leave_checkpoint(world: World) -> Path:
    node = world.node_folders()[-1]
    (node / "checkpoint" / "step-00000001").mkdir(parents=True)
    (node / "checkpoint" / "step-00000001" / "state.safetensors").write_bytes(b"x" * 1000)
    _name_of_dead(node / "weights.safetensors").write_bytes(b"x" * 1000)
    return node


def _everything(world: World) -> Sequence[str | Path]:
    _leave_checkpoint(world)
    half = _name_of_dead(world.work / "scenes" / "x")
    half.mkdir(parents=True)
    (half / "image.npy").write_bytes(b"x" * 1000)
    _name_of_dead(world.work / "content-hashes.json").write_bytes(b"x" * 1000)
    return ["doctor"]


def _no_longer_there(world: World, answer: Answer) -> None:
    assert answer.json["freed_bytes"] == 4000
    assert len(answer.json["removed"]) == 4 and answer.json["leftovers"] == []
    assert not [*world.work.rglob("*.tmp"), *world.work.rglob("checkpoint")]


def _only_counted(world: World, answer: Answer) -> None:
    assert len(answer.json["leftovers"]) == 4 and answer.json["removed"] == []
    assert len([*world.work.rglob("*.tmp"), *world.work.rglob("checkpoint")]) == 4


def _in_a_finished_node(world: World) -> Sequence[str | Path]:
    _leave_checkpoint(world)
    return world.with_recipe("run")


def _node_is_tidy(world: World, _answer: Answer) -> None:
    assert not [*world.work.rglob("*.tmp"), *world.work.rglob("checkpoint")]


def _foreign(world: World) -> Sequence[str | Path]:
    (world.work / "mine.tmp").write_bytes(b"x")
    (world.work / ".123-mine.tmp").write_bytes(b"x")
    name_temporary(world.work / "x").write_bytes(b"x")
    (world.work / "checkpoint").mkdir()
    shutil.copytree(world.node_folders()[0], world.work / "nodes" / "unfinished")
    (world.work / "nodes" / "unfinished" / "node.json").unlink()
    (world.work / "nodes" / "unfinished" / "checkpoint" / "step-00000001").mkdir(parents=True)
    _name_of_dead(world.user / "x").write_bytes(b"x")
    (world.work / "link").symlink_to(world.user)
    return ["doctor", "--clean"]


def _all_there(world: World, answer: Answer) -> None:
    assert answer.json["removed"] == []
    assert len(list(world.work.glob("*.tmp")) + list(world.work.glob(".*.tmp"))) >= 3
    assert (world.work / "nodes" / "unfinished" / "checkpoint" / "step-00000001").is_dir()


CASES = [
    Case("temporary files of killed processes, looked at", _everything, ("doctor --clean",), 0, _only_counted),
    Case(
        "temporary files of killed processes, a half-drawn scene cache, a checkpoint of a finished phase",
        lambda world: [*_everything(world), "--clean"],
        ("freed_bytes",),
        0,
        _no_longer_there,
    ),
    Case("a finished phase with a killed attempt's checkpoint", _in_a_finished_node, (), 0, _node_is_tidy),
    Case(
        "files that only look left over: a living process's, the user's, a checkpoint of an unfinished phase",
        _foreign,
        (),
        0,
        _all_there,
    ),
]

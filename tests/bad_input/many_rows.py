"""Wishes about many processes and machines that cannot be fulfilled, or exclude each other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from tests.bad_input.world import Answer, Case, World

Words = Sequence[str | Path]
CLUSTER = "127.0.0.1:1"
"""Where nobody listens."""


def _table(*words: str) -> Callable[[World], Words]:
    return lambda world: world.with_recipe("table", "dcsa", *words)


def _plan(*words: str) -> Callable[[World], Words]:
    return lambda world: world.with_recipe("plan", *(word.format(user=world.user) for word in words))


def _without_ray(world: World) -> Words:
    Path("ray.py").write_text("raise ModuleNotFoundError(\"No module named 'ray'\")\n")  # in the folder of the call
    return world.with_recipe("table", "dcsa", "--on", "ray")


def _nothing_written(world: World, _: Answer) -> None:
    assert not (world.root / "jobs.sh").exists() and not (world.work / "token").exists()


CASES = [
    Case("no process at all", _table("--jobs", "0"), ("--jobs", "1<=x<=256")),
    Case("threads that are no number", _table(), ("OMP_NUM_THREADS is 'abc'", "from 1 to"),
         environment={"OMP_NUM_THREADS": "abc"}),
    Case("no thread at all", _plan(), ("OMP_NUM_THREADS is '0'", "from 1 to"), environment={"OMP_NUM_THREADS": "0"}),
    Case("threads of a name that is set to nothing", _plan(), (), exit=0, environment={"OMP_NUM_THREADS": " "}),
    Case("more processes than any machine has room for", _table("--jobs", "100000"), ("--jobs", "1<=x<=256")),
    Case("processes of this machine and a cluster", _table("--jobs", "2", "--on", "ray"),
         ("--jobs 2", "--on ray", "give one of them")),
    Case("the address of a cluster, but no wish for one", _table("--address", CLUSTER), ("add --on ray",)),
    Case("an engine that there is not", _table("--on", "spark"), ("--on", "ray")),
    Case("a cluster whose address is none", _table("--on", "ray", "--address", "ray//here"),
         ("ray//here", "auto, local, or host:port")),
    Case("a cluster that nobody answers for", _table("--on", "ray", "--address", CLUSTER),
         (CLUSTER, "ray start --head", "--address local"), environment={"RAY_ADDRESS": ""}, exhaustive=True),
    Case("a cluster in the environment that nobody answers for", _table("--on", "ray"),
         (CLUSTER, "ray start --head"), environment={"RAY_ADDRESS": CLUSTER}, exhaustive=True),
    Case("Ray is not installed", _without_ray, ("No module named 'ray'", "pip install"),
         environment={"PYTHONDONTWRITEBYTECODE": "1"}, exhaustive=True),
    Case("a job script without a table", _plan("--slurm", "jobs.sh", "--gpus", "2"), ("needs a table", "--gpus 8"),
         check=_nothing_written),
    Case("a job script for nobody knows how many", _plan("dcsa", "--slurm", "jobs.sh"), ("number of processes",),
         check=_nothing_written),
    Case("GPUs of no job script", _plan("dcsa", "--gpus", "2"), ("add --slurm",)),
    Case("a job script over a file of somebody's", _plan("dcsa", "--slurm", "{user}/notes.txt", "--gpus", "2"),
         ("notes.txt", "did not write", "--overwrite"), check=_nothing_written),
    Case("a job script where a folder is", _plan("dcsa", "--slurm", "{user}", "--gpus", "2"),
         ("--slurm", "is a folder", "jobs.sh"), check=_nothing_written),
    Case("one of several processes, but nobody says which", _table(), ("WORLD_SIZE=4", "RANK is ''", "torchrun"),
         environment={"WORLD_SIZE": "4"}),
    Case("a process beyond the last one", _table(), ("WORLD_SIZE=2", "RANK is '2'", "torchrun"),
         environment={"WORLD_SIZE": "2", "RANK": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1",
                      "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}),
    Case("no process of a job on this machine, and a port beyond the last one", _table(),
         ("LOCAL_RANK is '0'", "MASTER_PORT is '99999'", "torchrun"),
         environment={"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "0",
                      "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "99999"}),
    Case("a share of a GPU that is no number", _table("--on", "ray", "--gpus-per-training", "nan"),
         ("--gpus-per-training", "0<=x<=1")),
]  # fmt: skip

"""Kill real commands a few hundred times and prove that repeating them ends as if nothing had happened.

``python -m tests.crash [--kills N] [--only NAME] [--json FILE]``; ``make test-crash`` writes figures.json beside this
file, from which docs/reliability.md states its figures.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import pkgutil
import platform
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tests.crash.jobs import JOBS, RECIPE, RECIPE_COMMANDS, Job, describe_difference, take_snapshot
from tests.crash.strikes import SECOND_CTRL_C_S, Ended, call, redirect

KINDS = {
    "SIGKILL at a file operation": 0.5,
    "SIGKILL at a random moment": 0.2,
    "SIGTERM": 0.12,
    "Ctrl-C twice": 0.08,
    "full disk": 0.1,
}
"""How a command is stopped → share of the kills."""
ENDS = dict.fromkeys(KINDS, (130, "interrupted")) | {
    "SIGKILL at a file operation": (-signal.SIGKILL, ""),
    "SIGKILL at a random moment": (-signal.SIGKILL, ""),
    "full disk": (2, "error"),
}
"""How it must end: status, and the key of the one object on stdout."""
WARM = (
    "timm", "segmentation_models_pytorch", "onnx", "safetensors.torch",
    "transformers.models.depth_anything.modeling_depth_anything", "transformers.models.dinov2.modeling_dinov2",
)  # fmt: skip
"""Modules that commands import when they need them; here once for all."""
FIRST_S = 0.1
"""No signal that is to be answered comes earlier: a program that has not begun cannot answer."""
FULL_MB = 192
"""Size of the disk that is filled."""


class Prepared(NamedTuple):
    """A job whose undisturbed end is known."""

    job: Job
    template: Path
    """Work directory in which it can begin."""
    expected: dict[str, Any]
    operations: int
    """File operations of an undisturbed call."""
    seconds: float
    largest_file: int


class Task(NamedTuple):
    """Some kills in a row, and then the proof."""

    prepared: int
    kind: str
    number: int
    spread: float
    """Where the first kill falls, from 0 to 1, so that together they cover the whole command."""


def main() -> int:
    """Run what was asked for; exit status 1 when one kill was not survived."""
    parser = argparse.ArgumentParser(prog="python -m tests.crash", description=__doc__)
    parser.add_argument("--kills", type=int, default=130, help="while labelling; the others have their share of it")
    parser.add_argument("--only", action="append", help="name of a job; repeatable")
    parser.add_argument("--lanes", type=int, default=2, help="processes that kill side by side")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="file for the figures")
    options = parser.parse_args()
    started = time.monotonic()
    # no TemporaryDirectory: its finaliser would also run in the forked processes
    place = Path(tempfile.mkdtemp(prefix="crash-")).resolve()
    try:
        jobs = [job for job in JOBS if not options.only or job.name in options.only]
        prepared = prepare(jobs, place)
        tasks = plan(prepared, options.kills, random.Random(options.seed))
        results = list(run_in_lanes(tasks, prepared, place, options.lanes))
    finally:
        shutil.rmtree(place, ignore_errors=True)
    figures = {
        "rows": summarise(results, jobs),
        "command": f"python -m tests.crash --kills {options.kills}",
        "seconds": round(time.monotonic() - started),
        "machine": describe_machine(),
    }
    show(figures, results)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf8")
    return int(any(result["problem"] for result in results))


def prepare(jobs: Sequence[Job], place: Path) -> list[Prepared]:
    """Do every job undisturbed, twice: what two of them disagree in could not be compared."""
    os.environ["OMP_NUM_THREADS"] = "1"
    recipe, estimator = place / "recipe.toml", place / "estimator"
    recipe.write_text(RECIPE % json.dumps(str(estimator)))
    tiny = importlib.import_module("tests.stages.pseudo_depth.tiny_estimators")
    _in_child(lambda: tiny.write_depth_anything(estimator))  # it starts a thread
    for name in (*_own_modules(), *WARM):
        importlib.import_module(name)
    if threading.active_count() > 1:
        raise RuntimeError(f"forking needs one thread, there are {threading.enumerate()}")
    prepared = []
    for number, job in enumerate(jobs):
        template, work = place / f"template{number}", place / "undisturbed" / "work"
        template.mkdir()
        work.mkdir(parents=True)
        for words in job.before:
            _must(call(_complete(words, recipe), work))
        shutil.copytree(work, template / "work")
        snapshots = []
        for _ in range(2):
            _clone(template / "work", work)
            ended = call(_complete(job.words, recipe), work, count_into=place / "operations")
            _must(ended)
            snapshots.append(take_snapshot(work))
        if difference := describe_difference(*snapshots):
            raise RuntimeError(f"{job.name}: two undisturbed calls differ: {difference}")
        largest = max(path.stat().st_size for path in work.rglob("*") if path.is_file())
        operations = int((place / "operations").read_text())
        prepared.append(Prepared(job, template / "work", snapshots[1], operations, ended.seconds, largest))
        print(f"{job.name}: {operations} file operations, {ended.seconds:.1f} s undisturbed", flush=True)
        shutil.rmtree(work.parent)
    return prepared


def plan(prepared: Sequence[Prepared], kills: int, rng: random.Random) -> list[Task]:
    """Return the tasks that make so many kills, in random order."""
    tasks = []
    fewest = 2 if kills >= 50 else 1
    for index, one in enumerate(prepared):
        for kind, share in KINDS.items():
            number = max(fewest, round(kills * one.job.share * share / one.job.chain))
            tasks += [Task(index, kind, place, (place + rng.random()) / number) for place in range(number)]
    rng.shuffle(tasks)
    return tasks


def run_in_lanes(tasks: Sequence[Task], prepared: Sequence[Prepared], place: Path, lanes: int) -> Iterator[Any]:
    """Do the tasks in forked processes side by side; yield their results."""
    recipe = place / "recipe.toml"
    children = []
    for lane in range(lanes):
        child = os.fork()
        if child == 0:
            status = 1
            try:
                folder = place / f"lane{lane}"
                folder.mkdir()
                with (place / f"results{lane}").open("w") as file:
                    for task in tasks[lane::lanes]:
                        file.write(json.dumps(do_task(task, prepared[task.prepared], folder, recipe)) + "\n")
                        file.flush()
                status = 0
            except Exception:  # noqa: BLE001
                traceback.print_exc()
            os._exit(status)
        children.append(child)
    statuses = [os.waitpid(child, 0)[1] for child in children]
    if any(statuses):
        raise RuntimeError("the harness itself failed")
    for lane in range(lanes):
        yield from map(json.loads, (place / f"results{lane}").read_text().splitlines())


def do_task(task: Task, prepared: Prepared, folder: Path, recipe: Path) -> dict[str, Any]:
    """Strike the same command some times, let it through, and compare."""
    job, rng = prepared.job, random.Random(f"{task}")
    words = _complete(job.words, recipe)
    work = folder / "work"
    kills, problem = 0, ""
    with full_disk(work, task.kind, rng) as disk:
        _clone(prepared.template, work)
        for number in range(job.chain):
            at = task.spread if number == 0 else 0.3 * rng.random()  # less is left to do
            ended = strike(task.kind, words, work, prepared, at, rng, disk)
            if ended.status == 0:  # done before the strike
                break
            kills += 1
            if problem := judge(task.kind, ended):
                break
        if not problem:
            ended = call(words, work)
            if ended.status != 0 or not ended.clean or not ended.answer:
                problem = f"not recovered: status {ended.status}: {ended.stdout[-500:]} {ended.stderr[-3000:]}"
        recovered = not problem
        if recovered and (difference := describe_difference(take_snapshot(work), prepared.expected)):
            problem = f"differs: {difference}"
    return {
        "what": job.name, "how": task.kind, "kills": kills, "recovered": kills * recovered,
        "identical": kills * (not problem), "problem": problem, "task": repr(task),
    }  # fmt: skip


def strike(
    kind: str, words: Sequence[str], work: Path, prepared: Prepared, at: float, rng: random.Random, disk: Disk | None
) -> Ended:
    """Call a command and stop it somewhere; ``at`` says where, from 0 to 1."""
    operation, moment = 1 + int(at * prepared.operations), 0.7 * at * prepared.seconds
    if kind == "SIGKILL at a file operation":
        return call(words, work, at_operation=(operation, signal.SIGKILL))
    if kind == "SIGKILL at a random moment":
        return call(words, work, after=[(moment, signal.SIGKILL)])
    if kind in ("SIGTERM", "Ctrl-C twice"):
        moment = max(moment, FIRST_S)
    if kind == "SIGTERM":
        if rng.random() < 0.5:
            return call(words, work, at_operation=(operation, signal.SIGTERM))
        return call(words, work, after=[(moment, signal.SIGTERM)])
    if kind == "Ctrl-C twice":
        return call(words, work, after=[(moment, signal.SIGINT), (SECOND_CTRL_C_S, signal.SIGINT)])
    if disk is None:
        return call(words, work, largest_file=int(at * prepared.largest_file))
    filling = os.fork()
    if filling == 0:
        time.sleep(moment)
        disk.fill()
        os._exit(0)
    ended = call(words, work)
    os.waitpid(filling, 0)
    disk.free()
    return ended


def judge(kind: str, ended: Ended) -> str:
    """Return what is wrong with how a stopped command ended, "" for nothing."""
    wanted, key = ENDS[kind]
    said = f"{ended.stdout[-500:]} {ended.stderr[-3000:]}"
    if ended.status != wanted:
        return f"status {ended.status} instead of {wanted}: {said}"
    if key and (list(ended.answer) != [key] or not ended.clean):
        return f"not one message: {said}"
    return "processes survived" if ended.survivors else ""


class Disk(NamedTuple):
    """A small disk that can be filled."""

    folder: Path

    def fill(self) -> None:
        """Leave no byte on it."""
        size = FULL_MB << 20
        with (self.folder / "ballast").open("wb") as file:
            while size:
                try:
                    os.posix_fallocate(file.fileno(), file.tell(), size)
                    file.seek(0, os.SEEK_END)
                except OSError:
                    size //= 2

    def free(self) -> None:
        """Remove what filled it."""
        (self.folder / "ballast").unlink(missing_ok=True)


@contextlib.contextmanager
def full_disk(work: Path, kind: str, rng: random.Random) -> Iterator[Disk | None]:
    """Put ``work`` on a small disk of its own where that is wanted and allowed; else files will be limited in size."""
    work.parent.mkdir(exist_ok=True)
    shutil.rmtree(work, ignore_errors=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={FULL_MB}m", "none", str(work.parent)]
    wanted = kind == "full disk" and os.geteuid() == 0 and rng.random() < 0.7
    if not wanted or subprocess.run(mount, capture_output=True, check=False).returncode:
        yield None
        return
    try:
        yield Disk(work.parent)
    finally:
        subprocess.run(["umount", "--lazy", str(work.parent)], check=True)


def summarise(results: Sequence[dict[str, Any]], jobs: Sequence[Job]) -> list[dict[str, Any]]:
    """Add the results up by what was killed and how."""
    rows = []
    for job in jobs:
        for kind in KINDS:
            mine = [result for result in results if (result["what"], result["how"]) == (job.name, kind)]
            sums = {key: sum(result[key] for result in mine) for key in ("kills", "recovered", "identical")}
            rows.append({"what": job.name, "how": kind, **sums})
    return rows


def show(figures: dict[str, Any], results: Sequence[dict[str, Any]]) -> None:
    """Print the table and every failure."""
    for row in figures["rows"]:
        print(f"{row['what']:28} {row['how']:28} {row['kills']:5} {row['recovered']:5} {row['identical']:5}")
    for key in ("kills", "recovered", "identical"):
        print(f"{key}: {sum(row[key] for row in figures['rows'])}")
    print(f"{figures['seconds']} s, {figures['machine']}")
    for result in results:
        if result["problem"]:
            print(f"FAILED {result['task']} {result['what']}, {result['how']}: {result['problem']}")


def describe_machine() -> str:
    """Return processor, cores and versions, without names of the machine."""
    import torch

    return f"{os.cpu_count()} cores, {platform.system()} {platform.machine()}, torch {torch.__version__}"


def _own_modules() -> list[str]:
    packages = [importlib.import_module(name) for name in ("data_cache", "stages", "pipeline")]
    return [found.name for one in packages for found in pkgutil.walk_packages(one.__path__, f"{one.__name__}.")]


def _in_child(work: Callable[[], object]) -> None:
    child = os.fork()
    if child == 0:
        with contextlib.suppress(Exception):
            redirect(Path(os.devnull), Path(os.devnull))
            work()
        os._exit(0)
    os.waitpid(child, 0)


def _complete(words: Sequence[str], recipe: Path) -> list[str]:
    return [*words, "--recipe", str(recipe)] if words[0] in RECIPE_COMMANDS else list(words)


def _clone(template: Path, work: Path) -> None:
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(template, work)


def _must(ended: Ended) -> None:
    if ended.status:
        raise RuntimeError(f"an undisturbed command failed: {ended.stdout} {ended.stderr}")


if __name__ == "__main__":
    sys.exit(main())

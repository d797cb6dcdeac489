"""Every bad input gets one clear message and exit status 2, and costs nothing else; the table is docs/bad-input.md."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline.cli import main
from tests.bad_input.cases import all_cases
from tests.bad_input.world import Answer, Case, World, build_world, copy_world

CASES = all_cases()


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> World:
    """The undamaged world that every case copies; processes of one test session share it."""
    own = tmp_path_factory.mktemp("template")
    place = own.parents[1] / "bad-input-world" if "PYTEST_XDIST_WORKER" in os.environ else own / "world"
    with place.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return World(place) if place.exists() else build_world(place, call_in_process)


def call_in_process(world: World, *words: str | Path) -> Answer:
    """Call the command line here; its words go where pytest's capture puts them."""
    with pytest.raises(SystemExit) as ended:
        main(["--json", "--workdir", str(world.work), *map(str, words)])
    return Answer(int(ended.value.code or 0), "", "see the captured output")


def call_process(world: World, words: list[str], environment: dict[str, str]) -> Answer:
    """Call the command line as a process of its own."""
    command = [sys.executable, "-m", "pipeline.cli", "--json", "--workdir", str(world.work), *words]
    done = subprocess.run(
        command, env=os.environ | environment, capture_output=True, timeout=60, stdin=subprocess.DEVNULL, check=False
    )
    return Answer(done.returncode, done.stdout.decode(), done.stderr.decode())


def files_of_the_user(world: World, changes: tuple[str, ...]) -> dict[str, bytes]:
    """Return the contents of the regular files that no command may change."""
    roots = (world.data, world.user, world.estimator)
    found = {
        os.path.relpath(path, world.root): path
        for root in roots
        for path in root.rglob("*")
        if path.is_file() and os.access(path, os.R_OK)
    }
    return {name: path.read_bytes() for name, path in found.items() if name not in changes}


def mark(kind: str, case: Case) -> Any:
    """Return the parameters of one test."""
    return pytest.param(
        kind, case, id=f"{kind}: {case.input}", marks=[pytest.mark.exhaustive] if case.exhaustive else []
    )


@pytest.mark.timeout(90, func_only=True)  # the first case of a process also waits for the world it copies
@pytest.mark.parametrize(("kind", "case"), [mark(*pair) for pair in CASES])
def test_bad_input(
    kind: str,
    case: Case,
    template: World,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = copy_world(template, tmp_path / "world")
    monkeypatch.chdir(tmp_path)
    words = list(map(str, case.prepare(world)))
    before = files_of_the_user(world, case.changes)
    capfd.readouterr()
    if case.environment:
        answer = call_process(world, words, dict(case.environment))
    else:
        status = call_in_process(world, *words).status
        answer = Answer(status, *capfd.readouterr())
    shown = f"{words}\nexit {answer.status}\n{answer.stdout}\n{answer.stderr}"
    assert answer.status == case.exit, shown
    assert isinstance(json.loads(answer.stdout), dict), "stdout is exactly one JSON object"
    for word in case.words:
        assert word in answer.stdout + answer.stderr, f"{word!r} is not said:\n{shown}"
    for foreign in ("Traceback", "Warning", "site-packages"):
        assert foreign not in answer.stderr, shown
    assert files_of_the_user(world, case.changes) == before, "something of the user's was changed"
    if case.check:
        case.check(world, answer)

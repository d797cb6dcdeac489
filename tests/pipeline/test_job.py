"""One command in two processes: ended, killed and continued by one process, it trains what one process trains."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from safetensors.torch import load_file

from data_cache.ranks import World, share_of
from pipeline.threads import choose_thread_defaults
from tests.bad_input.world import Answer

TINY = Path(__file__).parent / "tiny.toml"
ROOT = Path(__file__).parents[2]
WORDS = ["run", "--recipe", str(TINY), "--schedule", "seg-only", "--iterations", "24", "--lr", "1e-5",
         "--set", "training.optimizer=sgd"]  # fmt: skip
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "pipeline"]


def start(command: list[str], **variables: str) -> subprocess.Popen[str]:
    """Start a process that shares nothing with the tests but the program."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | variables
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def start_two(words: list[str]) -> list[subprocess.Popen[str]]:
    """Start two ranks without torchrun, which would say more in the end."""
    port = str(20_000 + os.getpid() % 12_000)  # below those that the system gives away
    place = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    command = [sys.executable, "-m", "pipeline", *words]
    return [start(command, RANK=number, LOCAL_RANK=number, **place) for number in ("0", "1")]


def count_steps(work: Path) -> int:
    """Return how many steps are logged."""
    return max((len(log.read_text().splitlines()) for log in work.glob("nodes/*/metrics.jsonl")), default=0)


@contextmanager
def after_more_steps(work: Path, process: subprocess.Popen[str]) -> Iterator[None]:
    """Run the block once two more steps are logged."""
    before = count_steps(work)
    while count_steps(work) < before + 2:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    yield


@pytest.mark.exhaustive
def test_ranks_are_stopped_killed_and_continued_by_one_process(call: Callable[..., Answer], tmp_path: Path) -> None:
    work, words = tmp_path / "work", ["--workdir", str(tmp_path / "work"), "--json", *WORDS]
    torchrun = start([*TORCHRUN, *words])
    with after_more_steps(work, torchrun):
        torchrun.send_signal(signal.SIGTERM)
    answer, said = torchrun.communicate(timeout=240)
    assert list(json.loads(answer)) == ["interrupted"]
    assert said.count("interrupted: stopped in phase 'seg' after ") == 1
    (state,) = work.glob("nodes/*/checkpoint/step-*")
    assert int(state.name.removeprefix("step-")) == count_steps(work)

    speaker, other = start_two(words)
    with after_more_steps(work, speaker):
        other.kill()
    answer, said = speaker.communicate(timeout=240)
    assert speaker.returncode == 2
    assert "another process of this job was ended from outside" in json.loads(answer)["error"]
    assert "Traceback" not in said
    assert other.communicate(timeout=240) == ("", "")

    assert call(*WORDS).json["phases"][0]["steps"] == 24
    assert call("--workdir", tmp_path / "alone", *WORDS).status == 0
    (together,), (alone,) = (place.glob("nodes/*/weights.safetensors") for place in (work, tmp_path / "alone"))
    tensors = load_file(together)
    for name, value in load_file(alone).items():
        assert (tensors[name].double() - value.double()).abs().max() <= 1e-5, name


def test_shares_are_contiguous_and_differ_by_one_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data_cache.ranks._world", World(0, 3))
    for count in range(12):
        shares = [share_of(count, rank) for rank in range(3)]
        assert [place for share in shares for place in share] == list(range(count))
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_processes_of_one_machine_divide_its_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.threads.count_usable_cpus", lambda: 8)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    monkeypatch.delenv("OMP_NUM_THREADS")
    choose_thread_defaults()
    assert os.environ["OMP_NUM_THREADS"] == "2"

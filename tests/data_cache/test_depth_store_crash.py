"""A writer killed at any instant leaves each committed map exactly once, and the next one ends as if undisturbed."""

import multiprocessing
import os
import random
import signal
import sys
from collections import Counter
from pathlib import Path

import h5py
import numpy as np
import pytest

from data_cache.depth_map import Provenance
from data_cache.depth_repair import BadMap, verify_store
from data_cache.depth_store import DepthStore
from data_cache.depth_writer import DepthStoreWriter
from data_cache.sample import DepthKind

PROVENANCE = Provenance("d", "train", "e", "", "", DepthKind.RELATIVE, "1", None, "", "none", None, "float32", "lzf",
                        "", {}, "")  # fmt: skip
CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.truncate")
FORK = multiprocessing.get_context("fork")


def draw_map(number: int) -> np.ndarray:
    return np.random.default_rng(number).uniform(0, 600, (20, 30)).astype(np.float32)


def write_rest(folder: Path, total: int, committed=None) -> None:
    with DepthStoreWriter(folder, PROVENANCE, shard_size=3) as writer:
        for number in range(total):
            image_id = f"town/{number:04d}"
            if image_id not in writer.image_ids:
                writer.add(writer.prepare(image_id, draw_map(number), (20, 30), "sum"))
                writer.commit()
            if committed is not None:
                committed.value = number + 1


def write_until_killed(folder: Path, total: int, committed, last_event: int) -> None:
    """Write, and die just before the change of the disk with that number; reading a file changes nothing."""
    events = 0

    def count(event: str, arguments: tuple) -> None:
        nonlocal events
        touches = str(folder) in str(arguments[0]) if arguments else False
        changes = arguments[2] & (os.O_WRONLY | os.O_RDWR) if event == "open" else event in CHANGES
        if touches and changes:
            events += 1
            if events == last_event:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)
    write_rest(folder, total, committed)


def check_intact(folder: Path, at_least: int, at_most: int) -> list[BadMap]:
    """The store opens, holds at least what was committed, each image once and unharmed; returns what else is wrong."""
    if at_least == 0 and not any(folder.glob("*.h5")):
        return []
    store = DepthStore(folder)
    assert len(store) == len(store.image_ids) == len(set(store.image_ids))
    assert at_least <= len(store) <= at_most
    for number, image_id in enumerate(store.image_ids):
        assert image_id == f"town/{number:04d}"
        np.testing.assert_array_equal(store.read(image_id).raw, draw_map(number).astype(np.float16))
    bad = verify_store(folder)
    assert not [found for found in bad if found.image_id]
    return bad


def check_finished(folder: Path, total: int) -> None:
    assert check_intact(folder, total, total) == []
    assert not [path for path in folder.iterdir() if path.suffix == ".tmp" or path.name.startswith("batch")]
    held: Counter[str] = Counter()
    for path in folder.glob("shard-*.h5"):
        with h5py.File(path) as file:
            held.update(file["depth/town"].keys())
    assert held == Counter({f"{number:04d}": 1 for number in range(total)})
    with h5py.File(folder / "index.h5") as index:
        assert sorted(index["depth/town"]) == sorted(held)


@pytest.mark.slow
def test_killed_before_any_file_operation(tmp_path):
    """Every instant at which the disk changes, one after another, until the writer gets through alive."""
    total, survived, event = 4, False, 0  # a shard of two batches and a map, and a last one that extends the index
    while not survived:
        event += 1
        folder = tmp_path / str(event)
        committed = FORK.Value("i", 0)
        process = FORK.Process(target=write_until_killed, args=(folder, total, committed, event))
        process.start()
        process.join()
        survived = process.exitcode == 0
        assert survived or process.exitcode == -signal.SIGKILL
        if folder.exists():
            check_intact(folder, committed.value, min(committed.value + 1, total))
        write_rest(folder, total)
        check_finished(folder, total)
    assert event > 20


@pytest.mark.slow
def test_killed_again_while_recovering(tmp_path):
    """Killed at every second operation, the writer still gets there."""
    committed = FORK.Value("i", 0)
    for attempt in range(200):
        kill_at = random.Random(attempt).randint(8, 22)
        process = FORK.Process(target=write_until_killed, args=(tmp_path / "s", 12, committed, kill_at))
        process.start()
        process.join()
        if process.exitcode == 0:
            break
        check_intact(tmp_path / "s", 0, 12)
    assert process.exitcode == 0
    assert attempt > 3
    check_finished(tmp_path / "s", 12)

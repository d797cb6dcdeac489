"""What killed processes were writing is removed by the next ones; what is somebody else's never is."""

from __future__ import annotations

import os
import time
from pathlib import Path

from data_cache.files import atomic_file, atomic_folder, hold_folder
from data_cache.leftovers import is_abandoned, is_temporary, name_temporary


def leave_behind(folder: Path, *, kill: bool = True) -> int:
    """Fork a process that is in the middle of writing a file and a folder; it dies so unless it shall live."""
    ready, go = os.pipe()
    child = os.fork()
    if child == 0:
        with atomic_file(folder / "weights") as file, atomic_folder(folder / "scenes") as scratch:
            file.write_bytes(b"half")
            (scratch / "image.npy").write_bytes(b"half")
            os.write(go, b"x")
            time.sleep(60)
    os.read(ready, 1)
    if kill:
        os.kill(child, 9)
        os.waitpid(child, 0)
    return child


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_next_holder_removes_what_a_killed_one_left_and_nothing_else(tmp_path: Path) -> None:
    leave_behind(tmp_path)
    (tmp_path / "mine.tmp").touch()
    (tmp_path / ".12-mine.tmp").touch()
    assert sum(map(is_abandoned, tmp_path.iterdir())) == 2
    with hold_folder(tmp_path, "training"):
        assert not any(map(is_temporary, tmp_path.iterdir()))
    assert set(names(tmp_path)) - {".lock"} == {"mine.tmp", ".12-mine.tmp"}


def test_the_next_folder_made_beside_a_half_made_one_removes_it_but_not_a_living_process_s(tmp_path: Path) -> None:
    child = leave_behind(tmp_path, kill=False)
    try:
        with atomic_folder(tmp_path / "other"):
            pass
        assert len(names(tmp_path)) == 3, "the other one is still writing"
    finally:
        os.kill(child, 9)
    deadline = time.monotonic() + 10
    while not all(is_abandoned(path) for path in tmp_path.glob(".*.tmp")):  # a dead process counts before it is reaped
        assert time.monotonic() < deadline
    with atomic_folder(tmp_path / "third"):
        pass
    os.waitpid(child, 0)
    assert names(tmp_path) == ["other", "third"]


def test_another_machine_is_given_a_day_and_this_one_s_processes_are_asked(tmp_path: Path) -> None:
    ours = name_temporary(tmp_path / "x")
    process, code = ours.name.removesuffix(".tmp").split("-")
    elsewhere = ours.with_name(f"{process}-{int(code, 16) ^ 0xFFFF0000:08x}.tmp")
    for path in (ours, elsewhere):
        path.touch()
        assert is_temporary(path) and not is_abandoned(path)
    first_process = ours.with_name(f".1-{code}.tmp")
    first_process.touch()
    assert not is_abandoned(first_process), "process 1 lives, and did before the file was made"

"""Files are absent or complete whatever happens while they are written; a folder has one holder."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from data_cache.errors import UserError
from data_cache.files import atomic_file, atomic_folder, hold_folder, read_json, read_json_lines, write_json


def test_a_file_takes_its_place_at_the_end_and_not_before(tmp_path: Path) -> None:
    path = tmp_path / "new" / ("long" * 62 + ".json")  # 253 bytes; names end at 255
    write_json(path, {"name": "før"})
    with atomic_file(path) as temporary:
        temporary.write_text("[1")
        assert read_json(path) == {"name": "før"}
        temporary.write_text("{}")
    assert read_json(path) == {}
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("problem", [ValueError, KeyboardInterrupt])
def test_a_failure_leaves_what_was_there_and_nothing_else(tmp_path: Path, problem: type[BaseException]) -> None:
    write_json(tmp_path / "file", {"kept": True})
    with pytest.raises(problem), atomic_file(tmp_path / "file") as temporary:
        temporary.write_text("half")
        raise problem
    with pytest.raises(problem), atomic_folder(tmp_path / "folder") as temporary:
        (temporary / "file").write_text("half")
        raise problem
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert read_json(tmp_path / "file") == {"kept": True}


def test_a_folder_that_came_first_stays(tmp_path: Path) -> None:
    for content in ("first", "second"):
        with atomic_folder(tmp_path / "new" / "folder") as temporary:
            (temporary / "file").write_text(content)
    assert [path.read_text() for path in tmp_path.rglob("file")] == ["first"]
    assert len(list((tmp_path / "new").iterdir())) == 1


def test_a_place_that_cannot_be_written_is_explained(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"cannot use .*/file: .*choose another place"):
        write_json(tmp_path / "file" / "run.json", {})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read .*No such file"),
        (b"{broken", "is damaged"),
        (b"", "is damaged"),
        (b'{"name": "\xff"}', "is damaged .*utf-8"),
        (b"[1]", "is damaged .*a list, no object"),
    ],
)
def test_json_that_is_no_object_is_explained(tmp_path: Path, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(UserError, match=rf"{message}.*; write it again$"):
        read_json(tmp_path / "run.json", "write it again")


@pytest.mark.parametrize("cut", ["", '{"step": 2', '{"step": 2}', "\0\0"])
def test_only_a_last_line_may_be_cut_off(tmp_path: Path, cut: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n' + cut)
    assert list(read_json_lines(path)) == [{"step": 1}]
    path.write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(UserError, match=r"line 2 of .*metrics.jsonl is damaged"):
        list(read_json_lines(path))


def test_a_lock_is_not_inherited_by_children_that_outlive_its_holder(tmp_path: Path) -> None:
    with hold_folder(tmp_path, "training"):
        child = os.fork()
        if child == 0:  # holds a copy of every open file, as a loader worker does
            time.sleep(30)
            os._exit(0)
    try:
        with hold_folder(tmp_path, "training again"):
            pass
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)


def test_a_second_process_is_refused(tmp_path: Path) -> None:
    ready, go = os.pipe()
    child = os.fork()
    if child == 0:
        with hold_folder(tmp_path, "training"):
            os.write(go, b"x")
            time.sleep(30)
        os._exit(0)
    os.read(ready, 1)
    try:
        with (
            pytest.raises(UserError, match=r"in use by another process \(pid \d+ on .*, training\)"),
            hold_folder(tmp_path, "training this phase"),
        ):
            pass
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)
    with hold_folder(tmp_path, "training this phase"):
        assert (tmp_path / ".lock").exists(), "a killed holder leaves nothing to clean up"


def test_one_process_does_not_hold_a_folder_twice(tmp_path: Path) -> None:
    first, again = hold_folder(tmp_path / "a", "training"), hold_folder(tmp_path / "a" / ".." / "a", "evaluating")
    with first, pytest.raises(UserError, match="in use by this process"), again:
        pass
    with hold_folder(tmp_path / "a", "evaluating"):
        pass

"""Results: what a person put somewhere stays, whatever is written there, however the writing ends."""

from __future__ import annotations

import os
import resource
import signal
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_cache.errors import UserError
from data_cache.outputs import (
    NOTES_FILE,
    SEAL,
    Inputs,
    OutputFolder,
    hold_result,
    open_output,
    replace_folder,
    set_aside,
    shorten_name,
    write_page,
)

NAMES = ("a", "sub/a", "b")
_Steps = st.lists(st.tuples(st.booleans(), st.sampled_from(NAMES), st.sampled_from(b"xyz")), max_size=12)


def write(output: OutputFolder, path: Path, content: bytes) -> None:
    with output.write(path) as temporary:
        temporary.write_bytes(content)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(steps=_Steps)
def test_without_overwrite_only_own_content_is_ever_replaced(steps: list[tuple[bool, str, int]]) -> None:
    """Against a model that remembers who wrote what: a person and the program write in turns, in calls of their own."""
    with TemporaryDirectory() as place:
        folder = Path(place) / "out"
        found: dict[str, bytes] = {}
        own: set[tuple[str, bytes]] = set()
        for by_person, name, letter in steps:
            path, content = folder / name, bytes([letter])
            if by_person:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
            else:
                with open_output(folder, Inputs(), overwrite=False) as output:
                    if name in found and (name, found[name]) not in own:
                        with pytest.raises(UserError, match=f"{name}; .*--overwrite"):
                            write(output, path, content)
                        continue
                    write(output, path, content)
                own.add((name, content))
            found[name] = content
        there = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        there.pop(NOTES_FILE, None)
        assert there == found


def test_a_line_of_notes_that_a_kill_cut_off_costs_no_other(tmp_path: Path) -> None:
    write(OutputFolder(tmp_path, Inputs()), tmp_path / "a", b"1")
    with (tmp_path / NOTES_FILE).open("a") as notes:
        notes.write('\n{"file": "b", "bla')
    write(OutputFolder(tmp_path, Inputs()), tmp_path / "c", b"1")
    write(OutputFolder(tmp_path, Inputs()), tmp_path / "a", b"2")
    write(OutputFolder(tmp_path, Inputs()), tmp_path / "c", b"2")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "c").read_bytes() == b"2"


def test_nothing_is_written_outside_the_folder(tmp_path: Path) -> None:
    output = OutputFolder(tmp_path / "out", Inputs())
    for path in (tmp_path / "a", tmp_path / "out" / ".." / "a"):
        with pytest.raises(UserError, match="outside"):
            output.check([path])


@given(st.binary(min_size=1, max_size=300).filter(lambda name: b"\0" not in name))
@settings(max_examples=30, deadline=None, derandomize=True)
def test_shortened_names_fit_and_short_ones_stay(encoded: bytes) -> None:
    name = os.fsdecode(encoded)
    short = shorten_name(name)
    assert len(os.fsencode(short)) <= 240 and (short == name) == (len(encoded) <= 240)


def _export(place: Path, content: str, doing: Callable[[], object] = lambda: None) -> None:
    with (
        hold_result(place, _list_own, print) as found,
        replace_folder(found, ("new", "weights"), _list_own) as folder,
    ):
        doing()
        (folder / "weights").write_text(content)


def _list_own(folder: Path) -> list[str]:
    return [name for name in ("new", "weights") if (folder / name).is_file()]


def _page(place: Path, content: str, doing: Callable[[], object] = lambda: None) -> None:
    doing()
    write_page(f"<head>{SEAL}</head>{content}", place, overwrite=False, on_wait=print)


def _many(place: Path, content: str, doing: Callable[[], object] = lambda: None) -> None:
    with open_output(place, Inputs(), overwrite=False, on_wait=print) as output:
        doing()
        write(output, place / "weights", content.encode())


WAYS = [_export, _page, _many]


def read_all(place: Path) -> dict[str, bytes]:
    paths = [place, *place.rglob("*")]
    return {str(path): path.read_bytes() for path in paths if path.is_file() and path.name != NOTES_FILE}


@pytest.mark.parametrize("way", WAYS)
def test_a_full_disk_leaves_what_was_there(tmp_path: Path, way: Callable[..., None]) -> None:
    place = tmp_path / "place"
    way(place, "first")
    before = read_all(tmp_path)
    child = os.fork()
    if child == 0:  # files may grow to 1000 bytes and no further
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        try:
            way(place, "second" * 1000)
        except UserError as problem:
            os._exit(2 if str(place) in str(problem) and "Free some space" in str(problem) else 1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 2
    assert read_all(tmp_path) == before, "neither half a file nor a temporary one"
    way(place, "third")
    assert read_all(tmp_path) != before


@pytest.mark.parametrize("way", [_export, _many])
def test_the_second_waits_for_the_first_and_says_so(
    tmp_path: Path, way: Callable[..., None], capfd: pytest.CaptureFixture[str]
) -> None:
    ready, go = os.pipe()
    child = os.fork()
    if child == 0:
        way(tmp_path / "place", "first", lambda: (os.write(go, b"x"), time.sleep(0.5)))
        os._exit(0)
    os.read(ready, 1)
    way(tmp_path / "place", "second")
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert f"waiting for another process (pid {child}" in capfd.readouterr().out
    assert (tmp_path / "place" / "weights").read_text() == "second"
    assert [path.name for path in tmp_path.iterdir()] == ["place"], "no lock is left"


def test_an_export_killed_while_it_settled_gives_foreign_files_back(tmp_path: Path) -> None:
    place, replaced = tmp_path / "place", set_aside(tmp_path / "place")
    _export(place, "new one")
    replaced.mkdir()
    (replaced / "weights").write_text("old one")
    (replaced / "remarks").write_text("mine")
    with hold_result(place, _list_own, print):
        assert {path.name: path.read_text() for path in place.iterdir()} == {"weights": "new one", "remarks": "mine"}
    assert [path.name for path in tmp_path.iterdir()] == ["place"]


def test_a_foreign_file_under_a_name_that_is_needed_stops_an_export_before_it_begins(tmp_path: Path) -> None:
    (tmp_path / "place" / "new").mkdir(parents=True)
    with pytest.raises(UserError, match=r"place/new is not of an export; move it away"):
        _export(tmp_path / "place", "first", lambda: pytest.fail("it began"))
    assert list(tmp_path.rglob("*")) == [tmp_path / "place", tmp_path / "place" / "new"]

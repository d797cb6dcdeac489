"""Places that a person names for results: nothing is replaced there that this program did not write.

What counts as its own: in a folder, files whose content is noted in its ``.written.jsonl``; a page, when its seal fits
its content. A file that was changed since is the person's. Imports no torch.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from data_cache.content import hash_file
from data_cache.errors import UserError
from data_cache.files import atomic_file, explained, hash_name, hold_place, sync_folder
from data_cache.leftovers import name_temporary, remove, remove_abandoned

NOTES_FILE = ".written.jsonl"
"""In a folder of results: a line per file, with its name and a hash of its content, noted before it takes its place."""
SEAL = '<meta name="generator" content="pseudo-depth-pipeline 00000000000000000000000000000000">'
"""Belongs into the head of a page; ``write_page`` puts the hash of the page in place of the zeros."""
SCRIPT_SEAL = "# pseudo-depth-pipeline 00000000000000000000000000000000"
"""Likewise a line near the beginning of a script."""
_SEALED = re.compile(rb'((?:<meta name="generator" content="|\n# )pseudo-depth-pipeline )([0-9a-f]{32})')
_HEAD_BYTES = 4096
_SHOWN = 5
_ELSEWHERE = "name another place for the results"
_LONGEST_BYTES = 240

WriteFile = Callable[[Path], AbstractContextManager[Path]]
"""Takes the place of a file and gives a path to write it to, as ``atomic_file`` does."""
ListOwn = Callable[[Path], Sequence[str]]


def shorten_name(name: str) -> str:
    """Return a name that leaves room for a suffix in what file systems allow; what is cut off is told by a hash."""
    encoded = os.fsencode(name)
    if len(encoded) <= _LONGEST_BYTES:
        return name
    return f"{encoded[: _LONGEST_BYTES - 17].decode(errors='ignore')}-{hash_name(name)}"


class Inputs:
    """The files that a command reads, known by what they are: links and other spellings lead to the same ones."""

    def __init__(self, files: Iterable[Path] = ()) -> None:
        files = list(files)
        self._known: dict[tuple[int, int], Path] = {}
        for path in (*files, *dict.fromkeys(file.parent for file in files)):
            if found := _identify(path):
                self._known.setdefault(found, path)

    def find(self, path: Path) -> Path | None:
        """Return the input, or the folder of inputs, that a path leads to; None when it leads to none."""
        found = _identify(path)
        return self._known.get(found) if found else None

    def check_outside(self, folder: Path, option: str) -> None:
        """Raise a UserError when a folder for results is, or lies in, a folder that inputs are read from."""
        whole = folder.absolute()
        for place in (whole, *whole.parents):
            if inputs := self.find(place):
                raise UserError(f"{option} {folder} lies among the files that are read from {inputs}; {_ELSEWHERE}")


class OutputFolder:
    """A folder of results; ``open_output`` holds it for one process.

    Args:
        folder: need not exist.
        inputs: files that are never replaced, and beside which nothing is written.
        overwrite: whether what else lies at the place of a result may be replaced.
    """

    def __init__(self, folder: Path, inputs: Inputs, *, overwrite: bool = False) -> None:
        self.folder = folder
        self._inputs = inputs
        self._overwrite = overwrite
        self._notes = folder / NOTES_FILE
        self._written = _read_notes(self._notes)
        self._free: set[Path] = set()
        self._cleared: set[Path] = set()

    def check(self, paths: Iterable[Path]) -> None:
        """Look at the places of results, inside the folder, before work is spent on them.

        Raises:
            UserError: naming what would be replaced.
        """
        foreign = []
        for path in paths:
            if not path.is_relative_to(self.folder) or ".." in path.parts[len(self.folder.parts) :]:
                raise UserError(f"{path} would be written outside {self.folder}; rename what it is called after")
            exists = _check_place(path, self._inputs)
            if path.parent != self.folder and (inputs := self._inputs.find(path.parent)):
                raise UserError(f"{path} would lie among the files that are read from {inputs}; {_ELSEWHERE}")
            if exists and not self._overwrite and not self._is_own(path):
                foreign.append(path)
            self._free.add(path)
        if foreign:
            raise _refuse(foreign)

    @contextmanager
    def write(self, path: Path) -> Iterator[Path]:
        """Yield a path to write a result to, as ``atomic_file`` does, and note that the file is this program's."""
        if path not in self._free:
            self.check([path])
        if path.parent not in self._cleared:
            self._cleared.add(path.parent)
            remove_abandoned(path.parent)
        with atomic_file(path) as temporary:
            yield temporary
            self._note(path, hash_file(temporary))

    def _is_own(self, path: Path) -> bool:
        written = self._written.get(self._name(path))
        return written is not None and hash_file(path) in written

    def _note(self, path: Path, content: str) -> None:
        written = self._written.setdefault(self._name(path), set())
        if content in written:
            return
        with self._notes.open("a", encoding="ascii") as file:
            file.write("\n")  # a line may be cut off before
            file.write(json.dumps({"file": self._name(path), "blake2b": content}))
        written.add(content)

    def _name(self, path: Path) -> str:
        return path.relative_to(self.folder).as_posix()


@contextmanager
def open_output(
    folder: Path, inputs: Inputs, *, overwrite: bool, on_wait: Callable[[str], None] | None = None
) -> Iterator[OutputFolder]:
    """Hold a folder for results, made when missing; another process that writes to it is waited for.

    Args:
        folder: as the person named it.
        inputs: files that are never replaced, and beside which nothing is written.
        overwrite: whether what else lies at the place of a result may be replaced.
        on_wait: takes a line on who is waited for.

    Raises:
        UserError: it is no folder, or cannot be written to.
    """
    if os.path.lexists(folder) and not folder.is_dir():
        raise UserError(f"{folder} is no folder, which the results need; {_ELSEWHERE}")
    _check_place(folder / NOTES_FILE, inputs)
    with explained(folder), hold_place(folder / NOTES_FILE, f"writing to {folder}", on_wait=on_wait):
        yield OutputFolder(folder, inputs, overwrite=overwrite)


@contextmanager
def hold_result(out: Path, list_own: ListOwn, on_wait: Callable[[str], None]) -> Iterator[Path]:
    """Hold the place of a folder that is replaced as a whole; first finish what a killed holder began.

    Args:
        out: as the person named it.
        list_own: see ``replace_folder``.
        on_wait: takes a line on who is waited for.

    Yields:
        The folder itself, where ``out`` is a link to it.

    Raises:
        UserError: it cannot be written to.
    """
    place = Path(os.path.realpath(out))
    if place.is_mount():
        raise UserError(f"--out {out} is where a disk is mounted, which cannot be replaced; name a folder in it")
    with explained(out), hold_place(place, f"writing {out}", on_wait=on_wait):
        remove_abandoned(place.parent)
        if (replaced := set_aside(place)).exists():
            if place.exists():
                _bring_back(replaced, place, list_own)
            else:
                replaced.rename(place)
        yield place


@contextmanager
def replace_folder(place: Path, files: Iterable[str], list_own: ListOwn) -> Iterator[Path]:
    """Yield a new folder, which takes the place of another at the end of the block and vanishes where that fails.

    What this program did not write into the other one goes on lying there. Only for who holds the place.

    Args:
        place: of ``hold_result``.
        files: names that will be written.
        list_own: returns the names of files in a folder that this program wrote, in the order they may be removed.

    Raises:
        UserError: a foreign file has one of the names.
    """
    own = list_own(place)
    if foreign := [place / name for name in files if name not in own and os.path.lexists(place / name)]:
        raise UserError(f"cannot export to {place}: {_names(foreign)} is not of an export; move it away")
    folder, replaced = name_temporary(place), set_aside(place)
    with explained(place, folder):
        folder.mkdir()
        try:
            yield folder
            sync_folder(folder)
            if place.exists():
                place.rename(replaced)
            folder.rename(place)
            if replaced.exists():
                _bring_back(replaced, place, list_own)
        finally:
            remove(folder)


def set_aside(place: Path) -> Path:
    """Return where a folder that is being replaced lies for a moment, beside its place."""
    return place.parent / f".{hash_name(place.name)}.replaced"


def _bring_back(replaced: Path, place: Path, list_own: ListOwn) -> None:
    """Move what this program did not write back to its place, then remove the rest."""
    own = list_own(replaced)
    for path in replaced.iterdir():
        if path.name not in own and not os.path.lexists(place / path.name):
            path.rename(place / path.name)
    for name in own:
        (replaced / name).unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # what the person put there just now stays
        replaced.rmdir()


def check_page(out: Path, *, overwrite: bool, option: str = "--out", example: str = "report.html") -> None:
    """Look at the place of a page, or of a script, before work is spent on it.

    Args:
        option: by which the person named it.
        example: what such a file may be called.

    Raises:
        UserError: it is no regular file, or one that this program did not write.
    """
    if out.is_dir():
        raise UserError(f"{option} {out} is a folder; name the file, for example {out / example}")
    if _check_place(out, Inputs()) and not overwrite and not _is_sealed(out):
        raise _refuse([out])


def write_page(page: str, out: Path, *, overwrite: bool, on_wait: Callable[[str], None] | None = None) -> None:
    """Write a page that has a seal in its head; another process that writes the same one is waited for.

    Args:
        page: may hold file names that are no text, as ``os.fsdecode`` gives them.

    Raises:
        UserError: as ``check_page``, or it cannot be written.
    """
    content = page.encode(errors="surrogateescape")
    assert _SEALED.search(content[:_HEAD_BYTES]), "without a seal the page would not be known again"
    with hold_place(out, f"writing {out}", on_wait=on_wait):
        check_page(out, overwrite=overwrite)
        remove_abandoned(out.parent)
        with atomic_file(out) as temporary:
            temporary.write_bytes(_SEALED.sub(rb"\g<1>" + _hash_page(content), content, count=1))


def _is_sealed(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
        seal = _SEALED.search(head)
        return seal is not None and _hash_page(head + file.read()) == seal[2]


def _hash_page(content: bytes) -> bytes:
    unsealed = _SEALED.sub(rb"\g<1>" + b"0" * 32, content, count=1)
    return hashlib.blake2b(unsealed, digest_size=16).hexdigest().encode()


def _check_place(path: Path, inputs: Inputs) -> bool:
    """Return whether a regular file lies there.

    Raises:
        UserError: what lies there is an input, or no regular file.
    """
    with explained(path):
        try:
            mode = path.lstat().st_mode
        except FileNotFoundError:
            return False
    if not path.is_dir() and (found := inputs.find(path)):
        raise UserError(f"{path} would be replaced, but it is read by this command (as {found}); {_ELSEWHERE}")
    if not stat.S_ISREG(mode):
        kind = {stat.S_IFLNK: "a link", stat.S_IFDIR: "a folder"}.get(stat.S_IFMT(mode), "a device, pipe or socket")
        raise UserError(f"cannot write {path}: {kind} of that name exists; {_ELSEWHERE}, or move it away")
    return True


def _names(paths: Sequence[Path]) -> str:
    more = f" and {len(paths) - _SHOWN} more" if len(paths) > _SHOWN else ""
    return ", ".join(map(str, paths[:_SHOWN])) + more


def _refuse(paths: Sequence[Path]) -> UserError:
    return UserError(
        f"would replace what this program did not write, or what was changed since: {_names(paths)}; {_ELSEWHERE}, "
        "move it away, or add --overwrite to replace it"
    )


def _identify(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except (OSError, ValueError):  # not there, a link to itself, a name that cannot be
        return None
    return found.st_dev, found.st_ino


def _read_notes(path: Path) -> dict[str, set[str]]:
    """Return the hashes noted for each file; a line that cannot be read says nothing."""
    written: dict[str, set[str]] = {}
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return written
    for line in lines:
        try:
            note = json.loads(line)
            written.setdefault(note["file"], set()).add(note["blake2b"])
        except (ValueError, TypeError, LookupError, RecursionError):
            continue
    return written

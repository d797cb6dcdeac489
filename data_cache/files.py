"""Files and folders that are absent or complete, folders that one process holds, JSON that is checked when it is read.

Imports no torch.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import Any

from data_cache.errors import InUse, UserError
from data_cache.escaping import json_text
from data_cache.leftovers import is_temporary, name_temporary, remove, remove_abandoned, walk

_LOCK = ".lock"
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_UNUSABLE = {
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.EIO,
    errno.ENOLCK, errno.ENOTSUP, errno.ELOOP, errno.EBUSY, errno.EXDEV,
}  # fmt: skip
LARGEST_RECORD_BYTES = 1 << 30
_held: set[Path] = set()
"""Lock files that this process holds."""


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a path to write to; at the end of the block the file takes its place at once, to survive a power cut.

    After an exception ``path`` is as it was, and nothing is left behind. Its folder is made when missing.

    Raises:
        UserError: the disk is full or the place cannot be written to.
    """
    temporary = name_temporary(path)
    with explained(path, temporary):
        make_folder(path.parent)
        try:
            yield temporary
            _sync(temporary)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        _sync(path.parent)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a new folder to write files into; at the end of the block it takes its place as ``atomic_file`` does.

    Where another process has published the same folder meanwhile, that one stays. What killed processes were making
    beside it goes first.
    """
    temporary = name_temporary(path)
    with explained(path, temporary):
        make_folder(path.parent)
        remove_abandoned(path.parent)
        temporary.mkdir()
        try:
            yield temporary
            sync_folder(temporary)
            try:
                temporary.replace(path)
            except OSError:
                if not path.is_dir():
                    raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        _sync(path.parent)


@contextmanager
def hold_folder(folder: Path, doing: str, *, on_wait: Callable[[str], None] | None = None) -> Iterator[None]:
    """Hold a folder, made when missing, for one process; first remove what a killed holder left unfinished in it.

    Args:
        doing: what the folder is held for, shown to those who want it too.
        on_wait: takes a line on who is waited for; None does not wait.

    Raises:
        InUse: it is held already, and not waited for.
    """
    make_folder(folder)
    with _hold(folder / _LOCK, folder, doing, on_wait):
        remove_unfinished(folder)
        yield


@contextmanager
def hold_place(path: Path, doing: str, *, on_wait: Callable[[str], None] | None = None) -> Iterator[None]:
    """Hold the name of a file or folder that is about to be written as a whole.

    Args:
        doing, on_wait: as in ``hold_folder``.

    Raises:
        InUse: it is held already, and not waited for.
    """
    make_folder(path.parent)
    with _hold(path.parent / f".{hash_name(path.name)}{_LOCK}", path, doing, on_wait):
        yield


def wait_for_folder(folder: Path, on_wait: Callable[[str], None]) -> None:
    """Wait until no process holds a folder."""
    if (folder / _LOCK).exists():
        with hold_folder(folder, "seeing whether it is free", on_wait=on_wait):
            pass


def hash_name(name: str) -> str:
    """Return 16 hex digits for a file name, which may itself be as long as names can be."""
    return hashlib.blake2b(os.fsencode(name), digest_size=8).hexdigest()


def make_folder(folder: Path) -> None:
    """Make a folder and those it lies in, where they are missing.

    Raises:
        UserError: it cannot be made.
    """
    with _in_a_place(folder), explained(folder):
        folder.mkdir(parents=True, exist_ok=True)


@contextmanager
def _in_a_place(folder: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as problem:  # though all it lies in is there: /proc and its like
        raise UserError(f"nothing can be written to {folder}; choose another place (--workdir, --out)") from problem


def remove_unfinished(folder: Path) -> None:
    """Remove what killed processes were writing anywhere in a folder; only for who holds it."""
    for leftover in [path for path in walk(folder) if is_temporary(path)]:
        remove(leftover)


@contextmanager
def _hold(lock: Path, place: Path, doing: str, on_wait: Callable[[str], None] | None) -> Iterator[None]:
    """Hold a lock file.

    The kernel drops the lock with the process. It is a POSIX lock: unlike flock it is not inherited by forked
    DataLoader workers, which may outlive a killed process by seconds. It does not exclude the same process: ``_held``
    does. Its holder removes the file in the end; who got hold of a removed one starts anew.
    """
    lock = Path(os.path.realpath(lock))  # resolve() raises for a link to itself
    if lock in _held:
        raise InUse(f"{place} is already in use by this process; let that finish first")
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(_open_lock(lock))
        while not (_acquire(file, place, on_wait) and _lies_at(file, lock)):
            file = stack.enter_context(_open_lock(lock))
        _held.add(lock)
        try:
            with contextlib.suppress(OSError):  # a full disk: the note is only for the message to others
                file.truncate(0)
                file.write(os.fsencode(f"pid {os.getpid()} on {os.uname().nodename}, {doing}"))
            yield
        finally:
            _held.discard(lock)
            with contextlib.suppress(OSError):  # it stays where it cannot be removed; the next holder takes it
                lock.unlink()


def _open_lock(lock: Path) -> FileIO:
    with _in_a_place(lock.parent), explained(lock.parent):
        return lock.open("ab+", buffering=0)


def _acquire(file: FileIO, place: Path, on_wait: Callable[[str], None] | None) -> bool:
    """Lock a file; False where another machine removed it meanwhile, which network disks say so."""
    try:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):  # which of the two is up to the system
            file.seek(0)
            holder = f"another process ({file.read().decode(errors='replace') or 'unknown'})"
            if on_wait is None:
                raise InUse(
                    f"{place} is in use by {holder}; wait for it to finish or stop it, then repeat the command"
                ) from None
            on_wait(f"waiting for {holder}, which uses {place}")
            fcntl.lockf(file, fcntl.LOCK_EX)
    except OSError as problem:
        if problem.errno != errno.ESTALE:
            raise
        return False
    return True


def _lies_at(file: FileIO, lock: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), lock.stat())
    except FileNotFoundError:
        return False


def write_json(path: Path, value: Any) -> None:
    """Write JSON for people and programs, as ``atomic_file`` does."""
    with atomic_file(path) as temporary:
        temporary.write_text(json_text(value, indent=2) + "\n", encoding="utf8")


def read_json(path: Path, remedy: str = "remove it and repeat the command") -> dict[str, Any]:
    """Return the object that a JSON file holds.

    Args:
        remedy: what to do about a file that is missing or damaged.

    Raises:
        UserError: it cannot be read, or holds anything but one object.
    """
    return _parse_object(_read_bytes(path, remedy), str(path), remedy)


def read_json_lines(path: Path, remedy: str = "remove it and repeat the command") -> Iterator[dict[str, Any]]:
    """Yield the object of each line of a file that grows line by line; a last line that a kill cut off is left out.

    Raises:
        UserError: another line is damaged, or the file cannot be read.
    """
    for number, line in enumerate(_read_bytes(path, remedy).splitlines(keepends=True), start=1):
        if not line.endswith(b"\n"):
            return
        yield _parse_object(line, f"line {number} of {path}", remedy)


def measure_free_space(folder: Path) -> int:
    """Return the bytes that may still be written where a folder is, or will be made."""
    place = folder.absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    return shutil.disk_usage(place).free


def check_space(folder: Path, needed_bytes: int, what: str) -> None:
    """Refuse to begin what would not fit on the disk.

    Args:
        needed_bytes: at least; what is written in passing comes on top.
        what: what takes the space.

    Raises:
        UserError: naming what is needed and what is free.
    """
    free = measure_free_space(folder)
    if needed_bytes > free:
        raise UserError(
            f"{what} need about {format_bytes(needed_bytes)}, but only {format_bytes(free)} are free at {folder}; free "
            "some space, or choose a place on another disk (--workdir, --out)"
        )


def format_bytes(count: int) -> str:
    """Return "12.3 GB" or "4.5 MB"."""
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"


def explain_os_error(problem: OSError, where: object = None) -> str | None:
    """Return one clear message for what a person can repair about a disk or a path, None for what must be a bug.

    Args:
        where: the path it is about, where that is not the one the error itself names.
    """
    name = where or problem.filename
    place = f" {name}" if name else ""
    if problem.errno in _FULL:
        return (
            f"cannot write{place}: {problem.strerror}; what was finished is kept. Free some space, or choose another "
            "place with --workdir or --out, and repeat the command"
        )
    if problem.errno in _UNUSABLE:
        return (
            f"cannot use{place}: {problem.strerror}; choose another place (--workdir, --out, --data-root) or repair "
            "its permissions. What was finished is kept"
        )
    return None


def _read_bytes(path: Path, remedy: str) -> bytes:
    """Return a record's bytes; a pipe is not waited for, and what is no record by its size is not read."""
    try:
        state = path.stat()
        if not stat.S_ISREG(state.st_mode):
            raise UserError(f"cannot read {path}: it is no file; {remedy}")
        if state.st_size > LARGEST_RECORD_BYTES:
            raise UserError(f"{path} is damaged ({state.st_size:,} bytes are more than any record has); {remedy}")
        return path.read_bytes()
    except (OSError, ValueError) as problem:  # ValueError: a name with a NUL
        raise UserError(f"cannot read {path}: {getattr(problem, 'strerror', problem)}; {remedy}") from problem


def _parse_object(content: bytes, where: str, remedy: str) -> dict[str, Any]:
    try:
        value = json.loads(content.decode(), parse_constant=_refuse_constant)
    except RecursionError as problem:
        raise UserError(f"{where} is damaged (nested too deeply); {remedy}") from problem
    except ValueError as problem:
        raise UserError(f"{where} is damaged ({problem}); {remedy}") from problem
    if not isinstance(value, dict):
        raise UserError(f"{where} is damaged (it holds a {type(value).__name__}, no object); {remedy}")
    return value


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number")


@contextmanager
def explained(path: Path, temporary: Path | None = None) -> Iterator[None]:
    """Turn what a person can repair about a disk or a path into a ``UserError``.

    Args:
        path: what it is about, where the error does not say.
        temporary: what stands for it in names.
    """
    try:
        yield
    except OSError as problem:
        where = str(problem.filename or path).replace(str(temporary or path), str(path))
        message = explain_os_error(problem, where)
        if message is None:
            raise
        raise UserError(message) from problem


def sync_folder(folder: Path) -> None:
    """Make a folder and the content of its files survive a power cut."""
    for path in (*folder.iterdir(), folder):
        _sync(path)


def _sync(path: Path) -> None:
    """Make a file's content, or a folder's renames and removals, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

"""Temporary files and folders: how they are named, and which of them belong to processes that are gone.

A name tells the process and the machine, so that nothing is removed that a living process is still writing.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import re
import shutil
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

_NAME = re.compile(r"\.(\d+)-([0-9a-f]{4})[0-9a-f]{4}\.tmp")
_ELSEWHERE_S = 24 * 3600
"""What another machine's process has not touched for so long is taken for abandoned: it cannot be asked."""
_numbers = itertools.count(int.from_bytes(os.urandom(2)))


def name_temporary(path: Path) -> Path:
    """Return a name beside ``path`` that holds nothing of its name, which may be as long as names can be."""
    return path.with_name(f".{os.getpid()}-{_name_machine()}{next(_numbers) % 0x10000:04x}.tmp")


def is_temporary(path: Path) -> bool:
    """Whether a file or folder has a name that only ``name_temporary`` gives."""
    return _NAME.fullmatch(path.name) is not None


def is_abandoned(path: Path) -> bool:
    """Whether a temporary file or folder belongs to a process that is gone."""
    match = _NAME.fullmatch(path.name)
    if match is None:
        return False
    try:
        changed_at = path.lstat().st_ctime
    except FileNotFoundError:
        return False
    if match[2] != _name_machine():
        return time.time() - changed_at > _ELSEWHERE_S
    return not _was_alive(int(match[1]), changed_at)


def remove_abandoned(folder: Path) -> None:
    """Remove what processes that are gone have left unfinished in a folder."""
    for path in folder.glob(".*.tmp"):
        if is_abandoned(path):
            remove(path)


def remove(path: Path) -> None:
    """Remove a file or a folder with all that is in it; nothing happens where it is gone, or cannot be removed."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def measure(path: Path) -> int:
    """Return the bytes of a file, or of all files in a folder."""
    files = (path, *walk(path)) if path.is_dir() else (path,)
    total = 0
    for file in files:
        with contextlib.suppress(OSError):  # gone meanwhile
            total += 0 if file.is_dir() else file.lstat().st_size
    return total


def walk(folder: Path) -> Iterator[Path]:
    """Yield all files and folders below a folder, links unfollowed; nothing below a temporary folder."""
    for place, folders, files in os.walk(folder):
        here = Path(place)
        yield from (here / name for name in (*folders, *files))
        folders[:] = [name for name in folders if not is_temporary(here / name)]


@functools.cache
def _name_machine() -> str:
    """Return 4 hex digits for this machine, or rather the room in which process numbers mean something."""
    room = os.uname().nodename
    with contextlib.suppress(OSError):  # containers of one machine have numbers of their own
        room += str(Path("/proc/self/ns/pid").readlink())
    return f"{zlib.crc32(room.encode()) & 0xFFFF:04x}"


def _was_alive(process: int, moment: float) -> bool:
    """Whether a process lives that lived at a moment already; another may have got its number since."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        pass
    try:
        facts = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        uptime = float(Path("/proc/uptime").read_text().split()[0])
        started_at = time.time() - uptime + int(facts[19]) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):  # no such files on this system
        return True
    return facts[0] not in "ZX" and started_at <= moment + 1

"""The files of one depth store: their names, how they appear on disk at once or not at all, and who may write.

    index.h5                 an external link per image
    shard-00003.h5           up to ``shard_size`` maps
    batch-00004-0007.h5      one labelled batch, waiting to be merged into shard 4
    *.tmp                    never read; left by a killed writer, removed by the next

A batch file counts only while its shard does not exist. So publishing the shard retires its batches in one instant, and
a writer killed anywhere between leaves each map exactly once.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
from pathlib import Path
from typing import NamedTuple

from data_cache.errors import UserError

INDEX = "index.h5"
_LOCK = ".writer.lock"
_SHARD = re.compile(r"shard-(\d{5,})\.h5")
_BATCH = re.compile(r"batch-(\d{5,})-(\d{4,})\.h5")
_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class StoreFiles(NamedTuple):
    """Names of the files that hold maps, in the order they were written."""

    shards: tuple[str, ...]
    batches: tuple[str, ...]

    @property
    def next_shard(self) -> int:
        """Number of the shard to be written next, into which the present batches go."""
        after_shards = 1 + max(map(_number, self.shards), default=-1)
        return max(after_shards, *map(_number, self.batches), 0)

    @property
    def next_batch(self) -> int:
        """Number of the batch to be written next."""
        return 1 + max((int(name[:-3].split("-")[2]) for name in self.batches), default=-1)


def shard_name(number: int) -> str:
    """Return the file name of a shard."""
    return f"shard-{number:05d}.h5"


def batch_name(shard_number: int, batch_number: int) -> str:
    """Return the file name of a batch that will be merged into that shard."""
    return f"batch-{shard_number:05d}-{batch_number:04d}.h5"


def is_map_file(name: str) -> bool:
    """Whether a shard or batch may have that name."""
    return bool(_SHARD.fullmatch(name) or _BATCH.fullmatch(name))


def list_store_files(folder: Path) -> StoreFiles:
    """List the files that count; batches already merged into a shard do not."""
    names = os.listdir(folder)  # noqa: PTH208 - names only, and quick for many
    shards = sorted((name for name in names if _SHARD.fullmatch(name)), key=_number)
    merged = {_number(name) for name in shards}
    batches = [name for name in names if _BATCH.fullmatch(name) and _number(name) not in merged]
    return StoreFiles(tuple(shards), tuple(sorted(batches, key=lambda name: (_number(name), len(name), name))))


def remove_leftovers(folder: Path) -> None:
    """Remove what a killed writer left: unfinished files and batches that are already part of a shard."""
    live = list_store_files(folder)
    for path in folder.iterdir():
        if path.name.endswith(".h5.tmp") or (_BATCH.fullmatch(path.name) and path.name not in live.batches):
            path.unlink(missing_ok=True)


def publish(path: Path, content: bytes | memoryview) -> None:
    """Write a file so that it is absent or complete, and stays so after a power cut.

    Raises:
        UserError: no disk space left; the file is then absent or as it was.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        if error.errno in _NO_SPACE:
            raise UserError(
                f"no disk space left to write {path} ({len(content) / 1e6:.1f} MB); everything written before it is "
                "kept. Free some space and repeat the command, it continues from there"
            ) from error
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make renames and removals in a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class WriterLock:
    """The right to write to one store, held by one process at a time and freed by the system when that one dies."""

    # A POSIX lock belongs to the process: unlike flock it is not inherited by forked DataLoader workers, which may
    # outlive a killed writer by seconds. It does not exclude a second writer of the same process; _held does.
    _held: set[Path] = set()  # noqa: RUF012 - one per process on purpose

    def __init__(self, folder: Path) -> None:
        self._path = (folder / _LOCK).resolve()
        if self._path in self._held:
            raise UserError(f"{folder} is already being written by this process")
        self._file = self._path.open("a+")
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._file.seek(0)
            writer = self._file.read().strip() or "unknown"
            self._file.close()
            raise UserError(
                f"{folder} is being written by another process ({writer}); one writer at a time. Wait for it to finish"
                " or stop it, then repeat the command"
            ) from error
        self._held.add(self._path)
        with contextlib.suppress(OSError):  # a full disk: the note is only for the message above
            self._file.truncate(0)
            self._file.write(f"pid {os.getpid()} on {os.uname().nodename}")
            self._file.flush()

    def release(self) -> None:
        """Let others write; harmless when repeated. The file stays: removing it would race with the next writer."""
        if self._path in self._held:
            self._held.discard(self._path)
            self._file.close()


def folder_name(split: str, estimator: str, key: str) -> str:
    """Return ``<split>-<estimator>-<hash8>`` with the estimator made fit for a file name."""
    return f"{split}-{_slug(estimator)}-{key}"


def matching_folders(depth_root: Path, dataset: str, split: str, estimator: str) -> list[Path]:
    """Return the store folders of a dataset split and estimator, any hash, sorted by name."""
    prefix = f"{split}-{_slug(estimator)}-"
    pattern = re.compile(re.escape(prefix) + r"[0-9a-f]{8}")
    parent = depth_root / dataset
    return sorted(path for path in parent.iterdir() if pattern.fullmatch(path.name)) if parent.is_dir() else []


def _number(name: str) -> int:
    return int(name.split("-")[1].removesuffix(".h5"))


def _slug(estimator: str) -> str:
    return re.sub(r"[^A-Za-z0-9._]+", "-", estimator).strip("-")[-60:]

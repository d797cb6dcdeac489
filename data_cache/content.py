"""Hashes of files by content, remembered, so that 100,000 unchanged files cost a look at each and no reading."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import time
from collections.abc import Sequence
from pathlib import Path

from data_cache.errors import UserError
from data_cache.remembered import Remembered

_FORMAT = 1
_SETTLED_NS = 2_000_000_000
"""A file written to within this time before it is hashed may change again without a new date: file systems and network
disks count time in steps of up to 2 s. Its hash is used, but not remembered."""


class MissingText(UserError):
    """There is no such list."""


class ContentHashes:
    """Hashes what images, labels and depth are made from; a file that is as it was is not read again.

    Safe to use from several threads, and from several processes that share the file.
    """

    def __init__(self, file: Path | None = None) -> None:
        """Start from what ``file`` remembers; None remembers nothing beyond this object."""
        self._remembered = Remembered(
            file, _FORMAT, lambda value: len(value[0]) == 4 and isinstance(value[1], str) and len(value[1]) == 32
        )

    def hash(self, sources: Sequence[Path | str]) -> str:
        """Return 32 hex digits (blake2b) over the contents of files, and over words as they are.

        Of a single file they are the hash of its bytes. A file that is missing has a hash too, another one than any
        file; no source at all gives "".

        Raises:
            UserError: a file cannot be read.
        """
        hashes = [self._hash_file(source) if isinstance(source, Path) else _hash_words(source) for source in sources]
        return hashes[0] if len(hashes) == 1 else _hash_words(json.dumps(hashes)) if hashes else ""

    def save(self) -> None:
        """Remember what was hashed since the last time; to be called once after many files."""
        self._remembered.save()

    def _hash_file(self, path: Path) -> str:
        try:
            looked_at = path.stat()
            state = looked_at.st_size, looked_at.st_mtime_ns, looked_at.st_ctime_ns, looked_at.st_ino
            name = os.path.abspath(path)  # noqa: PTH100 - ten times as fast as Path.resolve, and links are looked through
            remembered = self._remembered.find(name)
            if remembered is not None and tuple(remembered[0]) == state:
                return remembered[1]
            check_regular(path, "file")
            found = hash_file(path)
        except (FileNotFoundError, NotADirectoryError):
            return _hash_words("missing")
        except OSError as error:
            raise UserError(
                f"{path} cannot be read ({error.strerror}); put it back or leave it out of the split"
            ) from error
        if time.time_ns() - max(state[1:3]) > _SETTLED_NS:
            self._remembered.add(name, (state, found))
        return found


def hash_file(path: Path) -> str:
    """Return 32 hex digits (blake2b) over a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def check_regular(path: Path, what: str) -> None:
    """Refuse folders, pipes, sockets and devices: opening one may wait for ever.

    Raises:
        UserError: naming the path.
        FileNotFoundError: there is nothing.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        kind = "a folder" if path.is_dir() else "a pipe, socket or device"
        raise UserError(f"{what} {path} cannot be read (it is {kind}, no file); remove it")


def read_text(path: Path, *, largest_bytes: int, remedy: str) -> str:
    """Return the text of a list that a person wrote.

    Args:
        largest_bytes: more than any such list has.
        remedy: what to do about a file that is missing or no text.

    Raises:
        MissingText: there is no such file.
        UserError: it is no regular file, too large, or not UTF-8.
    """
    try:
        check_regular(path, "the list")
        if (size := path.stat().st_size) > largest_bytes:
            raise UserError(f"{path} has {size:,} bytes, which is no list of names; {remedy}")
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise MissingText(f"there is no {path}; {remedy}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 (at byte {error.start}); {remedy}") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; {remedy}") from error
    if "\0" in text:
        raise UserError(f"{path} holds NUL bytes, so it is no UTF-8 text (UTF-16 has them); {remedy}")
    return text


def _hash_words(words: str) -> str:
    return hashlib.blake2b(words.encode(), digest_size=16).hexdigest()

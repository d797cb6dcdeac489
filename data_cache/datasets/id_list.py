"""Lists of images: a text file that names those of a split, one a line."""

from __future__ import annotations

import re
from collections.abc import Container
from pathlib import Path, PurePosixPath

from data_cache.content import MissingText, read_text
from data_cache.errors import UserError
from data_cache.images import IMAGE_SUFFIXES

_LARGEST_LIST = 1 << 26
"""Bytes: a million images."""
_LONGEST_ID = 250
_SUFFIX = re.compile(rf"({'|'.join(map(re.escape, IMAGE_SUFFIXES))})$", re.IGNORECASE)


def read_id_list(path: Path, known: Container[str] = ()) -> list[str]:
    """Return the image ids of a list: of each line's first word the name, without folder and suffix.

    Args:
        path: of the list; lines that begin with ``# `` are comments.
        known: names that may hold spaces; a line that is one of them, or ends in one, is taken whole.

    Raises:
        UserError: when the file is missing or not text, or a line names nothing that could be an image.
    """
    try:
        lines = read_text(path, largest_bytes=_LARGEST_LIST, remedy="it names one image per line").splitlines()
    except MissingText as error:
        beside = sorted(other.stem for other in path.parent.glob("*.txt"))[:12]
        raise UserError(f"there is no list {path}; lists there: {', '.join(beside) or 'none'}") from error
    named = ((number, line.strip()) for number, line in enumerate(lines, start=1))
    ids = [
        whole if (whole := _strip(line)) in known else _read_id(path, number, line.split()[0])
        for number, line in named
        if line and not line.startswith("# ")
    ]
    return list(dict.fromkeys(ids))


def _strip(word: str) -> str:
    """Return a name without folder and suffix; other dots are part of it."""
    name = PurePosixPath(word).name
    return name[: -len(found[0])] if (found := _SUFFIX.search(name)) else name


def _read_id(path: Path, number: int, word: str) -> str:
    image_id = _strip(word)
    if image_id in ("", "..") or len(image_id) > _LONGEST_ID:
        raise UserError(f"{path} line {number}: {word[:40]!r} is no name of an image; each line names one")
    return image_id

"""What was found out once about many files, kept in one file from call to call: a shortcut and nothing more."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data_cache.errors import UserError
from data_cache.files import atomic_file, read_json


class Remembered:
    """JSON values by key. A damaged, missing or unwritable file costs time and nothing else.

    Safe to use from several threads, and from several processes that share the file.
    """

    def __init__(self, file: Path | None, version: int, is_sound: Callable[[Any], bool]) -> None:
        """Start from what ``file`` holds; None remembers nothing beyond this object.

        Args:
            version: of what values mean; those of another are forgotten.
            is_sound: whether a value has the form it should have.
        """
        self._file, self._version, self._is_sound = file, version, is_sound
        self._known = self._load()
        self._added: dict[str, Any] = {}

    def find(self, key: str) -> Any | None:
        """Return the value of a key, if there is one."""
        return self._known.get(key)

    def add(self, key: str, value: Any) -> None:
        """Remember a value; it is on the disk after ``save``."""
        self._known[key] = self._added[key] = value

    def save(self) -> None:
        """Write what was added since the last time; to be called once after many values."""
        if self._file is None or not self._added:
            return
        known = self._load() | self._added  # another process may have added to it meanwhile
        content = json.dumps({"format": self._version, "files": known}, separators=(",", ":"))
        with contextlib.suppress(OSError, UserError), atomic_file(self._file) as temporary:
            temporary.write_text(content, encoding="utf8")
        self._added = {}

    def _load(self) -> dict[str, Any]:
        if self._file is None:
            return {}
        try:
            content = read_json(self._file)
            known: dict[str, Any] = content["files"] if content["format"] == self._version else {}
            return known if all(map(self._is_sound, known.values())) else {}
        except (UserError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
            return {}

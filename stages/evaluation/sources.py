"""What a person names to be predicted: images, folders of them, patterns, videos, cameras."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from data_cache.errors import UserError
from data_cache.images import IMAGE_SUFFIXES, list_files

VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv", ".ogv", ".3gp")
"""Files that count as videos, in any case; an animated GIF is an image, of which the first frame is read."""


class Sources(NamedTuple):
    """What is to be predicted, in order, each once."""

    images: Sequence[Path]
    videos: Sequence[Path]
    cameras: Sequence[int]


def find_sources(named: Iterable[Path]) -> Sources:
    """Return what names stand for: folders for the images in them, patterns for files, whole numbers for cameras.

    What lies there under a name is that, whatever else the name could mean.

    Raises:
        UserError: nothing is left, a pattern fits nothing, or none of the files is there.
    """
    images: dict[str, Path] = {}
    videos: dict[str, Path] = {}
    cameras: dict[int, None] = {}
    for name in named:
        text = str(name)
        if not os.path.lexists(name) and text.isascii() and text.isdigit():
            cameras[int(text)] = None
            continue
        for path in _expand(name):
            is_video = path.suffix.lower() in VIDEO_SUFFIXES and not os.path.isdir(path)  # noqa: PTH112 - as below
            for one in list_files(path) if os.path.isdir(path) else [path]:  # noqa: PTH112 - is_dir() raises for long names
                place = os.path.realpath(one)  # resolve() raises for a link to itself
                (videos if is_video else images).setdefault(place, one)
    if not (images or videos or cameras):
        suffixes = ", ".join(IMAGE_SUFFIXES)
        raise UserError(f"no image to predict; name image files, or folders with files ending in {suffixes}")
    files = [*images.values(), *videos.values()]
    if not cameras and not any(map(os.path.lexists, files)):
        raise UserError(f"{files[0]} is missing (seen from {Path.cwd()}); check the name of what is to be predicted")
    return Sources(list(images.values()), list(videos.values()), list(cameras))


def _expand(name: Path) -> list[Path]:
    """Return the files that a pattern fits, or the name itself where it is none or lies there."""
    if os.path.lexists(name) or not glob.has_magic(str(name)):
        return [name]
    known = (*IMAGE_SUFFIXES, *VIDEO_SUFFIXES)
    fitting = map(Path, glob.glob(str(name), recursive=True))  # noqa: PTH207 - the pattern may be absolute
    found = sorted(path for path in fitting if path.suffix.lower() in known)
    if not found:
        raise UserError(
            f"no image or video fits the pattern {name} (seen from {Path.cwd()}); check it, or name files or folders"
        )
    return found

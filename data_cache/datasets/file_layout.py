"""Where the files of an own dataset lie: a pattern each for images, masks and depth maps, and lists of its splits.

A pattern is a path below the root: ``{name}`` stands for the name of an image, ``{split}`` for that of a split. Files
may have any suffix of an image unless the pattern ends in one. ``{split}/{name}`` beside ``{split}/masks/{name}_mask``
pairs ``train/cat.jpg`` with ``train/masks/cat_mask.png``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from data_cache.datasets.id_list import read_id_list
from data_cache.datasets.interface import POOL, EmptySplit
from data_cache.datasets.paired_files import Entry, find_pair, index_by_stem, read_stem
from data_cache.errors import UserError
from data_cache.images import IMAGE_SUFFIXES, list_files

DEPTH_SUFFIXES = (".png", ".npy")
_NAME, _SPLIT = "{name}", "{split}"


class Pattern(NamedTuple):
    """Files in one folder, called alike but for the name of their image."""

    folder: Path
    prefix: str
    ending: str
    """What follows the name, without the suffix."""
    suffix: str
    """Of the file, in small letters; "" is any."""

    @property
    def length(self) -> int:
        """Letters that are fixed; of two patterns that fit a file, the longer one means it."""
        return len(self.prefix) + len(self.ending) + len(self.suffix)

    def list_files(self, suffixes: tuple[str, ...] = IMAGE_SUFFIXES) -> list[Path]:
        """Return the files that fit."""
        return [path for path in list_files(self.folder, suffixes) if self.fits(path)]

    def fits(self, path: Path) -> bool:
        """Whether a file in the folder is called so."""
        stem = read_stem(path)
        named = len(stem) > len(self.prefix) + len(self.ending)
        return (
            named
            and stem.startswith(self.prefix)
            and stem.endswith(self.ending)
            and self.suffix in ("", path.suffix.lower())
        )

    def read_name(self, path: Path) -> str:
        """Return the name of the image that a file belongs to."""
        stem = read_stem(path)
        return stem[len(self.prefix) : len(stem) - len(self.ending)]

    def by_name(self, paths: list[Path]) -> dict[str, Path]:
        """Return files by the name of their image.

        Raises:
            UserError: two have the same.
        """
        return index_by_stem(paths, self.read_name)

    def place(self, name: str, suffix: str) -> Path:
        """Return where the file of an image belongs."""
        return self.folder / f"{self.prefix}{name}{self.ending}{self.suffix or suffix}"


def parse_pattern(option: str, text: str, root: Path, split: str) -> Pattern:
    """Return the files of one split.

    Raises:
        UserError: it is no pattern.
    """
    folder, _, last = text.replace(_SPLIT, split).rpartition("/")
    if last.count(_NAME) != 1 or "{" in folder + last.replace(_NAME, ""):
        raise UserError(
            f"folder: {option} must be a path that ends in a file's name with {_NAME} once, such as "
            f"images/{_SPLIT}/{_NAME}, got {text[:100]!r}"
        )
    prefix, _, rest = last.partition(_NAME)
    suffix = next((suffix for suffix in (*IMAGE_SUFFIXES, ".npy") if rest.lower().endswith(suffix)), "")
    return Pattern(root / folder, prefix, rest[: len(rest) - len(suffix)], suffix)


@dataclass(frozen=True)
class FileLayout:
    """Where the files of all splits lie."""

    root: Path
    images: str = "images/{split}/{name}"
    masks: str = "masks/{split}/{name}"
    depth: str = "depth/{split}/{name}"
    lists: str | None = None
    """Path of text files that name the images of a split, one a line; ``{split}`` is the split's name."""
    split_names: Mapping[str, str] | None = None
    """Name of a split -> what ``{split}`` stands for in the patterns, where that is another word."""

    def list_splits(self) -> tuple[str, ...]:
        """Return the splits there are.

        Raises:
            UserError: nothing says which image is of which.
        """
        if self.lists is not None:
            return _list_words(self.root, self.lists, folders=False)
        if self.split_names is not None:
            return tuple(self.split_names)
        if _SPLIT not in self.images.rpartition("/")[0]:
            raise UserError(
                f"folder: images = {self.images!r} has no {_SPLIT}, and there are no lists, so nothing says which "
                "images are of train and which of val; write such lists, or let `pipeline init` do so"
            )
        return _list_words(self.root, self.images, folders=True)

    def describe_splits(self) -> str:
        """Return where splits are looked for, for messages."""
        return str(self.root / (self.lists or self.images.partition(_SPLIT)[0].rstrip("/")))

    def find_images(self, split: str) -> Pattern:
        """Return where the images of a split lie."""
        return parse_pattern("images", self.images, self.root, self._word(split))

    def find_depth(self, split: str) -> Pattern:
        """Return where the depth maps of a split lie."""
        return parse_pattern("depth", self.depth, self.root, self._word(split))

    def pair(self, split: str) -> tuple[list[Entry], list[Path]]:
        """Pair the images of a split with their masks.

        Returns:
            The images in order of their names, each with its mask or with the path where it would belong; and the masks
            that have no image.

        Raises:
            UserError: two files have the same name, or a list cannot be read.
        """
        image, mask = self.find_images(split), parse_pattern("masks", self.masks, self.root, self._word(split))
        image_files, mask_files = image.list_files(), mask.list_files()
        if image.folder == mask.folder:
            if image[1:] == mask[1:]:
                raise UserError(
                    f"folder: images and masks are both {self.images!r}; say what tells them apart, for example "
                    'masks = "{name}_mask"'
                )
            both = set(image_files) & set(mask_files)
            image_files, mask_files = (
                [path for path in files if path not in both or own.length > other.length]
                for files, own, other in ((image_files, image, mask), (mask_files, mask, image))
            )
        images, masks = image.by_name(image_files), mask.by_name(mask_files)
        names = sorted(images) if self.lists is None else self._read_names(split, images)
        entries = [
            Entry(
                name,
                images.get(name, image.place(name, ".jpg")),
                find_pair(name, masks, mask.place(name, ".png"), images),
            )
            for name in names
        ]
        known = images if _SPLIT in self.masks or _SPLIT not in self.images else self._list_all_names()
        paired = {find_pair(name, masks, mask.folder, known) for name in known}
        return entries, [path for _, path in sorted(masks.items()) if path not in paired]

    def _list_all_names(self) -> dict[str, Path]:
        """Return the images of all splits, whose masks lie in one folder."""
        patterns = map(self.find_images, self.list_splits())
        return {name: path for pattern in patterns for name, path in pattern.by_name(pattern.list_files()).items()}

    def _word(self, split: str) -> str:
        return (self.split_names or {}).get(split, split)

    def _read_names(self, split: str, images: Mapping[str, Path]) -> list[str]:
        """Return the names in the list of a split; what no list names are images without masks."""
        assert self.lists is not None
        path = self.root / self.lists.replace(_SPLIT, split)
        if split != POOL or path.is_file():
            return read_id_list(path, images)
        if _SPLIT in self.images:
            return sorted(images)
        others = (self.root / self.lists.replace(_SPLIT, other) for other in self.list_splits())
        listed = {name for other in others for name in read_id_list(other, images)}
        if not set(images) - listed:
            raise EmptySplit(f"the {split} split of folder is empty: the lists name every image")
        return sorted(set(images) - listed)


def _list_words(root: Path, text: str, *, folders: bool) -> tuple[str, ...]:
    """Return what ``{split}`` can stand for in a path: names of folders, or of files."""
    before, _, after = text.partition(_SPLIT)
    parent, _, prefix = before.rpartition("/")
    ending = after.partition("/")[0]
    looked_in = root / (parent or ("/" if before.startswith("/") else ""))
    if _SPLIT not in text:
        raise UserError(f"folder: lists = {text!r} has no {_SPLIT}, which the name of each split takes the place of")
    if not looked_in.is_dir():
        return ()
    named = re.compile(re.escape(prefix) + r"(.+)" + re.escape(ending))
    # A link that leads nowhere is a split whose images cannot be found, and not no split.
    found = (path for path in looked_in.iterdir() if (path.is_dir() or path.is_symlink()) == folders)
    words = (match[1] for path in found if (match := named.fullmatch(path.name)))
    return tuple(sorted(word for word in words if not word.startswith(".")))

"""One's own images: ``images/<split>``, ``masks/<split>``, ``classes.txt``, optional ``depth/<split>``.

Images, masks and depth maps pair by the stem of their names. Images in ``images/unlabelled`` need no masks.

``classes.txt`` has a class per line, in the order of the ids, optionally with a colour: ``road 128 64 128``. Lines that
begin with ``#`` are comments and do not count.
When every class has a colour, masks may also be RGB images in exactly these colours.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from data_cache.content import read_text
from data_cache.datasets.interface import POOL, RGB
from data_cache.datasets.mask_files import read_npy, read_png16
from data_cache.datasets.paired_files import (
    PairedFiles,
    build_colour_map,
    check_not_empty,
    find_pair,
    index_by_stem,
    pair_folders,
)
from data_cache.errors import UserError, unknown_name
from data_cache.images import list_files
from data_cache.sample import IGNORE_INDEX, DepthKind

_VOID_COLOURS: tuple[RGB, ...] = ((0, 0, 0), (255, 255, 255))
"""Read as void in RGB masks unless a class has that colour."""
_LARGEST_LIST = 1 << 20
"""Bytes; 255 names need far less."""
_LONGEST_NAME = 200
_NUMBERED = re.compile(r"\d+[\s,;:.=)-]*[^\s\d,;:.=)-]")
_OTHER_LINE_ENDS = re.compile("[\v\f\x1c-\x1e\x85\u2028\u2029]")
_COLOUR_AND_COMMENT = re.compile(r"\s\d+\s+\d+\s+\d+\s+#")


class Folder(PairedFiles):
    """Images and masks of any origin."""

    name: ClassVar[str] = "folder"
    summary: ClassVar[str] = "own files: images/<split>, masks/<split>, classes.txt, optional depth/<split>"
    pool_split: ClassVar[str] = POOL

    def __init__(
        self,
        root: Path,
        split: str,
        *,
        first_id: int = 0,
        void_ids: Sequence[int] = (IGNORE_INDEX,),
        depth_kind: str | None = None,
        depth_unit_m: float = 0.001,
    ) -> None:
        """Open ``images/<split>``.

        Args:
            root: folder with images, masks and classes.txt.
            split: any folder inside ``images``.
            first_id: id of the first class in the masks; 1 where 0 means unlabelled.
            void_ids: ids that mean void.
            depth_kind: what the maps in ``depth`` hold: ``relative`` (inverse depth, large = near) or ``metric``
                (NPY in metres, PNG16 in ``depth_unit_m``). Needed when ``depth/<split>`` exists and is to be read.
            depth_unit_m: metres per step of a metric PNG16.

        Raises:
            UserError: for a missing folder, an unknown or empty split, or nonsense in classes.txt or the options.
        """
        root = Path(root)
        known = _list_splits(root)
        image_folder = root / "images" / split
        if known and split not in (*known, POOL):
            raise unknown_name(f"split in {root / 'images'}", split, known)
        entries, orphans = pair_folders(image_folder, root / "masks" / split)
        check_not_empty(self.name, split, entries, image_folder)
        names, colours = read_classes(root / "classes.txt")
        self._colours = colours
        self._depth_unit_m = _check_depth_unit(depth_unit_m)
        self._depth_kind = _check_depth_kind(depth_kind)
        depth_folder = root / "depth" / split
        self._has_depth = depth_folder.is_dir()
        if self._has_depth:
            maps = index_by_stem(list_files(depth_folder, (".png", ".npy")))
            stems = {entry.image_id for entry in entries}
            entries = [entry._replace(depth=find_pair(entry.image_id, maps, depth_folder, stems)) for entry in entries]
        super().__init__(
            split,
            entries,
            classes=names,
            palette=colours or build_colour_map(len(names) + 1)[1:],
            raw_ids=_build_id_table(len(names), first_id, void_ids),
            ground_truth_depth_kind=self._depth_kind if self._has_depth else None,
            depth_rule=f"{self._depth_kind}, a step of a metric PNG is {self._depth_unit_m} m"
            if self._has_depth
            else "",
            orphans=orphans if split != POOL else (),
        )

    @classmethod
    def find_splits(cls, root: Path | None) -> tuple[str, ...]:
        """Return the folders inside ``images``."""
        return (_list_splits(root) if root is not None else ()) or ("train", "val")

    def read_raw_mask(self, index: int) -> NDArray[Any]:
        """Return the mask's ids (H, W); an RGB mask in the colours of classes.txt is turned into ids first."""
        mask = super().read_raw_mask(index)
        if mask.ndim != 3 or self._colours is None:
            return mask
        return _find_colours(mask, self._colours, self.raw_ids, self.entries[index].mask)

    def read_depth(self, index: int) -> NDArray[np.float32]:
        """Return (h, w): inverse depth, or metres, as ``depth_kind`` says; nan = unknown (0 in a PNG).

        Raises:
            UserError: without ``depth/<split>`` or ``depth_kind``, or for a missing or unreadable file.
        """
        entry = self.entries[index]
        if entry.depth is None:
            return super().read_depth(index)
        if self._depth_kind is None:
            raise UserError(
                f"{entry.depth.parent} holds depth but not what it means; set it with: --set data.options.depth_kind="
                "relative (inverse depth, large = near) or metric (distance)"
            )
        if entry.depth.suffix.lower() == ".npy":
            return read_npy(entry.depth)
        depth = read_png16(entry.depth)
        return depth * np.float32(self._depth_unit_m) if self._depth_kind is DepthKind.METRIC else depth


def _list_splits(root: Path) -> tuple[str, ...]:
    images = Path(root) / "images"
    if not images.is_dir():
        return ()
    # A link that leads nowhere is a split whose images cannot be found, and not no split.
    return tuple(sorted(path.name for path in images.iterdir() if path.is_dir() or path.is_symlink()))


def read_classes(path: Path) -> tuple[tuple[str, ...], tuple[RGB, ...] | None]:
    """Read class names, and colours when every class has one.

    Raises:
        UserError: the file is missing or no text, names no class or two that look the same, has a blank line between
            classes, numbers its lines, or gives a broken colour.
    """
    text = read_text(
        path,
        largest_bytes=_LARGEST_LIST,
        remedy="write one class name per line, as UTF-8, in the order of the mask ids; the first line is id 0",
    )
    names: list[str] = []
    colours: list[RGB] = []
    blank = None
    for number, line in enumerate(re.split("\r\n|\r|\n", text), start=1):
        words = line.split()
        if not words:
            blank = blank or number
            continue
        if words[0].startswith("#"):
            continue
        if blank is not None:
            raise UserError(
                f"{path} line {blank} is blank, but the order of the lines gives the ids: remove it, or write a name "
                "there if that id is a class of its own"
            )
        if _COLOUR_AND_COMMENT.search(line):
            raise UserError(f"{path} line {number}: a comment stands on a line of its own, before or after the class")
        if _OTHER_LINE_ENDS.search(line.strip()):
            raise UserError(
                f"{path} line {number} holds a control character that some programs take for the end of a line; "
                "remove it, or begin a new line there"
            )
        if len(words) > 3 and all(word.isdecimal() for word in words[-3:]):
            colours.append(_check_colour(path, number, words[-3:]))
            words = words[:-3]
        names.append(" ".join(words))
    check_class_names(path, names)
    if colours and len(colours) != len(names):
        raise UserError(f"{path} gives a colour to {len(colours)} of {len(names)} classes; give it to all or to none")
    if len(set(colours)) != len(colours):
        raise UserError(f"{path} gives two classes the same colour; RGB masks could not tell them apart")
    return tuple(names), tuple(colours) or None


def _check_colour(path: Path, number: int, words: list[str]) -> RGB:
    red, green, blue = (int(word) if len(word) <= 3 else 256 for word in words)
    if max(red, green, blue) > 255:
        raise UserError(f"{path} line {number}: a colour has three numbers from 0 to 255, got {' '.join(words)[:40]}")
    return red, green, blue


def check_class_names(path: Path, names: Sequence[str]) -> None:
    """Refuse names that tables could not show, or could not tell apart.

    Args:
        path: where they stand, for the message.
        names: by id.

    Raises:
        UserError: naming those that are wrong.
    """
    if not names:
        raise UserError(f"{path} names no class; write one name per line in the order of the mask ids")
    if len(names) > IGNORE_INDEX:
        raise UserError(f"{path} names {len(names)} classes; at most {IGNORE_INDEX} fit, as {IGNORE_INDEX} means void")
    long = next((name for name in names if len(name) > _LONGEST_NAME), None)
    if long is not None:
        raise UserError(
            f"{path} has a class name of {len(long)} characters ({long[:20]}…); at most {_LONGEST_NAME} fit into tables"
        )
    seen = Counter(map(_appearance, names))
    twice = sorted({name for name in names if seen[_appearance(name)] > 1})
    if twice:
        raise UserError(f"{path} names a class twice: {', '.join(twice)}; give every id a name of its own")
    if len(names) > 1 and all(map(_NUMBERED.match, names)):
        raise UserError(
            f"{path} begins every line with a number ({names[0]}), but the order of the lines gives the ids: leave the "
            "numbers out, write a line for every id, and set data.options.first_id if the first id is not 0"
        )


def _appearance(name: str) -> str:
    """Return what a reader sees of a name: letters written as one code or two, nothing invisible."""
    return "".join(letter for letter in unicodedata.normalize("NFC", name) if unicodedata.category(letter) != "Cf")


def _build_id_table(num_classes: int, first_id: int, void_ids: Sequence[int]) -> dict[int, int]:
    if isinstance(first_id, bool) or not isinstance(first_id, int) or first_id < 0:
        raise UserError(f"folder: first_id must be a whole number of at least 0, got {first_id!r}")
    if not isinstance(void_ids, list | tuple) or not all(type(value) is int for value in void_ids):
        raise UserError(f"folder: void_ids must be a list of whole numbers, got {void_ids}")
    table = {first_id + index: index for index in range(num_classes)}
    clash = sorted(set(table) & set(void_ids))
    if clash:
        raise UserError(
            f"folder: ids {', '.join(map(str, clash))} are void by void_ids, but classes.txt has a class there"
        )
    # With classes from 1 on, 0 is what annotation tools write where nobody has drawn.
    return {**({0: IGNORE_INDEX} if first_id > 0 else {}), **dict.fromkeys(void_ids, IGNORE_INDEX), **table}


def _check_depth_kind(depth_kind: str | None) -> DepthKind | None:
    if depth_kind is None:
        return None
    if depth_kind not in list(DepthKind):
        raise unknown_name("depth_kind of folder", str(depth_kind), list(DepthKind))
    return DepthKind(depth_kind)


def _check_depth_unit(depth_unit_m: float) -> float:
    if isinstance(depth_unit_m, bool) or not isinstance(depth_unit_m, int | float) or not 0.0 < depth_unit_m < 1e6:
        raise UserError(f"folder: depth_unit_m must be a positive number of metres per PNG step, got {depth_unit_m!r}")
    return float(depth_unit_m)


def _find_colours(
    mask: NDArray[np.uint8], colours: tuple[RGB, ...], raw_ids: Mapping[int, int], path: Path
) -> NDArray[np.int64]:
    """Turn (H, W, 3) colours into raw ids."""
    void_id = next((raw for raw, train in raw_ids.items() if train == IGNORE_INDEX), None)
    known = {colour: void_id for colour in _VOID_COLOURS if void_id is not None}
    by_train_id = {train: raw for raw, train in raw_ids.items() if train != IGNORE_INDEX}
    known |= {colour: by_train_id[train] for train, colour in enumerate(colours)}
    packed = mask.astype(np.int64) @ np.array([1 << 16, 1 << 8, 1])
    ids = np.full(packed.shape, -1, dtype=np.int64)
    for (red, green, blue), raw in known.items():
        ids[packed == (red << 16 | green << 8 | blue)] = raw
    if (ids < 0).any():
        value = int(packed[ids < 0][0])
        raise UserError(
            f"mask {path} has the colour ({value >> 16}, {value >> 8 & 255}, {value & 255}), which no class in "
            f"classes.txt has ({int((ids < 0).sum())} such pixels); masks must not be JPEG or resized with smoothing"
        )
    return ids

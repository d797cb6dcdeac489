"""One's own images: ``images/<split>``, ``masks/<split>``, ``classes.txt``, optional ``depth/<split>``.

Images, masks and depth maps pair by the stem of their names. Images in ``images/unlabelled`` need no masks. Options say
where else the files lie, see ``file_layout``; ``pipeline init`` finds them.

``classes.txt`` has a class per line, in the order of the ids, optionally with a colour: ``road 128 64 128``. Lines that
begin with ``#`` are comments and do not count.
When every class has a colour, masks may also be RGB images in exactly these colours.

Depth maps are PNG or NPY files as ``depth_kind`` says. Where ``scales.csv`` lies beside them, as ``pipeline cache
export`` writes it, that says what they mean and how the numbers of its PNGs become the raw ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from data_cache.datasets.class_list import parse_classes, read_classes
from data_cache.datasets.depth_scales import SCALES_FILE, DepthScales, read_scales
from data_cache.datasets.file_layout import DEPTH_SUFFIXES, FileLayout
from data_cache.datasets.interface import POOL, RGB, Sources
from data_cache.datasets.mask_files import read_npy, read_png16
from data_cache.datasets.paired_files import PairedFiles, build_class_colours, check_not_empty, find_pair
from data_cache.errors import UserError, unknown_name
from data_cache.sample import IGNORE_INDEX, DepthKind

VOID_COLOURS: tuple[RGB, ...] = ((0, 0, 0), (255, 255, 255), (224, 224, 192))
"""Read as void in RGB masks unless a class has that colour; the last is the border of Pascal VOC."""


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
        images: str = FileLayout.images,
        masks: str = FileLayout.masks,
        depth: str = FileLayout.depth,
        lists: str | None = None,
        split_names: Mapping[str, str] | None = None,
        classes: Sequence[str] | None = None,
        ids: Sequence[int] | None = None,
        first_id: int = 0,
        void_ids: Sequence[int] | None = None,
        depth_kind: str | None = None,
        depth_unit_m: float = 0.001,
    ) -> None:
        """Open a split.

        Args:
            root: folder with images, masks and classes.txt.
            split: any folder inside ``images``, or any of the lists.
            images: where the images lie, see ``file_layout``.
            masks: likewise the masks.
            depth: likewise the depth maps.
            lists: text files that name the images of each split, below the root or absolute; images that none names
                are the split ``unlabelled``.
            split_names: name of a split -> the word for ``{split}`` in the three paths above, where that is another.
            classes: what classes.txt would say, a line each.
            ids: id of each class in the masks.
            first_id: id of the first class in the masks, where they are consecutive; 1 where 0 means unlabelled.
            void_ids: ids that mean void; unless given 255 where no class has it.
            depth_kind: what the depth maps hold: ``relative`` (inverse depth, large = near) or ``metric`` (NPY in
                metres, PNG16 in ``depth_unit_m``). Needed when there are some and they are to be read, unless
                ``scales.csv`` beside them says it.
            depth_unit_m: metres per step of a metric PNG16 without ``scales.csv``.

        Raises:
            UserError: for a missing folder, an unknown or empty split, or nonsense in classes.txt or the options.
        """
        layout = FileLayout(Path(root), images, masks, depth, lists, _check_split_names(split_names))
        known = layout.list_splits()
        if known and split not in (*known, POOL):
            raise unknown_name(f"split in {layout.describe_splits()}", split, known)
        entries, orphans = layout.pair(split)
        check_not_empty(self.name, split, entries, layout.find_images(split).folder)
        names, colours = (
            read_classes(Path(root) / "classes.txt") if classes is None else parse_classes(classes, "folder: classes")
        )
        self._colours = colours
        self._depth_unit_m = _check_depth_unit(depth_unit_m)
        pattern = layout.find_depth(split)
        maps = pattern.by_name(pattern.list_files(DEPTH_SUFFIXES))
        self._has_depth = bool(maps) or (pattern.folder.is_dir() and not (pattern.prefix or pattern.ending))
        self._scales = read_scales(pattern.folder / SCALES_FILE) if self._has_depth else None
        self._depth_kind = _check_depth_kind(depth_kind, self._scales, pattern.folder)
        if self._has_depth:
            stems = {entry.image_id for entry in entries}
            places = ((entry, pattern.place(entry.image_id, ".png")) for entry in entries)
            entries = [entry._replace(depth=find_pair(entry.image_id, maps, at, stems)) for entry, at in places]
        super().__init__(
            split,
            entries,
            classes=names,
            palette=colours or build_class_colours(names),
            raw_ids=_build_id_table(len(names), first_id, void_ids, ids),
            ground_truth_depth_kind=self._depth_kind if self._has_depth else None,
            depth_rule=self._describe_depth() if self._has_depth else "",
            orphans=orphans if split != POOL else (),
        )

    def _describe_depth(self) -> str:
        if self._scales is not None:
            return f"{self._depth_kind}, PNGs scaled by {SCALES_FILE}"
        return f"{self._depth_kind}, a step of a metric PNG is {self._depth_unit_m} m"

    @classmethod
    def find_splits(cls, root: Path | None, options: Mapping[str, Any] | None = None) -> tuple[str, ...]:
        """Return the folders inside ``images``; of lists those that are usual, and what none of them names."""
        named = {name: value for name, value in (options or {}).items() if name in ("images", "lists", "split_names")}
        found = FileLayout(root, **named).list_splits() if root is not None else ()
        if found and "lists" in named:
            found = (*(split for split in cls.splits if split in found), POOL)  # among others may be "trainval"
        return found or ("train", "val")

    def read_raw_mask(self, index: int) -> NDArray[Any]:
        """Return the mask's ids (H, W); an RGB mask in the colours of classes.txt is turned into ids first."""
        mask = super().read_raw_mask(index)
        if mask.ndim != 3 or self._colours is None:
            return mask
        return _find_colours(mask, self._colours, self.raw_ids, self.entries[index].mask)

    def read_depth(self, index: int) -> NDArray[np.float32]:
        """Return (h, w): inverse depth, or metres, as ``depth_kind`` says; nan = unknown (0 in a PNG).

        Raises:
            UserError: without depth maps or ``depth_kind``, or for a missing or unreadable file.
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
        if self._scales is not None:
            return self._scales.restore(entry.image_id, depth)
        return depth * np.float32(self._depth_unit_m) if self._depth_kind is DepthKind.METRIC else depth

    def sources(self, index: int) -> Sources:
        """Return the image's files."""
        sources, entry = super().sources(index), self.entries[index]
        if entry.depth is None or self._scales is None or entry.depth.suffix.lower() == ".npy":
            return sources
        return sources._replace(depth=(*sources.depth, self._scales.describe(entry.image_id)))


def _check_split_names(names: Mapping[str, str] | None) -> Mapping[str, str] | None:
    if names is not None and not all(isinstance(word, str) and word for word in names.values()):
        raise UserError(f"folder: split_names are words by split, as in {{ val = 'valid' }}, got {names}")
    return names


def _build_id_table(
    num_classes: int, first_id: int, void_ids: Sequence[int] | None, ids: Sequence[int] | None
) -> dict[int, int]:
    if isinstance(first_id, bool) or not isinstance(first_id, int) or first_id < 0:
        raise UserError(f"folder: first_id must be a whole number of at least 0, got {first_id!r}")
    for option, numbers in (("void_ids", void_ids), ("ids", ids)):
        whole = isinstance(numbers, list | tuple) and all(type(value) is int and value >= 0 for value in numbers)
        if numbers is not None and not whole:
            raise UserError(f"folder: {option} must be a list of whole numbers, got {numbers}")
    if ids is not None and (len(ids) != num_classes or len(set(ids)) != num_classes or first_id):
        raise UserError(
            f"folder: ids must be a different number for each of the {num_classes} classes, without first_id beside "
            f"them, got {list(ids)}" + (f" and first_id {first_id}" if first_id else "")
        )
    table = {raw: train for train, raw in enumerate(ids or range(first_id, first_id + num_classes))}
    clash = sorted(set(table) & set(void_ids or ()))
    if clash:
        raise UserError(
            f"folder: ids {', '.join(map(str, clash))} are void by void_ids, but classes.txt has a class there"
        )
    # With classes from 1 on, 0 is what annotation tools write where nobody has drawn.
    usual = (IGNORE_INDEX, *((0,) if min(table) > 0 else ())) if void_ids is None else void_ids
    return {**({0: IGNORE_INDEX} if first_id > 0 else {}), **dict.fromkeys(usual, IGNORE_INDEX), **table}


def _check_depth_kind(depth_kind: str | None, scales: DepthScales | None, folder: Path) -> DepthKind | None:
    if depth_kind is not None and depth_kind not in list(DepthKind):
        raise unknown_name("depth_kind of folder", str(depth_kind), list(DepthKind))
    said = None if scales is None else scales.kind
    if depth_kind is not None and said not in (None, depth_kind):
        raise UserError(
            f"folder: depth_kind is {depth_kind!r}, but {folder / SCALES_FILE} says that the maps are {said}; "
            "leave depth_kind out, or take that file away if the maps are others"
        )
    return DepthKind(depth_kind) if depth_kind is not None else said


def _check_depth_unit(depth_unit_m: float) -> float:
    if isinstance(depth_unit_m, bool) or not isinstance(depth_unit_m, int | float) or not 0.0 < depth_unit_m < 1e6:
        raise UserError(f"folder: depth_unit_m must be a positive number of metres per PNG step, got {depth_unit_m!r}")
    return float(depth_unit_m)


def _find_colours(
    mask: NDArray[np.uint8], colours: tuple[RGB, ...], raw_ids: Mapping[int, int], path: Path
) -> NDArray[np.int64]:
    """Turn (H, W, 3) colours into raw ids."""
    void_id = next((raw for raw, train in raw_ids.items() if train == IGNORE_INDEX), None)
    known = {colour: void_id for colour in VOID_COLOURS if void_id is not None}
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

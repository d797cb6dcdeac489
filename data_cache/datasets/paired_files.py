"""Datasets made of image files with a mask file each: what camvid, voc, cityscapes and folder share."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_cache.datasets.interface import RGB, EmptySplit, SegmentationDataset, Sources
from data_cache.datasets.mask_files import LabelProblem, describe_colours, format_id_table, map_ids, read_mask_ids
from data_cache.errors import UserError
from data_cache.images import ImageNote, NotedImage, format_examples, list_files, read_image, read_image_size
from data_cache.metrics import find_background
from data_cache.sample import DepthKind


class Entry(NamedTuple):
    """The files of one image; mask and depth are where they belong, whether or not they are there."""

    image_id: str
    image: Path
    mask: Path
    depth: Path | None = None


class PairedFiles(SegmentationDataset):
    """A split of images with masks, read from files.

    A mask that is missing is no error until it is asked for: an unlabelled image can still get depth.
    """

    def __init__(
        self,
        split: str,
        entries: Iterable[Entry],
        *,
        classes: tuple[str, ...],
        palette: tuple[RGB, ...],
        raw_ids: Mapping[int, int],
        ground_truth_depth_kind: DepthKind | None = None,
        depth_rule: str = "",
        orphans: Sequence[Path] = (),
    ) -> None:
        """Hold what a dataset's own constructor found.

        Args:
            split: its name.
            entries: the images in a fixed order.
            classes: names by train id.
            palette: colours by train id.
            raw_ids: id in the mask file -> train id or void.
            ground_truth_depth_kind: what ``read_depth`` returns, if the dataset has depth.
            depth_rule: how ``read_depth`` turns files into numbers, see the interface.
            orphans: masks without an image, for the doctor to report.

        Raises:
            UserError: two images have the same id.
        """
        self.split = split
        self.has_masks = split != self.pool_split
        self.entries = tuple(entries)
        self.classes = classes
        self.palette = palette
        self.raw_ids = dict(raw_ids)
        self.ground_truth_depth_kind = ground_truth_depth_kind
        self.depth_rule = depth_rule
        self.orphans = tuple(orphans)
        self._last_read: tuple[int, tuple[int, int]] = (-1, (0, 0))
        """Index and size of the image read last, whose mask is often the next to be read."""
        self.image_ids = tuple(entry.image_id for entry in self.entries)
        images: dict[str, Path] = {}
        for entry in self.entries:
            if (other := images.setdefault(entry.image_id, entry.image)) is not entry.image:
                raise UserError(
                    f"{other} and {entry.image} share the name {entry.image_id!r}, by which depth and scores are "
                    "kept; rename one of them, or remove it"
                )

    def read_noted_image(self, index: int) -> NotedImage:
        """Return (H, W, 3) RGB, and what had to be decided to read it."""
        image = read_image(self.entries[index].image)
        height, width, _ = image.pixels.shape
        self._last_read = index, (height, width)
        return image

    def read_size(self, index: int) -> tuple[int, int]:
        """Return (height, width) of an image."""
        return read_image_size(self.entries[index].image)

    def read_raw_mask(self, index: int) -> NDArray[Any]:
        """Return the mask file's ids (H, W), or its colours (H, W, 3) when it is a colour image."""
        return read_mask_ids(self.entries[index].mask)

    def read_labels(self, index: int) -> NDArray[np.uint8]:
        """Return (H, W) train ids, IGNORE_INDEX where void.

        Raises:
            MissingFile: there is no mask.
            LabelProblem: the mask is a colour image, of another size than the image, or has ids outside the table.
            UserError: the mask or the image cannot be read.
        """
        entry = self.entries[index]
        ids = self.read_raw_mask(index)
        if ids.ndim == 3:
            raise LabelProblem(
                f"mask {entry.mask} is an RGB image ({describe_colours(ids)}); a mask stores one id per pixel: "
                f"{format_id_table(self.raw_ids, self.classes)}; convert it to a palette or grey PNG",
                "colour",
            )
        last, size = self._last_read
        size = size if last == index else read_image_size(entry.image)
        if ids.shape != size:
            raise self._describe_sizes(entry, ids.shape, size)
        labels, unknown_ids = map_ids(ids, self.raw_ids)
        if unknown_ids:
            raise LabelProblem(
                f"mask {entry.mask} has ids outside the table: {format_examples(unknown_ids[:10], len(unknown_ids))}; "
                f"known: {format_id_table(self.raw_ids, self.classes)}",
                "ids",
                unknown_ids,
            )
        return labels

    def _describe_sizes(self, entry: Entry, mask: tuple[int, ...], image: tuple[int, int]) -> LabelProblem:
        remedy = "make the mask anew at the image's size"
        if mask == image[::-1] and ImageNote.TURNED in read_image(entry.image).notes:
            remedy = (
                "the mask was drawn on the image as stored, but its EXIF orientation turns the image upright: turn the "
                "mask too, or remove that tag from the image"
            )
        return LabelProblem(
            f"mask {entry.mask} has {mask[1]} x {mask[0]} px, its image {entry.image} has {image[1]} x {image[0]}; "
            f"{remedy}",
            "size",
        )

    def sources(self, index: int) -> Sources:
        """Return the image's files."""
        entry = self.entries[index]
        return Sources((entry.image,), (entry.mask,), () if entry.depth is None else (entry.depth,))

    def describe(self, index: int) -> str:
        """Return the image's path."""
        return str(self.entries[index].image)


def read_stem(path: Path) -> str:
    """Return a file's name without its suffix as text; bytes that are no UTF-8 are written out, as in ``caf\\xe9``."""
    return os.fsencode(path.stem).decode(errors="backslashreplace")


def index_by_stem(paths: Iterable[Path], read_name: Callable[[Path], str] = read_stem) -> dict[str, Path]:
    """Return the files by the part of their name that pairs them.

    Args:
        read_name: returns that part.

    Raises:
        UserError: when two files claim the same stem.
    """
    found: dict[str, Path] = {}
    for path in paths:
        stem = read_name(path)
        if stem in found:
            raise UserError(
                f"{found[stem]} and {path} share the name {stem!r}, which pairs images, masks and depth; remove one"
            )
        found[stem] = path
    return found


def pair_folders(image_folder: Path, mask_folder: Path) -> tuple[list[Entry], list[Path]]:
    """Pair images and masks of two folders by stem.

    Returns:
        The images in order of their stems, each with its mask or with the path where a PNG would belong; and the masks
        that have no image.

    Raises:
        UserError: when two files of a folder share a stem.
    """
    images, masks = index_by_stem(list_files(image_folder)), index_by_stem(list_files(mask_folder))
    entries = [
        Entry(stem, path, find_pair(stem, masks, mask_folder / f"{stem}.png", images))
        for stem, path in sorted(images.items())
    ]
    paired = {entry.mask for entry in entries}
    return entries, [path for _, path in sorted(masks.items()) if path not in paired]


def find_pair(stem: str, files: Mapping[str, Path], place: Path, stems: Container[str]) -> Path:
    """Return the file of a stem, or the place where it would belong.

    Systems write accented letters as one code or as two, and a copy from one to the other may leave images and masks
    with different ones: they pair all the same.

    Args:
        stems: of all images; none takes what belongs to another.
    """
    if stem in files:
        return files[stem]
    forms = (unicodedata.normalize(form, stem) for form in ("NFC", "NFD"))
    other = next((form for form in forms if form in files and form not in stems), None)
    return place if other is None else files[other]


def check_not_empty(dataset: str, split: str, entries: Sequence[Entry], looked_in: Path) -> None:
    """Raise when a split has no image.

    Raises:
        EmptySplit: naming the folder that was searched and what lies beside it.
    """
    if entries:
        return
    if looked_in.is_dir():
        raise EmptySplit(f"the {split} split of {dataset} is empty: there is no image in {looked_in}")
    parent = looked_in.parent
    beside = sorted(path.name for path in parent.iterdir() if path.is_dir())[:12] if parent.is_dir() else []
    there = f"{parent} holds: {', '.join(beside) or 'no folders'}" if parent.is_dir() else f"nor {parent}"
    raise EmptySplit(f"the {split} split of {dataset} is empty: there is no folder {looked_in} ({there})")


def build_class_colours(names: Sequence[str]) -> tuple[RGB, ...]:
    """Return the colours of classes that have none of their own: of Pascal VOC, black for a first one of background."""
    first = 0 if find_background(names[:1]) == 0 else 1
    return build_colour_map(len(names) + first)[first:]


def build_colour_map(num_colours: int) -> tuple[RGB, ...]:
    """Return the colours of the Pascal VOC palette: bits of the index spread over the channels."""
    colours = []
    for index in range(num_colours):
        channels = [0, 0, 0]
        for bit in range(8):
            for channel in range(3):
                channels[channel] |= ((index >> (3 * bit + channel)) & 1) << (7 - bit)
        colours.append((channels[0], channels[1], channels[2]))
    return tuple(colours)

"""Look at every image and mask of a split before hours are spent on it: all that is wrong in one go.

The doctor and whatever is about to train or score look with the same eyes. What is sound is remembered by content, so
that a second look at 100,000 files reads none of them.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_cache.content import ContentHashes
from data_cache.datasets.alignment import measure_fits
from data_cache.datasets.interface import SegmentationDataset
from data_cache.datasets.mask_files import LabelProblem
from data_cache.errors import UserError
from data_cache.images import EXAMPLES, MissingFile, NoteTally, format_examples
from data_cache.likeness import LookHash, compute_look_hash
from data_cache.remembered import Remembered
from data_cache.sample import IGNORE_INDEX, SMALLEST_INPUT_PX

LOOK_VERSION = 2
"""Raised by hand when images or masks are read otherwise, so that what was seen before is looked at again."""

_SMALL = f"with a side below {SMALLEST_INPUT_PX} px, the least that networks promise to take"
_MUCH_VOID = 0.3
"""Share of void pixels worth a note; Pascal VOC has about 0.06, CamVid 0.04."""
_CHUNK = 16
"""Images a thread takes at a time: handing over what is known already takes longer than looking it up."""
_THREADS = 8
"""Decoding lets other threads run; more than these wait for each other."""

UNPAIRED = "unpaired image"
_KINDS = {
    "image": "images that cannot be read",
    UNPAIRED: "images without a mask",
    "mask": "masks that cannot be read",
    "colour": "masks that are RGB images instead of ids",
    "size": "masks of another size than their image",
    "ids": "masks with ids outside the table",
    "depth": "ground-truth depth maps that cannot be read",
}

Progress = Callable[[str, int, int], None]
"""Told split, images done and images in the split."""


class Flaw(NamedTuple):
    """What is wrong with one image or what belongs to it."""

    kind: str
    """Key of ``_KINDS``."""
    message: str
    """Names file and remedy."""
    unknown_ids: tuple[int, ...] = ()


class Look(NamedTuple):
    """What one image and its mask are."""

    size: tuple[int, int] | None
    """(height, width); None when the image cannot be read."""
    notes: tuple[str, ...]
    """Each completes the sentence "images …"."""
    pixels: dict[int, int] | None
    """Pixels by train id, void too; None without a usable mask, or where none is looked at."""
    flaws: tuple[Flaw, ...] = ()
    shown: LookHash | None = None
    """What the image looks like; only of a thorough look, as what follows."""
    fits: NDArray[np.float32] | None = None
    """How well the mask follows the image's edges, by move; see ``alignment``."""


class Examination:
    """What is known of a split when every image was looked at."""

    def __init__(self, dataset: SegmentationDataset) -> None:
        """Begin with nothing seen."""
        self.dataset = dataset
        self.looks: list[Look] = []
        self.checksums: list[str | None] = []
        """Of the images; None of those that cannot be read."""
        self.sizes: Counter[str] = Counter()
        self.pixels = np.zeros(IGNORE_INDEX + 1, dtype=np.int64)
        self.labelled = 0
        """Images with a usable mask."""
        self.twins: Counter[str] = Counter()
        """Images with a byte-identical copy, by the split that has it."""
        self.flaws = NoteTally()
        """By key of ``_KINDS``."""
        self._first_flaws: dict[str, str] = {}
        self.unknown_ids: set[int] = set()
        """In masks, outside the table; of each mask a few."""
        self._tally = NoteTally()

    def add(self, look: Look, checksum: str | None = None) -> None:
        """Count the next image."""
        self.checksums.append(checksum)
        image_id = self.dataset.image_ids[len(self.looks)]
        self.looks.append(look)
        for flaw in look.flaws:
            self.flaws.add(image_id, [flaw.kind])
            self._first_flaws.setdefault(flaw.kind, flaw.message)
            # A resized mask may have thousands of stray values; a few are enough.
            self.unknown_ids.update(flaw.unknown_ids[:32])
        self._tally.add(image_id, look.notes)
        if look.size is not None:
            self.sizes[f"{look.size[1]} x {look.size[0]}"] += 1
        if look.pixels is not None:
            self.labelled += 1
            for train_id, count in look.pixels.items():
                self.pixels[train_id] += count

    def find_smallest(self) -> tuple[str, tuple[int, int]]:
        """Return the image with the shortest side, and its (height, width); all can be read."""
        sizes = {name: look.size for name, look in zip(self.dataset.image_ids, self.looks, strict=True) if look.size}
        return min(sizes.items(), key=lambda item: min(item[1]))

    def compute_shares(self) -> tuple[dict[str, float], float]:
        """Return each class's share of the labelled pixels, and void's share of all."""
        counts = self.pixels[: len(self.dataset.classes)]
        labelled, void = int(counts.sum()), int(self.pixels[IGNORE_INDEX])
        shares = {
            name: float(count / labelled) if labelled else 0.0
            for name, count in zip(self.dataset.classes, counts.tolist(), strict=True)
        }
        return shares, void / (labelled + void) if labelled + void else 0.0

    def list_problems(self, tolerated: Collection[str] = ()) -> list[str]:
        """Return what stops a training or an evaluation, one sentence each.

        Args:
            tolerated: kinds of flaws that stop nothing.
        """
        lines = []
        for kind, words in _KINDS.items():
            if kind not in self.flaws.counts or kind in tolerated:
                continue
            detail = self._first_flaws[kind]
            if kind == "ids" and self.flaws.counts[kind] > 1:
                ids = format_examples(sorted(self.unknown_ids)[:20], len(self.unknown_ids))
                detail += f"; ids outside the table in all of them: {ids}"
            lines.append(f"{self.dataset.split}: {words}: {self.flaws.describe(kind)}; {detail}")
        if self.labelled and not self.pixels[:IGNORE_INDEX].any():
            lines.append(f"{self.dataset.split}: every pixel is void; there is nothing to learn or score")
        return lines

    def list_doubts(self) -> list[str]:
        """Return what stops nothing and is hardly meant so."""
        split, orphans = self.dataset.split, [path.name for path in self.dataset.orphans]
        lines = []
        if orphans:
            lines.append(
                f"{split}: masks without an image: {len(orphans)} ({format_examples(orphans[:EXAMPLES], len(orphans))})"
            )
        for other, count in self.twins.items():
            where = "within the split" if other == split else f"in {other}"
            harm = "scores would flatter" if self.dataset.has_masks or other == "val" else "they are learned from twice"
            lines.append(f"{split}: images with a byte-identical copy {where}: {count}; {harm}")
        return lines

    def list_notes(self) -> list[str]:
        """Return what is worth knowing and may be meant so."""
        split = self.dataset.split
        lines = [f"{split}: {line}" for line in self._tally.lines()]
        shares, void = self.compute_shares()
        if self.labelled and void < 1.0:
            if void > _MUCH_VOID:
                lines.append(f"{split}: {void:.0%} of the pixels are void")
            absent = [name for name, share in shares.items() if share == 0.0]
            if absent:
                lines.append(f"{split}: classes of which no pixel is labelled: {', '.join(absent)}")
        return lines


def examine_splits(
    datasets: Sequence[SegmentationDataset],
    hashes: ContentHashes,
    memory: Remembered | None = None,
    progress: Progress | None = None,
    *,
    thorough: bool = False,
) -> Iterator[Examination]:
    """Look at every image and mask of each split; what is wrong is in the result and raises nothing.

    Args:
        hashes: of files, remembered from earlier calls.
        memory: of ``remember_looks``; what it has seen is not looked at again.
        progress: called for the images that have to be read.
        thorough: also read the ground-truth depth where the dataset has any, and look at what images show and whether
            masks lie on them; nothing is remembered then.
    """
    seen: dict[str, str] = {}
    for dataset in datasets:
        examination = Examination(dataset)
        pool = ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1), thread_name_prefix="look")
        try:
            rule = json.dumps([sorted(dataset.raw_ids.items()), dataset.palette])
            look = partial(_look_up, dataset, hashes, None if thorough else memory, rule, thorough)
            chunks = [range(len(dataset))[start : start + _CHUNK] for start in range(0, len(dataset), _CHUNK)]
            looked = chain.from_iterable(pool.map(lambda chunk, look=look: list(map(look, chunk)), chunks))
            for index, (checksum, found, known) in enumerate(looked):
                examination.add(found, checksum)
                if checksum in seen:
                    examination.twins[seen[checksum]] += 1
                elif checksum is not None:
                    seen[checksum] = dataset.split
                if progress is not None and not known:
                    progress(dataset.split, index + 1, len(dataset))
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            hashes.save()
            if memory is not None:
                memory.save()
        yield examination


def list_copies(pool: SegmentationDataset, held_out: SegmentationDataset, hashes: ContentHashes) -> list[str]:
    """Return the ids of the pool's images that are byte-identical to one of a split that is scored.

    What cannot be hashed cannot be read either, and is found by looking at it.
    """

    def identify(dataset: SegmentationDataset, index: int) -> str | None:
        with suppress(UserError):
            return hashes.hash(dataset.sources(index).image)
        return None

    known = {identify(held_out, index) for index in range(len(held_out))} - {None}
    found = [name for index, name in enumerate(pool.image_ids) if identify(pool, index) in known]
    hashes.save()
    return found


def remember_looks(file: Path | None) -> Remembered:
    """Return the memory of images and masks that were found sound; without a file it forgets with this process."""
    return Remembered(file, LOOK_VERSION, _is_look)


def _is_look(value: Any) -> bool:
    (height, width), notes, pixels = value
    counts = {} if pixels is None else pixels
    return (
        type(height) is type(width) is int
        and isinstance(notes, list)
        and all(0 <= int(train_id) <= IGNORE_INDEX and type(count) is int for train_id, count in counts.items())
    )


def look_at(dataset: SegmentationDataset, index: int, *, thorough: bool = False) -> Look:
    """Decode an image with all that belongs to it and is read."""
    try:
        image = dataset.read_noted_image(index)
    except UserError as error:
        return Look(None, (), None, (Flaw("image", str(error)),))
    height, width = image.pixels.shape[:2]
    notes = (*image.notes, *([_SMALL] if min(height, width) < SMALLEST_INPUT_PX else []))
    pixels, flaws, fits = None, [], None
    try:
        if dataset.has_masks:
            labels = dataset.read_labels(index)
            fits = measure_fits(image.pixels, labels) if thorough else None
            counts = np.bincount(labels.ravel())
            pixels = {int(train_id): int(counts[train_id]) for train_id in np.flatnonzero(counts)}
    except MissingFile as missing:
        flaws.append(Flaw(UNPAIRED, f"the first belongs at {missing.path}"))
    except LabelProblem as problem:
        flaws.append(Flaw(problem.kind, str(problem), problem.unknown_ids))
    except UserError as error:
        flaws.append(Flaw("mask", str(error)))
    if thorough and dataset.ground_truth_depth_kind is not None:
        try:
            dataset.read_matching_depth(index, (height, width))
        except UserError as error:
            flaws.append(Flaw("depth", str(error)))
    shown = compute_look_hash(image.pixels) if thorough else None
    return Look((height, width), notes, pixels, tuple(flaws), shown, fits)


def _look_up(
    dataset: SegmentationDataset,
    hashes: ContentHashes,
    memory: Remembered | None,
    rule: str,
    thorough: bool,
    index: int,
) -> tuple[str | None, Look, bool]:
    """Return the image's checksum, what it is, and whether that was known already.

    Args:
        rule: what decides what a mask's numbers mean, besides its file.
    """
    sources = dataset.sources(index)
    try:
        checksum = hashes.hash(sources.image)
        key = hashes.hash((checksum, hashes.hash(sources.labels) if dataset.has_masks else "no mask is read", rule))
    except UserError:  # a pipe or a folder: looking at it says which, and what it belongs to
        return None, look_at(dataset, index, thorough=thorough), False
    known = memory.find(key) if memory is not None else None
    if known is not None:
        size, notes, pixels = known
        counts = None if pixels is None else {int(name): count for name, count in pixels.items()}
        return checksum, Look(tuple(size), tuple(notes), counts), True
    look = look_at(dataset, index, thorough=thorough)
    if memory is not None and not look.flaws:
        memory.add(key, (look.size, look.notes, look.pixels))
    return checksum if look.size is not None else None, look, False

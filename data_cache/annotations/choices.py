"""What becomes of annotated images: which get a mask, what their classes are called, and which split they go to."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data_cache.annotations.interface import AnnotatedImage, Annotations, Empty, Order
from data_cache.datasets.class_list import check_class_names
from data_cache.datasets.interface import POOL
from data_cache.errors import UserError
from data_cache.images import decode_image, format_examples, read_image
from data_cache.likeness import LookHash, compute_look_hash
from data_cache.metrics import BACKGROUND_NAMES
from data_cache.own_files.splitting import divide

_THREADS = 8
_BACKGROUND = "background"
_VOID_NAMES = {"void", "ignore", "_ignore_", "__ignore__"}
"""Names that tools and people give to what is no class; in any case."""


class Choices(NamedTuple):
    """What a person may decide."""

    order: Order
    empty: Empty
    background: bool = True
    """Whether pixels that no object covers are background, rather than void."""
    val_share: float = 0.2
    """Of the images to train on, where the data has no val."""
    link: bool = False
    """Whether images are links to where they lie, rather than copies."""


class Place(NamedTuple):
    """An image of the data set to be."""

    image: AnnotatedImage
    split: str
    file: Path
    """Below the data set's folder."""


def sort_out(
    annotations: Annotations, empty: Empty, notes: list[str]
) -> tuple[list[AnnotatedImage], list[AnnotatedImage]]:
    """Return the images that get a mask, and those that count as not annotated."""
    labelled = [image for image in annotations.images if image.objects]
    without = [image for image in annotations.images if not image.objects and not image.skipped]
    # What was outlined by a line is no image without objects.
    pool = [image for image in annotations.images if not image.objects and image.skipped] + annotations.unlisted
    (labelled if empty == "background" else pool).extend(without)
    if without:
        means, other = ("all background", "unlabelled") if empty == "background" else ("not annotated", "background")
        notes.append(f"listed images without an object: {len(without)}; they count as {means} (else: --empty {other})")
    if skipped := sum(image.skipped for image in annotations.images):
        notes.append(f"shapes without an area (points, lines), left out: {skipped}")
    held_out = [image for image in pool if image.split in ("val", "test")]
    if held_out:
        notes.append(f"images of val and test that are not annotated, left out: {len(held_out)}")
    return labelled, [image for image in pool if image.split not in ("val", "test")]


def choose_classes(
    listed: Sequence[str], labelled: Sequence[AnnotatedImage], source: Path, choices: Choices, notes: list[str]
) -> list[str]:
    """Give every object its class by the final name, None for void; return the names by id, background first."""
    used: Counter[str] = Counter()
    for image in labelled:
        image.objects = [each._replace(label=_clean(each.label)) for each in image.objects]
        used.update(each.label for each in image.objects if each.label is not None)
    named = [" ".join(name.split()) for name in listed]
    if voids := [name for name in named if name.lower() in _VOID_NAMES]:
        notes.append(f"objects of {', '.join(voids)} are void")
    of_background = [name for name in named if means_background(name)][:1]
    classes = [name for name in named if name.lower() not in _VOID_NAMES and name not in of_background]
    if unused := [name for name in classes if name not in used]:
        shown = format_examples(unused[:5], len(unused))
        notes.append(f"classes without an object are left out: {len(unused)} ({shown})")
    classes = [name for name in classes if name in used]
    if not classes:
        raise UserError(f"{source} has no object of any class; there is nothing to learn. Annotate some images first")
    first = (of_background or [_BACKGROUND]) if choices.background else [name for name in of_background if name in used]
    names = [*first, *classes]
    check_class_names(source, names)
    by_letters = {name.lower(): name for name in names}
    if twins := [f"{name} and {by_letters[name.lower()]}" for name in names if by_letters[name.lower()] != name]:
        raise UserError(f"{source} has classes that differ by capital letters alone: {', '.join(twins)}; make them one")
    notes.append(f"pixels that no object covers are {names[0] if choices.background else 'void'}")
    return names


def _clean(label: str | None) -> str | None:
    name = " ".join((label or "").split())
    return None if label is None or name.lower() in _VOID_NAMES else name


def means_background(name: str) -> bool:
    """Whether a class is called what tools call the rest of an image."""
    return name.lower() in BACKGROUND_NAMES


def choose_splits(labelled: Sequence[AnnotatedImage], share: float, source: Path, notes: list[str]) -> list[str]:
    """Return the split of each image: that of the data, else train; a share of train is val where the data has none.

    See ``divide``: frames of one film stay on one side. Those between both sides, which are in neither, go to the pool.
    """
    splits = [image.split or "train" for image in labelled]
    train = [index for index, split in enumerate(splits) if split == "train"]
    if not train or ("val" not in splits and len(train) < 2):
        counts = ", ".join(f"{count} of {split}" for split, count in Counter(splits).items()) or "none"
        raise UserError(
            f"{source} has too few annotated images ({counts}): at least one has to be of train, and one of val or "
            "another one of train; annotate more"
        )
    if "val" in splits:
        rest = "" if all(image.split for image in labelled) else "; images without one are in train"
        notes.append(f"splits are those of the data{rest}")
        return splits
    by_name: dict[str, int] = {}
    for index in train:
        name = labelled[index].name
        while name in by_name:
            name += "'"
        by_name[name] = index
    with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1), thread_name_prefix="looks") as pool:
        hashes = dict(zip(by_name, pool.map(_hash_look, (labelled[index] for index in by_name.values())), strict=True))
    ids: dict[str | None, int] = {}
    classes = {
        name: frozenset(ids.setdefault(each.label, len(ids)) for each in labelled[index].objects if each.label)
        for name, index in by_name.items()
    }
    division = divide(hashes, classes, share)
    for names, split in ((division.val, "val"), (division.left_out, POOL)):
        for name in names:
            splits[by_name[name]] = split
    notes.append(division.why)
    return splits


def _hash_look(image: AnnotatedImage) -> LookHash:
    """Return what an image looks like; like no other where it cannot be read, which is said when it is copied."""
    try:
        pixels = read_image(image.file).pixels if image.read_embedded is None else decode_image(image.read_embedded())
    except (UserError, ValueError):
        pixels = np.zeros((1, 1, 3), np.uint8)
    return compute_look_hash(pixels)


def choose_places(images: Sequence[tuple[AnnotatedImage, str]]) -> list[Place]:
    """Return where each image goes; of equal names in a split later ones get the name of their folder, or a number."""
    taken: set[tuple[str, str]] = set()
    places = []
    for image, split in images:
        stem = image.file.stem
        if (split, stem) in taken:
            stem = f"{image.file.parent.name}__{stem}"
        number = 2
        while (split, stem) in taken:
            stem = f"{image.file.stem}-{number}"
            number += 1
        taken.add((split, stem))
        places.append(Place(image, split, Path("images", split, f"{stem}{image.file.suffix}")))
    return places

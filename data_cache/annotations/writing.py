"""From annotations to a ``folder`` dataset: images, classes.txt, and a mask drawn for every annotated image."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from data_cache.annotations.choices import (
    Choices,
    Place,
    choose_classes,
    choose_places,
    choose_splits,
    means_background,
    sort_out,
)
from data_cache.annotations.drawing import Canvas, Drawing, write_mask
from data_cache.annotations.interface import SPLITS, AnnotatedImage, Annotations, Findings
from data_cache.datasets.class_list import read_classes
from data_cache.datasets.interface import POOL, RGB
from data_cache.datasets.paired_files import build_class_colours
from data_cache.errors import UserError
from data_cache.files import sync_folder
from data_cache.images import ACROSS, UPRIGHT, find_suffix, read_image_size, read_orientation
from data_cache.sample import IGNORE_INDEX

_SCARCE = 0.02
"""Share of background pixels below which it looks like gaps between objects that were meant to cover everything."""


@dataclass
class Imported:
    """What was written."""

    images: dict[str, int]
    """By split."""
    classes: dict[str, dict[str, float]] = field(default_factory=dict)
    """By split the share of each class in the labelled pixels."""
    void: dict[str, float] = field(default_factory=dict)
    """By split the share of void in all pixels."""
    background: bool = True
    """Whether the first class is what no object covers."""
    notes: list[str] = field(default_factory=list)


def write_folder(
    annotations: Annotations,
    folder: Path,
    choices: Choices,
    *,
    source: Path,
    progress: Callable[[int], object] = lambda _done: None,
) -> Imported:
    """Write images, masks and classes.txt into an empty folder.

    Args:
        annotations: of a reader.
        folder: is there, and empty; what is in it after an error is of no use.
        choices: the person's.
        source: what is imported, for messages.
        progress: called with the listed images that are done.

    Returns:
        What was written; ``notes`` says what had to be decided.

    Raises:
        UserError: naming what is wrong with the classes, or with all images.
    """
    notes = list(annotations.notes)
    labelled, pool = sort_out(annotations, choices.empty, notes)
    names = choose_classes(annotations.classes, labelled, source, choices, notes)
    _write_classes(folder / "classes.txt", names, annotations.colours, source, notes)
    splits = choose_splits(labelled, choices.val_share, source, notes)
    masked = [pair for pair in zip(labelled, splits, strict=True) if pair[1] != POOL]
    pool += [image for image, split in zip(labelled, splits, strict=True) if split == POOL]
    places = choose_places([*masked, *((image, POOL) for image in pool)])
    canvases = _place_images(places, folder, source, choices, notes)
    drawing = Drawing({name: index for index, name in enumerate(names)}, choices.background, choices.order)
    colours = read_classes(folder / "classes.txt")[1] or build_class_colours(names)
    pixels = {split: np.zeros(IGNORE_INDEX + 1, np.int64) for split in SPLITS if split in splits}
    for done, (place, canvas) in enumerate(zip(places[: len(masked)], canvases, strict=True), 1):
        labels = drawing.draw(place.image, canvas)
        write_mask(labels, folder / "masks" / place.split / f"{place.file.stem}.png", colours)
        pixels[place.split] += np.bincount(labels.ravel(), minlength=IGNORE_INDEX + 1)
        progress(len(annotations.images) - len(masked) + done)
    for part in (*folder.glob("images/*"), *folder.glob("masks/*")):
        sync_folder(part)
    counts_of = Counter(place.split for place in places)
    found = Imported(
        {split: counts_of[split] for split in (*SPLITS, POOL) if counts_of[split]},
        background=choices.background,
        notes=notes,
    )
    for split, counts in pixels.items():
        known = counts[: len(names)] / max(1, counts[: len(names)].sum())
        found.classes[split] = dict(zip(names, known.tolist(), strict=True))
        found.void[split] = float(counts[IGNORE_INDEX] / counts.sum())
    notes += drawing.list_notes()
    share = sum(counts[0] for counts in pixels.values()) / sum(counts.sum() for counts in pixels.values())
    if choices.background and share < _SCARCE:
        remedy = "if objects were meant to cover everything, import again with --uncovered void"
        notes.append(f"background covers {share:.2%} of the pixels: {remedy}")
    return found


def _write_classes(path: Path, names: Sequence[str], known: Mapping[str, RGB], source: Path, notes: list[str]) -> None:
    """Write classes.txt, with colours where every class has one of its own.

    Raises:
        UserError: a name cannot stand in it.
    """
    colours = [known.get(name, (0, 0, 0) if means_background(name) else None) for name in names]
    given = [colour for colour in colours if colour is not None]
    if known and len(set(given)) < len(names):
        notes.append("the colours of the labels are not used, because two classes have the same or one has none")
    use = bool(known) and len(set(given)) == len(names)
    lines = [
        " ".join([name, *map(str, colour)]) if use and colour else name
        for name, colour in zip(names, colours, strict=True)
    ]
    path.write_bytes("".join(f"{line}\n" for line in lines).encode(errors="backslashreplace"))
    try:
        read = read_classes(path)[0]
    except UserError as problem:
        reason = str(problem).replace(str(path), "the list of classes")
        raise UserError(f"the classes of {source} cannot be listed: {reason}") from problem
    if read != tuple(names):
        lost = next(name for name in names if name not in read)
        raise UserError(
            f"the class {lost!r} of {source} cannot stand in a list of classes, where # begins a comment and three "
            "numbers at the end are a colour; rename it"
        )


def _place_images(
    places: Sequence[Place], folder: Path, source: Path, choices: Choices, notes: list[str]
) -> list[Canvas]:
    """Write all images; return what to draw on for those that are annotated.

    Raises:
        UserError: naming all images that cannot be read, or are of another size than their annotation.
    """
    findings = Findings(source)
    files: list[Path] = []
    for place in places:
        (folder / place.file).parent.mkdir(parents=True, exist_ok=True)
        embedded = place.image.read_embedded
        files.append(
            place.image.file if embedded is None else _extract(embedded(), folder / place.file, place, findings)
        )
    findings.check()
    canvases, turned = [], Counter[bool]()
    for place, file in zip(places, files, strict=True):
        if place.split != POOL:
            canvas, orientation = _choose_canvas(place.image, file, findings)
            canvases.append(canvas)
            turned[canvas.orientation != UPRIGHT] += orientation != UPRIGHT
    findings.check()
    for place, file in zip(places, files, strict=True):
        if place.image.read_embedded is not None:
            continue
        if choices.link:
            (folder / place.file).symlink_to(os.path.realpath(file))
        else:
            shutil.copyfile(file, folder / place.file)
    if turned[False]:
        notes.append(f"images that EXIF turns upright: {turned[False]}; annotations count as drawn on that view")
    if turned[True]:
        notes.append(f"images annotated as stored, which EXIF turns: {turned[True]}; their masks are turned with them")
    return canvases


def _extract(content: bytes, path: Path, place: Place, findings: Findings) -> Path:
    """Write an embedded image under the suffix of its format; return its path."""
    suffix = find_suffix(content)
    if not suffix:
        findings.add("embedded images that cannot be read; export them again", place.image.name)
        return path
    path = path.with_suffix(suffix)
    path.write_bytes(content)
    return path


def _choose_canvas(image: AnnotatedImage, file: Path, findings: Findings) -> tuple[Canvas, int]:
    """Return what to draw on, and the image's EXIF orientation."""
    upright, orientation = read_image_size(file), read_orientation(file)
    if image.size in (None, upright):
        return Canvas(upright), orientation
    if orientation in ACROSS and image.size == upright[::-1]:
        return Canvas(upright[::-1], orientation), orientation
    assert image.size is not None
    said, found = (f"{width} x {height}" for height, width in (image.size, upright))
    problem = "images of another size than their annotation says; name the folder of those annotated with --images"
    findings.add(problem, f"{image.name} is {found} px, not {said}")
    return Canvas(upright), orientation

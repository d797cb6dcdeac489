"""From annotations to a ``folder`` dataset: images, classes.txt, and a mask drawn for every annotated image."""

from __future__ import annotations

import io
import os
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps

from data_cache.annotations.choices import (
    Choices,
    Place,
    choose_classes,
    choose_places,
    choose_splits,
    means_background,
    sort_out,
)
from data_cache.annotations.interface import AnnotatedImage, AnnotatedObject, Annotations, Findings, Order
from data_cache.datasets.folder import read_classes
from data_cache.datasets.interface import POOL, RGB
from data_cache.datasets.paired_files import build_colour_map
from data_cache.errors import UserError
from data_cache.files import sync_folder
from data_cache.images import ACROSS, UPRIGHT, read_image_size, read_orientation
from data_cache.sample import IGNORE_INDEX

_UNCOVERED = 256
"""On a drawing: no object is here."""
_SCARCE = 0.02
"""Share of background pixels below which it looks like gaps between objects that were meant to cover everything."""


@dataclass
class Imported:
    """What was written."""

    images: Counter[str] = field(default_factory=Counter)
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
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> Imported:
    """Write images, masks and classes.txt into an empty folder.

    Args:
        annotations: of a reader.
        folder: is there, and empty; what is in it after an error is of no use.
        choices: the person's.
        source: what is imported, for messages.
        progress: called with images done and images in all.

    Returns:
        What was written; ``notes`` says what had to be decided.

    Raises:
        UserError: naming what is wrong with the classes, or with all images.
    """
    notes = list(annotations.notes)
    labelled, pool = sort_out(annotations, choices.empty, notes)
    names, background = choose_classes(annotations.classes, labelled, source, choices, notes)
    _write_classes(folder / "classes.txt", names, annotations.colours, source, notes)
    splits = choose_splits(labelled, choices.val_share, source, notes)
    places = choose_places([*zip(labelled, splits, strict=True), *((image, POOL) for image in pool)])
    canvases = _place_images(places, folder, source, choices, notes)
    drawing = _Drawing({name: index for index, name in enumerate(names)}, background, choices.order)
    colours = read_classes(folder / "classes.txt")[1] or build_colour_map(len(names) + 1)[1:]
    pixels = {split: np.zeros(IGNORE_INDEX + 1, np.int64) for split in dict.fromkeys(splits)}
    for done, (place, canvas) in enumerate(zip(places[: len(labelled)], canvases, strict=True), 1):
        labels = drawing.draw(place.image, canvas)
        _write_mask(labels, folder / "masks" / place.split / f"{place.file.stem}.png", colours)
        pixels[place.split] += np.bincount(labels.ravel(), minlength=IGNORE_INDEX + 1)
        progress(done, len(labelled))
    for part in (*folder.glob("images/*"), *folder.glob("masks/*")):
        sync_folder(part)
    found = Imported(Counter(place.split for place in places), background=background, notes=notes)
    for split, counts in pixels.items():
        known = counts[: len(names)] / max(1, counts[: len(names)].sum())
        found.classes[split] = dict(zip(names, known.tolist(), strict=True))
        found.void[split] = float(counts[IGNORE_INDEX] / counts.sum())
    notes += drawing.list_notes()
    share = sum(counts[0] for counts in pixels.values()) / sum(counts.sum() for counts in pixels.values())
    if background and share < _SCARCE:
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
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf8")
    read = read_classes(path)[0]
    if read != tuple(names):
        lost = next((name for name in names if name not in read), names[0])
        raise UserError(
            f"the class {lost!r} of {source} cannot stand in a classes.txt (it begins with #, or ends with "
            "numbers that read as a colour); rename it"
        )


class _Canvas(NamedTuple):
    """What the objects of an image are drawn on."""

    size: tuple[int, int]
    """(height, width)"""
    orientation: int = UPRIGHT
    """EXIF's, by which the drawing is turned afterwards."""


def _place_images(
    places: Sequence[Place], folder: Path, source: Path, choices: Choices, notes: list[str]
) -> list[_Canvas]:
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
        notes.append(
            f"{turned[False]} images are turned upright by EXIF; their annotations count as drawn on that view"
        )
    if turned[True]:
        notes.append(f"{turned[True]} images were annotated as stored; their masks are turned upright with them")
    return canvases


def _extract(content: bytes, path: Path, place: Place, findings: Findings) -> Path:
    """Write an embedded image under the suffix of its format; return its path."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            path = path.with_suffix(f".{(image.format or '').lower()}")
    except (OSError, ValueError, SyntaxError):
        findings.add("embedded images that cannot be read; export them again", place.image.name)
        return path
    path.write_bytes(content)
    return path


def _choose_canvas(image: AnnotatedImage, file: Path, findings: Findings) -> tuple[_Canvas, int]:
    """Return what to draw on, and the image's EXIF orientation."""
    upright, orientation = read_image_size(file), read_orientation(file)
    if image.size in (None, upright):
        return _Canvas(upright), orientation
    if orientation in ACROSS and image.size == upright[::-1]:
        return _Canvas(upright[::-1], orientation), orientation
    assert image.size is not None
    said, found = (f"{width} x {height}" for height, width in (image.size, upright))
    problem = (
        "images of another size than their annotation says, so that outlines would lie elsewhere; name those that "
    )
    findings.add(f"{problem}were annotated with --images", f"{image.name} is {found} px, not {said}")
    return _Canvas(upright), orientation


class _Drawing:
    """Draws masks, and counts what is worth a word.

    Args:
        ids: of the classes.
        background: whether what no object covers is id 0, rather than void.
        order: of objects within a layer.
    """

    def __init__(self, ids: dict[str, int], background: bool, order: Order) -> None:
        self._ids, self._order = ids, order
        self._ground = 0 if background else IGNORE_INDEX
        self._counts: Counter[str] = Counter()

    def draw(self, image: AnnotatedImage, canvas: _Canvas) -> NDArray[np.uint8]:
        """Return the labels (H, W) of an upright image."""
        drawn, labels = 0, np.full(canvas.size, _UNCOVERED, dtype=np.int16)
        for each in sorted(image.objects, key=self._rank):
            value = IGNORE_INDEX if each.label is None else self._ids[each.label]
            painted = sum(shape.paint(labels, value) for shape in each.shapes)
            drawn += painted
            self._counts["void"] += each.label is None
            self._counts["empty"] += not painted
            self._counts["outside"] += not all(shape.lies_within(*canvas.size) for shape in each.shapes)
        uncovered = labels == _UNCOVERED
        self._counts["overlap"] += drawn > labels.size - int(np.count_nonzero(uncovered))
        labels[uncovered] = self._ground
        return _turn(labels.astype(np.uint8), canvas.orientation)

    def list_notes(self) -> list[str]:
        """Return what was counted, in sentences."""
        order = "larger ones first" if self._order == "area" else "as they stand in the file"
        sentences = {
            "void": "{} objects are void (crowds, and names that mean void)",
            "overlap": f"in {{}} images objects overlap: drawn {order}, later ones over earlier ones",
            "outside": "{} objects reach beyond their image and are cut off there",
            "empty": "{} objects cover no pixel of their image",
        }
        return [text.format(self._counts[key]) for key, text in sentences.items() if self._counts[key]]

    def _rank(self, each: AnnotatedObject) -> tuple[int, float]:
        area = sum(shape.measure() for shape in each.shapes) if self._order == "area" else 0.0
        return each.layer, -area


def _turn(labels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Return labels turned as EXIF turns their image."""
    if orientation == UPRIGHT:
        return labels
    image = Image.fromarray(labels)
    image.getexif()[ExifTags.Base.Orientation] = orientation
    ImageOps.exif_transpose(image, in_place=True)
    return np.array(image)


def _write_mask(labels: NDArray[np.uint8], path: Path, colours: Sequence[RGB]) -> None:
    """Write a palette PNG; all 256 colours are in it, or ids would be packed into fewer bits."""
    table = np.full((256, 3), 255, dtype=np.uint8)
    table[: len(colours)] = colours
    image = Image.fromarray(labels)
    image.putpalette(table.tobytes())
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, format="PNG")

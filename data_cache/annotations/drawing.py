"""Masks from objects: in which order they are drawn, and what was met on the way."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data_cache.annotations.interface import AnnotatedImage, AnnotatedObject, Order
from data_cache.datasets.interface import RGB
from data_cache.images import UPRIGHT, turn_labels
from data_cache.sample import IGNORE_INDEX

_UNCOVERED = 256
"""On a drawing: no object is here."""


class Canvas(NamedTuple):
    """What the objects of an image are drawn on."""

    size: tuple[int, int]
    """(height, width)"""
    orientation: int = UPRIGHT
    """EXIF's, by which the drawing is turned afterwards."""


class Drawing:
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

    def draw(self, image: AnnotatedImage, canvas: Canvas) -> NDArray[np.uint8]:
        """Return the labels (H, W) of an upright image."""
        drawn, labels = 0, np.full(canvas.size, _UNCOVERED, dtype=np.int16)
        for each in sorted(image.objects, key=self._rank):
            value = IGNORE_INDEX if each.label is None else self._ids[each.label]
            painted = sum(shape.paint(labels, value) for shape in each.shapes)
            drawn += painted
            self._counts["void"] += each.label is None
            self._counts["layers"] += each.layer > 0
            self._counts["empty"] += not painted
            self._counts["outside"] += not all(shape.lies_within(*canvas.size) for shape in each.shapes)
        uncovered = labels == _UNCOVERED
        self._counts["overlap"] += drawn > labels.size - int(np.count_nonzero(uncovered))
        labels[uncovered] = self._ground
        return turn_labels(labels.astype(np.uint8), canvas.orientation)

    def list_notes(self) -> list[str]:
        """Return what was counted, in sentences."""
        order = "larger ones first" if self._order == "area" else "as they stand in the file"
        order = f"by layers, then {order}" if self._counts["layers"] else order
        sentences = {
            "void": "void objects (crowds, names that mean void): {}",
            "overlap": f"images in which objects overlap: {{}}; drawn {order}, later ones over earlier ones",
            "outside": "objects that reach beyond their image, cut off there: {}",
            "empty": "objects that cover no pixel of their image: {}",
        }
        return [text.format(self._counts[key]) for key, text in sentences.items() if self._counts[key]]

    def _rank(self, each: AnnotatedObject) -> tuple[int, float]:
        area = sum(shape.measure() for shape in each.shapes) if self._order == "area" else 0.0
        return each.layer, -area


def write_mask(labels: NDArray[np.uint8], path: Path, colours: Sequence[RGB]) -> None:
    """Write a palette PNG; all 256 colours are in it, or ids would be packed into fewer bits."""
    table = np.full((256, 3), 255, dtype=np.uint8)
    table[: len(colours)] = colours
    image = Image.fromarray(labels)
    image.putpalette(table.tobytes())
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, format="PNG")

"""Annotations of other tools: the ``FORMATS`` table, a file for each, and what makes a ``folder`` dataset of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from data_cache.annotations.coco import read_coco
from data_cache.annotations.cvat import read_cvat
from data_cache.annotations.interface import Annotations, Empty, Order
from data_cache.annotations.labelme import read_labelme
from data_cache.annotations.yolo import read_yolo


class Format(NamedTuple):
    """How one tool's annotations are read."""

    read: Callable[[Path, Path | None], Annotations]
    """Takes the file or folder, and where the images lie if the person says so."""
    order: Order
    """In which objects are drawn unless the person says otherwise: COCO and YOLO give theirs no meaning."""
    empty: Empty = "background"
    """What listed images without objects are unless the person says otherwise: CVAT lists all images of a task, also
    those that nobody has looked at."""


FORMATS = {
    "coco": Format(read_coco, "area"),
    "yolo": Format(read_yolo, "area"),
    "labelme": Format(read_labelme, "file"),
    "cvat": Format(read_cvat, "file", "unlabelled"),
}

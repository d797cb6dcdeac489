"""What each image of a split scored: ``images.npz``, which opens with numpy (and from there pandas). Imports no torch.

Arrays, N images and C classes; there is no pickle in the file, and equal scores are equal bytes:

- ``image_ids`` (N,) and ``classes`` (C,): texts;
- ``tp``, ``fp``, ``fn`` (N, C) int64: pixels of an image, void left out; ``void`` (N, C) int64: pixels predicted as a
  class where the truth is void;
- ``miou_imagewise``, ``pixel_acc``, ``boundary_f1``, ``depth_mse``, ``depth_absrel``, ``depth_delta1`` (N,) float64:
  the metrics of these names for one image; NaN where an image has none.

It lies here because evaluation writes it, comparison reads it, and stages do not import each other.
"""

from __future__ import annotations

import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from data_cache.errors import UserError
from data_cache.files import atomic_file
from data_cache.outputs import WriteFile

Texts: TypeAlias = NDArray[np.str_]
Counts: TypeAlias = NDArray[np.int64]
"""(N, C)"""
Metric: TypeAlias = NDArray[np.float64]
"""(N,)"""
_LARGEST_TEXT = 1 << 16
_DAMAGED = (OSError, ValueError, KeyError, EOFError, RuntimeError, struct.error, zipfile.BadZipFile, zlib.error)


class DamagedScores(UserError):
    """A file of images' scores is not what was written, so nothing of it is believed."""


class ImageScores(NamedTuple):
    """The scores of every image of a split, in the order of the split."""

    image_ids: Texts
    classes: Texts
    tp: Counts
    fp: Counts
    fn: Counts
    void: Counts
    miou_imagewise: Metric
    pixel_acc: Metric
    boundary_f1: Metric
    depth_mse: Metric
    depth_absrel: Metric
    depth_delta1: Metric

    def find_examples(self, count: int = 3) -> dict[str, list[dict[str, Any]]]:
        """Return the ids of the worst, median and best images by ``miou_imagewise``, with their scores.

        Images of one score keep their order; those without a labelled pixel are left out.
        """
        order = [place for place in np.argsort(self.miou_imagewise, kind="stable") if self.miou_imagewise[place] >= 0]
        middle = max(0, (len(order) - count) // 2)
        chosen = {"worst": order[:count], "median": order[middle : middle + count], "best": order[: -count - 1 : -1]}
        return {
            name: [
                {"image": str(self.image_ids[place]), "miou_imagewise": float(self.miou_imagewise[place])}
                for place in places
            ]
            for name, places in chosen.items()
        }


_KINDS = dict.fromkeys(ImageScores._fields, "f")
_KINDS |= dict.fromkeys(("image_ids", "classes"), "U") | dict.fromkeys(("tp", "fp", "fn", "void"), "i")
"""Letter that numpy has for the type of each array."""


def write_image_scores(scores: ImageScores, path: Path, write_file: WriteFile = atomic_file) -> None:
    """Write the scores of a split's images."""
    with write_file(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for name, values in scores._asdict().items():
            entry = zipfile.ZipInfo(f"{name}.npy")  # of a fixed date
            entry.compress_type = zipfile.ZIP_DEFLATED
            with archive.open(entry, "w", force_zip64=True) as stream:
                npy.write_array(stream, values, allow_pickle=False)


def read_image_scores(path: Path) -> ImageScores:
    """Return the scores of a split's images.

    Raises:
        UserError: the file is missing.
        DamagedScores: it is damaged.
    """
    remedy = "remove it and repeat the command, which scores the run's weights anew where they still are"
    if not path.exists():
        raise UserError(f"{path} is missing; repeat the command, which scores the run's weights anew")
    try:
        with zipfile.ZipFile(path) as archive:
            found: dict[str, NDArray[Any]] = {}
            for name, kind in _KINDS.items():  # the texts come first
                images_and_classes = tuple(map(len, found.values()))[:2]
                shape = {"U": None, "i": images_and_classes, "f": images_and_classes[:1]}[kind]
                found[name] = _read_array(archive, name, kind, shape)
        if any(_KINDS[name] == "i" and (values < 0).any() for name, values in found.items()):
            raise ValueError("a count is negative")
    except _DAMAGED as problem:
        reason = str(problem) or type(problem).__name__
        raise DamagedScores(f"{path} is damaged ({reason.splitlines()[0]}); {remedy}") from problem
    return ImageScores(**found)


def _read_array(archive: zipfile.ZipFile, name: str, kind: str, shape: tuple[int, ...] | None) -> NDArray[Any]:
    """Return an array whose header fits; None asks for a single row of any length. No memory is taken for others."""
    with archive.open(f"{name}.npy") as stream:
        npy.read_magic(stream)
        found, by_columns, dtype = npy.read_array_header_1_0(stream)
        fits = dtype.kind == kind and dtype.itemsize <= (4 * _LARGEST_TEXT if kind == "U" else 8)
        if not fits or (found != shape if shape else len(found) != 1):
            raise ValueError(f"{name} has shape {found} and type {dtype}")
        content = bytearray(stream.read())  # to its end, where the checksum is compared
    if len(content) != dtype.itemsize * int(np.prod(found, dtype=object)):
        raise ValueError(f"{name} has {len(content)} bytes for shape {found} and type {dtype}")
    return np.frombuffer(content, dtype).reshape(found, order="F" if by_columns else "C")

"""Reading images, masks and depth maps from files, with errors that name the file and the remedy."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data_cache.errors import UserError
from data_cache.sample import IGNORE_INDEX

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm")

_UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)
"""What Pillow raises for broken files: truncated, no image at all, broken PNG chunk, absurd size."""


def list_files(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """Return the folder's files with one of the suffixes, in any case, sorted by name; [] without a folder."""
    if not folder.is_dir():
        return []
    return sorted(
        path for path in folder.iterdir() if path.suffix.lower() in suffixes and not path.name.startswith(".")
    )


def read_rgb(path: Path) -> NDArray[np.uint8]:
    """Return (H, W, 3) RGB; grey and palette images are widened, alpha is dropped.

    Raises:
        UserError: when the file is missing or no readable image.
    """
    try:
        with Image.open(path) as image:
            return np.array(image.convert("RGB"))
    except FileNotFoundError as error:
        raise UserError(f"image {path} is missing; put it back or leave it out of the split") from error
    except _UNREADABLE as error:
        raise UserError(f"image {path} cannot be read ({error}); replace the file or remove it") from error


def read_image_size(path: Path) -> tuple[int, int]:
    """Return (height, width) from the header alone.

    Raises:
        UserError: when the file is missing or no readable image.
    """
    try:
        with Image.open(path) as image:
            return image.height, image.width
    except FileNotFoundError as error:
        raise UserError(f"image {path} is missing; put it back or leave it out of the split") from error
    except _UNREADABLE as error:
        raise UserError(f"image {path} cannot be read ({error}); replace the file or remove it") from error


def read_mask_ids(path: Path) -> NDArray[Any]:
    """Return the raw ids of a mask file: (H, W) integers, or (H, W, 3) colours when it is an RGB image.

    A palette PNG gives its indices, not its colours.

    Raises:
        UserError: when the file is missing or no readable image.
    """
    try:
        with Image.open(path) as image:
            if image.mode == "1":
                return np.array(image, dtype=np.uint8)
            if image.mode in ("L", "P", "I", "I;16", "I;16B", "I;16L"):
                return np.array(image)
            return np.array(image.convert("RGB"))
    except FileNotFoundError as error:
        raise UserError(f"mask {path} is missing; every scored or trained image needs one") from error
    except _UNREADABLE as error:
        raise UserError(f"mask {path} cannot be read ({error}); replace the file") from error


def map_ids(ids: NDArray[Any], raw_ids: Mapping[int, int]) -> tuple[NDArray[np.uint8], list[int]]:
    """Map raw ids to train ids.

    Args:
        ids: (H, W) integers.
        raw_ids: raw id -> train id.

    Returns:
        (H, W) train ids, void where an id is not in the table; and the sorted ids that are not.
    """
    if ids.dtype != np.uint8:
        present = np.unique(ids)
        strangers = [int(value) for value in present if int(value) not in raw_ids]
        labels = np.full(ids.shape, IGNORE_INDEX, dtype=np.uint8)
        for value in present:
            if int(value) in raw_ids:
                labels[ids == value] = raw_ids[int(value)]
        return labels, strangers
    table = np.full(256, IGNORE_INDEX, dtype=np.uint8)
    for raw, train in raw_ids.items():
        if 0 <= raw <= 255:
            table[raw] = train
    counts = np.bincount(ids.ravel(), minlength=256)
    strangers = [int(value) for value in np.flatnonzero(counts) if int(value) not in raw_ids]
    return table[ids], strangers


def format_id_table(raw_ids: Mapping[int, int], classes: tuple[str, ...]) -> str:
    """Return the id table in words: "0 = sky, 1 = building, …, 11 = void"."""
    return ", ".join(
        f"{raw} = {'void' if train == IGNORE_INDEX else classes[train]}" for raw, train in sorted(raw_ids.items())
    )


def describe_colours(colours: NDArray[np.uint8], limit: int = 6) -> str:
    """Return how many colours an RGB mask has and the first few of them."""
    packed = colours.reshape(-1, 3).astype(np.int64) @ np.array([1 << 16, 1 << 8, 1])
    found = np.unique(packed)
    shown = ", ".join(f"({value >> 16}, {value >> 8 & 255}, {value & 255})" for value in found[:limit].tolist())
    return f"{len(found)} colour{'s' if len(found) != 1 else ''}: {shown}{', …' if len(found) > limit else ''}"


def read_png16(path: Path) -> NDArray[np.float32]:
    """Return (h, w) stored values of a one-channel PNG; 0, which means unknown, becomes nan.

    Raises:
        UserError: when the file is missing, unreadable or has several channels.
    """
    try:
        with Image.open(path) as image:
            mode, values = image.mode, np.array(image)
    except FileNotFoundError as error:
        raise UserError(f"depth map {path} is missing; add it or use another estimator than 'dataset'") from error
    except _UNREADABLE as error:
        raise UserError(f"depth map {path} cannot be read ({error}); replace the file") from error
    if values.ndim != 2 or mode == "P":
        raise UserError(f"depth map {path} is a {mode} image; one channel of 16 bits belongs there")
    depth = values.astype(np.float32)
    depth[values == 0] = np.nan
    return depth


def read_npy(path: Path) -> NDArray[np.float32]:
    """Return (h, w) floats from a NumPy file; nan = unknown.

    Raises:
        UserError: when the file is missing, unreadable or not a plain two-dimensional array of numbers.
    """
    try:
        values = np.load(path, allow_pickle=False)
    except FileNotFoundError as error:
        raise UserError(f"depth map {path} is missing; add it or use another estimator than 'dataset'") from error
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"depth map {path} cannot be read ({error}); replace the file") from error
    if not isinstance(values, np.ndarray) or values.ndim != 2 or values.dtype.kind not in "fiu":
        found = f"{values.dtype} {values.shape}" if isinstance(values, np.ndarray) else "an archive"
        raise UserError(f"depth map {path} holds {found}; a (height, width) array of numbers belongs there")
    return values.astype(np.float32)

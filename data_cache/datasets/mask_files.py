"""Reading masks and depth maps from files, with errors that name the file and the remedy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL.ImageFile import ImageFile

from data_cache.content import check_regular
from data_cache.errors import UserError
from data_cache.images import MissingFile, format_examples, get_rawmode, is_animated, open_image, turn_upright
from data_cache.sample import IGNORE_INDEX

_NO_DEPTH = "add it or use another estimator than 'dataset'"


def read_mask_ids(path: Path) -> NDArray[Any]:
    """Return the raw ids of a mask file: (H, W) integers, or (H, W, 3) colours when it is a colour image.

    Numbers are ids and never scaled; a palette image gives its indices, not its colours. EXIF turns a mask as it turns
    its image.

    Raises:
        MissingFile: there is no such file.
        UserError: it is no readable image, or one whose numbers are not certainly the ids that were written.
    """
    with open_image(
        path, "mask", missing="every scored or trained image needs one", broken="replace the file"
    ) as image:
        if problem := _find_doubt(image):
            raise UserError(f"mask {path} {problem}; a mask is a palette or grey PNG of 8 or 16 bits")
        turn_upright(image)
        if image.mode == "1":
            return np.array(image, dtype=np.uint8)
        if image.mode in ("L", "P", "I") or image.mode.startswith("I;16"):
            return np.array(image)
        if image.mode in ("LA", "PA"):
            return np.array(image.getchannel(0))
        return np.array(image.convert("RGB"))


def _find_doubt(image: ImageFile) -> str:
    """Return why an opened mask's numbers may not be the ids that were written; "" when they are."""
    codec, arguments = (image.tile[0][0], image.tile[0][3]) if image.tile else ("", None)
    if image.format in ("JPEG", "MPO"):
        return "is a JPEG, whose compression changes ids where classes meet"
    if image.mode == "F":
        return "holds floats, but ids are whole numbers"
    if is_animated(image):
        return "has several frames or pages, and nothing says which is meant"
    # Pillow stretches grey of fewer bits to 0 … 255, and turns it round where the file says that 0 is white.
    if get_rawmode(image) in ("L;2", "L;4", "L;I", "L;2I", "L;4I"):
        return "is grey of fewer than 8 bits or counts from white to black"
    if codec.startswith("ppm") and isinstance(arguments, tuple) and arguments[1] not in (255, 65535):
        return f"has a largest value of {arguments[1]}, so that reading would scale its ids"
    if image.mode in ("LA", "PA", "RGBA") and image.getchannel("A").getextrema() != (255, 255):
        return "has transparent pixels, and nothing says which id they mean"
    return ""


class LabelProblem(UserError):
    """What is wrong with a mask, for those who count many.

    Args:
        message: for a person.
        kind: ``colour``, ``size`` or ``ids``.
        unknown_ids: those outside the table.
    """

    def __init__(self, message: str, kind: str, unknown_ids: Sequence[int] = ()) -> None:
        super().__init__(message)
        self.kind, self.unknown_ids = kind, tuple(unknown_ids)


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
        unknown_ids = [int(value) for value in present if int(value) not in raw_ids]
        labels = np.full(ids.shape, IGNORE_INDEX, dtype=np.uint8)
        for value in present:
            if int(value) in raw_ids:
                labels[ids == value] = raw_ids[int(value)]
        return labels, unknown_ids
    table = bytearray([IGNORE_INDEX]) * 256
    known = bytes(raw for raw in raw_ids if 0 <= raw <= 255)
    for raw in known:
        table[raw] = raw_ids[raw]
    content = bytearray(ids.tobytes())  # of which Python makes others in half of NumPy's time
    labels = np.frombuffer(content.translate(table), np.uint8).reshape(ids.shape)
    surely_known = set(range(int(ids.max(initial=0)) + 1)) <= set(known)
    return labels, [] if surely_known else sorted(set(content.translate(None, known)))


def format_id_table(raw_ids: Mapping[int, int], classes: tuple[str, ...]) -> str:
    """Return the id table in words: "0 = sky, 1 = building, …, 11 = void"."""
    return ", ".join(
        f"{raw} = {'void' if train == IGNORE_INDEX else classes[train]}" for raw, train in sorted(raw_ids.items())
    )


def describe_colours(colours: NDArray[np.uint8]) -> str:
    """Return how many colours an RGB mask has and the first few of them."""
    packed = colours.reshape(-1, 3).astype(np.int64) @ np.array([1 << 16, 1 << 8, 1])
    found = np.unique(packed)
    shown = [f"({value >> 16}, {value >> 8 & 255}, {value & 255})" for value in found[:6].tolist()]
    return f"{len(found)} colour{'s' if len(found) != 1 else ''}: {format_examples(shown, len(found))}"


def read_png16(path: Path) -> NDArray[np.float32]:
    """Return (h, w) stored values of a one-channel PNG; 0, which means unknown, becomes nan.

    Raises:
        UserError: when the file is missing, unreadable or has several channels.
    """
    with open_image(path, "depth map", missing=_NO_DEPTH, broken="replace the file") as image:
        turn_upright(image)
        mode, values = image.mode, np.array(image)
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
        check_regular(path, "depth map")
        # Mapped, a header that claims more numbers than there are is an error and not a request for memory.
        values = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as error:
        raise MissingFile(f"depth map {path} is missing; {_NO_DEPTH}", path) from error
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"depth map {path} cannot be read ({error}); replace the file") from error
    if not isinstance(values, np.ndarray) or values.ndim != 2 or values.dtype.kind not in "fiu":
        found = f"{values.dtype} {values.shape}" if isinstance(values, np.ndarray) else "an archive"
        raise UserError(f"depth map {path} holds {found}; a (height, width) array of numbers belongs there")
    return values.astype(np.float32)

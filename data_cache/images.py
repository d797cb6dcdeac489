"""The one way images come off the disk: upright, opaque, 8-bit RGB, or a message that says why not.

Datasets, labelling, prediction and previews all read through ``read_image``:

| in the file                                        | read as                                                       |
|----------------------------------------------------|---------------------------------------------------------------|
| EXIF orientation                                   | turned upright, as viewers show it (PNG: EXIF before pixels)  |
| alpha channel, transparent colours                 | laid over white                                               |
| grey, palette, 1 bit, CMYK, YCbCr                  | RGB by Pillow's formulas; colour profiles are not applied     |
| 16 bits a channel (12 in some TIFFs)               | the upper 8 of them; 255 is the format's largest number       |
| several frames or pages                            | the first                                                     |
| 32-bit integers, signed numbers, floats            | refused: which number is white is not in the file             |
| more than ``LARGEST_IMAGE_PX``, no regular file    | refused                                                       |

What had to be decided comes back as notes; who reads many images counts them with ``NoteTally``.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import io
import struct
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps
from PIL.ImageFile import ImageFile

from data_cache.content import check_regular
from data_cache.errors import UserError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".gif")
"""Files that count as images, in any case."""

LARGEST_IMAGE_PX = 1 << 28
"""16,384 x 16,384: 0.8 GB as RGB. A header that claims more is taken for damage."""

EXAMPLES = 5
"""Names given for a note or a problem; the count tells the rest."""

_FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP", "PPM", "GIF")
_UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError, OverflowError, struct.error)
"""What Pillow raises for broken files; the last four for damaged headers, EXIF and colour tables."""
_KEYS_MISREAD = ("RGB;16B", "L;2", "L;4")
"""Pixels of which Pillow 13 compares the transparent colour of a PNG with numbers of another depth."""
UPRIGHT = 1
"""The EXIF orientation of what is stored as it is seen."""
_TURNED = range(2, 9)
"""EXIF orientations that mean something else than upright."""
ACROSS = range(5, 9)
"""EXIF orientations that exchange width and height."""
_EXIF_PLACES = {"exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp"}


class MissingFile(UserError):
    """There is no such file."""

    def __init__(self, message: str, path: Path) -> None:
        super().__init__(message)
        self.path = path


class ImageNote(StrEnum):
    """What had to be decided to read an image; the value completes the sentence "images …"."""

    TURNED = "turned upright by their EXIF orientation (masks go with the upright image)"
    ALPHA = "with transparent pixels, laid over white"
    DEEP = "with 16 bits a channel, of which the upper 8 are read"
    CMYK = "in CMYK, converted to RGB without a colour profile"
    FRAMES = "with several frames or pages, of which the first is read"


class NotedImage(NamedTuple):
    """An image and what had to be decided to read it."""

    pixels: NDArray[np.uint8]
    """(H, W, 3) RGB."""
    notes: tuple[ImageNote, ...] = ()


class NoteTally:
    """Counts the notes of many images, and keeps a few names for each."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._examples: dict[str, list[str]] = {}

    def add(self, name: str, notes: Iterable[str]) -> None:
        """Count what is noted of one image; for ``lines`` each note completes the sentence "images …"."""
        for note in notes:
            self.counts[note] += 1
            if self.counts[note] <= EXAMPLES:
                self._examples.setdefault(note, []).append(name)

    def describe(self, note: str) -> str:
        """Return how many images have a note, and which: "7 (a, b, c, d, e, …)"."""
        return f"{self.counts[note]} ({format_examples(self._examples[note], self.counts[note])})"

    def lines(self) -> list[str]:
        """Return a line per note: "images in CMYK, …: 7 (a, b, c, d, e, …)"."""
        return [f"images {note}: {self.describe(note)}" for note in self.counts]


def format_examples(examples: Iterable[object], count: int) -> str:
    """Return names separated by commas, and an ellipsis when there are more than these."""
    shown = list(map(str, examples))
    return ", ".join(shown) + (", …" if count > len(shown) else "")


def list_files(folder: Path, suffixes: tuple[str, ...] = IMAGE_SUFFIXES) -> list[Path]:
    """Return the folder's entries with one of the suffixes, in any case, sorted by name; [] without a folder."""
    if not folder.is_dir():
        return []
    found = (path for path in folder.iterdir() if path.suffix.lower() in suffixes and not path.name.startswith("."))
    return sorted(found, key=lambda path: path.name)  # paths themselves compare slowly


def read_image(path: Path) -> NotedImage:
    """Return an image as the table above says.

    Raises:
        UserError: when the file is missing, no readable image, too large, or of numbers without a known white.
    """
    notes: list[ImageNote] = []
    with _open_rgb(path) as opened:
        if is_animated(opened):
            notes.append(ImageNote.FRAMES)
        rawmode = get_rawmode(opened)
        if turn_upright(opened):
            notes.append(ImageNote.TURNED)
        if opened.mode == "CMYK":
            notes.append(ImageNote.CMYK)
        one_deep_channel = opened.mode.startswith(("I", "F"))
        image = _reduce_grey(opened, rawmode, path) if one_deep_channel else opened
        if one_deep_channel or (";16" in rawmode and not rawmode.startswith("BGR")):  # BGR;16 has 5 or 6 bits a channel
            notes.append(ImageNote.DEEP)
        if image.has_transparency_data:
            if rawmode in _KEYS_MISREAD and "transparency" in image.info:
                raise UserError(f"image {path} has a transparent colour in {rawmode}; save it with an alpha channel")
            image = image.convert("RGBA")
            if image.getchannel("A").getextrema()[0] != 255:
                notes.append(ImageNote.ALPHA)
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        # np.array copies; what is RGB already needs no further copy from convert()
        return NotedImage(np.array(image if image.mode == "RGB" else image.convert("RGB")), tuple(notes))


def read_image_size(path: Path) -> tuple[int, int]:
    """Return (height, width) of what ``read_image`` gives, without decoding pixels (but of a TIFF that EXIF turns).

    Raises:
        UserError: when the file is missing, no readable image or too large.
    """
    with _open_rgb(path) as image:
        if image.format == "TIFF":  # Pillow turns these itself, by its version when opened or when decoded
            turn_upright(image)
        elif _get_orientation(image) in ACROSS:
            return image.width, image.height
        return image.height, image.width


def read_orientation(path: Path) -> int:
    """Return the EXIF orientation that ``read_image`` undoes, 1 where it has nothing to undo.

    Raises:
        UserError: as ``read_image_size``.
    """
    with _open_rgb(path) as image:
        return _get_orientation(image)


def turn_labels(labels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Return labels (H, W) turned as an EXIF orientation turns their image."""
    if orientation == UPRIGHT:
        return labels
    image = Image.fromarray(labels)
    image.getexif()[ExifTags.Base.Orientation] = orientation
    ImageOps.exif_transpose(image, in_place=True)
    return np.array(image)


def find_suffix(content: bytes) -> str:
    """Return the suffix of a file with an image's content; "" where it is no image of a known format."""
    try:
        with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
            kind = (image.format or "").lower()
    except _UNREADABLE:
        return ""
    return ".jpg" if kind in ("jpeg", "mpo") else f".{kind}"  # MPO: a JPEG with further pictures


def decode_image(content: bytes) -> NDArray[np.uint8]:
    """Return an image (h, w, 3) in memory about as ``read_image`` would that of a file: to be compared, not trained on.

    Raises:
        ValueError: it is none, or larger than any image.
    """
    try:
        with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
            _check_pixels(image)
            return np.array(image.convert("RGB"))
    except _UNREADABLE as error:
        raise ValueError(str(error)) from error


def decode_mask(content: bytes) -> NDArray[np.bool_]:
    """Return where a PNG (h, w) in memory is not black.

    Raises:
        ValueError: it is none, or larger than any image.
    """
    try:
        with Image.open(io.BytesIO(content), formats=("PNG",)) as image:
            _check_pixels(image)
            return np.array(image.convert("L")) > 0
    except _UNREADABLE as error:
        raise ValueError(str(error)) from error


def _check_pixels(image: Image.Image) -> None:
    if image.width * image.height > LARGEST_IMAGE_PX:
        raise ValueError(f"{image.width} x {image.height} px are more than any image has")


def _open_rgb(path: Path) -> AbstractContextManager[ImageFile]:
    return open_image(path, "image", missing="put it back or leave it out", broken="replace the file or remove it")


@contextmanager
def open_image(path: Path, what: str, *, missing: str, broken: str) -> Iterator[ImageFile]:
    """Open a file with Pillow; whatever Pillow then finds wrong with it becomes a ``UserError``.

    Args:
        path: the file.
        what: "image", "mask" or "depth map", for messages.
        missing: what to do when there is no such file.
        broken: what to do when it cannot be read.

    Raises:
        MissingFile: there is nothing.
        UserError: it is no regular file, no image of a known format, broken or too large.
    """
    _silence_libtiff()
    # Pillow's own limit only warns up to 179 megapixels and stops what is more; ours is one number and one message.
    Image.MAX_IMAGE_PIXELS = None
    try:
        check_regular(path, what)
        with Image.open(path, formats=_FORMATS) as image:
            if image.width * image.height > LARGEST_IMAGE_PX:
                raise UserError(
                    f"{what} {path} has {image.width} x {image.height} px; at most {LARGEST_IMAGE_PX:,} px are read: "
                    "cut it into tiles"
                )
            yield image
    except FileNotFoundError as error:
        raise MissingFile(f"{what} {path} is missing; {missing}", path) from error
    except MemoryError as error:
        raise UserError(f"{what} {path} does not fit into memory; make it smaller or cut it into tiles") from error
    except Image.UnidentifiedImageError as error:
        raise UserError(
            f"{what} {path} cannot be read (no image in a known format: {', '.join(_FORMATS)}); {broken}"
        ) from error
    except _UNREADABLE as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise UserError(f"{what} {path} cannot be read ({reason}); {broken}") from error


@functools.cache
def _silence_libtiff() -> None:
    """Keep libtiff from writing to stderr what Pillow raises anyway; Pillow 13.0 has no way to ask for it."""
    with contextlib.suppress(OSError, AttributeError):  # a Pillow that was built into one piece
        library = ctypes.CDLL(Image.core.__file__)
        for setter in (library.TIFFSetErrorHandler, library.TIFFSetWarningHandler):
            setter.argtypes, setter.restype = [ctypes.c_void_p], ctypes.c_void_p
            setter(None)


def is_animated(image: ImageFile) -> bool:
    """Whether a file has several frames or pages; formats that never have do not define Pillow's attribute."""
    return bool(getattr(image, "is_animated", False))


def get_rawmode(image: ImageFile) -> str:
    """Return how pixels lie in an opened file in Pillow's words, as "RGB;16B"; "" where it does not say."""
    if not image.tile:
        return ""
    arguments = image.tile[0][3]
    rawmode = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return rawmode if isinstance(rawmode, str) else ""


def turn_upright(image: ImageFile) -> bool:
    """Turn an opened image in place as its EXIF orientation says; return whether there was something to turn."""
    if _get_orientation(image) == UPRIGHT:
        return False
    ImageOps.exif_transpose(image, in_place=True)
    return True


def _get_orientation(image: ImageFile) -> int:
    # Asked for the EXIF of a PNG that begins with none, Pillow decodes all of it: some stands behind the pixels.
    if image.format == "PNG" and not _EXIF_PLACES & image.info.keys():
        return UPRIGHT
    orientation: int = image.getexif().get(ExifTags.Base.Orientation, UPRIGHT)
    return orientation if orientation in _TURNED else UPRIGHT


def _reduce_grey(image: ImageFile, rawmode: str, path: Path) -> Image.Image:
    """Return the upper 8 bits of grey numbers that have more, transparent ones as white."""
    known = image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))
    if not known:
        numbers = "floats" if image.mode == "F" else "32-bit or signed integers"
        raise UserError(
            f"image {path} holds {numbers}, and nothing in it says which number is white; save it with 8 bits, or with "
            "16 bits from 0 to 65535"
        )
    values = np.asarray(image).astype(np.int64)
    grey = (values >> (4 if rawmode == "I;12" else 8)).astype(np.uint8)
    reduced = Image.fromarray(grey)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        reduced.putalpha(Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8)))
    return reduced

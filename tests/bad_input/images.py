"""Images that cannot be read, or could be read as another image; the others keep their labels."""

from __future__ import annotations

import os
import shutil
import struct
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from tests.bad_input.world import SIZE, SPLITS, Answer, Case, World

Change = Callable[[World, Path], object]
Prepare = Callable[[World], Sequence[str | Path]]
RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (*SIZE, 3), np.uint8)
GREY = RGB[..., 0]


def _label(change: Change, suffix: str = ".png") -> Prepare:
    """Return what puts something else in the place of the first training image, and labels the split."""

    def prepare(world: World) -> Sequence[str | Path]:
        world.image("train").unlink()
        change(world, world.image("train").with_suffix(suffix))
        return world.with_recipe("pseudo-depth", "--split", "train")

    return prepare


def _add(name: bytes) -> Prepare:
    """Return what adds a training image of a name and labels the split."""

    def prepare(world: World) -> Sequence[str | Path]:
        folder = os.fsencode(world.image("train").parent)
        Image.fromarray(RGB).save(Path(os.fsdecode(folder + b"/" + name + b".png")))
        return world.with_recipe("pseudo-depth", "--split", "train")

    return prepare


def _save(pixels: np.ndarray | Image.Image, **options: object) -> Change:
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    return lambda _, path: image.save(path, **options)


def _claim(side: int) -> Change:
    """Return what writes the header of a large PNG and hardly any pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    content = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b"")
    return lambda _, path: path.write_bytes(content)


def _damaged_tiff(_: World, path: Path) -> None:
    Image.fromarray(RGB).save(path, compression="tiff_lzw")
    content = bytearray(path.read_bytes())
    content[2000:2100] = bytes(byte ^ 0xFF for byte in content[2000:2100])
    path.write_bytes(content)


def _without_a_word_of_libtiff(world: World, answer: Answer) -> None:
    _only_the_bad_one_failed(world, answer)
    assert "tempfile" not in answer.stderr


def _exif(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def _only_the_bad_one_failed(_: World, answer: Answer) -> None:
    assert [failure["image"] for failure in answer.json["failed"]] == ["train0"]
    assert answer.json["skipped"] == SPLITS["train"] - 1, "the others keep their labels"


def _labelled(count: int, images: int = SPLITS["train"]) -> Callable[[World, Answer], None]:
    def check(_: World, answer: Answer) -> None:
        found = answer.json
        assert (found["labelled"], found["images"], found["failed"]) == (count, images, []), found

    return check


def _read_with_a_note(kind: str, change: Change, note: str, suffix: str = ".png") -> Case:
    return Case(kind, _label(change, suffix), (f"train: images {note}", "1 (train0)"), exit=0, check=_labelled(1))


def _refused(kind: str, change: Change, *words: str, suffix: str = ".png") -> Case:
    return Case(kind, _label(change, suffix), (f"train0{suffix}", *words), check=_only_the_bad_one_failed)


def _small(split: str) -> Prepare:
    def prepare(world: World) -> Sequence[str | Path]:
        for path, mode in ((world.image(split), "RGB"), (world.mask(split), "L")):
            Image.new(mode, (1, 1)).save(path)
        return world.with_recipe("plan", "--schedule", "seg-only")

    return prepare


def _turned_without_its_mask(world: World) -> Sequence[str | Path]:
    Image.fromarray(RGB[:, :60]).save(world.image("val"), exif=_exif(6))
    Image.fromarray(np.zeros((SIZE[0], 60), np.uint8)).save(world.mask("val"))
    return world.with_recipe("plan", "--schedule", "seg-only")


def _replaced_after_labelling(world: World) -> Sequence[str | Path]:
    Image.fromarray(255 - np.array(Image.open(world.image("train")))).save(world.image("train"))
    return world.with_recipe("run")


def _removed(world: World) -> Sequence[str | Path]:
    world.image("train").unlink()
    return world.with_recipe("pseudo-depth", "--split", "train")


def _remove_folder(world: World) -> Sequence[str | Path]:
    shutil.rmtree(world.image("train").parent)
    world.image("train").parent.symlink_to("train")
    return world.with_recipe("plan")


MISSING = "put it back or leave it out"
CASES = [
    _refused(
        "a truncated PNG", lambda world, path: path.write_bytes(world.image("val").read_bytes()[:500]), "truncated"
    ),
    _refused("an image of 0 bytes", lambda _, path: path.write_bytes(b""), "no image in a known format"),
    _refused(
        "a text called .png", lambda _, path: path.write_text("no image"), "no image in a known format: JPEG, PNG"
    ),
    _refused("a PDF called .png", _save(RGB, format="PDF"), "no image in a known format"),
    _refused("a pipe called .png", lambda _, path: os.mkfifo(path), "it is a pipe, socket or device", "remove it"),
    _refused("a folder called .png", lambda _, path: path.mkdir(), "it is a folder", "remove it"),
    _refused(
        "a link to an endless device", lambda _, path: path.symlink_to("/dev/zero"), "it is a pipe, socket or device"
    ),
    _refused("a link to itself", lambda _, path: path.symlink_to(path), "Too many levels of symbolic links"),
    _refused("a link to nothing", lambda _, path: path.symlink_to("nothing"), "is missing", MISSING),
    _refused("an image that claims 900 megapixels", _claim(30_000), "30000 x 30000 px", "cut it into tiles"),
    _refused("a cut-off image of 100 megapixels", _claim(10_000), "cannot be read"),
    _refused(
        "a float TIFF", _save(RNG.random(SIZE, np.float32)), "holds floats", "which number is white", suffix=".tif"
    ),
    _refused(
        "a TIFF of 32-bit integers", _save(GREY.astype(np.int32) << 20), "32-bit or signed integers", suffix=".tif"
    ),
    Case(
        "a damaged TIFF, about which libtiff has its own say",
        _label(_damaged_tiff, ".tif"),
        ("train0.tif cannot be read",),
        check=_without_a_word_of_libtiff,
    ),
    _read_with_a_note("a 16-bit grey PNG", _save(GREY.astype(np.uint16) * 257), "with 16 bits a channel"),
    _read_with_a_note("a PNG with alpha", _save(np.dstack([RGB, GREY])), "with transparent pixels, laid over white"),
    _read_with_a_note(
        "a grey PNG with alpha", _save(np.dstack([GREY, RGB[..., 1]])), "with transparent pixels, laid over white"
    ),
    _read_with_a_note("a photo that EXIF turns", _save(RGB, exif=_exif(6)), "turned upright", ".jpg"),
    _read_with_a_note("a CMYK JPEG", _save(Image.fromarray(RGB).convert("CMYK")), "in CMYK", ".jpg"),
    _read_with_a_note(
        "a GIF of two frames",
        _save(RGB, save_all=True, append_images=[Image.fromarray(255 - RGB)]),
        "with several frames or pages, of which the first is read",
        ".gif",
    ),
    Case(
        "a training image of 1 x 1 px", _small("train"), ("train: images with a side below 64 px", "1 (train0)"), exit=0
    ),
    Case(
        "an image of 1 x 1 px to be scored",
        _small("val"),
        ("image val0 of the reported split has 1 x 1 px", "evaluation.size=recipe"),
    ),
    Case(
        "an image that EXIF turns, with a mask that is not turned",
        _turned_without_its_mask,
        ("val0.png", "EXIF orientation turns the image upright", "turn the mask too"),
    ),
    Case("a name that is not UTF-8", _add(b"caf\xe9"), (), exit=0, check=_labelled(1, 5)),
    Case("a name with a backslash", _add(b"a\\b"), (), exit=0, check=_labelled(1, 5)),
    Case("a name of 250 bytes", _add(b"n" * 250), (), exit=0, check=_labelled(1, 5)),
    Case("a name with a line end and an escape sequence", _add(b"a\n\x1b[31mb"), (), exit=0, check=_labelled(1, 5)),
    Case("one image more", _add(b"new"), (), exit=0, check=_labelled(1, 5)),
    Case("one image less", _removed, (), exit=0, check=_labelled(0, 3)),
    Case(
        "an image replaced after it was labelled, by one of equal size",
        _replaced_after_labelling,
        ("was made from another state of 1 of 4 images (train0)", "label these, and only these"),
    ),
    Case("a split's folder that is a link to itself", _remove_folder, ("the train split of folder is empty",)),
]

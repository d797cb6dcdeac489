"""The one image reader: every kind of file against an oracle computed by hand, and a message for what has no answer."""

from __future__ import annotations

import ast
import os
import re
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data_cache.datasets import open_dataset
from data_cache.errors import UserError
from data_cache.images import ImageNote, NoteTally, read_image, read_image_size
from data_cache.outputs import Inputs, OutputFolder
from stages.evaluation.predict import Segmenter, predict_files
from stages.evaluation.sources import find_sources
from stages.networks.interface import Normalisation, Outputs

ROOT = Path(__file__).parents[2]
RNG = np.random.default_rng(0)
H, W = 64, 72
RGB = RNG.integers(0, 256, (H, W, 3), np.uint8)
GREY = RGB[..., 0]
ALPHA = RNG.integers(0, 256, (H, W), np.uint8)
DEEP = RNG.integers(0, 1 << 16, (H, W), np.uint16)
DEEP_RGB = RNG.integers(0, 1 << 16, (H, W, 3), np.uint16)
INK = RNG.integers(0, 256, (H, W, 4), np.uint8)
INDICES = RNG.integers(0, 4, (H, W), np.uint8)
PALETTE = np.array([(9, 9, 9), (250, 1, 77), (30, 200, 40), (128, 128, 128)], np.uint8)
PALETTE_ALPHA = np.array([0, 128, 255, 255], np.uint8)


def widen(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[..., None], 3, axis=2)


def over_white(colours: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    share = alpha[..., None] / 255
    return (colours * share + 255 * (1 - share)).round()


def palette_image(indices: np.ndarray = INDICES) -> Image.Image:
    image = Image.fromarray(indices)
    image.putpalette(PALETTE.tobytes())
    return image


def write_png(path: Path, *, bits: int, colour_type: int, rows: list[bytes], size: tuple[int, int] = (W, H)) -> None:
    """Write what Pillow cannot: any bit depth, any claimed size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", *size, bits, colour_type, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b""))


def with_exif(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


Writer = Callable[[Path], None]
NOTHING: tuple[ImageNote, ...] = ()
KINDS: dict[str, tuple[Writer, np.ndarray, tuple[ImageNote, ...]]] = {
    "rgb.png": (lambda path: Image.fromarray(RGB).save(path), RGB, NOTHING),
    "rgb.ppm": (lambda path: Image.fromarray(RGB).save(path), RGB, NOTHING),
    "grey.png": (lambda path: Image.fromarray(GREY).save(path), widen(GREY), NOTHING),
    "one-bit.png": (lambda path: Image.fromarray(GREY > 99).save(path), widen((GREY > 99) * np.uint8(255)), NOTHING),
    "palette.png": (lambda path: palette_image().save(path), PALETTE[INDICES], NOTHING),
    "palette.gif": (lambda path: palette_image().save(path), PALETTE[INDICES], NOTHING),
    "grey16.png": (lambda path: Image.fromarray(DEEP).save(path), widen(DEEP // 256), (ImageNote.DEEP,)),
    "grey16.tif": (lambda path: Image.fromarray(DEEP).save(path), widen(DEEP // 256), (ImageNote.DEEP,)),
    "grey16.pgm": (lambda path: Image.fromarray(DEEP).save(path), widen(DEEP // 256), (ImageNote.DEEP,)),
    "rgb16.png": (
        lambda path: write_png(path, bits=16, colour_type=2, rows=[row.tobytes() for row in DEEP_RGB.astype(">u2")]),
        DEEP_RGB // 256,
        (ImageNote.DEEP,),
    ),
    "rgba.png": (
        lambda path: Image.fromarray(np.dstack([RGB, ALPHA])).save(path), over_white(RGB, ALPHA), (ImageNote.ALPHA,)
    ),
    "opaque.png": (
        lambda path: Image.fromarray(np.dstack([RGB, np.full_like(ALPHA, 255)])).save(path), RGB, NOTHING
    ),
    "grey-alpha.png": (
        lambda path: Image.fromarray(np.dstack([GREY, ALPHA])).save(path),
        over_white(widen(GREY), ALPHA),
        (ImageNote.ALPHA,),
    ),
    "grey-key.png": (
        lambda path: Image.fromarray(GREY).save(path, transparency=7),
        widen(np.where(GREY == 7, 255, GREY)),
        (ImageNote.ALPHA,),
    ),
    "grey16-key.png": (
        lambda path: Image.fromarray(DEEP).save(path, transparency=int(DEEP[3, 3])),
        widen(np.where(DEEP[3, 3] == DEEP, 255, DEEP // 256)),
        (ImageNote.DEEP, ImageNote.ALPHA),
    ),
    "palette-alpha.png": (
        lambda path: palette_image().save(path, transparency=PALETTE_ALPHA.tobytes()),
        over_white(PALETTE[INDICES], PALETTE_ALPHA[INDICES]),
        (ImageNote.ALPHA,),
    ),
    "cmyk.tif": (
        lambda path: Image.merge("CMYK", [Image.fromarray(ink) for ink in np.moveaxis(INK, 2, 0)]).save(path),
        ((255.0 - INK[..., :3]) * (255.0 - INK[..., 3:]) / 255).round(),
        (ImageNote.CMYK,),
    ),
    "pages.tif": (
        lambda path: Image.fromarray(RGB).save(path, save_all=True, append_images=[Image.fromarray(GREY)]),
        RGB,
        (ImageNote.FRAMES,),
    ),
    **{
        f"turned-{orientation}.{suffix}": (
            lambda path, orientation=orientation: Image.fromarray(RGB).save(path, exif=with_exif(orientation)),
            turned,
            (ImageNote.TURNED,),
        )
        for orientation, turned in {
            2: RGB[:, ::-1], 3: RGB[::-1, ::-1], 4: RGB[::-1], 5: RGB.transpose(1, 0, 2), 6: np.rot90(RGB, -1),
            7: RGB.transpose(1, 0, 2)[::-1, ::-1], 8: np.rot90(RGB),
        }.items()
        for suffix in ("png", "tif")
    },
    "upright.png": (lambda path: Image.fromarray(RGB).save(path, exif=with_exif(1)), RGB, NOTHING),
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of all kinds, named by their whole file names."""
    root = tmp_path_factory.mktemp("odd")
    (root / "images" / "train").mkdir(parents=True)
    (root / "classes.txt").write_text("thing\n")
    for name, (write, _, _) in KINDS.items():
        stem, suffix = name.split(".")
        write(root / "images" / "train" / f"{stem}-{suffix}.{suffix}")
    return root


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_is_read_as_the_oracle_says(folder: Path, name: str) -> None:
    _, expected, notes = KINDS[name]
    path = folder / "images" / "train" / f"{name.replace('.', '-')}.{name.split('.')[1]}"
    image = read_image(path)
    assert image.pixels.dtype == np.uint8 and image.notes == notes
    assert read_image_size(path) == image.pixels.shape[:2]
    blended = ImageNote.ALPHA in notes or ImageNote.CMYK in notes  # Pillow rounds these its own way
    np.testing.assert_allclose(image.pixels.astype(int), expected.astype(int), atol=1 if blended else 0)


def test_dataset_and_predictor_see_the_same_pixels(folder: Path, tmp_path: Path) -> None:
    seen: list[np.ndarray] = []

    def network(images: torch.Tensor, *, seg: bool = True, depth: bool = True) -> Outputs:
        seen.append((images[0].permute(1, 2, 0) * 255).round().to(torch.uint8).numpy())
        return Outputs(torch.zeros(1, 1, *images.shape[-2:]), None)

    segmenter = Segmenter(network, Normalisation((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)))
    files = find_sources([folder / "images" / "train"]).images
    output = OutputFolder(tmp_path, Inputs(files))
    written = predict_files(segmenter, files, output, class_names=["thing"], palette=[(0, 0, 0)])
    dataset = open_dataset("folder", folder, "train")
    assert len(dataset) == len(seen) == len(KINDS)
    for index, pixels in enumerate(seen):
        np.testing.assert_array_equal(dataset.read_image(index), pixels)
    assert f"images {ImageNote.CMYK}: 1 (cmyk-tif.tif)" in written.notes


def test_there_is_one_place_that_opens_images() -> None:
    places = {
        path.relative_to(ROOT).as_posix()
        for package in ("pipeline", "stages", "data_cache")
        for path in (ROOT / package).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf8")))
        if isinstance(node, ast.Attribute) and ast.unparse(node) in ("Image.open", "ImageOps.exif_transpose")
    }
    alone = "stages/export/standalone.py"  # each export carries it; test_standalone compares the two
    assert places == {"data_cache/images.py", alone}


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (RNG.random((H, W), np.float32), "holds floats, and nothing in it says which number is white"),
        (RNG.integers(0, 1 << 31, (H, W), np.int32), "holds 32-bit or signed integers"),
    ],
    ids=["float", "int32"],
)
def test_numbers_without_a_known_white_are_refused(tmp_path: Path, pixels: np.ndarray, message: str) -> None:
    Image.fromarray(pixels).save(tmp_path / "a.tif")
    with pytest.raises(UserError, match=rf"image .*a\.tif {message}"):
        read_image(tmp_path / "a.tif")


def test_transparent_colour_that_pillow_compares_wrongly_is_refused(tmp_path: Path) -> None:
    write_png(tmp_path / "a.png", bits=2, colour_type=0, rows=[bytes([0b00011011])], size=(4, 1))
    data = (tmp_path / "a.png").read_bytes()
    key = b"tRNS" + struct.pack(">H", 1)
    (tmp_path / "a.png").write_bytes(
        data[:33] + struct.pack(">I", 2) + key + struct.pack(">I", zlib.crc32(key)) + data[33:]
    )
    with pytest.raises(UserError, match="transparent colour in L;2; save it with an alpha channel"):
        read_image(tmp_path / "a.png")


@pytest.mark.timeout(20)  # a pipe without a writer keeps a reader waiting for ever
def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    for read in (read_image, read_image_size):
        with pytest.raises(UserError, match=r"pipe\.png cannot be read \(it is a pipe"):
            read(tmp_path / "pipe.png")
        with pytest.raises(UserError, match=r"folder\.png cannot be read \(it is a folder"):
            read(tmp_path / "folder.png")


def test_large_images_are_read_up_to_a_limit_and_without_a_warning(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write_png(tmp_path / "large.png", bits=1, colour_type=0, rows=[], size=(10_000, 10_000))
        assert read_image_size(tmp_path / "large.png") == (10_000, 10_000)
        write_png(tmp_path / "huge.png", bits=1, colour_type=0, rows=[], size=(20_000, 20_000))
        with pytest.raises(UserError, match=r"huge\.png has 20000 x 20000 px; at most 268,435,456 px are read"):
            read_image(tmp_path / "huge.png")


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "gif", "webp", "bmp", "ppm"])
def test_truncated_files_are_named(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"cut.{suffix}"
    Image.fromarray(RGB).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match=rf"image {re.escape(str(path))} cannot be read"):
        read_image(path)


def test_a_document_under_an_images_name_is_refused(tmp_path: Path) -> None:
    Image.fromarray(RGB).save(tmp_path / "a.pdf")
    (tmp_path / "a.pdf").rename(tmp_path / "a.png")
    with pytest.raises(UserError, match=r"a\.png cannot be read \(no image in a known format: JPEG, PNG"):
        read_image(tmp_path / "a.png")


def test_tally_counts_all_and_names_a_few() -> None:
    tally = NoteTally()
    for number in range(9):
        tally.add(f"n{number}", (ImageNote.DEEP,) if number else (ImageNote.DEEP, ImageNote.TURNED))
    deep, turned = tally.lines()
    assert deep == f"images {ImageNote.DEEP}: 9 (n0, n1, n2, n3, n4, …)" and turned.endswith(": 1 (n0)")

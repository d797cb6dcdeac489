"""Colours of labels and of depth, and text, for the images people look at. Not for anything that is measured."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFont

from data_cache.escaping import printable_text
from data_cache.sample import IGNORE_INDEX

RGB = tuple[int, int, int]

INK: RGB = (34, 38, 46)
MUTED: RGB = (112, 118, 128)
PAPER: RGB = (255, 255, 255)
VOID: RGB = (200, 202, 206)
"""Void labels and invalid depth: a grey that is in neither palette nor depth colours."""

ONE_RIGHT: RGB = (0, 114, 178)
OTHER_RIGHT: RGB = (230, 159, 0)
"""Blue and orange that colour-blind people tell apart (Okabe and Ito 2008)."""
NEITHER_RIGHT: RGB = (120, 124, 132)

_INFERNO = (
    (0, 0, 4), (22, 11, 57), (66, 10, 104), (106, 23, 110), (147, 38, 103), (188, 55, 84),
    (221, 81, 58), (243, 120, 25), (252, 165, 10), (246, 215, 70), (252, 255, 164),
)  # fmt: skip
"""Eleven even stops of the perceptually uniform map "inferno" (Smith and van der Walt, CC0); bright = near."""

_DARK = 96
"""Colours whose brightest channel is below are hard to tell from one another, and from black."""

_FONTS = (
    "DejaVuSans.ttf", "NotoSansCJK-Regular.ttc", "NotoSans-Regular.ttf", "NanumGothic.ttf", "wqy-microhei.ttc",
    "DroidSansFallbackFull.ttf", "malgun.ttf", "AppleSDGothicNeo.ttc", "Arial Unicode.ttf",
)  # fmt: skip
"""Files of fonts with many letters, where a system has them."""

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def build_depth_table() -> NDArray[np.uint8]:
    """Return (256, 3) RGB from dark (0 = far) to bright (1 = near), linear between the stops."""
    at = np.linspace(0, len(_INFERNO) - 1, 256)
    stops = np.array(_INFERNO, dtype=np.float64)
    channels = [np.interp(at, np.arange(len(stops)), stops[:, channel]) for channel in range(3)]
    return np.stack(channels, axis=1).round().astype(np.uint8)


def colour_depth(
    depth: NDArray[np.floating], low: float, high: float, valid: NDArray[np.bool_] | None = None
) -> NDArray[np.uint8]:
    """Return (H, W, 3) RGB of a depth map between two fixed ends, so that several maps can share a scale.

    Args:
        depth: (H, W); large = near.
        low: value drawn darkest.
        high: value drawn brightest.
        valid: (H, W); invalid and non-finite pixels are drawn in VOID.
    """
    known = np.isfinite(depth) if valid is None else np.isfinite(depth) & valid
    unit = np.clip((np.where(known, depth, low) - low) / max(high - low, 1e-12), 0, 1)
    coloured = build_depth_table()[np.rint(unit * 255).astype(np.intp)]
    coloured[~known] = VOID
    return coloured


def colour_labels(labels: NDArray[np.uint8], palette: Sequence[RGB]) -> NDArray[np.uint8]:
    """Return (H, W, 3) RGB of a label map in visible colours; ids without a colour (void) are drawn in VOID."""
    table = np.full((256, 3), VOID, dtype=np.uint8)
    table[: len(palette)] = np.array(lift_dark(palette), dtype=np.uint8).reshape(-1, 3)
    return table[labels]


def lift_dark(palette: Sequence[RGB]) -> list[RGB]:
    """Return colours for people: what is nearly black, as many of Pascal VOC's are, becomes a colour that is seen."""
    return [
        colour if max(colour) >= _DARK else (64 + colour[0] // 2, 64 + colour[1] // 2, 64 + colour[2] // 2)
        for colour in palette
    ]


def colour_differences(
    image: NDArray[np.uint8], truth: NDArray[np.uint8], one: NDArray[np.uint8], other: NDArray[np.uint8]
) -> NDArray[np.uint8]:
    """Return (H, W, 3) RGB of where two predictions differ, over the pale image.

    Blue where only the one is right, orange where only the other is, grey where neither is; void is left out.
    """
    grey = image.mean(axis=2)
    if grey.shape != truth.shape:
        grey = np.asarray(Image.fromarray(grey.astype(np.uint8)).resize(truth.shape[::-1], Image.Resampling.BILINEAR))
    shown = np.repeat((200 + 0.2 * grey).clip(0, 255).astype(np.uint8)[..., None], 3, axis=2)
    differs = (one != other) & (truth != IGNORE_INDEX)
    for where, colour in ((one == truth, ONE_RIGHT), (other == truth, OTHER_RIGHT), (truth >= 0, NEITHER_RIGHT)):
        shown[differs & where] = colour
        differs &= ~where
    return shown


def prepare_text(text: str, size_px: int) -> tuple[str, Font]:
    """Return a name as it can be drawn, and the font for it.

    Pillow's own font is taken where it has every letter, so that images look alike on every machine; else the one of
    the fonts installed here that lacks the fewest. Letters that this lacks are written out as codes, never as boxes.
    """
    text = printable_text(text)
    lacking: list[tuple[set[str], Font]] = []
    for name in (None, *_FONTS):
        font = _load_font(name, size_px)
        if font is None:
            continue
        missing = {letter for letter in set(text) if not _has_letter(font, letter)}
        lacking.append((missing, font))
        if not missing:
            break
    missing, font = min(lacking, key=lambda found: len(found[0]))
    return "".join(json.dumps(letter)[1:-1] if letter in missing else letter for letter in text), font


@functools.cache
def _load_font(name: str | None, size_px: int) -> Font | None:
    """Return a font by its file's name, None where it is not installed; without a name Pillow's own."""
    try:
        return ImageFont.load_default(size=size_px) if name is None else ImageFont.truetype(name, size_px)
    except OSError:
        return None


@functools.lru_cache(maxsize=4096)
def _has_letter(font: Font, letter: str) -> bool:
    """Whether a font draws something of its own for a letter, not the box it draws for all that it lacks."""
    drawn, box = font.getmask(letter), font.getmask("\uffff")
    return drawn.size != box.size or bytes(drawn) != bytes(box)

"""Images that show what numbers cannot: image, truth, prediction and depth side by side; contact sheets."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from data_cache.datasets.interface import SegmentationDataset
from data_cache.files import atomic_file
from data_cache.outputs import WriteFile
from data_cache.sample import IGNORE_INDEX, DepthKind, PackedBatch
from data_cache.split_depth import SplitDepth
from stages.evaluation.colour import (
    INK,
    MUTED,
    PAPER,
    RGB,
    VOID,
    Font,
    colour_depth,
    colour_differences,
    colour_labels,
    lift_dark,
    prepare_text,
)

LARGEST_TILE_PX = 256
"""Longer side of pictures inside a page."""
LARGEST_SLIDE_PX = 960
"""Longer side of a picture that is looked at by itself."""
_TILE_WIDTH_PX = 256
_STRIP_PX = 256
"""Rows of an image that are floats at a time."""
_GAP_PX = 10
_CAPTION_PX = 20
_TEXT_PX = 13


class PanelItem(NamedTuple):
    """One image with everything that can be shown of it; maps may differ in size, the drawing brings them together."""

    image_id: str
    image: NDArray[np.uint8]
    """(H, W, 3) RGB."""
    truth: NDArray[np.uint8]
    """(H, W) train ids, void included."""
    prediction: NDArray[np.uint8]
    """(H, W) train ids."""
    inverse_depth: NDArray[np.float32] | None = None
    """(H, W) target; large = near."""
    depth_valid: NDArray[np.bool_] | None = None
    predicted_depth: NDArray[np.float32] | None = None
    """(H, W), in the target's units."""


class PanelCollector:
    """Keeps a few images of an evaluation for drawing; pass it as ``on_predictions``.

    Args:
        image_ids: those to keep; few, because they stay in memory.
    """

    def __init__(self, image_ids: Sequence[str]) -> None:
        self.items: dict[int, PanelItem] = {}
        """By their place among those to keep; of a rank, those that it evaluated."""
        self._image_ids = image_ids

    def __call__(self, batch: PackedBatch, predictions: Tensor, depth: Tensor | None) -> None:
        """Keep what is wanted of one batch."""
        for index, image_id in enumerate(batch.image_ids):
            if image_id in self._image_ids:
                place = self._image_ids.index(image_id)
                self.items[place] = self._pick(batch, index, predictions, depth)

    def _pick(self, batch: PackedBatch, index: int, predictions: Tensor, depth: Tensor | None) -> PanelItem:
        target = None if batch.inverse_depth is None else batch.inverse_depth[index].float().numpy()
        return PanelItem(  # of copies, or the whole batch would stay in memory
            batch.image_ids[index],
            batch.images[index].permute(1, 2, 0).round().to(torch.uint8).numpy().copy(),
            batch.seg_labels[index].numpy().copy(),
            predictions[index].cpu().numpy().copy(),
            None if target is None else np.nan_to_num(target, nan=0.0),
            None if target is None else np.isfinite(target),
            None if depth is None else depth[index].float().cpu().numpy().copy(),
        )


def write_panels(
    items: Mapping[int, PanelItem], folder: Path, *, class_names: Sequence[str], palette: Sequence[RGB]
) -> list[Path]:
    """Write one PNG per item, named by place and image id; return the files in order."""
    files = []
    for index, item in items.items():
        stem = "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in item.image_id)
        files.append(folder / f"{index:02d}-{stem}.png")
        write_png(draw_panel(item, class_names=class_names, palette=palette), files[-1])
    return files


def draw_panel(item: PanelItem, *, class_names: Sequence[str], palette: Sequence[RGB]) -> Image.Image:
    """Return the image of one item: its maps in a row under captions, the colours of its classes below.

    Target and predicted depth share one scale, the range of the target, so equal colours mean equal values.
    """
    tiles: list[tuple[str, NDArray[np.uint8]]] = [
        (item.image_id, item.image),
        ("truth", colour_labels(item.truth, palette)),
        ("prediction", colour_labels(item.prediction, palette)),
        *_depth_tiles(item),
    ]
    height, width = item.truth.shape
    tile_size = (_TILE_WIDTH_PX, max(1, round(height * _TILE_WIDTH_PX / width)))
    ids = np.union1d(np.unique(item.truth), np.unique(item.prediction))
    colours = lift_dark(palette)
    entries = [(class_names[index], colours[index]) for index in ids.tolist() if index < len(class_names)]
    if IGNORE_INDEX in ids:
        entries.append(("void", VOID))
    total_width = _GAP_PX + len(tiles) * (_TILE_WIDTH_PX + _GAP_PX)
    legend = _draw_legend(entries, total_width - 2 * _GAP_PX)
    top = _GAP_PX + _CAPTION_PX
    panel = Image.new("RGB", (total_width, top + tile_size[1] + _GAP_PX + legend.height + _GAP_PX // 2), PAPER)
    draw = ImageDraw.Draw(panel)
    for column, (caption, pixels) in enumerate(tiles):
        left = _GAP_PX + column * (_TILE_WIDTH_PX + _GAP_PX)
        text, font = _shorten(caption, _TILE_WIDTH_PX, _TEXT_PX)
        draw.text((left, _GAP_PX - 2), text, INK, font=font)
        panel.paste(_resize(pixels, tile_size, smooth=column not in (1, 2)), (left, top))
    panel.paste(legend, (_GAP_PX, top + tile_size[1] + _GAP_PX))
    return panel


def _depth_tiles(item: PanelItem) -> list[tuple[str, NDArray[np.uint8]]]:
    tiles = []
    low, high = 0.0, 1.0
    scale = item.inverse_depth if item.inverse_depth is not None else item.predicted_depth
    if scale is not None:
        known = np.isfinite(scale)
        if item.depth_valid is not None and item.inverse_depth is not None:
            known &= item.depth_valid
        if known.any():
            low, high = float(scale[known].min()), float(scale[known].max())
    if item.inverse_depth is not None:
        tiles.append(("pseudo depth", colour_depth(item.inverse_depth, low, high, item.depth_valid)))
    if item.predicted_depth is not None:
        caption = "predicted depth" if item.inverse_depth is None else "predicted depth (same scale)"
        tiles.append((caption, colour_depth(item.predicted_depth, low, high)))
    return tiles


class Tile(NamedTuple):
    """One map of an image as a small picture."""

    caption: str
    data: bytes
    """PNG where colours are classes, else JPEG."""
    is_labels: bool


def draw_tiles(item: PanelItem, palette: Sequence[RGB], *, name: str, base: PanelItem, base_name: str) -> list[Tile]:
    """Return everything that can be shown of one image, and where two networks differ on it.

    Args:
        name: of the network that made ``item``'s prediction and depth.
        base: of the same image, by the other network.
    """
    maps = [
        ("truth", colour_labels(item.truth, palette)),
        (f"prediction of {base_name}", colour_labels(base.prediction, palette)),
    ]
    if base is not item:
        maps.append((f"prediction of {name}", colour_labels(item.prediction, palette)))
        maps.append(("where they differ", colour_differences(item.image, item.truth, item.prediction, base.prediction)))
    return [
        Tile("image", _encode(_shrink(item.image)), False),
        *(Tile(caption, _encode(_shrink(pixels, smooth=False), is_labels=True), True) for caption, pixels in maps),
        *(Tile(caption, _encode(_shrink(pixels)), False) for caption, pixels in _depth_tiles(item)),
    ]


def draw_slide(image: NDArray[np.uint8], labels: NDArray[np.uint8], palette: Sequence[RGB]) -> tuple[bytes, bytes]:
    """Return an image, and the same tinted by class, as JPEGs of one size for a page."""
    small = np.asarray(_shrink(image, largest=LARGEST_SLIDE_PX))
    seen = np.asarray(_shrink(labels, smooth=False, largest=LARGEST_SLIDE_PX))
    return _encode(Image.fromarray(small)), _encode(Image.fromarray(draw_overlay(small, seen, palette)))


def draw_map(item: SheetItem) -> Tile:
    """Return an image beside its raw depth, if it has one, which is scaled by its own 2nd…98th percentile."""
    shown = [_shrink(item.image)]
    if item.depth is not None:
        coloured = Image.fromarray(_colour_raw(item.depth, large_is_near=item.large_is_near))
        shown.append(coloured.resize(shown[0].size, Image.Resampling.BILINEAR))
    return Tile(
        item.caption,
        _encode(Image.fromarray(np.concatenate([np.asarray(picture) for picture in shown], axis=1))),
        False,
    )


def _encode(picture: Image.Image, *, is_labels: bool = False) -> bytes:
    """Return a picture as it would lie in a file."""
    stream = io.BytesIO()
    if is_labels:
        _index_colours(picture).save(stream, format="PNG", optimize=True)
    else:
        picture.save(stream, format="JPEG", quality=82)
    return stream.getvalue()


def _index_colours(picture: Image.Image) -> Image.Image:
    """Return the same picture with a table of its colours, which takes less room, where they are few."""
    pixels = np.asarray(picture)
    colours, places = np.unique(pixels.reshape(-1, 3), axis=0, return_inverse=True)
    if len(colours) > 256:
        return picture
    indexed = Image.fromarray(places.reshape(pixels.shape[:2]).astype(np.uint8))
    indexed.putpalette(colours.tobytes())
    return indexed


def _shrink(pixels: NDArray[np.uint8], *, smooth: bool = True, largest: int = LARGEST_TILE_PX) -> Image.Image:
    """Return an image at most so wide, or so high, as a page has use for."""
    height, width = pixels.shape[:2]
    scale = min(1.0, largest / max(height, width))
    return _resize(pixels, (max(1, round(width * scale)), max(1, round(height * scale))), smooth=smooth)


class SheetItem(NamedTuple):
    """One image and its raw depth map, if it has one, for a contact sheet."""

    caption: str
    image: NDArray[np.uint8]
    """(H, W, 3) RGB."""
    depth: NDArray[np.floating] | None
    """(h, w) as stored."""
    large_is_near: bool = True
    """False for metres: they are drawn as 1 / d, so bright is near everywhere."""


def read_sheet_item(
    dataset: SegmentationDataset, index: int, store: SplitDepth | None, caption: str | None = None
) -> SheetItem:
    """Return an image of a split and its depth, if there is some, under a caption or else its id."""
    caption = dataset.image_ids[index] if caption is None else caption
    image = dataset.read_image(index)
    if store is None:
        return SheetItem(caption, image, None)
    return SheetItem(caption, image, store.read(index).raw, store.provenance.kind is DepthKind.RELATIVE)


def read_tinted_item(dataset: SegmentationDataset, index: int, *, plain_id: int | None = None) -> SheetItem:
    """Return an image of a split tinted by its mask, under its split and id.

    Args:
        plain_id: the class whose pixels stay as they are, so that the others stand out.
    """
    image = np.asarray(_shrink(dataset.read_image(index)))
    labels = np.asarray(_shrink(dataset.read_labels(index), smooth=False))
    tinted = draw_overlay(image, labels, dataset.palette)
    if plain_id is not None:
        tinted[labels == plain_id] = image[labels == plain_id]
    return SheetItem(f"{dataset.split}/{dataset.image_ids[index]}", tinted, None)


def spread_over(num_images: int, count: int) -> list[int]:
    """Return so many places from all over a split, or all; neighbours are often frames of one film."""
    count = min(count, num_images)
    return [place * num_images // count for place in range(count)]


def contact_sheet(
    items: Iterable[SheetItem],
    out: Path,
    *,
    columns: int = 3,
    legend: Sequence[tuple[str, RGB]] = (),
    write_file: WriteFile = atomic_file,
) -> Path:
    """Write a PNG with image and depth side by side for each item; each map is scaled by its own 2nd…98th percentile.

    Items without depth take half the width, if none has any. Names of colours stand below.

    Raises:
        ValueError: there is no item.
    """
    items = list(items)
    with_depth = any(item.depth is not None for item in items)
    cells = [_draw_cell(item, with_depth=with_depth) for item in items]
    if not cells:
        raise ValueError("a contact sheet needs at least one item")
    columns = min(columns, len(cells))
    cell_width = cells[0].width
    rows = [cells[start : start + columns] for start in range(0, len(cells), columns)]
    heights = [max(cell.height for cell in row) + _GAP_PX for row in rows]
    width = _GAP_PX + columns * (cell_width + _GAP_PX)
    key = _draw_legend(legend, width - 2 * _GAP_PX) if legend else None
    sheet = Image.new("RGB", (width, _GAP_PX + sum(heights) + (key.height if key else 0)), PAPER)
    top = _GAP_PX
    for row, height in zip(rows, heights, strict=True):
        for column, cell in enumerate(row):
            sheet.paste(cell, (_GAP_PX + column * (cell_width + _GAP_PX), top))
        top += height
    if key:
        sheet.paste(key, (_GAP_PX, top))
    write_png(sheet, out, write_file)
    return out


def _draw_cell(item: SheetItem, *, with_depth: bool) -> Image.Image:
    width = 192
    height = max(1, round(item.image.shape[0] * width / item.image.shape[1]))
    cell_width = 2 * width + 2 if with_depth else width
    cell = Image.new("RGB", (cell_width, _CAPTION_PX + height), PAPER)
    text, font = _shorten(item.caption, cell_width, _TEXT_PX - 1)
    ImageDraw.Draw(cell).text((0, 0), text, MUTED, font=font)
    cell.paste(_resize(item.image, (width, height)), (0, _CAPTION_PX))
    if item.depth is not None:
        coloured = _colour_raw(item.depth, large_is_near=item.large_is_near)
        cell.paste(_resize(coloured, (width, height)), (width + 2, _CAPTION_PX))
    return cell


def _colour_raw(depth: NDArray[np.floating], *, large_is_near: bool) -> NDArray[np.uint8]:
    inverse = np.asarray(depth, dtype=np.float32)
    if not large_is_near:
        inverse = np.where(inverse > 0, 1 / np.maximum(inverse, 1e-6), np.nan)
    known = np.isfinite(inverse)
    low, high = np.percentile(inverse[known], (2, 98)) if known.any() else (0.0, 1.0)
    return colour_depth(inverse, float(low), float(high))


def _draw_legend(entries: Sequence[tuple[str, RGB]], width_px: int) -> Image.Image:
    """Return a strip of colour chips and names, wrapped to a width."""
    line_px, chip_px = 20, 12
    places, left, top = [], 0, 0
    for entry, colour in entries:
        name, font = _shorten(entry, width_px - chip_px - 6, _TEXT_PX)
        entry_px = chip_px + 6 + round(font.getlength(name)) + 16
        if left and left + entry_px > width_px:
            left, top = 0, top + line_px
        places.append((left, top, name, font, colour))
        left += entry_px
    strip = Image.new("RGB", (width_px, top + line_px), PAPER)
    draw = ImageDraw.Draw(strip)
    for left, top, name, font, colour in places:
        draw.rectangle((left, top + 2, left + chip_px, top + 2 + chip_px), fill=colour, outline=VOID)
        draw.text((left + chip_px + 6, top), name, INK, font=font)
    return strip


def _resize(pixels: NDArray[np.uint8], size: tuple[int, int], *, smooth: bool = True) -> Image.Image:
    """Return an image of (width, height); label colours are never blended."""
    return Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR if smooth else Image.Resampling.NEAREST)


def _shorten(name: str, width_px: int, size_px: int) -> tuple[str, Font]:
    """Return a name as text, and its font; where it is too wide its beginning is cut off: the end tells names apart."""
    text, font = prepare_text(name, size_px)
    shown = text
    while text and font.getlength(shown) > width_px:
        text = text[1:]
        shown = "…" + text
    return shown, font


def draw_overlay(image: NDArray[np.uint8], labels: NDArray[np.uint8], palette: Sequence[RGB]) -> NDArray[np.uint8]:
    """Return the (H, W, 3) image tinted by class, with lines where classes meet."""
    tinted = np.empty_like(image)
    for top in range(0, len(labels), _STRIP_PX):
        rows = slice(top, top + _STRIP_PX)
        tinted[rows] = (image[rows] * 0.5 + colour_labels(labels[rows], palette) * 0.5).round()
    edges = np.zeros(labels.shape, dtype=bool)
    edges[1:] |= labels[1:] != labels[:-1]
    edges[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    tinted[edges] = PAPER
    return tinted


def write_png(image: Image.Image, out: Path, write_file: WriteFile = atomic_file) -> None:
    """Write a PNG under its name at once, so that nobody reads half a file."""
    with write_file(out) as temporary:
        image.save(temporary, format="PNG")

"""Joint geometry of image, labels and depth; what is drawn for light and colour, which change on the device.

Everything here is a function of its arguments: random numbers come from a generator that the caller seeds, never from
torch's global state. Coordinates follow one convention, half-pixel centres (``align_corners=False``), for all three, so
that edges in image, labels and depth stay together although the depth map has a resolution of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F

from data_cache.photometric import Recolouring, recolour
from data_cache.sample import IGNORE_INDEX
from data_cache.settings import AugmentationSettings, Size

_FLOAT16_MAX = float(np.finfo(np.float16).max)


class Box(NamedTuple):
    """A rectangle of an image or map, px; fractional on a map whose resolution is not the image's."""

    top: float
    left: float
    height: float
    width: float


class Geometry(NamedTuple):
    """Cut ``box`` out of the image, resize it to ``size``, lay it at ``offset`` on an empty ``canvas``, then flip."""

    box: Box
    size: Size
    offset: Size
    """(top, left), px."""
    canvas: Size
    flip: bool

    @property
    def placed(self) -> tuple[int, int, int, int]:
        """Top, left, height and width of what is shown on the canvas, px."""
        (top, left), (height, width) = self.offset, self.size
        return top, self.canvas[1] - left - width if self.flip else left, height, width

    @property
    def zoom(self) -> float:
        """Pixels on the canvas per pixel of the image: how many times larger, and so nearer, everything looks."""
        return math.sqrt(self.size[0] * self.size[1] / (self.box.height * self.box.width))


class ColourJitter(NamedTuple):
    """Factors around 1."""

    brightness: float
    contrast: float
    saturation: float


class Depth(tv_tensors.TVTensor):
    """(…, 2, H, W) float32: inverse depth, and 1 where it is valid; v2 functions move both together.

    A pixel is valid when every pixel it is made from is; what is padded is not. Invalid pixels hold 0. Made by
    ``join_depth``.
    """


def draw_geometry(augmentation: AugmentationSettings, image_size: Size, rng: np.random.Generator) -> Geometry:
    """Draw scale, place and flip of a sample.

    The box that will be seen is cut before resizing, so the cost is that of the crop, not of the image. Its sides are
    whole pixels: the scale along each axis differs from the drawn one by less than a pixel over the crop.
    """
    scale = rng.uniform(*augmentation.scale)
    rows, columns = (
        _place(length, wanted, scale, rng) for length, wanted in zip(image_size, augmentation.crop, strict=True)
    )
    box = Box(rows[0], columns[0], rows[1], columns[1])
    flip = bool(rng.random() < augmentation.flip)
    return Geometry(box, (rows[2], columns[2]), (rows[3], columns[3]), augmentation.crop, flip)


def _place(length: int, wanted: int, scale: float, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Return along one axis: first pixel and length in the image, length and first pixel on the canvas."""
    scaled = max(1, round(length * scale))
    if scaled < wanted:
        return 0, length, scaled, int(rng.integers(wanted - scaled + 1))
    seen = min(length, max(1, round(wanted / scale)))
    return int(rng.integers(length - seen + 1)), seen, wanted, 0


def draw_colour_jitter(strength: float, rng: np.random.Generator) -> ColourJitter | None:
    """Draw factors in [1 - strength, 1 + strength]; None when that is off."""
    return ColourJitter(*rng.uniform(1 - strength, 1 + strength, 3).tolist()) if strength > 0 else None


def transform_image(image: NDArray[np.uint8], geometry: Geometry, recolouring: Recolouring | None = None) -> Tensor:
    """Bring an image to the canvas: bilinear with antialiasing, 0 where empty.

    Args:
        image: (H, W, 3) RGB.
        recolouring: what is done to the colours of what is seen; the empty canvas stays 0.

    Returns:
        (3, *canvas) uint8, channels last in memory.
    """
    cut = torch.from_numpy(_cut(image, geometry.box))[None].permute(0, 3, 1, 2)  # torch is fast on this layout
    if cut.shape[2:] != geometry.size:
        cut = interpolate(cut, geometry.size, mode="bilinear", antialias=True)
    if geometry.flip:
        cut = cut.flip(-1)
    if recolouring is not None:
        cut = recolour(cut, recolouring)
    return _lay(cut[0].permute(1, 2, 0), geometry, fill=0).permute(2, 0, 1)


def transform_labels(labels: NDArray[np.uint8], geometry: Geometry) -> Tensor:
    """Bring labels to the canvas: the label at each pixel's centre, void where empty.

    Args:
        labels: (H, W) train ids.

    Returns:
        (*canvas) uint8.
    """
    top, left, height, width = map(int, geometry.box)
    rows = top + _find_centres(height, geometry.size[0])
    columns = left + _find_centres(width, geometry.size[1])
    shown = labels[rows][:, columns[::-1] if geometry.flip else columns]
    return _lay(torch.from_numpy(shown), geometry, fill=IGNORE_INDEX)


def transform_depth(depth: Tensor, valid: Tensor, box: Box, geometry: Geometry) -> Tensor:
    """Bring inverse depth to the canvas: bilinear, invalid where empty.

    Args:
        depth: (h, w) float32, or a window of the map; finite.
        valid: (h, w) bool.
        box: the geometry's box in the pixels of ``depth``, see ``to_map_box``.

    Returns:
        (*canvas) float32, NaN where invalid.
    """
    rows, columns = _interpolations(box, geometry.size, depth.shape)
    if geometry.flip:
        columns = _Interpolation(*(points.flip(0) for points in columns))
    if bool(valid.all()):
        shown = _interpolate(depth, rows, columns)
    else:
        values, found = _resample(join_depth(depth, valid), rows, columns).unbind(-3)
        shown = values.where(found > 0, math.nan)
    return _lay(shown, geometry, fill=math.nan)


def to_float16(inverse_depth: Tensor) -> Tensor:
    """Round what travels to the device; what is nearer than float16 can say becomes the nearest it can."""
    return inverse_depth.clamp(-_FLOAT16_MAX, _FLOAT16_MAX).to(torch.float16)


def join_depth(depth: Tensor, valid: Tensor) -> Depth:
    """Put (…, H, W) inverse depth, anything where invalid, and its validity into one tensor."""
    return Depth(torch.stack((depth.where(valid, torch.zeros(())), valid.to(depth.dtype)), dim=-3))


def to_map_box(box: Box, image_size: Size, map_size: Size) -> Box:
    """Return what part of a map of another resolution shows the same part of the scene."""
    vertical, horizontal = map_size[0] / image_size[0], map_size[1] / image_size[1]
    return Box(box.top * vertical, box.left * horizontal, box.height * vertical, box.width * horizontal)


def cut_window(box: Box, map_size: Size) -> tuple[tuple[slice, slice], Box]:
    """Return the smallest window of a map that resampling ``box`` reads, and the box in the window's pixels."""
    top, left = (max(0, math.floor(start) - 1) for start in (box.top, box.left))
    bottom = min(map_size[0], math.ceil(box.top + box.height) + 1)
    right = min(map_size[1], math.ceil(box.left + box.width) + 1)
    window = slice(top, bottom), slice(left, right)
    return window, Box(box.top - top, box.left - left, box.height, box.width)


def resample_depth(depth: Tensor, box: Box, size: Size) -> Tensor:
    """Sample a box of a depth map at ``size`` points: bilinear with half-pixel centres, edge pixels repeated outside.

    Args:
        depth: (…, 2, h, w), as in ``Depth``.
    """
    return _resample(depth, *_interpolations(box, size, depth.shape[-2:]))


class _Interpolation(NamedTuple):
    """Along one axis and per output point: the two source pixels, the same where one is enough; the second's weight."""

    first: Tensor
    second: Tensor
    weight: Tensor


def _interpolations(box: Box, size: Size, map_size: Sequence[int]) -> tuple[_Interpolation, _Interpolation]:
    """Return along rows and columns how ``size`` points of a box of a map are made."""
    rows = _interpolation(box.top, box.height, size[0], map_size[0])
    return rows, _interpolation(box.left, box.width, size[1], map_size[1])


def _interpolation(start: float, length: float, points: int, pixels: int) -> _Interpolation:
    centres = start + (np.arange(points) + 0.5) * (length / points) - 0.5
    centres = np.clip(centres, 0, pixels - 1)
    first = np.floor(centres)
    weight = (centres - first).astype(np.float32)
    second = np.where(weight > 0, np.minimum(first + 1, pixels - 1), first)
    first, second = (torch.from_numpy(end.astype(np.int64)) for end in (first, second))
    return _Interpolation(first, second, torch.from_numpy(weight))


def _resample(depth: Tensor, rows: _Interpolation, columns: _Interpolation) -> Tensor:
    values, valid = depth.as_subclass(torch.Tensor).unbind(-3)
    reached = _along_both(valid, rows, columns, lambda first, second, _: torch.minimum(first, second))
    return torch.stack((_interpolate(values, rows, columns) * reached, reached), dim=-3)


def _interpolate(values: Tensor, rows: _Interpolation, columns: _Interpolation) -> Tensor:
    return _along_both(values, rows, columns, Tensor.lerp_)


def _along_both(
    values: Tensor, rows: _Interpolation, columns: _Interpolation, combine: Callable[[Tensor, Tensor, Tensor], Tensor]
) -> Tensor:
    """Combine the two source pixels of each point along columns, then along rows.

    Whole rows are copied, of the transposed map first: picking numbers out of rows takes several times as long.
    """
    for points in (columns, rows):
        lines = values.mT.contiguous()
        values = combine(
            lines.index_select(-2, points.first), lines.index_select(-2, points.second), points.weight[:, None]
        )
    return values


def _cut(array: NDArray[np.uint8], box: Box) -> NDArray[np.uint8]:
    """Copy the box out of an array, which may be a read-only memory map."""
    top, left, height, width = map(int, box)
    return np.array(array[top : top + height, left : left + width])


def _find_centres(pixels: int, points: int) -> NDArray[np.int64]:
    """Return along one axis the pixel in which each point's centre lies."""
    return ((2 * np.arange(points) + 1) * pixels) // (2 * points)


def _lay(shown: Tensor, geometry: Geometry, fill: float) -> Tensor:
    """Lay (h, w, …), flipped already, on the empty canvas."""
    if geometry.size == geometry.canvas:
        return shown
    top, left, height, width = geometry.placed
    canvas = torch.full((*geometry.canvas, *shown.shape[2:]), fill, dtype=shown.dtype)
    canvas[top : top + height, left : left + width] = shown
    return canvas


# ---------------------------------------------------------------------------------------------------------------------
# Kernels: what torchvision's v2 functions, and so its transforms, do to Depth.
# ---------------------------------------------------------------------------------------------------------------------


@F.register_kernel(functional=F.resize, tv_tensor_cls=Depth)
def resize_depth(depth: Depth, size: Sequence[int], **_: Any) -> Depth:
    """Resize to (height, width), bilinear whatever interpolation images get."""
    if isinstance(size, int) or len(size) != 2:
        raise ValueError(f"depth is resized to (height, width), got {size}")
    return Depth(resample_depth(depth, Box(0, 0, *depth.shape[-2:]), (size[0], size[1])))


@F.register_kernel(functional=F.crop, tv_tensor_cls=Depth)
def crop_depth(depth: Depth, top: int, left: int, height: int, width: int) -> Depth:
    """Cut a box out; what lies outside of the map is invalid."""
    return Depth(F.crop_image(depth.as_subclass(torch.Tensor), top, left, height, width))


@F.register_kernel(functional=F.pad, tv_tensor_cls=Depth)
def pad_depth(depth: Depth, padding: Sequence[int], **_: Any) -> Depth:
    """Pad by (left, top, right, bottom) with invalid pixels whatever fill images get."""
    return Depth(F.pad_image(depth.as_subclass(torch.Tensor), list(padding), fill=0.0))


@F.register_kernel(functional=F.horizontal_flip, tv_tensor_cls=Depth)
def flip_depth(depth: Depth) -> Depth:
    """Mirror left and right."""
    return Depth(depth.as_subclass(torch.Tensor).flip(-1))

"""Joint geometry of image, labels and depth; light and colour of the image alone.

Everything here is a function of its arguments: random numbers come from a generator that the caller seeds, never from
torch's global state. Coordinates follow one convention, half-pixel centres (``align_corners=False``), for all three, so
that edges in image, labels and depth stay together although the depth map has a resolution of its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from data_cache.sample import IGNORE_INDEX
from data_cache.settings import AugmentationSettings, Size

Normalisation = tuple[tuple[float, float, float], tuple[float, float, float]]
"""Mean and standard deviation per channel of RGB in [0, 1]; ``stages.networks.interface.Normalisation`` is one."""

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, what "grey" means to torchvision and Pillow too


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


def transform_image(
    image: NDArray[np.uint8], geometry: Geometry, normalisation: Normalisation, jitter: ColourJitter | None = None
) -> Tensor:
    """Bring an image to the canvas: bilinear with antialiasing, jittered, normalised; 0, the mean, where empty.

    Args:
        image: (H, W, 3) RGB.

    Returns:
        (3, *canvas) float32.
    """
    cut = tv_tensors.Image(torch.from_numpy(_cut(image, geometry.box)).permute(2, 0, 1))
    if cut.shape[1:] != geometry.size:
        cut = F.resize(cut, list(geometry.size), InterpolationMode.BILINEAR, antialias=True)
    # Plain (h·w, 3) rows from here: colour is one affine map per pixel, and padding with 0 comes after normalising.
    pixels = cut.as_subclass(torch.Tensor).permute(1, 2, 0).contiguous().view(-1, 3)
    pixels = _normalise(pixels, normalisation, jitter)
    laid = tv_tensors.Image(pixels.view(*geometry.size, 3).permute(2, 0, 1))
    return _lay(laid, geometry, fill=0.0).as_subclass(torch.Tensor)


def transform_labels(labels: NDArray[np.uint8], geometry: Geometry) -> Tensor:
    """Bring labels to the canvas: the label at each pixel's centre, void where empty.

    Args:
        labels: (H, W) train ids.

    Returns:
        (*canvas) int64.
    """
    cut = torch.from_numpy(_cut(labels, geometry.box))
    if cut.shape != geometry.size:
        # As an image, since v2 resizes masks with the old "nearest", which is off by half a source pixel.
        image = tv_tensors.Image(cut[None])
        cut = F.resize(image, list(geometry.size), InterpolationMode.NEAREST_EXACT)[0].as_subclass(torch.Tensor)
    return _lay(tv_tensors.Mask(cut), geometry, fill=IGNORE_INDEX).as_subclass(torch.Tensor).long()


def transform_depth(depth: Tensor, valid: Tensor, box: Box, geometry: Geometry) -> tuple[Tensor, Tensor]:
    """Bring inverse depth to the canvas: bilinear, invalid where empty.

    Args:
        depth: (h, w) float32, or a window of the map; finite.
        valid: (h, w) bool.
        box: the geometry's box in the pixels of ``depth``, see ``to_map_box``.

    Returns:
        (*canvas) float32, 0 where invalid; and (*canvas) bool.
    """
    laid = _lay(Depth(resample_depth(join_depth(depth, valid), box, geometry.size)), geometry, fill=0.0)
    plain = laid.as_subclass(torch.Tensor)
    return plain[0], plain[1] > 0


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
    rows = _interpolation(box.top, box.height, size[0], depth.shape[-2])
    columns = _interpolation(box.left, box.width, size[1], depth.shape[-1])
    values, valid = depth.as_subclass(torch.Tensor).unbind(-3)
    values = _interpolate(values, rows, columns)
    valid = _reach(_reach(valid, -2, rows), -1, columns)
    return torch.stack((values * valid, valid), dim=-3)


class _Interpolation(NamedTuple):
    """Along one axis and per output point: the two source pixels, the same where one is enough; the second's weight."""

    first: Tensor
    second: Tensor
    weight: Tensor


def _interpolation(start: float, length: float, points: int, pixels: int) -> _Interpolation:
    centres = start + (np.arange(points) + 0.5) * (length / points) - 0.5
    centres = np.clip(centres, 0, pixels - 1)
    first = np.floor(centres)
    weight = (centres - first).astype(np.float32)
    second = np.where(weight > 0, np.minimum(first + 1, pixels - 1), first)
    first, second = (torch.from_numpy(end.astype(np.int64)) for end in (first, second))
    return _Interpolation(first, second, torch.from_numpy(weight))


def _interpolate(values: Tensor, rows: _Interpolation, columns: _Interpolation) -> Tensor:
    between_rows = torch.lerp(
        values.index_select(-2, rows.first), values.index_select(-2, rows.second), rows.weight[:, None]
    )
    return torch.lerp(
        between_rows.index_select(-1, columns.first), between_rows.index_select(-1, columns.second), columns.weight
    )


def _reach(valid: Tensor, axis: int, points: _Interpolation) -> Tensor:
    """Return 1 where both source pixels of a point are valid, 0 elsewhere."""
    return torch.minimum(valid.index_select(axis, points.first), valid.index_select(axis, points.second))


def _cut(array: NDArray[np.uint8], box: Box) -> NDArray[np.uint8]:
    """Copy the box out of an array, which may be a read-only memory map."""
    top, left, height, width = map(int, box)
    return np.array(array[top : top + height, left : left + width])


def _lay(tensor: Any, geometry: Geometry, fill: float) -> Any:
    """Lay a resized tensor on the empty canvas and flip."""
    (height, width), (top, left) = geometry.size, geometry.offset
    if geometry.size != geometry.canvas:
        below, right = geometry.canvas[0] - height - top, geometry.canvas[1] - width - left
        tensor = F.pad(tensor, [left, top, right, below], fill=fill)
    return F.horizontal_flip(tensor) if geometry.flip else tensor


def _normalise(pixels: Tensor, normalisation: Normalisation, jitter: ColourJitter | None) -> Tensor:
    """Turn (N, 3) uint8 RGB to float32, jitter it, subtract the mean and divide by the standard deviation."""
    mean, std = (torch.tensor(values) for values in normalisation)
    colours = pixels.to(torch.float32).mul_(1 / 255)
    if jitter is not None:
        # contrast about the mean grey, saturation about each pixel's grey; both in one pass over the pixels
        strength = jitter.brightness * jitter.contrast
        grey = colours @ torch.tensor(_LUMA)
        middle = jitter.brightness * (1 - jitter.contrast) * grey.mean()
        colours.mul_(strength * jitter.saturation)
        colours.add_(grey.mul_(strength * (1 - jitter.saturation)).add_(middle)[:, None]).clamp_(0, 1)
    return colours.sub_(mean).div_(std)


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

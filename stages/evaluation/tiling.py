"""Predict images larger than memory allows: overlapping windows with mirrored borders, blended where they meet.

On both sides of a seam the logits of the one window go over into the other's, linearly and within the inner half of the
margin, so that whatever is blended was seen with at least half a margin around it. A window's logits become labels
before the next window runs; only the bands along its seams wait for their neighbours. So memory is bounded by a
window, the bands along one row of windows, and the label map.

Source: Ronneberger et al. 2015, section 2 and figure 2, the overlap-tile strategy; the blending is added.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from data_cache.errors import Notice, UserError
from data_cache.sample import SMALLEST_INPUT_PX
from stages.evaluation.forward import Precision, Predicted, predict_labels, resize_depth, resize_logits
from stages.evaluation.views import ONE_VIEW, View, run_views
from stages.networks.framing import mirror_pad
from stages.networks.interface import Network, Outputs

DEFAULT_MARGIN_PX = 64

Prepare = Callable[[Tensor], Tensor]
"""Makes normalised images of what a network is given in pieces, so that only a piece of a large image is floats."""
OnOutputs = Callable[[Outputs], None]
"""Called with the outputs of every forward pass, whole images or tiles; raises where they are unfit."""

_PLAIN = Network()
"""What functions and modules that are no ``Network`` are taken for: one with every default."""


class TiledNetwork(nn.Module):
    """A network that runs in tiles whatever the image size; stands wherever a network is evaluated or predicts.

    Args:
        network: a ``Network``, or a segmentation-only module.
        tile: see ``predict_tiles``.
        margin: see ``predict_tiles``.

    Raises:
        UserError: as ``check_tiling`` does.
    """

    def __init__(self, network: Callable[..., Any], *, tile: int, margin: int) -> None:
        super().__init__()
        check_tiling(tile, margin, network)
        self.network = network
        self.tile, self.margin = tile, margin


def check_tiling(tile: int, margin: int, network: object = None) -> None:
    """Refuse sizes that would shift features against the whole image.

    Raises:
        UserError: tile or margin is too small or no multiple of the network's grid; the message computes the nearest.
    """
    traits = _find_traits(network)
    grid = traits.tile_grid_px
    margin_step = 1 if traits.valid_border_px else grid  # what a network without padding loses is cut by the pixel
    for what, value, least, step in (
        ("tile", tile, max(SMALLEST_INPUT_PX, grid), grid),
        ("margin", margin, 0, margin_step),
    ):
        if value < least or value % step:
            below = max(least, value // grid * grid)
            rule = f"at least {least}" if step == 1 else f"a multiple of {step} and at least {least}"
            raise UserError(f"--{what} {value} must be {rule}; use {below} or {below + grid}")


def predict(
    network: Callable[..., Any],
    images: Tensor,
    size: Sequence[int],
    *,
    precision: Precision = "float32",
    depth: bool = False,
    probabilities: bool = False,
    views: Sequence[View] = ONE_VIEW,
    prepare: Prepare | None = None,
    on_outputs: OnOutputs | None = None,
) -> Predicted:
    """Return labels, and what else is asked for, at ``size``: of the whole images, or of a ``TiledNetwork`` by tiles.

    Args:
        network: a ``Network``, a segmentation-only module or a ``TiledNetwork``, in eval mode.
        images: (B, 3, H, W), normalised unless ``prepare`` does it, on the network's device.
        size: (height, width) of the result; in tiles that of the images.
        precision: of the forward passes.
        depth: whether to run the depth branch.
        probabilities: whether to return those of all classes too, in a byte each.
        views: of which the mean is taken, see ``run_views``.
        prepare: takes what the network is to see at once.
        on_outputs: sees the outputs of each forward pass before they are resized.

    Raises:
        UserError: tiles of images that would have to be resized, or of a network that cannot see them mirrored.
    """
    if not isinstance(network, TiledNetwork):
        ready = images if prepare is None else prepare(images)
        outputs = run_views(network, ready, views, precision=precision, depth=depth)
        if on_outputs is not None:
            on_outputs(outputs)
        assert outputs.seg_logits is not None
        resized = None if outputs.depth is None else resize_depth(outputs.depth, size)
        if not probabilities:
            return Predicted(predict_labels(outputs.seg_logits, size), resized)
        full = resize_logits(outputs.seg_logits, size)
        return Predicted(predict_labels(full, size), resized, compact_probabilities(full))
    if tuple(size) != tuple(images.shape[-2:]):
        raise UserError(
            f"tiles are cut at the size of the images, which are {images.shape[-2]}x{images.shape[-1]} px, but labels "
            f"of {size[0]}x{size[1]} px are wanted; evaluate at the images' own size, or without --tile"
        )
    labels = torch.empty(images.shape[0], *size, dtype=torch.uint8, device=images.device)
    estimated = shares = None
    for tile in predict_tiles(
        network.network,
        images,
        network.tile,
        network.margin,
        precision=precision,
        depth=depth,
        views=views,
        prepare=prepare,
    ):
        if on_outputs is not None:
            on_outputs(tile.outputs)
        logits = tile.outputs.seg_logits
        assert logits is not None
        labels[:, tile.rows, tile.columns] = logits.argmax(dim=1).to(torch.uint8)
        if probabilities:
            shares = labels.new_empty(*logits.shape[:2], *size) if shares is None else shares
            shares[..., tile.rows, tile.columns] = compact_probabilities(logits)
        if tile.outputs.depth is not None:
            estimated = torch.empty(labels.shape, device=images.device) if estimated is None else estimated
            estimated[:, tile.rows, tile.columns] = tile.outputs.depth.float()
    return Predicted(labels, estimated, shares)


def compact_probabilities(seg_logits: Tensor) -> Tensor:
    """Return (B, C, H, W) uint8 softmax of logits; 255 is certain."""
    return seg_logits.float().softmax(dim=1).mul_(255).round_().to(torch.uint8)


class Tile(NamedTuple):
    """What is settled once a window has run: blended with its neighbours above and on the left."""

    rows: slice
    """Where it lies in the image."""
    columns: slice
    outputs: Outputs


@torch.no_grad()
def predict_tiles(
    network: Callable[..., Any],
    images: Tensor,
    tile: int,
    margin: int,
    *,
    precision: Precision = "float32",
    depth: bool = False,
    views: Sequence[View] = ONE_VIEW,
    prepare: Prepare | None = None,
) -> Iterator[Tile]:
    """Run a network window by window; what is yielded covers the images, every pixel once.

    Windows start on the pooling grid of the whole image, the last ones moved back so as to end with the image, and see
    mirrored pixels beyond its borders. ``unet-valid`` gives what it gives on the whole image; networks with padded
    convolutions come closer the wider the margin; networks with global pooling see only their tile and never become
    equal, which is warned about.

    Args:
        network: a ``Network`` or a segmentation-only module, in eval mode and on the device of the images.
        images: (B, 3, H, W), normalised unless ``prepare`` does it.
        tile: side of the centres, px, multiple of the network's ``tile_grid_px``.
        margin: what a window sees on each side of its centre, px, a multiple likewise; for ``unet-valid`` any number,
            of which at least the border that the network loses is used. More than the image's own length is not.
        precision: of the forward passes.
        depth: whether to compute depth.
        views: of each window, see ``run_views``.
        prepare: takes each window.

    Raises:
        UserError: several views of a network without padding, whose border would lie on the wrong side.
    """
    traits = _find_traits(network)
    if traits.valid_border_px and tuple(views) != ONE_VIEW:
        raise UserError(
            f"{type(network).__name__} has no padding, so --tta cannot show it tiles in other views; leave out --tile "
            "or --tta"
        )
    if traits.global_context:
        warnings.warn(
            f"{type(network).__name__} pools over its whole input, so a tile is judged without the rest of its image "
            "and the result differs from the whole image's however wide the margin; use larger tiles or none",
            Notice,
            stacklevel=3,
        )
    height, width = images.shape[-2:]
    vertical, horizontal = (_plan_axis(traits, size, tile, margin) for size in (height, width))
    padded = mirror_pad(images, vertical.before, vertical.end - height, horizontal.before, horizontal.end - width)
    run = network.forward_valid if isinstance(network, Network) else network
    above: list[Outputs | None] = [None] * len(horizontal.starts)
    for row, top in enumerate(vertical.starts):
        left_of: Outputs | None = None
        for column, left in enumerate(horizontal.starts):
            window = padded[..., top : top + vertical.window, left : left + horizontal.window]
            ready = window if prepare is None else prepare(window)
            outputs = run_views(run, ready, views, precision=precision, depth=depth)
            piece = _cut(_cut(outputs, -2, vertical.find_reach(row)), -1, horizontal.find_reach(column))
            settled = horizontal.find_settled(column)
            piece, left_of = _settle(piece, left_of, -1, settled.stop - settled.start)
            rows = vertical.find_settled(row)
            piece, above[column] = _settle(piece, above[column], -2, rows.stop - rows.start)
            yield Tile(rows, settled, piece)


def _cut(outputs: Outputs, dim: int, pixels: slice) -> Outputs:
    """Return the part of the maps at those pixels of an axis, without a copy."""
    return _each(outputs, lambda maps: maps.narrow(dim, pixels.start, pixels.stop - pixels.start))


def _settle(piece: Outputs, before: Outputs | None, dim: int, settled_px: int) -> tuple[Outputs, Outputs | None]:
    """Blend a piece with the band that its neighbour left, and keep back the band that the next one will meet.

    Returns:
        What is settled along the axis, and the band after it, which has memory of its own; None at the end.
    """
    if before is not None:
        piece = Outputs(
            None if piece.seg_logits is None else _blend(before.seg_logits, piece.seg_logits, dim),
            None if piece.depth is None else _blend(before.depth, piece.depth, dim),
        )
    assert piece.seg_logits is not None
    band_px = piece.seg_logits.shape[dim] - settled_px
    band = _each(_cut(piece, dim, slice(settled_px, settled_px + band_px)), Tensor.clone) if band_px else None
    return _cut(piece, dim, slice(0, settled_px)), band


def _blend(before: Tensor | None, maps: Tensor, dim: int) -> Tensor:
    """Return maps whose beginning goes over from what the neighbour before says into what they say themselves."""
    assert before is not None
    length = before.shape[dim]
    ramp = (torch.arange(length, device=maps.device, dtype=maps.dtype) + 0.5) / length
    shape = [1] * maps.ndim
    shape[dim] = length
    band = torch.lerp(before, maps.narrow(dim, 0, length), ramp.view(shape))  # exact where both say the same
    return torch.cat([band, maps.narrow(dim, length, maps.shape[dim] - length)], dim=dim)


def _each(outputs: Outputs, change: Callable[[Tensor], Tensor]) -> Outputs:
    """Return outputs of which every map is changed."""
    depth = None if outputs.depth is None else change(outputs.depth)
    return Outputs(None if outputs.seg_logits is None else change(outputs.seg_logits), depth)


class Axis(NamedTuple):
    """Where the windows of one axis lie. Centre i covers image pixels [starts[i], starts[i] + centre)."""

    size: int
    """Pixels of the image."""
    starts: tuple[int, ...]
    centre: int
    border: int
    """How much shorter than the window the network's output is on each side."""
    halo: int
    """What the network sees besides the border on each side of the centre."""
    after: int
    """Pixels that a window has behind its centre."""

    @property
    def before(self) -> int:
        """Pixels that a window has before its centre."""
        return self.border + self.halo

    @property
    def window(self) -> int:
        """Length of a window."""
        return self.before + self.centre + self.after

    @property
    def end(self) -> int:
        """Image coordinate at which the last window ends."""
        return self.starts[-1] + self.centre + self.after

    @property
    def ramp(self) -> int:
        """Pixels on each side of a seam within which two windows are blended; no two seams' reach each other."""
        return min(self.halo // 2, self.centre // 4)

    def find_seam(self, index: int) -> int:
        """Return the image pixel at which window ``index`` takes over: the middle of where both centres lie."""
        return (self.starts[index - 1] + self.centre + self.starts[index]) // 2

    def find_reach(self, index: int) -> slice:
        """Return where in the network's output for that window lies what is used of it."""
        last = index == len(self.starts) - 1
        start = self.find_seam(index) - self.ramp if index else 0
        stop = self.size if last else min(self.find_seam(index + 1) + self.ramp, self.size)
        moved = self.halo - self.starts[index]
        return slice(start + moved, stop + moved)

    def find_settled(self, index: int) -> slice:
        """Return the image pixels that no later window changes, and that no earlier one has settled."""
        last = index == len(self.starts) - 1
        start = self.find_seam(index) - self.ramp if index else 0
        return slice(start, self.size if last else self.find_seam(index + 1) - self.ramp)


def _plan_axis(traits: Network, size: int, tile: int, margin: int) -> Axis:
    grid, border = traits.tile_grid_px, traits.valid_border_px
    centre = min(tile, _round_up(max(size, SMALLEST_INPUT_PX), grid))
    last = _round_up(max(0, size - centre), grid)
    starts = (*range(0, last, centre), last)
    # Beyond its own length an image shows nothing but its mirror images again; memory is not spent on them.
    halo = min(_round_up(max(0, margin - border), grid), _round_up(size, grid))
    # A network without padding is fed a size that each of its poolings halves evenly.
    return Axis(size, starts, centre, border, halo, after=halo + traits.compute_border_after(halo + centre + halo))


def _find_traits(network: object) -> Network:
    return network if isinstance(network, Network) else _PLAIN


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple

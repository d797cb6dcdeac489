"""Predict images larger than memory allows: overlapping windows with mirrored borders, of which the centres are kept.

A window's logits become labels before the next window runs, so memory is bounded by the windows and the label map.

Source: Ronneberger et al. 2015, section 2 and figure 2, the overlap-tile strategy.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from data_cache.errors import Notice, UserError
from data_cache.sample import SMALLEST_INPUT_PX
from stages.evaluation.forward import Precision, Predicted, predict_labels, resize_depth, run_network
from stages.networks.framing import mirror_pad
from stages.networks.interface import Network, Outputs

DEFAULT_MARGIN_PX = 64

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
    on_outputs: OnOutputs | None = None,
) -> Predicted:
    """Return labels, and depth if asked for, at ``size``: of the whole images, or of a ``TiledNetwork`` tile by tile.

    Args:
        network: a ``Network``, a segmentation-only module or a ``TiledNetwork``, in eval mode.
        images: (B, 3, H, W), normalised, on the network's device.
        size: (height, width) of the result; in tiles that of the images.
        precision: of the forward passes.
        depth: whether to run the depth branch.
        on_outputs: sees the outputs of each forward pass before they are resized.

    Raises:
        UserError: tiles of images that would have to be resized.
    """
    if not isinstance(network, TiledNetwork):
        outputs = run_network(network, images, precision=precision, depth=depth)
        if on_outputs is not None:
            on_outputs(outputs)
        assert outputs.seg_logits is not None
        resized = None if outputs.depth is None else resize_depth(outputs.depth, size)
        return Predicted(predict_labels(outputs.seg_logits, size), resized)
    if tuple(size) != tuple(images.shape[-2:]):
        raise UserError(
            f"tiles are cut at the size of the images, which are {images.shape[-2]}x{images.shape[-1]} px, but labels "
            f"of {size[0]}x{size[1]} px are wanted; evaluate at the images' own size, or without --tile"
        )
    labels = torch.empty(images.shape[0], *size, dtype=torch.uint8, device=images.device)
    estimated = None
    for tile in predict_tiles(network.network, images, network.tile, network.margin, precision=precision, depth=depth):
        if on_outputs is not None:
            on_outputs(tile.outputs)
        assert tile.outputs.seg_logits is not None
        labels[:, tile.rows, tile.columns] = tile.outputs.seg_logits.argmax(dim=1).to(torch.uint8)
        if tile.outputs.depth is not None:
            estimated = torch.empty(labels.shape, device=images.device) if estimated is None else estimated
            estimated[:, tile.rows, tile.columns] = tile.outputs.depth.float()
    return Predicted(labels, estimated)


class Tile(NamedTuple):
    """The kept centre of one window."""

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
) -> Iterator[Tile]:
    """Run a network window by window; the centres that are yielded cover the images.

    Windows start on the pooling grid of the whole image, the last ones moved back so as to end with the image, and see
    mirrored pixels beyond its borders. ``unet-valid`` gives what it gives on the whole image; networks with padded
    convolutions come closer the wider the margin; networks with global pooling see only their tile and never become
    equal, which is warned about.

    Args:
        network: a ``Network`` or a segmentation-only module, in eval mode and on the device of the images.
        images: (B, 3, H, W), normalised.
        tile: side of the centres, px, multiple of the network's ``tile_grid_px``.
        margin: what a window sees on each side of its centre, px, a multiple likewise; for ``unet-valid`` any number,
            of which at least the border that the network loses is used. More than the image's own length is not.
        precision: of the forward passes.
        depth: whether to compute depth.
    """
    traits = _find_traits(network)
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
    for top, left in product(vertical.starts, horizontal.starts):
        window = padded[..., top : top + vertical.window, left : left + horizontal.window]
        outputs = run_network(run, window, precision=precision, depth=depth)
        rows, columns = vertical.locate(top, height), horizontal.locate(left, width)
        kept = (..., vertical.find_centre(rows), horizontal.find_centre(columns))
        assert outputs.seg_logits is not None
        yield Tile(
            rows,
            columns,
            Outputs(outputs.seg_logits[kept], None if outputs.depth is None else outputs.depth[kept]),
        )


class Axis(NamedTuple):
    """Where the windows of one axis lie. Centre i covers image pixels [starts[i], starts[i] + centre)."""

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

    def locate(self, start: int, size: int) -> slice:
        """Return the image pixels of the centre that starts there."""
        return slice(start, min(start + self.centre, size))

    def find_centre(self, pixels: slice) -> slice:
        """Return where those pixels lie in the network's output for their window."""
        return slice(self.halo, self.halo + pixels.stop - pixels.start)


def _plan_axis(traits: Network, size: int, tile: int, margin: int) -> Axis:
    grid, border = traits.tile_grid_px, traits.valid_border_px
    centre = min(tile, _round_up(max(size, SMALLEST_INPUT_PX), grid))
    last = _round_up(max(0, size - centre), grid)
    starts = (*range(0, last, centre), last)
    # Beyond its own length an image shows nothing but its mirror images again; memory is not spent on them.
    halo = min(_round_up(max(0, margin - border), grid), _round_up(size, grid))
    # A network without padding is fed a size that each of its poolings halves evenly.
    return Axis(starts, centre, border, halo, after=halo + traits.compute_border_after(halo + centre + halo))


def _find_traits(network: object) -> Network:
    return network if isinstance(network, Network) else _PLAIN


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple

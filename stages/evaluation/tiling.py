"""Predict pictures larger than memory allows: overlapping windows with mirrored borders, of which the centres are kept.

Source: Ronneberger et al. 2015, section 2 and figure 2, the overlap-tile strategy.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from data_cache.errors import UserError
from data_cache.sample import SMALLEST_INPUT_PX
from stages.evaluation.evaluate import takes_branches
from stages.networks.framing import mirror_pad
from stages.networks.interface import Outputs

GRID_PX = 32
"""Windows start on multiples of the coarsest encoder stride, or features would be sampled elsewhere than in the whole.

Networks with another stride say so in ``tile_grid_px``.
"""
DEFAULT_MARGIN_PX = 64


class TiledNetwork(nn.Module):
    """A network that runs in tiles whatever the image size; stands wherever a network is evaluated or predicts.

    Args:
        network: a ``Network``, or a segmentation-only module.
        tile: see ``predict_tiled``.
        margin: see ``predict_tiled``.

    Raises:
        UserError: as ``check_tiling`` does.
    """

    def __init__(self, network: Callable[..., Any], *, tile: int, margin: int) -> None:
        super().__init__()
        check_tiling(tile, margin, network)
        self.network = network
        self.tile, self.margin = tile, margin

    def forward(self, images: Tensor, *, seg: bool = True, depth: bool = True) -> Outputs:
        """Return the network's outputs at the size of the images."""
        return predict_tiled(self.network, images, tile=self.tile, margin=self.margin, seg=seg, depth=depth)


def check_tiling(tile: int, margin: int, network: object = None) -> None:
    """Refuse sizes that would shift features against the whole image.

    Raises:
        UserError: tile or margin is too small or no multiple of the network's grid; the message computes the nearest.
    """
    grid = _get_grid_px(network)
    margin_step = 1 if _get_border_px(network) else grid  # what a network eats is cut by the pixel
    for what, value, least, step in (
        ("tile", tile, max(SMALLEST_INPUT_PX, grid), grid),
        ("margin", margin, 0, margin_step),
    ):
        if value < least or value % step:
            below = max(least, value // grid * grid)
            rule = f"at least {least}" if step == 1 else f"a multiple of {step} and at least {least}"
            raise UserError(f"--{what} {value} must be {rule}; use {below} or {below + grid}")


@torch.no_grad()
def predict_tiled(
    network: Callable[..., Any], images: Tensor, *, tile: int, margin: int, seg: bool = True, depth: bool = False
) -> Outputs:
    """Run a network window by window and put the windows' centres together.

    Windows start on the pooling grid of the whole image, the last ones moved back so as to end with the image, and see
    mirrored pixels beyond its borders. ``unet-valid`` gives what it gives on the whole image; networks with padded
    convolutions come closer the wider the margin; networks with global pooling see only their tile and never become
    equal, which is warned about.

    Args:
        network: a ``Network`` or a segmentation-only module, in eval mode and on the device of the images.
        images: (B, 3, H, W), normalised.
        tile: side of the centres, px, multiple of the network's ``tile_grid_px``.
        margin: what a window sees on each side of its centre, px, a multiple likewise; for ``unet-valid`` any number,
            of which at least the border that the network eats is used. More than the image's own length is not.
        seg: whether to compute segmentation logits.
        depth: whether to compute depth.

    Returns:
        Outputs at the size of the images.

    Raises:
        UserError: as ``check_tiling`` does.
    """
    check_tiling(tile, margin, network)
    _warn_about_global_context(network)
    height, width = images.shape[-2:]
    rows, columns = (_plan_axis(network, size, tile, margin) for size in (height, width))
    padded = mirror_pad(images, rows.before, rows.end - height, columns.before, columns.end - width)
    seg_logits, inverse_depth = None, None
    for top, left in product(rows.starts, columns.starts):
        window = padded[..., top : top + rows.window, left : left + columns.window]
        outputs = _run_window(network, window, seg=seg, depth=depth)
        seg_logits = _paste(seg_logits, outputs.seg_logits, rows, columns, top, left)
        inverse_depth = _paste(inverse_depth, outputs.depth, rows, columns, top, left)
    return Outputs(
        None if seg_logits is None else seg_logits[..., :height, :width],
        None if inverse_depth is None else inverse_depth[..., :height, :width],
    )


class Axis(NamedTuple):
    """Where the windows of one axis lie. Centre i covers image pixels [starts[i], starts[i] + centre)."""

    starts: tuple[int, ...]
    centre: int
    before: int
    """Pixels that a window has before its centre."""
    after: int
    eaten: int
    """How much shorter than the window the network's output is on each side."""

    @property
    def window(self) -> int:
        """Length of a window."""
        return self.before + self.centre + self.after

    @property
    def end(self) -> int:
        """Image coordinate at which the last window ends."""
        return self.starts[-1] + self.centre + self.after


def _plan_axis(network: Any, size: int, tile: int, margin: int) -> Axis:
    grid, eaten = _get_grid_px(network), _get_border_px(network)
    centre = min(tile, _round_up(size, grid))
    last = _round_up(size - centre, grid)
    starts = (*range(0, last, centre), last)
    # Beyond its own length an image shows nothing but its mirror images again; memory is not spent on them.
    spare = min(_round_up(max(0, margin - eaten), grid), _round_up(size, grid))
    # A network without padding is fed a size that each of its poolings halves evenly.
    after = network.compute_border_after(spare + centre + spare) if eaten else 0
    return Axis(starts, centre, before=eaten + spare, after=spare + after, eaten=eaten)


def _run_window(network: Any, window: Tensor, *, seg: bool, depth: bool) -> Outputs:
    if _get_border_px(network):
        return network.forward_valid(window, seg=seg, depth=depth)
    if takes_branches(network):
        return network(window, seg=seg, depth=depth)
    return Outputs(network(window), None)


def _paste(whole: Tensor | None, part: Tensor | None, rows: Axis, columns: Axis, top: int, left: int) -> Tensor | None:
    """Put the centre of one window's output at its place; the first call makes the canvas."""
    if part is None:
        return None
    if whole is None:
        size = (rows.starts[-1] + rows.centre, columns.starts[-1] + columns.centre)
        whole = part.new_empty(*part.shape[:-2], *size)
    row, column = rows.before - rows.eaten, columns.before - columns.eaten
    centre = part[..., row : row + rows.centre, column : column + columns.centre]
    whole[..., top : top + rows.centre, left : left + columns.centre] = centre
    return whole


def _warn_about_global_context(network: object) -> None:
    if getattr(network, "global_context", False):
        warnings.warn(
            f"{type(network).__name__} pools over its whole input, so a tile is judged without the rest of its image "
            "and the result differs from the whole image's however wide the margin; use larger tiles or none",
            stacklevel=3,
        )


def _get_grid_px(network: object) -> int:
    return int(getattr(network, "tile_grid_px", GRID_PX))


def _get_border_px(network: object) -> int:
    """Return how many pixels a side the network's ``forward_valid`` eats; 0 when it has none."""
    return int(getattr(network, "valid_border_px", 0))


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple

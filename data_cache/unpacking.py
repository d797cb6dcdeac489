"""From what travels to what is computed with: a packed batch, brought to the device and made floats there.

Nothing here waits for the device, and every number is that of its own image: neither the other images of the batch nor
the number of threads changes a bit.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.transforms.v2.functional import gaussian_blur

from data_cache.sample import Batch, PackedBatch

Normalisation = tuple[tuple[float, float, float], tuple[float, float, float]]
"""Mean and standard deviation per channel of RGB in [0, 1]; ``stages.networks.interface.Normalisation`` is one."""

_BLUR_PX = 7
"""Side of the kernel that blurs: Gaussians of up to 1.15 px need no larger one."""
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, what "grey" means to torchvision and Pillow too


def unpack(packed: PackedBatch, normalisation: Normalisation, device: torch.device) -> Batch:
    """Return a batch on the device: colours jittered and normalised, labels and depth widened.

    Args:
        normalisation: mean and standard deviation that the network expects.
        device: where to compute; from page-locked memory the transfer goes on behind the caller's back.
    """
    images, labels, depth, placed, jitter = (
        None if tensor is None else tensor.to(device, non_blocking=True) for tensor in packed.tensors
    )
    assert images is not None
    assert labels is not None
    mean, std = (_upload(values, device) for values in normalisation)
    colours = images.permute(0, 2, 3, 1).to(torch.float32, copy=True).mul_(1 / 255)  # (B, H, W, 3), as it lies
    if jitter is not None:
        _jitter(colours, jitter, _compute_mean_grey(images, placed))
    colours.sub_(mean).div_(std)
    inside = None if placed is None else find_inside(placed, images.shape[-2:])
    if inside is not None:
        colours.masked_fill_(~inside[..., None], 0.0)
    widened = None if depth is None else depth.to(torch.float32)
    valid = None if widened is None else ~widened.isnan()
    return Batch(
        packed.image_ids,
        colours.permute(0, 3, 1, 2),
        labels.long(),
        None if widened is None or valid is None else widened.where(valid, 0.0),
        valid,
        inside,
        len(packed.image_ids) if packed.num_labelled is None else packed.num_labelled,
    )


def restyle(
    images: Tensor, inside: Tensor, normalisation: Normalisation, *, jitter: Tensor, blurred: Tensor, sigma: float
) -> Tensor:
    """Return images of a batch with other colours, and some of them blurred.

    Args:
        images: (B, 3, H, W), normalised.
        inside: (B, H, W) bool; elsewhere the canvas is empty, and stays it.
        normalisation: by which they are normalised.
        jitter: (B, 3) float32, as in ``PackedBatch``.
        blurred: (B,) bool.
        sigma: of the Gaussian that blurs, px.
    """
    mean, std = (_upload(values, images.device) for values in normalisation)
    colours = images.permute(0, 2, 3, 1).mul(std).add_(mean)
    greys = (colours @ _upload(_LUMA, images.device)).where(inside, 0.0)
    _jitter(colours, jitter, greys.sum((1, 2)) / inside.sum((1, 2)).clamp_min(1))
    smooth = gaussian_blur(colours.permute(0, 3, 1, 2), [_BLUR_PX, _BLUR_PX], [sigma, sigma]).permute(0, 2, 3, 1)
    colours = torch.where(blurred[:, None, None, None], smooth, colours).sub_(mean).div_(std)
    return colours.masked_fill_(~inside[..., None], 0.0).permute(0, 3, 1, 2)


def _upload(values: tuple[float, float, float], device: torch.device) -> Tensor:
    return torch.tensor(values).to(device, non_blocking=True)


def _compute_mean_grey(images: Tensor, placed: Tensor | None) -> Tensor:
    """Return (B,) the mean grey of each image in [0, 1], without the empty canvas around it."""
    batch, _, height, width = images.shape
    # Whole numbers add up to the same in every order. The canvas is 0, so only the count must leave it out.
    columns = images.permute(0, 2, 3, 1).reshape(batch, height, width * 3).sum(1, dtype=torch.int32)
    sums = columns.view(batch, width, 3).sum(1, dtype=torch.int64)
    pixels = height * width if placed is None else placed[:, 2].long() * placed[:, 3]
    return (sums.double() @ _upload(_LUMA, images.device).double() / (255 * pixels)).float()


def _jitter(colours: Tensor, jitter: Tensor, mean_grey: Tensor) -> None:
    """Change (B, H, W, 3) colours in place: brightness, contrast about the image's mean grey, saturation about each
    pixel's; one affine map of the pixels."""
    brightness, contrast, saturation = jitter[:, :, None, None, None].unbind(1)
    strength = brightness * contrast
    middle = brightness * (1 - contrast) * mean_grey[:, None, None, None]
    grey = (colours @ _upload(_LUMA, colours.device))[..., None]
    colours.mul_(strength * saturation).add_(grey.mul_(strength * (1 - saturation)).add_(middle)).clamp_(0, 1)


def find_inside(placed: Tensor, size: tuple[int, ...]) -> Tensor:
    """Return (B, H, W) bool: where a canvas of that size is covered by its (B, 4) top, left, height and width."""
    top, left, height, width = placed.unbind(1)
    rows, columns = (torch.arange(side, device=placed.device) for side in size)
    inside_rows = (rows >= top[:, None]) & (rows < (top + height)[:, None])
    inside_columns = (columns >= left[:, None]) & (columns < (left + width)[:, None])
    return inside_rows[:, :, None] & inside_columns[:, None, :]

"""Tiles: equal to the whole where the margin covers the receptive field, closer to it the wider the margin."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from data_cache.errors import UserError
from stages.evaluation.tiling import segment_tiled


def random_image(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def convolve(layers: int, dilation: int = 1):
    """A stack of 3×3 convolutions of receptive radius ``layers * dilation``, the border mirrored as tiles have it."""
    torch.manual_seed(0)
    pad = layers * dilation
    net = nn.Sequential(*[nn.Conv2d(3 if n == 0 else 6, 6, 3, dilation=dilation) for n in range(layers)])

    def segment(image):
        pixels = torch.from_numpy(np.pad(image, ((pad, pad), (pad, pad), (0, 0)), mode="reflect")).permute(2, 0, 1)
        with torch.no_grad():
            return net(pixels[None].double().to(torch.float32) / 255).argmax(1)[0].to(torch.uint8).numpy()

    return segment


@pytest.mark.parametrize("size", [(128, 160), (65, 201), (97, 70), (20, 300)])
def test_equals_the_whole_when_the_margin_covers_the_receptive_radius(size):
    segment, image = convolve(layers=3), random_image(*size)
    assert (segment_tiled(segment, image, tile=64, margin=32) == segment(image)).mean() > 0.9999  # ties may round apart


def test_wider_margins_come_closer():
    segment, image = convolve(layers=3, dilation=24), random_image(192, 256)
    whole = segment(image)
    wrong = [(segment_tiled(segment, image, tile=64, margin=margin) != whole).mean() for margin in (0, 32, 64, 96)]
    assert wrong == sorted(wrong, reverse=True)
    assert wrong[0] > 0.05 > wrong[-1]


def test_images_smaller_than_the_margin_are_mirrored_again():
    assert segment_tiled(lambda window: window[..., 0], random_image(3, 5), tile=64, margin=64).shape == (3, 5)


def test_every_pixel_lands_in_its_place():
    image = random_image(70, 230)
    assert np.array_equal(segment_tiled(lambda window: window[..., 1], image, tile=96, margin=32), image[..., 1])


@pytest.mark.parametrize(
    ("tile", "margin", "match"),
    [(500, 64, "use 480 or 512"), (512, 40, "--margin 40 .* use 32 or 64"), (32, 0, "use 64 or 96")],
)
def test_sizes_off_the_grid_are_refused_with_the_nearest(tile, margin, match):
    with pytest.raises(UserError, match=match):
        segment_tiled(lambda window: window[..., 0], random_image(64, 64), tile=tile, margin=margin)

"""Sizes and coordinates: against transformers' own size rule, against ramps, against a case computed by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate
from transformers.models.dpt.image_processing_dpt import get_resize_output_image_size

from stages.pseudo_depth.geometry import compute_input_size, resize_image


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ((375, 500), (392, 518)),
        ((500, 333), (518, 350)),
        ((360, 480), (392, 518)),
        ((720, 960), (518, 686)),
        ((1024, 2048), (518, 1036)),
        ((375, 1242), (518, 1722)),
    ],
)
def test_input_sizes_are_those_of_depth_anything(source, expected):
    assert compute_input_size(source, recommended=518, multiple=14) == expected


def test_input_size_agrees_with_transformers_for_any_size():
    rng = np.random.default_rng(0)
    for _ in range(300):
        height, width = (int(side) for side in rng.integers(64, 2000, 2))
        theirs = get_resize_output_image_size(torch.empty(3, height, width), (518, 518), True, 14)
        ours = compute_input_size((height, width), recommended=518, multiple=14)
        assert ours == (theirs["height"], theirs["width"]), (height, width)


def test_a_sliver_still_gets_one_patch():
    assert compute_input_size((4, 2000), recommended=98, multiple=14)[0] == 14


@pytest.mark.parametrize("source", [(375, 500), (256, 512)])
def test_image_to_map_and_back_moves_nothing(source):
    """A padded input stretched back moves content by 1.6 px on VOC sizes; resizing to the exact multiple by none."""
    ramp = np.broadcast_to(np.linspace(20, 230, source[1]), source)
    image = np.repeat(ramp[..., None], 3, 2).round().astype(np.uint8)
    small = resize_image(image, compute_input_size(source, recommended=252, multiple=28))
    back = interpolate(small[None, :1].float(), size=source, mode="bilinear", align_corners=False)[0, 0].numpy()
    grey_per_px = 210 / source[1]
    error_px = np.abs(back - ramp)[:, 8:-8] / grey_per_px
    assert error_px.mean() < 0.75 / grey_per_px * 0.5  # rounding to whole greys alone is up to half a grey
    shift_px = ((back - ramp)[:, 8:-8] / grey_per_px).mean()
    assert abs(shift_px) < 0.1


def test_resize_image_leaves_an_image_of_the_right_size_alone(image):
    assert torch.equal(resize_image(image, (60, 84)), torch.from_numpy(image).permute(2, 0, 1))

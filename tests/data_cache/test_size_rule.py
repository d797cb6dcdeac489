"""At what size images enter: one rule for everything that runs a model."""

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from torch.nn.functional import interpolate

from data_cache.errors import UserError
from data_cache.size_rule import ORIGINAL, SizeRule, fixed_size


@pytest.mark.parametrize(
    ("rule", "image", "enters"),
    [
        (ORIGINAL, (64, 65), (64, 65)),
        (ORIGINAL, (32, 50), (64, 100)),
        (ORIGINAL, (201, 33), (390, 64)),
        (fixed_size((96, 128)), (96, 128), (96, 128)),
        (fixed_size((96, 128)), (300, 5), (96, 128)),
    ],
    ids=str,
)
def test_an_image_enters_as_torch_and_pillow_resize_it_unrounded(rule, image, enters):
    pixels = np.random.default_rng(0).integers(0, 256, (*image, 3), dtype=np.uint8)
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)[None].float()
    expected = interpolate(tensor, enters, mode="bilinear", antialias=True)[0].permute(1, 2, 0).numpy()
    assert rule.choose_input(*image) == enters
    np.testing.assert_allclose(rule.fit(pixels), expected, rtol=0, atol=0.01)
    rounded = np.array(Image.fromarray(pixels).resize(enters[::-1], Image.Resampling.BILINEAR))
    assert np.abs(rule.fit(pixels) - rounded).max() <= 1


def test_what_would_become_endless_is_refused_and_nonsense_is_no_rule():
    with pytest.raises(UserError, match=r"2 x 1000 px is too thin.*32,000 px long; cut it"):
        ORIGINAL.choose_input(1000, 2)
    for nonsense in ({"kind": "fixed"}, {"kind": "original", "input_size": (64, 64)}, {"kind": "any"}):
        with pytest.raises(ValidationError):
            SizeRule(**nonsense)

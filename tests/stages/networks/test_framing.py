"""Mirroring and padding."""

from __future__ import annotations

import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from stages.networks.framing import mirror_pad, pad_to_multiple
from stages.networks.pspnet import pool_regions


def draw_images(height, width):
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("margins", [(0, 0, 0, 0), (3, 1, 0, 7), (8, 8, 9, 9)])
def test_mirror_equals_torchs_reflection_where_torch_has_one(margins):
    top, bottom, left, right = margins
    images = draw_images(9, 10)
    assert torch.equal(mirror_pad(images, *margins), F.pad(images, (left, right, top, bottom), mode="reflect"))


def test_wide_margins_mirror_the_mirror():
    """As often as it takes: whole reflections one after the other, the last one cut."""
    images = draw_images(4, 5)
    expected = images
    for _ in range(3):
        expected = F.pad(expected, (expected.shape[-1] - 1, 0, expected.shape[-2] - 1, 0), mode="reflect")
    rows, columns = expected.shape[-2] - 4, expected.shape[-1] - 5
    assert torch.equal(mirror_pad(images, rows, 0, columns, 0), expected)


def test_one_pixel_is_repeated():
    assert torch.equal(mirror_pad(draw_images(1, 1), 2, 3, 4, 0), draw_images(1, 1).expand(2, 3, 6, 5))


@pytest.mark.parametrize(("size", "expected"), [((64, 96), (64, 96)), ((65, 33), (96, 64)), ((1, 70), (32, 96))])
def test_padding_reaches_the_next_multiple_and_keeps_the_image(size, expected):
    images = draw_images(*size)
    padded = pad_to_multiple(images, 32)
    assert padded.shape[-2:] == expected
    assert torch.equal(padded[..., : size[0], : size[1]], images)


def test_nothing_is_copied_when_nothing_is_missing():
    images = draw_images(64, 32)
    assert pad_to_multiple(images, 32) is images


class _PadAndPool(nn.Module):
    def forward(self, images):
        padded = pad_to_multiple(images, 32)
        return mirror_pad(padded, 92, 92, 92, 92), pool_regions(padded, 6)


def test_mirroring_and_region_pooling_export_with_sizes_left_open(tmp_path):
    axes = {2: torch.export.Dim("height", min=64), 3: torch.export.Dim("width", min=64)}
    file = tmp_path / "model.onnx"
    torch.onnx.export(
        _PadAndPool().eval(), (draw_images(96, 128),), file, dynamo=True, verbose=False, dynamic_shapes={"images": axes}
    )
    session = onnxruntime.InferenceSession(file)
    for size in ((96, 128), (64, 64), (113, 97), (160, 192)):
        images = draw_images(*size)
        found = session.run(None, {session.get_inputs()[0].name: images.numpy()})
        for array, expected in zip(found, _PadAndPool()(images), strict=True):
            torch.testing.assert_close(torch.from_numpy(array), expected, atol=1e-6, rtol=0)

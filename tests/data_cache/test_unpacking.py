"""Unpacking gives the numbers that the float path of a single image gives: it and torchvision are the oracles."""

import numpy as np
import pytest
import torch
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F

from data_cache.sample import IGNORE_INDEX, PackedBatch
from data_cache.unpacking import unpack

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
PLAIN = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
CPU = torch.device("cpu")
PLACED = ((0, 0, 12, 20), (3, 5, 7, 9), (5, 0, 1, 20))


def draw(placed=PLACED, jitter=None, low=0, high=256):
    """Images laid on canvases of 12 x 20 px, and what is shown there."""
    rng = np.random.default_rng(0)
    shown = [rng.integers(low, high, (height, width, 3), np.uint8) for _, _, height, width in placed]
    canvases = np.zeros((len(placed), 12, 20, 3), np.uint8)
    for canvas, image, (top, left, height, width) in zip(canvases, shown, placed, strict=True):
        canvas[top : top + height, left : left + width] = image
    images = torch.from_numpy(canvases).permute(0, 3, 1, 2)
    depth = torch.rand(images[:, 0].shape, generator=torch.Generator().manual_seed(1)).half()
    depth[:, 2:4] = torch.nan
    packed = PackedBatch(
        tuple(map(str, range(len(placed)))),
        images,
        torch.from_numpy(rng.choice(np.array([0, 3, IGNORE_INDEX], np.uint8), images[:, 0].shape)),
        depth,
        torch.tensor(placed, dtype=torch.int32),
        None if jitter is None else torch.tensor(jitter),
    )
    return packed, shown


def compute_by_hand(image, place, normalisation, jitter=None):
    """Return (12, 20, 3): an image by itself, in float64; jittered, normalised, then padded with 0."""
    colours = image / 255
    if jitter is not None:
        brightness, contrast, saturation = jitter
        colours = colours * brightness
        mean_grey = (colours @ (0.299, 0.587, 0.114)).mean()
        colours = contrast * colours + (1 - contrast) * mean_grey
        grey = (colours @ (0.299, 0.587, 0.114))[..., None]
        colours = (saturation * colours + (1 - saturation) * grey).clip(0, 1)
    canvas = np.zeros((12, 20, 3))
    top, left, height, width = place
    canvas[top : top + height, left : left + width] = (colours - normalisation[0]) / normalisation[1]
    return canvas


JITTER = ((1.3, 0.7, 1.2), (0.8, 1.4, 0.0), (1.0, 2.0, 2.0))


@pytest.mark.parametrize("jitter", [None, JITTER], ids=["plain", "jitter"])
@pytest.mark.parametrize("placed", [PLACED, ((0, 0, 12, 20),) * 3], ids=["padded", "whole"])
def test_images_are_those_of_the_float_path(placed, jitter):
    packed, shown = draw(placed, jitter)
    found = unpack(packed, IMAGENET, CPU).images
    assert found.is_contiguous(memory_format=torch.channels_last)
    for number, image in enumerate(shown):
        expected = compute_by_hand(image, placed[number], IMAGENET, jitter and jitter[number])
        np.testing.assert_allclose(found[number].permute(1, 2, 0), expected, atol=5e-6)


def test_without_jitter_the_bits_are_those_of_the_float_path():
    packed, shown = draw(((0, 0, 12, 20),))
    mean, std = (torch.tensor(values) for values in IMAGENET)
    expected = torch.from_numpy(shown[0]).float().mul_(1 / 255).sub_(mean).div_(std)
    assert torch.equal(unpack(packed, IMAGENET, CPU).images[0].permute(1, 2, 0), expected)


def test_jitter_against_torchvision():
    packed, shown = draw(((0, 0, 12, 20),), ((1.2, 0.8, 1.3),), low=60, high=180)  # far from clipping
    expected = F.to_dtype(tv_tensors.Image(shown[0].transpose(2, 0, 1)), torch.float32, scale=True)
    expected = F.adjust_saturation(F.adjust_contrast(F.adjust_brightness(expected, 1.2), 0.8), 1.3)
    found = unpack(packed, PLAIN, CPU).images[0]
    torch.testing.assert_close(found, expected.as_subclass(torch.Tensor), atol=2e-3, rtol=0)


def test_an_image_is_the_same_in_any_company():
    """The rows of a batch may be those of another process, and threads may add up in another order."""
    packed, _ = draw(jitter=JITTER)
    together = unpack(packed, IMAGENET, CPU)
    for row in range(3):
        alone = unpack(PackedBatch((str(row),), *(field[row : row + 1] for field in packed.tensors)), IMAGENET, CPU)
        for one, all_of_them in zip(alone.tensors, together.tensors, strict=True):
            assert torch.equal(one[0], all_of_them[row])


def test_labels_and_depth_are_widened():
    packed, _ = draw()
    batch = unpack(packed, IMAGENET, CPU)
    assert batch.image_ids == packed.image_ids
    assert batch.seg_labels.dtype == torch.int64 and batch.inverse_depth.dtype == torch.float32
    assert torch.equal(batch.seg_labels, packed.seg_labels.long())
    assert torch.equal(batch.depth_valid, ~packed.inverse_depth.isnan())
    assert torch.equal(batch.inverse_depth, packed.inverse_depth.nan_to_num(0.0).float())
    without = unpack(packed._replace(inverse_depth=None), IMAGENET, CPU)
    assert without.inverse_depth is None and without.depth_valid is None


def test_the_packed_batch_is_left_alone():
    packed, _ = draw(jitter=JITTER)
    before = [field.clone() for field in packed.tensors]
    unpack(packed, IMAGENET, CPU)
    assert all(
        torch.equal(one.nan_to_num(7), other.nan_to_num(7)) for one, other in zip(packed.tensors, before, strict=True)
    )


def test_nothing_waits_for_the_device():
    """A number that the host needs would have to be computed, and a fake tensor has none."""
    packed, _ = draw(jitter=JITTER)
    with torch._subclasses.FakeTensorMode() as mode:
        fake = PackedBatch(packed.image_ids, *map(mode.from_tensor, packed.tensors))
        batch = unpack(fake, IMAGENET, torch.device("cuda"))
    assert {field.device.type for field in batch.tensors} == {"cuda"}
    assert batch.images.shape == (3, 3, 12, 20) and batch.images.is_contiguous(memory_format=torch.channels_last)

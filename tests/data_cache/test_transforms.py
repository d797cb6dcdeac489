"""Laws of the joint geometry: image, labels and depth stay together, void stays void, invalid depth bleeds nowhere."""

import math

import numpy as np
import pytest
import torch
import torchvision.transforms.v2 as v2
from torch.nn.functional import interpolate
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F

from data_cache.sample import IGNORE_INDEX
from data_cache.transforms import (
    AugmentationSettings,
    Box,
    ColourJitter,
    Depth,
    Geometry,
    cut_window,
    draw_colour_jitter,
    draw_geometry,
    join_depth,
    resample_depth,
    to_map_box,
    transform_depth,
    transform_image,
    transform_labels,
)

PLAIN = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def whole(source, target, flip=False):
    return Geometry(Box(0, 0, *source), target, (0, 0), target, flip)


def draw(seed, shape):
    return torch.from_numpy(np.random.default_rng(seed).uniform(0, 1, shape).astype(np.float32))


def resample(depth, valid, box, size):
    values, found = resample_depth(join_depth(depth, valid), box, size).unbind(-3)
    return values, found > 0


def everywhere(depth):
    return torch.ones(depth.shape, dtype=torch.bool)


@pytest.mark.parametrize("size", [(7, 9), (20, 33), (12, 16), (5, 40)], ids=str)
def test_depth_without_gaps_is_plain_bilinear(size):
    depth = draw(0, (12, 16))
    expected = interpolate(depth[None, None], size, mode="bilinear", align_corners=False)[0, 0]
    values, valid = resample(depth, everywhere(depth), Box(0, 0, 12, 16), size)
    torch.testing.assert_close(values, expected)
    assert valid.all()
    torch.testing.assert_close(F.resize(join_depth(depth, everywhere(depth)), list(size))[0], expected)


def feeding_pixels(start, length, points, pixels):
    """For each point along an axis the source pixels with weight in bilinear interpolation, by its definition."""
    centres = np.clip(start + (np.arange(points) + 0.5) * length / points - 0.5, 0, pixels - 1)
    return [[pixel for pixel in range(pixels) if abs(pixel - centre) < 1] for centre in centres]


@pytest.mark.parametrize("size", [(7, 9), (24, 32), (50, 21), (12, 16), (4, 8)], ids=str)
@pytest.mark.parametrize("box", [Box(0, 0, 12, 16), Box(2.5, 3, 7.25, 11)], ids=["whole", "part"])
def test_a_pixel_is_valid_exactly_when_all_that_feed_it_are(size, box):
    depth, valid = draw(0, (12, 16)), draw(1, (12, 16)) > 0.1
    valid[0, :5] = False
    depth[~valid] = math.nan  # what lies there never matters
    values, found = resample(depth, valid, box, size)
    rows = feeding_pixels(box.top, box.height, size[0], 12)
    columns = feeding_pixels(box.left, box.width, size[1], 16)
    expected = torch.tensor([[bool(valid[row][:, column].all()) for column in columns] for row in rows])
    assert torch.equal(found, expected)
    assert 0.2 < found.float().mean() < 1
    assert (values[~found] == 0).all() and values.isfinite().all()
    bilinear, _ = resample(depth.nan_to_num(nan=0.0), everywhere(depth), box, size)
    torch.testing.assert_close(values[found], bilinear[found])


def test_a_window_of_the_map_is_as_good_as_the_map():
    rng = np.random.default_rng(0)
    depth = join_depth(draw(2, (30, 41)), draw(3, (30, 41)) > 0.05).as_subclass(torch.Tensor)
    for _ in range(50):
        top, left = rng.uniform(0, 20), rng.uniform(0, 30)
        box = Box(top, left, rng.uniform(0.5, 30 - top), rng.uniform(0.5, 41 - left))
        window, inside = cut_window(box, (30, 41))
        found = resample_depth(depth[..., window[0], window[1]], inside, (9, 11))
        torch.testing.assert_close(found, resample_depth(depth, box, (9, 11)))


def _steps_at(row, column, shape, seen=1):
    """A scene in four quarters with its corner at a fraction of the frame."""
    ys = (np.arange(shape[0]) + 0.5) / shape[0] >= row
    xs = (np.arange(shape[1]) + 0.5) / shape[1] >= column
    return (2 * ys[:, None] + xs[None]).astype(np.uint8) * seen


@pytest.mark.parametrize("map_size", [(98, 126), (60, 80), (41, 53)], ids=str)
@pytest.mark.parametrize("seed", range(12))
def test_edges_stay_together(seed, map_size):
    """A step in image, labels and a depth map of another resolution lies within a pixel after crop, scale and flip."""
    rng = np.random.default_rng(seed)
    image_size = (96, 120)
    row, column = rng.uniform(0.3, 0.7, 2)
    labels = _steps_at(row, column, image_size)
    geometry = draw_geometry(AugmentationSettings(crop=(64, 80), scale=(0.5, 2.0), flip=0.5), image_size, rng)
    laid_labels = transform_labels(labels, geometry)
    laid_image = transform_image(np.repeat(labels[..., None] * np.uint8(80), 3, 2), geometry, PLAIN)[0] * 255 / 80
    depth = torch.from_numpy(_steps_at(row, column, map_size).astype(np.float32))
    box = to_map_box(geometry.box, image_size, map_size)
    laid_depth, depth_valid = transform_depth(depth, everywhere(depth), box, geometry)
    void = laid_labels == IGNORE_INDEX
    assert torch.equal(~depth_valid, void)
    assert (laid_depth[void] == 0).all()
    assert (laid_image[void] == 0).all()
    # A pixel's value must occur in the labels within reach: one canvas pixel, and the width of one source pixel.
    scale = max(np.array(geometry.size) / np.array(geometry.box[2:]))
    coarse = max(np.array(image_size) / np.array(map_size))
    for name, laid, reach in (("image", laid_image, 1 + scale), ("depth", laid_depth, 1 + scale * max(coarse, 1))):
        disagree = (~void & ((laid - laid_labels).abs() > 0.5)).numpy()
        near = _near_an_edge(laid_labels.numpy(), math.ceil(reach))
        assert not (disagree & ~near).any(), name


def _near_an_edge(labels, reach):
    near = np.zeros(labels.shape, bool)
    for axis in (0, 1):
        edges = np.diff(labels, axis=axis) != 0
        for line in np.argwhere(edges):
            low = np.maximum(line - reach + 1, 0)
            high = line + reach + 1
            near[(slice(low[0], high[0] + (axis == 0)), slice(low[1], high[1] + (axis == 1)))] = True
    return near


@pytest.mark.parametrize("factor", [2, 3, 5])
@pytest.mark.parametrize(("row", "column"), [(0.5, 1.0), (1.0, 0.25)])
def test_edges_on_pixel_borders_stay_exactly_there(factor, row, column):
    """Enlarged by a whole factor, the half-way line of a depth step is the label step, to the pixel."""
    labels = np.minimum(_steps_at(row, column, (8, 16)), 1)
    geometry = whole((8, 16), (8 * factor, 16 * factor), flip=True)
    steps = torch.from_numpy(labels.astype(np.float32))
    depth, _ = transform_depth(steps, everywhere(steps), Box(0, 0, 8, 16), geometry)
    assert torch.equal(depth.as_subclass(torch.Tensor) > 0.49, transform_labels(labels, geometry) == 1)


def test_flipping_twice_is_the_identity():
    depth = Depth(draw(3, (5, 7)))
    assert torch.equal(F.horizontal_flip(F.horizontal_flip(depth)), depth)
    assert not torch.equal(F.horizontal_flip(depth), depth)
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    once = transform_image(image, whole((5, 7), (5, 7), flip=True), PLAIN)
    plain = transform_image(image, whole((5, 7), (5, 7)), PLAIN)
    assert torch.equal(once.flip(-1), plain)


def test_the_identity_changes_nothing():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (6, 8, 3), np.uint8)
    labels = rng.integers(0, 5, (6, 8)).astype(np.uint8)
    image.flags.writeable = labels.flags.writeable = False  # as a memory map is
    geometry = draw_geometry(AugmentationSettings(crop=(6, 8), scale=(1.0, 1.0), flip=0.0), (6, 8), rng)
    assert geometry == whole((6, 8), (6, 8))
    mean, std = (np.array(values, np.float32) for values in IMAGENET)
    found = transform_image(image, geometry, IMAGENET).permute(1, 2, 0).numpy()
    np.testing.assert_allclose(found, (image / np.float32(255) - mean) / std, atol=1e-5)
    found_labels = transform_labels(labels, geometry)
    assert found_labels.dtype == torch.int64
    np.testing.assert_array_equal(found_labels, labels)


def test_small_images_are_padded_with_nothing():
    rng = np.random.default_rng(0)
    image = np.full((10, 12, 3), 200, np.uint8)
    geometry = draw_geometry(AugmentationSettings(crop=(32, 40), scale=(1.0, 1.0), flip=1.0), (10, 12), rng)
    laid_image = transform_image(image, geometry, IMAGENET)
    laid_labels = transform_labels(np.ones((10, 12), np.uint8), geometry)
    ones = torch.ones(5, 6)
    _, depth_valid = transform_depth(ones, everywhere(ones), to_map_box(geometry.box, (10, 12), (5, 6)), geometry)
    inside = laid_labels == 1
    assert inside.sum() == 120
    assert (laid_labels[~inside] == IGNORE_INDEX).all()
    assert torch.equal(inside, depth_valid)
    assert (laid_image[:, ~inside] == 0).all()  # the mean, after normalising
    assert (laid_image[:, inside] != 0).all()


def test_scale_is_the_size_things_get():
    """A square of 20 px becomes 20 px times the scale, whatever part of the image is cut."""
    for scale in (0.5, 0.75, 1.0, 1.5, 2.0):
        labels = np.zeros((100, 100), np.uint8)
        labels[40:60, 40:60] = 1
        geometry = draw_geometry(
            AugmentationSettings(crop=(200, 200), scale=(scale, scale), flip=0.5), (100, 100), np.random.default_rng(1)
        )
        laid = transform_labels(labels, geometry) == 1
        assert (laid.any(0).sum(), laid.any(1).sum()) == (round(20 * scale), round(20 * scale))


def test_every_place_and_scale_is_reached():
    augmentation = AugmentationSettings(crop=(20, 20), scale=(0.5, 2.0), flip=0.5)
    drawn = [draw_geometry(augmentation, (30, 40), np.random.default_rng(seed)) for seed in range(500)]
    assert {geometry.flip for geometry in drawn} == {True, False}
    boxes = [geometry.box for geometry in drawn]
    assert min(box.top for box in boxes) == min(box.left for box in boxes) == 0
    assert max(box.top + box.height for box in boxes) == 30
    assert max(box.left + box.width for box in boxes) == 40
    assert max(box.height for box in boxes) == 30  # half size is smaller than the crop
    assert min(box.height for box in boxes) == 10
    assert {geometry.canvas for geometry in drawn} == {(20, 20)}
    assert all(side <= 20 for geometry in drawn for side in geometry.size)


def test_resized_labels_invent_no_class():
    labels = np.random.default_rng(0).choice(np.array([0, 7, 255], np.uint8), (40, 50))
    laid = transform_labels(labels, whole((40, 50), (33, 71)))
    assert set(laid.unique().tolist()) <= {0, 7, 255}


def test_jitter_against_torchvision():
    image = np.random.default_rng(0).integers(60, 180, (16, 20, 3), np.uint8)  # far from clipping
    found = transform_image(image, whole((16, 20), (16, 20)), PLAIN, ColourJitter(1.2, 0.8, 1.3))
    expected = F.to_dtype(tv_tensors.Image(image.transpose(2, 0, 1)), torch.float32, scale=True)
    expected = F.adjust_saturation(F.adjust_contrast(F.adjust_brightness(expected, 1.2), 0.8), 1.3)
    torch.testing.assert_close(found, expected.as_subclass(torch.Tensor), atol=2e-3, rtol=0)


def test_jitter_stays_in_range_and_is_off_at_zero():
    image = np.random.default_rng(0).integers(0, 256, (16, 20, 3), np.uint8)
    found = transform_image(image, whole((16, 20), (16, 20)), PLAIN, ColourJitter(2.0, 2.0, 2.0))
    assert (found.min(), found.max()) == (0, 1)
    assert draw_colour_jitter(0.0, np.random.default_rng(0)) is None
    factors = [factor for seed in range(99) for factor in draw_colour_jitter(0.4, np.random.default_rng(seed))]
    assert 0.6 <= min(factors) < 0.65
    assert 1.35 < max(factors) <= 1.4


def test_v2_transforms_take_depth_beside_image_and_mask():
    image = tv_tensors.Image(torch.zeros(3, 10, 12, dtype=torch.uint8))
    mask = tv_tensors.Mask(torch.zeros(10, 12, dtype=torch.uint8))
    steps = [v2.Pad([1, 2, 3, 4]), v2.RandomHorizontalFlip(1.0), v2.CenterCrop((20, 14)), v2.Resize((8, 6))]
    transform = v2.Compose(steps)
    laid_image, laid_mask, laid_depth = transform(image, mask, Depth(torch.ones(2, 10, 12)))
    assert isinstance(laid_depth, Depth)
    assert laid_image.shape[1:] == laid_mask.shape == laid_depth.shape[1:] == (8, 6)
    assert 0 < laid_depth[1].mean() < 1
    assert torch.equal(laid_depth[0], laid_depth[1]), "what is invalid holds 0"


@pytest.mark.parametrize(("top", "left"), [(0, 0), (-2, 3), (4, -3), (3, 6)])
def test_cropping_beyond_the_border_is_invalid(top, left):
    depth = join_depth(draw(4, (6, 8)), everywhere(torch.ones(6, 8)))
    padded = F.pad(depth, [10, 10, 10, 10], fill=9.0).as_subclass(torch.Tensor)
    expected = padded[:, 10 + top : 16 + top, 10 + left : 18 + left]
    found = F.crop(depth, top, left, 6, 8).as_subclass(torch.Tensor)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert padded[1].sum() == 48


def test_depth_needs_both_sides_to_be_resized():
    with pytest.raises(ValueError, match=r"\(height, width\)"):
        F.resize(Depth(torch.ones(4, 4)), [3])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"crop": (0, 8)}, "crop .* at least 1 px"),
        ({"scale": (2.0, 1.0)}, "scale .* the smaller first"),
        ({"flip": 1.5, "jitter": -1.0}, "(?s)flip.*jitter"),
    ],
)
def test_nonsense_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        AugmentationSettings(**settings)

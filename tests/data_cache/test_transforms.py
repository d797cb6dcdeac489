"""Laws of the joint geometry: image, labels and depth stay together, void stays void, invalid depth bleeds nowhere."""

import math

import numpy as np
import pytest
import torch
import torchvision.transforms.v2 as v2
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import interpolate
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F

from data_cache.photometric import Recolouring, draw_recolouring, recolour
from data_cache.sample import IGNORE_INDEX
from data_cache.transforms import (
    AugmentationSettings,
    Box,
    Depth,
    Geometry,
    cut_window,
    draw_colour_jitter,
    draw_geometry,
    join_depth,
    resample_depth,
    to_float16,
    to_map_box,
    transform_depth,
    transform_image,
    transform_labels,
)


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


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    image_size=st.tuples(st.integers(16, 120), st.integers(16, 120)),
    map_size=st.tuples(st.integers(8, 150), st.integers(8, 150)),
    crop=st.tuples(st.integers(16, 96), st.integers(16, 96)),
    scale=st.tuples(st.floats(0.25, 4), st.floats(0.25, 4)).map(sorted).map(tuple),
    flip=st.sampled_from([0.0, 1.0]),
    seed=st.integers(0, 1 << 16),
)
def test_image_labels_and_depth_show_the_same_place(image_size, map_size, crop, scale, flip, seed):
    """Each pixel of the canvas shows, to half a pixel of the coarsest, the place that geometry by hand says."""
    augmentation = AugmentationSettings(crop=crop, scale=scale, flip=flip)
    geometry = draw_geometry(augmentation, image_size, np.random.default_rng(seed))
    window, map_box = cut_window(to_map_box(geometry.box, image_size, map_size), map_size)
    for axis in (0, 1):
        pixels, points = image_size[axis], map_size[axis]
        step = geometry.box[2 + axis] / geometry.size[axis]  # pixels of the image per pixel of the canvas
        places = geometry.box[axis] + (np.arange(geometry.size[axis]) + 0.5) * step
        places = places[::-1] if axis and geometry.flip else places
        columns = _along(axis, np.arange(pixels), image_size).astype(np.uint8)  # a pixel's own place as its value
        contrast = 255 // pixels
        labels = transform_labels(columns, geometry)
        image = transform_image(np.repeat(columns[..., None] * np.uint8(contrast), 3, 2), geometry)
        ramp = torch.from_numpy(_along(axis, (np.arange(points) + 0.5) * pixels / points, map_size).astype(np.float32))
        depth = transform_depth(ramp[window], everywhere(ramp[window]), map_box, geometry)
        void = labels == IGNORE_INDEX
        top, left, height, width = geometry.placed
        assert not void[top : top + height, left : left + width].any()
        assert torch.equal(depth.isnan(), void) and int((~void).sum()) == geometry.size[0] * geometry.size[1]
        assert not image[:, void].any()
        for name, found, coarsest in (
            ("labels", labels + 0.5, 1),
            ("image", image[0] / contrast + 0.5, max(1, step)),
            ("depth", depth, pixels / points),
        ):
            shown = found[~void].reshape(geometry.size).numpy()
            error = np.abs(shown - _along(axis, places, geometry.size)).max()
            assert error <= 0.5 * coarsest + 1e-3 + (0.5 / contrast if name == "image" else 0), (name, axis, error)


def _along(axis, values, shape):
    """Return an array of a shape whose values change along one axis only."""
    return np.broadcast_to(values[:, None] if axis == 0 else values[None], shape)


def _steps_at(row, column, shape):
    """A scene in four quarters with its corner at a fraction of the frame."""
    ys = (np.arange(shape[0]) + 0.5) / shape[0] >= row
    xs = (np.arange(shape[1]) + 0.5) / shape[1] >= column
    return (2 * ys[:, None] + xs[None]).astype(np.uint8)


@pytest.mark.parametrize("factor", [2, 3, 5])
@pytest.mark.parametrize(("row", "column"), [(0.5, 1.0), (1.0, 0.25)])
def test_edges_on_pixel_borders_stay_exactly_there(factor, row, column):
    """Enlarged by a whole factor, the half-way line of a depth step is the label step, to the pixel."""
    labels = np.minimum(_steps_at(row, column, (8, 16)), 1)
    geometry = whole((8, 16), (8 * factor, 16 * factor), flip=True)
    steps = torch.from_numpy(labels.astype(np.float32))
    depth = transform_depth(steps, everywhere(steps), Box(0, 0, 8, 16), geometry)
    assert torch.equal(depth > 0.49, transform_labels(labels, geometry) == 1)


def test_flipping_twice_is_the_identity():
    depth = Depth(draw(3, (5, 7)))
    assert torch.equal(F.horizontal_flip(F.horizontal_flip(depth)), depth)
    assert not torch.equal(F.horizontal_flip(depth), depth)
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    once = transform_image(image, whole((5, 7), (5, 7), flip=True))
    plain = transform_image(image, whole((5, 7), (5, 7)))
    assert torch.equal(once.flip(-1), plain)


def test_the_identity_changes_nothing():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (6, 8, 3), np.uint8)
    labels = rng.integers(0, 5, (6, 8)).astype(np.uint8)
    image.flags.writeable = labels.flags.writeable = False  # as a memory map is
    geometry = draw_geometry(AugmentationSettings(crop=(6, 8), scale=(1.0, 1.0), flip=0.0), (6, 8), rng)
    assert geometry == whole((6, 8), (6, 8))
    np.testing.assert_array_equal(transform_image(image, geometry).permute(1, 2, 0), image)
    found_labels = transform_labels(labels, geometry)
    assert found_labels.dtype == torch.uint8
    np.testing.assert_array_equal(found_labels, labels)


def test_small_images_are_padded_with_nothing():
    rng = np.random.default_rng(0)
    image = np.full((10, 12, 3), 200, np.uint8)
    geometry = draw_geometry(AugmentationSettings(crop=(32, 40), scale=(1.0, 1.0), flip=1.0), (10, 12), rng)
    laid_image = transform_image(image, geometry)
    laid_labels = transform_labels(np.ones((10, 12), np.uint8), geometry)
    ones = torch.ones(5, 6)
    depth = transform_depth(ones, everywhere(ones), to_map_box(geometry.box, (10, 12), (5, 6)), geometry)
    inside = laid_labels == 1
    assert inside.sum() == 120
    assert (laid_labels[~inside] == IGNORE_INDEX).all()
    assert torch.equal(inside, ~depth.isnan())
    assert (laid_image[:, ~inside] == 0).all()
    assert (laid_image[:, inside] == 200).all()


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


@pytest.mark.parametrize("size", [(33, 71), (9, 120), (40, 50)], ids=str)
def test_labels_are_resized_as_torchvision_does(size):
    labels = np.random.default_rng(0).integers(0, 9, (40, 50), np.uint8)
    expected = F.resize(tv_tensors.Image(labels[None]), list(size), v2.InterpolationMode.NEAREST_EXACT)[0]
    assert torch.equal(transform_labels(labels, whole((40, 50), size)), expected.as_subclass(torch.Tensor))


def test_depth_beyond_float16_becomes_its_largest():
    found = to_float16(torch.tensor([1e9, -1e9, math.nan, 0.3]))
    torch.testing.assert_close(
        found.float(), torch.tensor([65504, -65504, math.nan, 0.3]), equal_nan=True, rtol=1e-3, atol=0
    )


def test_drawn_jitter_is_in_range_and_off_at_zero():
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


@pytest.mark.parametrize("kind", ["colour", "strong"])
def test_recolouring_changes_nothing_but_colours(kind):
    """Where every channel is the same there is no hue: then only ``strong`` changes anything."""
    drawn = [draw_recolouring(kind, np.random.default_rng(seed)) for seed in range(40)]
    assert draw_recolouring("none", np.random.default_rng(0)) is None
    assert drawn == [draw_recolouring(kind, np.random.default_rng(seed)) for seed in range(40)] and len(set(drawn)) > 30
    photo = np.random.default_rng(1).integers(0, 256, (20, 30, 3)).astype(np.uint8)
    small = Geometry(Box(0, 0, 20, 30), (10, 15), (3, 4), (32, 32), flip=True)
    plain = transform_image(photo, small)
    top, left, height, width = small.placed
    shown = [transform_image(photo, small, each) for each in drawn]
    assert all(image.dtype == torch.uint8 and image.shape == plain.shape for image in shown)
    assert sum(not torch.equal(image, plain) for image in shown) > 35
    for image in shown:  # the empty canvas stays empty
        image[:, top : top + height, left : left + width] = 0
        assert not image.any()
    grey = torch.from_numpy(np.repeat(photo[..., :1], 3, axis=-1)).permute(2, 0, 1)
    moved = [(recolour(grey, each).int() - grey.int()).abs().max() > 1 for each in drawn]  # torchvision rounds down
    assert any(moved) == (kind == "strong")
    assert [each.grey for each in drawn].count(True) in range(1, 20)


def test_a_recolouring_is_torchvisions():
    photo = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (3, 20, 30)).astype(np.uint8))
    all_of_it = Recolouring(0.1, grey=False, autocontrast=True, blur=1.0, sharpness=2.0)
    steps = v2.Compose(
        [
            v2.RandomAutocontrast(1.0),
            v2.ColorJitter(hue=(0.1, 0.1)),
            v2.RandomAdjustSharpness(2.0, 1.0),
            v2.GaussianBlur(5, (1.0, 1.0)),
        ]
    )
    assert torch.equal(recolour(photo, all_of_it), steps(photo))
    assert torch.equal(recolour(photo, Recolouring(0.1, True, False, None, None)), v2.RandomGrayscale(1.0)(photo))

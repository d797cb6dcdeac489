"""Which pixels polygons and run lengths cover: against counting by hand, and against pycocotools."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from data_cache.annotations.shapes import (
    Polygon,
    RunMask,
    ShapeProblem,
    build_box,
    build_ellipse,
    build_polygon,
    build_run_mask,
    encode_runs,
)


def paint(shape: Polygon | RunMask, height: int, width: int) -> NDArray[np.bool_]:
    labels = np.zeros((height, width), dtype=np.int16)
    assert shape.paint(labels, 7) == (labels == 7).sum()
    return labels == 7


def is_inside(x: float, y: float, corners: NDArray[np.float64]) -> bool:
    """Count the edges to the left of a point."""
    crossed = 0
    for (x1, y1), (x2, y2) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        crossed += (y1 > y) != (y2 > y) and x1 + (y - y1) * (x2 - x1) / (y2 - y1) < x
    return crossed % 2 == 1


def test_a_polygon_covers_the_pixels_whose_centres_lie_inside_cut_off_at_the_image() -> None:
    rng = np.random.default_rng(0)
    for _ in range(30):
        corners = rng.uniform(-6, 22, (rng.integers(3, 9), 2))
        expected = [[is_inside(x + 0.5, y + 0.5, corners) for x in range(17)] for y in range(13)]
        assert np.array_equal(paint(build_polygon(corners), 13, 17), expected)


def test_neighbours_share_no_pixel_and_leave_none() -> None:
    rng = np.random.default_rng(1)
    for _ in range(60):  # of whole and half numbers, so that lines meet the centres of pixels
        corners = rng.integers(0, 40, (4, 2)) / 2
        if len(np.unique(corners, axis=0)) < 4:
            continue
        one, other, both = corners[[0, 1, 2]], corners[[0, 2, 3]], corners
        painted = [paint(build_polygon(each), 20, 20) for each in (one, other, both)]
        assert np.array_equal(painted[0] ^ painted[1], painted[2])
        assert np.array_equal(painted[2], paint(build_polygon(corners[::-1]), 20, 20))


def test_boxes_and_ellipses_have_their_areas_and_turn_clockwise() -> None:
    box = paint(build_box(2, 3, 12, 5), 20, 20)
    assert box[3:5, 2:12].all() and box.sum() == 20
    upright = paint(build_box(2, 3, 12, 5, degrees=90), 20, 20)
    assert upright[0:9, 6:8].all() and upright.sum() == 18, "its upper end is above the image"
    ellipse = paint(build_ellipse(100, 100, 80, 40), 200, 200)
    assert ellipse.sum() == pytest.approx(np.pi * 80 * 40, rel=2e-3) == build_ellipse(100, 100, 80, 40).measure()
    slanted = paint(build_ellipse(100, 100, 80, 20, degrees=45), 200, 200)
    assert slanted[150, 150] and slanted[50, 50] and not slanted[50, 150] and not slanted[150, 50]


def test_a_ring_that_goes_round_a_hole_leaves_it_out() -> None:
    ring = [(0, 0), (9, 0), (9, 9), (0, 9), (0, 0), (3, 3), (6, 3), (6, 6), (3, 6), (3, 3), (0, 0)]
    expected = np.ones((9, 9), dtype=bool)
    expected[3:6, 3:6] = False
    assert np.array_equal(paint(build_polygon(ring), 9, 9), expected)


def test_what_lies_outside_is_known() -> None:
    assert build_box(0, 0, 8, 4).lies_within(4, 8) and build_box(-0.3, 0, 8.3, 4).lies_within(4, 8)
    assert not build_box(0, 0, 9, 4).lies_within(4, 8) and not build_box(0, -2, 8, 4).lies_within(4, 8)
    mask = encode_runs(np.ones((3, 3), dtype=bool), left=6, top=-1)
    assert not mask.lies_within(4, 8)
    assert np.argwhere(paint(mask, 4, 8)).tolist() == [[0, 6], [0, 7], [1, 6], [1, 7]]
    assert not paint(build_box(50, 50, 60, 60), 4, 8).any()


def test_run_lengths_by_hand() -> None:
    # As the page of CVAT's format has it: 3 outside, 2 inside, 1 outside, along the rows.
    along = paint(build_run_mask([3, 2, 1], 2, 3), 2, 3)
    assert along.tolist() == [[False, False, False], [True, True, False]]
    down = paint(build_run_mask([3, 2, 1], 2, 3, by_columns=True), 2, 3)
    assert down.tolist() == [[False, False, True], [False, True, False]]


@pytest.mark.parametrize(
    ("counts", "said"),
    [
        ([3, 2], "do not add up"),
        ([7, -1], "do not add up"),
        ([2**62, 2**62, 2**62, 2**62], "do not add up"),
        ("0Z", "are cut off"),
        ("\x7f", "no text of COCO's"),
        ("p" * 40, "no text of COCO's"),
    ],
)
def test_run_lengths_that_cannot_be_are_refused(counts: list[int] | str, said: str) -> None:
    with pytest.raises(ShapeProblem, match=said):
        build_run_mask(counts, 2, 3)


@pytest.mark.parametrize(
    ("points", "said"),
    [
        ([(1, 1), (2, 2)], "fewer than 3 points"),
        ([], "fewer than 3 points"),
        ([(1, 1), (2, 2), (3, float("nan"))], "no finite number"),
        ([(1, 1), (2, 2), (3,)], "no pairs"),
    ],
)
def test_corners_that_enclose_nothing_are_refused(points: list[tuple[float, float]], said: str) -> None:
    with pytest.raises(ShapeProblem, match=said):
        build_polygon(points)


def test_run_lengths_are_those_of_pycocotools() -> None:
    coco = pytest.importorskip("pycocotools.mask", reason="of the extra 'test'")
    rng = np.random.default_rng(2)
    for number in range(80):
        mask = rng.random(rng.integers(1, 40, 2)) < rng.random()
        if number % 3 == 0:  # long runs need several letters each
            mask = np.kron(mask, np.ones((37, 41), dtype=bool))
        height, width = mask.shape
        text = coco.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode()
        read = build_run_mask(text, height, width, by_columns=True)
        assert np.array_equal(paint(read, height, width), mask)
        ours = encode_runs(mask.T, left=0, top=0).counts
        assert np.array_equal(ours, read.counts) and read.measure() == mask.sum()
        assert coco.frPyObjects({"counts": ours.tolist(), "size": [height, width]}, height, width)["counts"] == (
            text.encode()
        )


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_polygons_are_those_of_pycocotools_but_for_pixels_that_a_line_crosses() -> None:
    coco = pytest.importorskip("pycocotools.mask", reason="of the extra 'test'")
    rng = np.random.default_rng(3)
    for _ in range(40):
        angles = np.sort(rng.uniform(0, 2 * np.pi, rng.integers(5, 12)))
        corners = 32 + np.stack((np.cos(angles), np.sin(angles)), axis=1) * rng.uniform(8, 30, (len(angles), 1))
        theirs = coco.decode(coco.frPyObjects([corners.ravel().tolist()], 64, 64))[..., 0].astype(bool)
        ours = paint(build_polygon(corners), 64, 64)
        for y, x in np.argwhere(ours != theirs) + 0.5:
            starts, ends = corners, np.roll(corners, -1, axis=0)
            along = (((x, y) - starts) * (ends - starts)).sum(axis=1) / ((ends - starts) ** 2).sum(axis=1)
            share = np.clip(along, 0, 1)
            distance = np.linalg.norm((x, y) - (starts + share[:, None] * (ends - starts)), axis=1).min()
            assert distance < 1

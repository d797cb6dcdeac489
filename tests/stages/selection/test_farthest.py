"""Orders of images: those of a plain-Python k-centre; budgets are nested; what is covered is never chosen."""

from __future__ import annotations

import math

import numpy as np
import pytest

from data_cache.depth_target import DepthTarget
from stages.selection.describing import shrink_map, standardise
from stages.selection.farthest import FarthestPoints


def plain_order(points: list[list[float]], covered: list[int], bonus: list[float] | None = None) -> list[int]:
    """Return all rows that are not covered, each the farthest from those before, by loops over Python's own numbers."""
    taken, order = list(covered), []
    while len(order) + len(covered) < len(points):
        best, best_score = -1, -math.inf
        for row, point in enumerate(points):
            if row in taken:
                continue
            if taken:
                score = min(math.dist(point, points[other]) for other in taken)
            else:
                mean = [sum(column) / len(points) for column in zip(*points, strict=True)]
                score = -math.dist(point, mean)
            score += bonus[row] if bonus else 0.0
            if score > best_score:
                best, best_score = row, score
        taken.append(best)
        order.append(best)
    return order


@pytest.mark.parametrize("covered", [[], [3], [0, 7, 19]], ids=str)
@pytest.mark.parametrize("with_bonus", [False, True])
def test_the_order_is_that_of_plain_loops(covered: list[int], with_bonus: bool) -> None:
    rng = np.random.default_rng(len(covered))
    features = rng.normal(size=(20, 3)).astype(np.float32)
    bonus = rng.random(20) if with_bonus else None
    expected = plain_order(features.astype(float).tolist(), covered, None if bonus is None else bonus.tolist())
    assert FarthestPoints(features, covered).pick(100, bonus) == expected


def test_a_smaller_budget_has_the_first_images_of_a_larger_one() -> None:
    features = np.random.default_rng(1).normal(size=(30, 4)).astype(np.float32)
    whole = FarthestPoints(features).pick(30)
    assert sorted(whole) == list(range(30))
    points = FarthestPoints(features)
    assert [points.pick(7), points.pick(2), points.pick(50)] == [whole[:7], whole[7:9], whole[9:]]
    assert FarthestPoints(features).pick(11) == whole[:11]


def test_equal_images_come_in_the_order_of_their_rows() -> None:
    assert FarthestPoints(np.zeros((4, 2), np.float32)).pick(4) == [0, 1, 2, 3]
    corners = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], np.float32)
    assert FarthestPoints(corners).pick(4) == [0, 2, 1, 3]


def test_every_image_is_as_near_to_a_chosen_one_as_twice_the_best_possible() -> None:
    """Gonzalez 1985: greedy k-centre is within a factor of two; the best is found by trying all."""
    from itertools import combinations

    features = np.random.default_rng(2).normal(size=(12, 2)).astype(np.float32)
    distances = np.linalg.norm(features[:, None] - features[None], axis=-1)
    chosen = FarthestPoints(features).pick(3)
    best = min(distances[list(three)].min(0).max() for three in combinations(range(12), 3))
    assert best <= distances[chosen].min(0).max() <= 2 * best


def test_features_count_alike_and_constant_ones_not_at_all() -> None:
    rng = np.random.default_rng(3)
    raw = rng.normal(size=(200, 5)).astype(np.float32) * np.array([1, 1000, 1e-3, 1, 0], np.float32) + 7
    scaled = standardise(raw)
    np.testing.assert_allclose(scaled[:, :4].std(0), 1 / math.sqrt(10), rtol=1e-3)
    assert (scaled[:, 4] == 0).all()
    pairs = scaled[:100] - scaled[100:]
    assert np.mean((pairs**2).sum(1)) == pytest.approx(4 / 5, rel=0.2), "two images are about 1 apart"


@pytest.mark.parametrize("shape", [(8, 8), (16, 24), (5, 9), (27, 50)], ids=str)
def test_a_miniature_has_the_mean_of_each_cell(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(4)
    values, valid = rng.random(shape).astype(np.float32), rng.random(shape) < 0.7
    found = shrink_map(DepthTarget(np.where(valid, values, 0).astype(np.float32), valid)).reshape(8, 8)
    for row in range(8):
        for column in range(8):
            (top, bottom), (left, right) = (
                (at * side // 8, max((at + 1) * side // 8, at * side // 8 + 1))
                for at, side in zip((row, column), shape, strict=True)
            )
            cell = [values[y, x] for y in range(top, bottom) for x in range(left, right) if valid[y, x]]
            assert found[row, column] == pytest.approx(sum(cell) / len(cell) if cell else 0, abs=1e-6)

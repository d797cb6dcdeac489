"""Rays against an oracle that marches: inside tests along the ray, written from the shapes' definitions alone."""

from __future__ import annotations

import math

import numpy as np
import pytest

from data_cache.datasets.scene_layout import Paint, Pattern, Shape, Solid
from data_cache.datasets.scene_rays import compute_normals, intersect

PAINT = Paint(Pattern.PLAIN, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), 1.0, (0.0, 0.0, 0.0))
SOLIDS = [
    Solid(Shape.BALL, 0, (0.2, 0.6, 4.0), (0.6, 0.6, 0.6), 0.0, PAINT),
    Solid(Shape.BOX, 0, (-0.3, 0.5, 4.0), (0.7, 0.5, 0.3), 0.6, PAINT),
    Solid(Shape.CYLINDER, 0, (0.1, 0.9, 4.0), (0.4, 0.9, 0.4), 0.3, PAINT),
    Solid(Shape.CONE, 0, (0.0, 0.8, 4.0), (0.7, 0.8, 0.7), -0.4, PAINT),
]
STEP = 1e-3
EYE = np.array([[0.0], [1.7], [0.0]])


def is_inside(solid: Solid, points: np.ndarray) -> np.ndarray:
    x, y, z = points - np.asarray(solid.centre).reshape(3, *([1] * (points.ndim - 1)))
    along_x = x * math.cos(solid.yaw) - z * math.sin(solid.yaw)
    along_z = x * math.sin(solid.yaw) + z * math.cos(solid.yaw)
    a, b, c = solid.half
    match solid.shape:
        case Shape.BALL:
            return x**2 + y**2 + z**2 <= a**2
        case Shape.BOX:
            return (abs(along_x) <= a) & (abs(y) <= b) & (abs(along_z) <= c)
        case Shape.CYLINDER:
            return (x**2 + z**2 <= a**2) & (abs(y) <= b)
        case Shape.CONE:
            return (np.hypot(x, z) <= a * (b - y) / (2 * b)) & (abs(y) <= b)


def aim(num_rays: int = 400) -> np.ndarray:
    rng = np.random.default_rng(3)
    return np.stack([rng.uniform(-0.3, 0.3, num_rays), rng.uniform(-0.5, 0.1, num_rays), np.ones(num_rays)])


@pytest.mark.parametrize("solid", SOLIDS, ids=lambda solid: str(solid.shape))
def test_first_hit_is_where_a_marched_ray_enters(solid: Solid) -> None:
    rays = aim()
    depths = np.arange(2.0, 6.0, STEP)
    inside = is_inside(solid, EYE[:, :, None] + depths[None, None, :] * rays[:, :, None])
    entered = inside.any(axis=1)
    expected = np.where(entered, depths[np.argmax(inside, axis=1)], np.inf)
    found = intersect(solid, EYE, rays)
    # A ray that only grazes the solid may pass between two steps of the march.
    long_inside = inside.sum(axis=1) > 3
    assert long_inside.sum() > 40
    assert not entered[np.isinf(found)].any()
    np.testing.assert_array_less(np.abs(found[long_inside] - expected[long_inside]), 1.5 * STEP)


@pytest.mark.parametrize("solid", SOLIDS, ids=lambda solid: str(solid.shape))
def test_normals_are_unit_vectors_towards_the_eye_and_out_of_the_solid(solid: Solid) -> None:
    rays = aim()
    depth = intersect(solid, EYE, rays)
    seen = np.isfinite(depth)
    points = EYE + depth[seen] * rays[:, seen]
    normals = compute_normals(solid, points)
    np.testing.assert_allclose(np.linalg.norm(normals, axis=0), 1.0, atol=1e-9)
    assert ((normals * rays[:, seen]).sum(axis=0) < 1e-6).all()
    assert not is_inside(solid, points + 1e-3 * normals).any()
    assert is_inside(solid, points - 1e-4 * normals).mean() > 0.97


@pytest.mark.parametrize("solid", SOLIDS, ids=lambda solid: str(solid.shape))
def test_shadow_rays_agree_with_camera_rays(solid: Solid) -> None:
    """One origin and many directions, or the same rays reversed from many origins: the same rays meet the solid."""
    rays = aim()
    forward = np.isfinite(intersect(solid, EYE, rays))
    starts = EYE + 10.0 * rays
    backward = np.array(
        [np.isfinite(intersect(solid, starts[:, [i]], -rays[:, [i]]))[0] for i in range(0, rays.shape[1], 10)]
    )
    if solid.shape is not Shape.CONE and solid.shape is not Shape.CYLINDER:  # these have no base to be hit from below
        np.testing.assert_array_equal(backward, forward[::10])
    else:
        assert (backward <= forward[::10]).all()


def test_nothing_behind_the_origin_is_met() -> None:
    for solid in SOLIDS:
        assert np.isinf(intersect(solid, EYE, -aim())).all()

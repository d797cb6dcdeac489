"""Where a ray meets a solid: the geometry of the drawn scenes, vectorised over rays, in float64.

Points and directions are (3, N) arrays; an origin or direction shared by all rays is (3, 1).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from data_cache.datasets.scene_layout import Shape, Solid

Array = NDArray[np.float64]

_NEAR = 1e-6
"""Smallest ray parameter that counts as a hit, so that a surface does not shade itself."""


def intersect(solid: Solid, origins: Array, directions: Array) -> Array:
    """Return the ray parameter of the first hit, inf where a ray misses.

    Args:
        solid: what to meet; its inside counts as empty, a ray from inside sees nothing.
        origins: (3, N) or (3, 1).
        directions: (3, N) or (3, 1), of any length; the parameter is in units of it.

    Returns:
        (N,) parameters t with hit = origin + t · direction.
    """
    starts = origins - np.asarray(solid.centre)[:, None]
    num_rays = max(starts.shape[1], directions.shape[1])
    hits = np.full(num_rays, np.inf)
    near = np.flatnonzero(_meets_ball(starts, directions, float(np.linalg.norm(solid.half))))
    if near.size == 0:
        return hits
    starts = starts[:, near] if starts.shape[1] > 1 else starts
    directions = directions[:, near] if directions.shape[1] > 1 else directions
    # Both must span all rays below, where they are indexed and compared together.
    starts, directions = np.broadcast_arrays(starts, directions)
    match solid.shape:
        case Shape.BALL:
            found = _meet_ball(starts, directions, solid.half[0])
        case Shape.BOX:
            found = _meet_box(_turned(starts, solid.yaw), _turned(directions, solid.yaw), solid.half)
        case Shape.CYLINDER:
            found = _meet_cylinder(starts, directions, solid.half[0], solid.half[1])
        case Shape.CONE:
            found = _meet_cone(starts, directions, solid.half[0], solid.half[1])
    hits[near] = found
    return hits


def to_local(solid: Solid, points: Array) -> Array:
    """Return world points in the solid's own axes, origin at its centre."""
    return _turned(points - np.asarray(solid.centre)[:, None], solid.yaw)


def compute_normals(solid: Solid, points: Array) -> Array:
    """Return (3, N) outward unit normals at points on the solid's surface."""
    local = to_local(solid, points)
    match solid.shape:
        case Shape.BALL:
            normals = local / solid.half[0]
        case Shape.BOX:
            face = np.argmax(np.abs(local) / np.asarray(solid.half)[:, None], axis=0)
            every = np.arange(local.shape[1])
            normals = np.zeros_like(local)
            normals[face, every] = np.sign(local[face, every])
        case Shape.CYLINDER:
            normals = local * np.array([[1.0], [0.0], [1.0]]) / solid.half[0]
            top = local[1] > solid.half[1] - 1e-9
            normals[:, top] = np.array([[0.0], [1.0], [0.0]])
        case Shape.CONE:
            slope = solid.half[0] / (2.0 * solid.half[1])
            normals = np.stack([local[0], slope * np.hypot(local[0], local[2]), local[2]])
            normals /= np.maximum(np.linalg.norm(normals, axis=0), 1e-12)
    return _turned(normals, -solid.yaw)


def _turned(points: Array, yaw: float) -> Array:
    """Rotate about the vertical; ``_turned(_turned(p, a), -a)`` is p."""
    cos, sin = math.cos(yaw), math.sin(yaw)
    return np.stack([cos * points[0] - sin * points[2], points[1], sin * points[0] + cos * points[2]])


def _dot(first: Array, second: Array) -> Array:
    return first[0] * second[0] + first[1] * second[1] + first[2] * second[2]


def _meets_ball(starts: Array, directions: Array, radius: float) -> NDArray[np.bool_]:
    """Tell which rays can meet the ball around the origin; a cheap test before the exact one."""
    along = _dot(starts, directions)
    outside = _dot(starts, starts) - radius * radius
    return (along * along >= _dot(directions, directions) * outside) & ((along < 0.0) | (outside < 0.0))


def _meet_ball(starts: Array, directions: Array, radius: float) -> Array:
    squared = _dot(directions, directions)
    along = _dot(starts, directions)
    inner = along * along - squared * (_dot(starts, starts) - radius * radius)
    root = (-along - np.sqrt(np.maximum(inner, 0.0))) / squared
    return np.where((inner >= 0.0) & (root > _NEAR), root, np.inf)


def _meet_box(starts: Array, directions: Array, half: tuple[float, float, float]) -> Array:
    """Meet an axis-parallel box by the slab method."""
    extents = np.asarray(half)[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        inverse = 1.0 / directions
        first, second = (-extents - starts) * inverse, (extents - starts) * inverse
        enters = np.fmax.reduce(np.fmin(first, second), axis=0)
        leaves = np.fmin.reduce(np.fmax(first, second), axis=0)
    return np.where((enters <= leaves) & (enters > _NEAR), enters, np.inf)


def _meet_cylinder(starts: Array, directions: Array, radius: float, half_height: float) -> Array:
    """Meet an upright cylinder: its side, or its top seen from above."""
    a = directions[0] ** 2 + directions[2] ** 2
    b = starts[0] * directions[0] + starts[2] * directions[2]
    c = starts[0] ** 2 + starts[2] ** 2 - radius * radius
    inner = b * b - a * c
    with np.errstate(divide="ignore", invalid="ignore"):
        side = (-b - np.sqrt(np.maximum(inner, 0.0))) / a
        top = (half_height - starts[1]) / directions[1]
        on_side = (inner >= 0.0) & (side > _NEAR) & (np.abs(starts[1] + side * directions[1]) <= half_height)
        reach = (starts[0] + top * directions[0]) ** 2 + (starts[2] + top * directions[2]) ** 2
        on_top = (directions[1] < 0.0) & (top > _NEAR) & (reach <= radius * radius)
    return np.minimum(np.where(on_side, side, np.inf), np.where(on_top, top, np.inf))


def _meet_cone(starts: Array, directions: Array, radius: float, half_height: float) -> Array:
    """Meet an upright cone, its tip at +half_height; the base rests on something and is never seen."""
    slope = radius / (2.0 * half_height)
    below_tip = half_height - starts[1]
    a = directions[0] ** 2 + directions[2] ** 2 - (slope * directions[1]) ** 2
    b = starts[0] * directions[0] + starts[2] * directions[2] + slope * slope * below_tip * directions[1]
    c = starts[0] ** 2 + starts[2] ** 2 - (slope * below_tip) ** 2
    inner = b * b - a * c
    root = np.sqrt(np.maximum(inner, 0.0))
    best = np.full(starts.shape[1], np.inf)
    for sign in (-1.0, 1.0):
        with np.errstate(divide="ignore", invalid="ignore"):
            t = (-b + sign * root) / a
            height = starts[1] + t * directions[1]
        good = (inner >= 0.0) & (t > _NEAR) & (np.abs(height) <= half_height)
        best = np.where(good & (t < best), t, best)
    return best

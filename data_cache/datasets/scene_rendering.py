"""From a scene's layout to an image with exact labels, depth and instances: cast, shade, photograph."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_cache.datasets.scene_layout import (
    GROUND,
    PICTURE,
    SKY,
    WALL,
    Camera,
    Paint,
    Pattern,
    Picture,
    Scene,
    Solid,
    Weather,
)
from data_cache.datasets.scene_rays import Array, compute_normals, intersect, to_local

GROUND_ENDS_M = 100.0
"""Distance along the optical axis where the ground has vanished in the haze and the sky begins."""

_UP = np.array([[0.0], [1.0], [0.0]])
_LIFT = 1e-4
"""Metres a shadow ray starts above its surface, so that rounding does not make the surface shade itself."""


class Rendering(NamedTuple):
    """One image and what is exactly true of each pixel's centre."""

    image: NDArray[np.uint8]
    """(H, W, 3) RGB."""
    labels: NDArray[np.uint8]
    """(H, W) class indices."""
    depth: NDArray[np.float32]
    """(H, W) metres along the optical axis; the sky is inf."""
    instances: NDArray[np.uint8]
    """(H, W); 0 for sky, ground and walls, then 1, 2, … for things and after them pictures."""


class _Hits(NamedTuple):
    """What each ray met first."""

    depth: Array
    surface: NDArray[np.int64]
    """-1 sky, 0 ground, then 1 + index into walls and things."""
    points: Array


def render_scene(scene: Scene, size: tuple[int, int], rng: np.random.Generator) -> Rendering:
    """Render a scene.

    Args:
        scene: the layout.
        size: (height, width) in px.
        rng: for sensor noise only.
    """
    solids = scene.walls + scene.things
    eye = np.array([[0.0], [scene.camera.height], [0.0]])
    rays = compute_camera_rays(scene.camera, size)
    hits = _cast(solids, eye, rays)
    pictured, picture_depth_hits = _find_pictures(scene, hits)
    labels, instances = _name_pixels(scene, solids, hits, pictured)
    albedo, normals, gloss = _describe_surfaces(scene, solids, hits)
    light = _compute_light(scene.weather, solids, hits, normals, gloss, rays)
    colours = albedo * light[0] + light[1]
    _paint_pictures(scene, colours, hits, light, pictured, picture_depth_hits)
    image = _photograph(scene.weather, colours, hits, rays, size, rng)
    height, width = size
    return Rendering(
        np.ascontiguousarray(image.reshape(3, height, width).transpose(1, 2, 0)),
        labels.reshape(size),
        hits.depth.astype(np.float32).reshape(size),
        instances.reshape(size),
    )


def compute_camera_rays(camera: Camera, size: tuple[int, int]) -> Array:
    """Return (3, H·W) directions through the pixel centres, scaled so that a ray parameter is a depth.

    Each direction has length 1 along the optical axis: origin + t · direction lies at z-depth t.
    """
    height, width = size
    across = (np.arange(width) + 0.5 - width / 2.0) / (camera.focal * width)
    upward = -(np.arange(height) + 0.5 - height / 2.0) / (camera.focal * width)
    x, y = (grid.ravel() for grid in np.meshgrid(across, upward))
    cos, sin = math.cos(camera.roll), math.sin(camera.roll)
    x, y = cos * x - sin * y, sin * x + cos * y
    cos, sin = math.cos(camera.pitch), math.sin(camera.pitch)
    return np.stack([x, y * cos - sin, y * sin + cos])


def _cast(solids: tuple[Solid, ...], eye: Array, rays: Array) -> _Hits:
    with np.errstate(divide="ignore"):
        depth = np.where(rays[1] < 0.0, -eye[1] / rays[1], np.inf)
    depth = np.where(depth <= GROUND_ENDS_M, depth, np.inf)
    surface = np.where(np.isfinite(depth), 0, -1)
    for index, solid in enumerate(solids):
        found = intersect(solid, eye, rays)
        nearer = found < depth
        depth = np.where(nearer, found, depth)
        surface[nearer] = index + 1
    points = eye + np.where(np.isfinite(depth), depth, 0.0) * rays
    return _Hits(depth, surface, points)


def _find_pictures(scene: Scene, hits: _Hits) -> tuple[NDArray[np.int64], Array]:
    """Find the pixels that show a picture: (N,) picture index or -1, and (3, N) the subject's point painted there."""
    pictured = np.full(hits.depth.size, -1)
    painted = np.zeros_like(hits.points)
    for index, picture in enumerate(scene.pictures):
        canvas = np.flatnonzero((hits.surface == (0 if picture.wall is None else picture.wall + 1)) & (pictured < 0))
        eye = np.asarray(picture.viewpoint)[:, None]
        sight = hits.points[:, canvas] - eye
        if picture.wall is not None and canvas.size:
            # Only the wall's front carries the painting: its narrow sides and top stay bare.
            wall = scene.walls[picture.wall]
            front = np.abs(to_local(wall, hits.points[:, canvas])[2]) >= wall.half[2] - 1e-9
            canvas, sight = canvas[front], sight[:, front]
        if canvas.size == 0:
            continue
        reached = intersect(picture.subject, eye, sight)
        seen = np.isfinite(reached)
        pictured[canvas[seen]] = index
        painted[:, canvas[seen]] = eye + reached[seen] * sight[:, seen]
    return pictured, painted


def _name_pixels(
    scene: Scene, solids: tuple[Solid, ...], hits: _Hits, pictured: NDArray[np.int64]
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return (N,) labels and (N,) instances."""
    names = np.array([SKY, GROUND, *(solid.label for solid in solids)], dtype=np.uint8)
    labels = names[hits.surface + 1]
    first_thing = 1 + len(scene.walls)
    instances = np.maximum(hits.surface - first_thing + 1, 0)
    shows = pictured >= 0
    labels[shows] = PICTURE
    instances[shows] = len(scene.things) + 1 + pictured[shows]
    return labels, instances.astype(np.uint8)


def _describe_surfaces(scene: Scene, solids: tuple[Solid, ...], hits: _Hits) -> tuple[Array, Array, Array]:
    """Return (3, N) albedo, (3, N) normals and (N,) gloss of what each ray met; the sky stays black."""
    albedo, normals = np.zeros_like(hits.points), np.zeros_like(hits.points)
    gloss = np.zeros(hits.depth.size)
    ground = np.flatnonzero(hits.surface == 0)
    # A pattern finer than a pixel would flicker: far ground takes the mean of its two colours.
    contrast = np.exp(-hits.depth[ground] / 9.0)
    albedo[:, ground] = _compute_pattern(scene.ground, hits.points[:, ground], contrast)
    normals[:, ground] = _UP
    for index, solid in enumerate(solids):
        pixels = np.flatnonzero(hits.surface == index + 1)
        if pixels.size:
            points = hits.points[:, pixels]
            contrast = np.exp(-hits.depth[pixels] / 18.0)
            albedo[:, pixels] = _compute_pattern(solid.paint, to_local(solid, points), contrast)
            normals[:, pixels] = compute_normals(solid, points)
            gloss[pixels] = solid.paint.gloss
    return albedo, normals, gloss


def _compute_pattern(paint: Paint, local: Array, contrast: Array | float) -> Array:
    """Return (3, N) albedo at points in the object's own axes."""
    x, y, z = local * paint.per_metre + np.asarray(paint.phase)[:, None]
    match paint.pattern:
        case Pattern.PLAIN:
            share = 0.12 * np.sin(5.0 * x) * np.sin(4.0 * y + 1.0) * np.sin(6.0 * z)
        case Pattern.CHECKS:
            share = (np.floor(x) + np.floor(y) + np.floor(z)) % 2.0
        case Pattern.STRIPES:
            share = np.floor(x + y + 0.3 * z) % 2.0
        case Pattern.MARBLE:
            bent = x + 0.6 * np.sin(2.3 * z + 1.3 * y) + 0.4 * np.sin(3.7 * y + 2.1 * x)
            share = 0.5 + 0.5 * np.sin(3.0 * bent)
        case Pattern.BRICKS:
            row = np.floor(2.0 * y)
            in_joint = ((2.0 * y) % 1.0 < 0.16) | ((x + 0.5 * (row % 2.0)) % 1.0 < 0.1)
            share = np.where(in_joint, 1.0, 0.12 * np.sin(7.0 * np.floor(x + 0.5 * row) + 3.0 * row))
    share = 0.5 + (share - 0.5) * contrast
    first, second = np.asarray(paint.first)[:, None], np.asarray(paint.second)[:, None]
    return np.clip(first + share * (second - first), 0.0, 1.0)


class _Light(NamedTuple):
    diffuse: Array
    """(3, N) what multiplies the albedo."""
    shine: Array
    """(N,) highlight added on top."""
    lit: Array
    """(N,) 1 where the sun is not hidden by another solid."""


def _compute_light(
    weather: Weather, solids: tuple[Solid, ...], hits: _Hits, normals: Array, gloss: Array, rays: Array
) -> _Light:
    sun = np.asarray(weather.sun)[:, None]
    facing = np.maximum((normals * sun).sum(axis=0), 0.0)
    lit = np.ones(hits.depth.size)
    if weather.sun_strength > 0.0:
        asked = np.flatnonzero((facing > 0.0) & (hits.surface >= 0))
        starts = hits.points[:, asked] + _LIFT * normals[:, asked]
        for solid in solids:
            lit[asked[np.isfinite(intersect(solid, starts, sun))]] = 0.0
    tint = np.asarray(weather.tint)[:, None]
    open_sky = _compute_open_sky(solids, hits)
    diffuse = open_sky * weather.ambient * (0.7 + 0.3 * normals[1]) + weather.sun_strength * facing * lit * tint
    half_way = sun - rays / np.linalg.norm(rays, axis=0)
    half_way /= np.linalg.norm(half_way, axis=0)
    shine = weather.sun_strength * gloss * lit * np.maximum((normals * half_way).sum(axis=0), 0.0) ** 40
    return _Light(diffuse, shine, lit)


def _compute_open_sky(solids: tuple[Solid, ...], hits: _Hits) -> Array:
    """Return (N,) the share of ambient light that reaches a point; things darken the ground they stand on."""
    share = np.ones(hits.depth.size)
    ground = np.flatnonzero(hits.surface == 0)
    x, z = hits.points[0, ground], hits.points[2, ground]
    for solid in solids:
        if solid.label != WALL:
            gap = np.hypot(x - solid.centre[0], z - solid.centre[2]) / solid.footprint_radius
            share[ground] *= 1.0 - 0.6 * np.exp(-(gap**4))
    return share


def _paint_pictures(
    scene: Scene, colours: Array, hits: _Hits, light: _Light, pictured: NDArray[np.int64], painted: Array
) -> None:
    """Overwrite the colours of pictured pixels, in place, with the subject as its painter saw it."""
    weather = scene.weather
    for index, picture in enumerate(scene.pictures):
        pixels = np.flatnonzero(pictured == index)
        if pixels.size == 0:
            continue
        shown = _shade_subject(picture, weather, painted[:, pixels], np.exp(-hits.depth[pixels] / 18.0))
        # Real shadows fall on the painting as on any surface.
        shade = 0.45 + 0.55 * light.lit[pixels] if weather.sun_strength > 0.0 else 1.0
        colours[:, pixels] = shown * shade


def _shade_subject(picture: Picture, weather: Weather, points: Array, contrast: Array) -> Array:
    """Shade a picture's subject under the light it was painted in, as strong as the scene's."""
    subject = picture.subject
    normals = compute_normals(subject, points)
    sun = np.asarray(picture.light)[:, None]
    facing = np.maximum((normals * sun).sum(axis=0), 0.0)
    facing += picture.fading * (facing.mean() - facing)
    albedo = _compute_pattern(subject.paint, to_local(subject, points), contrast)
    return albedo * (
        weather.ambient * (0.7 + 0.3 * normals[1]) + weather.sun_strength * facing * np.asarray(weather.tint)[:, None]
    )


def _photograph(
    weather: Weather, colours: Array, hits: _Hits, rays: Array, size: tuple[int, int], rng: np.random.Generator
) -> NDArray[np.uint8]:
    """Add air, sky, exposure, vignetting and noise; return (3, N) 8-bit sRGB-like values."""
    sky = hits.surface < 0
    air = 1.0 - np.exp(-np.where(sky, 0.0, hits.depth) / weather.visibility)
    haze = np.asarray(weather.haze)[:, None]
    colours = colours + air * (haze - colours)
    colours[:, sky] = _compute_sky(weather, rays[:, sky])
    height, width = size
    across = (np.arange(width) + 0.5) / width - 0.5
    down = (np.arange(height) + 0.5) / height - 0.5
    vignette = 1.0 - 0.35 * (across[None, :] ** 2 + down[:, None] ** 2).ravel()
    colours = np.clip(colours * (weather.exposure * vignette), 0.0, 1.0) ** (1.0 / 1.6)
    noise = rng.standard_normal(colours.shape, dtype=np.float32) * weather.noise
    return np.clip(np.rint((colours + noise) * 255.0), 0.0, 255.0).astype(np.uint8)


def _compute_sky(weather: Weather, rays: Array) -> Array:
    """Return (3, N) sky colours: haze at the horizon, clearer above, with soft clouds."""
    rise = np.maximum(rays[1], 0.0) / np.linalg.norm(rays, axis=0)
    clear = (1.0 - np.exp(-5.0 * rise))[None]
    haze, zenith = np.asarray(weather.haze)[:, None], np.asarray(weather.zenith)[:, None]
    over_x, over_z = (rays[axis] / (np.maximum(rays[1], 0.0) + 0.15) for axis in (0, 2))
    cloud = np.sin(2.1 * over_x + 1.7 * np.sin(0.9 * over_z)) * np.sin(1.3 * over_z + 0.8 * np.sin(1.9 * over_x))
    return haze + clear * (zenith - haze) + weather.clouds * np.maximum(cloud, 0.0) * (1.0 - np.exp(-9.0 * rise))

"""What stands where in a drawn scene: solids on a ground, walls, pictures painted on either, camera and light.

A layout is pure numbers drawn from one random stream; it knows no pixels, so one scene can be rendered at any size.
World axes in metres: x to the right, y up, z away from the camera; the ground is y = 0, the camera over the origin.
"""

from __future__ import annotations

import colorsys
import math
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

Vector = tuple[float, float, float]

CLASSES = ("sky", "ground", "wall", "box", "ball", "pillar", "cone", "picture")
PALETTE = (
    (135, 190, 235),
    (128, 110, 90),
    (190, 180, 160),
    (220, 60, 50),
    (250, 190, 40),
    (60, 90, 200),
    (60, 170, 90),
    (200, 70, 200),
)
SKY, GROUND, WALL, BOX, BALL, PILLAR, CONE, PICTURE = range(len(CLASSES))


_HUES = {BOX: 0.02, BALL: 0.14, PILLAR: 0.62, CONE: 0.36}
"""Typical hue of each thing in [0, 1): colour tells a ball from a box, but neither from its picture."""


class Shape(StrEnum):
    """The primitives a ray can meet."""

    BOX = "box"
    BALL = "ball"
    CYLINDER = "cylinder"
    CONE = "cone"


class Pattern(StrEnum):
    """How two colours share a surface."""

    PLAIN = "plain"
    CHECKS = "checks"
    STRIPES = "stripes"
    MARBLE = "marble"
    BRICKS = "bricks"


@dataclass(frozen=True)
class Paint:
    """A solid texture: two colours and how they alternate in the object's own coordinates."""

    pattern: Pattern
    first: Vector
    """Linear RGB in [0, 1]."""
    second: Vector
    per_metre: float
    """Repetitions of the pattern per metre."""
    phase: Vector
    gloss: float = 0.0
    """Strength of the highlight in [0, 1]."""


@dataclass(frozen=True)
class Solid:
    """One primitive, upright, turned about the vertical."""

    shape: Shape
    label: int
    centre: Vector
    half: Vector
    """Half extents along its own x, y, z; a ball, cylinder or cone uses the first as radius."""
    yaw: float
    """Radians."""
    paint: Paint

    @property
    def footprint_radius(self) -> float:
        """Radius of the circle on the ground that holds the solid."""
        return math.hypot(self.half[0], self.half[2]) if self.shape is Shape.BOX else self.half[0]


@dataclass(frozen=True)
class Picture:
    """A flat painting of a solid: what an eye at ``viewpoint`` would see of it, painted on the surface behind it.

    Seen from near the viewpoint it has the colours, shading and outline of the real thing; only its depth is the
    surface's, it casts no shadow, and it was painted under a light of its own.
    """

    subject: Solid
    viewpoint: Vector
    wall: int | None
    """Index of the wall it is painted on; None: on the ground."""
    light: Vector
    fading: float
    """How much of the painted shading the weather has taken, in [0, 1]."""


@dataclass(frozen=True)
class Camera:
    """A pinhole over the origin, looking along +z and ``pitch`` radians down."""

    height: float
    pitch: float
    roll: float
    focal: float
    """Focal length in image widths."""


@dataclass(frozen=True)
class Weather:
    """Light and air."""

    sun: Vector
    """Unit vector towards the sun."""
    sun_strength: float
    """0 on an overcast day, when nothing casts a shadow."""
    ambient: float
    tint: Vector
    zenith: Vector
    haze: Vector
    visibility: float
    """Metres after which a colour has mixed to 63 % with the haze."""
    clouds: float
    exposure: float
    noise: float
    """Standard deviation of sensor noise, in units of full scale."""


@dataclass(frozen=True)
class Scene:
    """Everything the renderer needs."""

    camera: Camera
    weather: Weather
    ground: Paint
    walls: tuple[Solid, ...]
    things: tuple[Solid, ...]
    pictures: tuple[Picture, ...]


def draw_scene(rng: np.random.Generator) -> Scene:
    """Draw a scene.

    Args:
        rng: the scene's own stream; equal streams give equal scenes.

    Returns:
        0–2 walls, up to 8 things and up to 3 pictures, placed so that footprints do not overlap.
    """
    camera = Camera(
        height=rng.uniform(1.3, 2.0),
        pitch=math.radians(rng.uniform(4.0, 15.0)),
        roll=math.radians(rng.uniform(-2.5, 2.5)),
        focal=rng.uniform(0.8, 1.0),
    )
    weather = _draw_weather(rng)
    ground = _draw_paint(rng, (Pattern.CHECKS, Pattern.STRIPES, Pattern.MARBLE), per_metre=(0.4, 1.5))
    walls = _draw_walls(rng)
    placed: list[Solid] = []
    pictures: list[Picture] = []
    for _ in range(int(rng.integers(1, 4))):
        picture = _draw_picture(rng, camera, walls, placed)
        if picture is not None:
            pictures.append(picture)
            placed.append(picture.subject)
    things: list[Solid] = []
    for _ in range(int(rng.integers(5, 9))):
        # Those that also exist as pictures come more often, so that most of what looks like a ball is one.
        label = int(rng.choice((BOX, BALL, PILLAR, CONE), p=(0.29, 0.33, 0.16, 0.22)))
        thing = _place(rng, _draw_thing(rng, label), camera, walls, placed)
        if thing is not None:
            things.append(thing)
            placed.append(thing)
    return Scene(camera, weather, ground, walls, tuple(things), tuple(pictures))


def _draw_weather(rng: np.random.Generator) -> Weather:
    overcast = rng.random() < 0.3
    warmth = rng.uniform(-0.06, 0.06)
    grey = rng.uniform(0.6, 0.85)
    blue = rng.uniform(0.05, 0.3) * (0.3 if overcast else 1.0)
    haze = (grey + 0.04, grey + 0.05, grey + 0.07)
    return Weather(
        sun=_draw_light(rng),
        sun_strength=0.0 if overcast else rng.uniform(0.6, 0.9),
        ambient=rng.uniform(0.75, 0.9) if overcast else rng.uniform(0.3, 0.45),
        tint=(1.0 + warmth, 1.0, 1.0 - warmth),
        zenith=(grey - 1.6 * blue, grey - 0.8 * blue, min(1.0, grey + 0.3 * blue)),
        haze=haze,
        visibility=rng.uniform(40.0, 150.0),
        clouds=rng.uniform(0.0, 0.25),
        exposure=rng.uniform(0.9, 1.25),
        noise=rng.uniform(0.004, 0.018),
    )


def _draw_light(rng: np.random.Generator) -> Vector:
    """Draw a direction towards a light high enough that shadows stay near their objects."""
    elevation = math.radians(rng.uniform(32.0, 68.0))
    azimuth = rng.uniform(0.0, 2.0 * math.pi)
    return (math.cos(elevation) * math.sin(azimuth), math.sin(elevation), -math.cos(elevation) * math.cos(azimuth))


def _draw_paint(
    rng: np.random.Generator, patterns: tuple[Pattern, ...], *, per_metre: tuple[float, float], hue: float | None = None
) -> Paint:
    """Draw two colours and a pattern: muted ones of any hue, or strong ones near a given hue."""
    muted = hue is None
    hue = rng.random() if hue is None else (hue + rng.normal(0.0, 0.05)) % 1.0
    saturation = rng.uniform(0.05, 0.35) if muted else rng.uniform(0.45, 0.9)
    value = rng.uniform(0.3, 0.6) if muted else rng.uniform(0.4, 0.95)
    spread = rng.uniform(0.05, 0.2) if muted else rng.uniform(0.2, 0.45)
    second_value = value - spread if value > 0.5 else value + spread
    second_hue = hue + (rng.uniform(-0.03, 0.03) if muted else rng.uniform(-0.06, 0.06))
    return Paint(
        pattern=patterns[int(rng.integers(len(patterns)))],
        first=colorsys.hsv_to_rgb(hue, saturation, value),
        second=colorsys.hsv_to_rgb(second_hue % 1.0, saturation, second_value),
        per_metre=rng.uniform(*per_metre),
        phase=(rng.random(), rng.random(), rng.random()),
        gloss=0.0 if muted else rng.uniform(0.0, 0.5),
    )


def _draw_walls(rng: np.random.Generator) -> tuple[Solid, ...]:
    """Draw a wall behind the scene and sometimes one at the side; a wall is a thin box with its own class."""
    walls: list[Solid] = []
    for chance, distance, offset, yaw in (
        (0.75, (7.0, 12.0), (-2.0, 2.0), (-20.0, 20.0)),
        (0.35, (5.0, 9.0), (3.5, 5.0), (55.0, 80.0)),
    ):
        side = 1.0 if rng.random() < 0.5 else -1.0
        half = (rng.uniform(2.0, 4.5), rng.uniform(0.9, 1.8), 0.1)
        paint = _draw_paint(rng, (Pattern.BRICKS, Pattern.PLAIN, Pattern.MARBLE), per_metre=(1.0, 2.5))
        wall = Solid(
            Shape.BOX,
            WALL,
            (side * rng.uniform(*offset), half[1], rng.uniform(*distance)),
            half,
            side * math.radians(rng.uniform(*yaw)),
            paint,
        )
        if rng.random() < chance and not any(_walls_cross(wall, other) for other in walls):
            walls.append(wall)
    return tuple(walls)


def _draw_thing(rng: np.random.Generator, label: int) -> Solid:
    """Draw a solid of a class, still standing at the origin."""
    paint = _draw_paint(
        rng,
        (Pattern.PLAIN, Pattern.PLAIN, Pattern.CHECKS, Pattern.STRIPES, Pattern.MARBLE),
        per_metre=(1.5, 4.0),
        hue=_HUES[label],
    )
    yaw = rng.uniform(-math.pi, math.pi)
    if label == BALL:
        radius = rng.uniform(0.35, 0.65)
        return Solid(Shape.BALL, label, (0.0, radius, 0.0), (radius, radius, radius), yaw, paint)
    if label == BOX:
        half = (rng.uniform(0.3, 0.6), rng.uniform(0.28, 0.6), rng.uniform(0.3, 0.6))
        return Solid(Shape.BOX, label, (0.0, half[1], 0.0), half, yaw, paint)
    radius, height = (
        (rng.uniform(0.18, 0.35), rng.uniform(1.4, 2.8))
        if label == PILLAR
        else (rng.uniform(0.4, 0.65), rng.uniform(0.9, 1.6))
    )
    shape = Shape.CYLINDER if label == PILLAR else Shape.CONE
    return Solid(shape, label, (0.0, height / 2.0, 0.0), (radius, height / 2.0, radius), yaw, paint)


def _place(
    rng: np.random.Generator,
    solid: Solid,
    camera: Camera,
    walls: tuple[Solid, ...],
    placed: list[Solid],
    reach: tuple[float, float] = (2.6, 7.5),
) -> Solid | None:
    """Move a solid to a free spot in front of the camera and not behind a wall; None when 20 tries found no room."""
    for _ in range(20):
        z = rng.uniform(*reach)
        x = z * rng.uniform(-0.5, 0.5) / camera.focal
        radius = solid.footprint_radius
        crowded = any(
            math.hypot(x - other.centre[0], z - other.centre[2]) < radius + other.footprint_radius + 0.1
            for other in placed
        )
        if not crowded and not any(_in_or_behind(x, z, radius, wall) for wall in walls):
            return _moved(solid, (x, solid.centre[1], z))
    return None


def _draw_picture(
    rng: np.random.Generator, camera: Camera, walls: tuple[Solid, ...], placed: list[Solid]
) -> Picture | None:
    """Draw a painting of a ball or a box, on the ground or standing at the foot of a wall."""
    subject = _draw_thing(rng, int(rng.choice((BOX, BALL))))
    viewpoint = (rng.uniform(-0.7, 0.7), camera.height * rng.uniform(0.9, 1.2), rng.uniform(-0.5, 0.3))
    light, fading = _draw_light(rng), rng.uniform(0.1, 0.6)
    on_wall = rng.random() < 0.5
    if on_wall and walls:
        index = int(rng.integers(len(walls)))
        wall = walls[index]
        along = rng.uniform(-0.8, 0.8) * wall.half[0]
        subject = _scaled(subject, rng.uniform(1.2, 1.7), limit=2.0 * wall.half[1] - 0.2)
        centre = _wall_point(wall, along, subject.centre[1] + 0.12 + rng.uniform(0.0, 0.15))
        return Picture(_moved(subject, centre), viewpoint, index, light, fading)
    subject = _scaled(subject, rng.uniform(0.8, 1.1), limit=0.6 * camera.height)
    moved = _place(rng, subject, camera, walls, placed, reach=(2.6, 5.5))
    return None if moved is None else Picture(moved, viewpoint, None, light, fading)


def _moved(solid: Solid, centre: Vector) -> Solid:
    return Solid(solid.shape, solid.label, centre, solid.half, solid.yaw, solid.paint)


def _scaled(solid: Solid, factor: float, limit: float) -> Solid:
    """Scale a standing solid, but to no more than ``limit`` metres of height."""
    factor = min(factor, limit / (2.0 * solid.half[1]))
    x, y, z = (value * factor for value in solid.half)
    return Solid(solid.shape, solid.label, (0.0, y, 0.0), (x, y, z), solid.yaw, solid.paint)


def _wall_point(wall: Solid, along: float, height: float) -> Vector:
    """Return the point of a wall's middle plane ``along`` metres from its centre."""
    return (wall.centre[0] + along * math.cos(wall.yaw), height, wall.centre[2] - along * math.sin(wall.yaw))


def _in_or_behind(x: float, z: float, radius: float, wall: Solid) -> bool:
    """Tell whether a footprint touches a wall or the wall hides its centre from the camera."""
    ends = [_wall_point(wall, side * (wall.half[0] + radius), 0.0) for side in (-1.0, 1.0)]
    (ax, _, az), (bx, _, bz) = ends
    length = math.hypot(bx - ax, bz - az)
    along = min(1.0, max(0.0, ((x - ax) * (bx - ax) + (z - az) * (bz - az)) / length**2))
    distance = math.hypot(x - ax - along * (bx - ax), z - az - along * (bz - az))
    return distance < radius + 2.0 * wall.half[2] or _segments_cross((0.0, 0.0), (x, z), (ax, az), (bx, bz))


def _walls_cross(first: Solid, second: Solid) -> bool:
    a, b, c, d = (_wall_point(wall, side * wall.half[0] * 1.1, 0.0) for wall in (first, second) for side in (-1.0, 1.0))
    return _segments_cross((a[0], a[2]), (b[0], b[2]), (c[0], c[2]), (d[0], d[2]))


def _segments_cross(
    a: tuple[float, float], b: tuple[float, float], c: tuple[float, float], d: tuple[float, float]
) -> bool:
    def side(p: tuple[float, float], q: tuple[float, float], r: tuple[float, float]) -> bool:
        return (q[0] - p[0]) * (r[1] - p[1]) > (q[1] - p[1]) * (r[0] - p[0])

    return side(a, b, c) != side(a, b, d) and side(c, d, a) != side(c, d, b)

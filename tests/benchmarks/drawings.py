"""Images, masks and depth maps that cost about as much to read as photographs and a network's output do."""

from __future__ import annotations

import numpy as np
from PIL import Image

Size = tuple[int, int]


def draw_surface(size: Size, rng: np.random.Generator) -> np.ndarray:
    """Return (H, W) float32 in about 0 to 300: slopes and rounded bodies with hard edges, grain of 1e-4."""
    height, width = size
    ys, xs = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    surface = 120 * ys + 20 * np.sin(3 * xs)
    for _ in range(25):
        y, x, radius = rng.uniform(0, 1), rng.uniform(0, 1), rng.uniform(0.03, 0.15)
        bump = 1 - ((ys - y) ** 2 + (xs - x) ** 2) / radius**2
        surface = np.where(bump > 0, 60 + 120 * y + 30 * np.sqrt(np.maximum(bump, 0)), surface)
    return (surface * (1 + rng.normal(0, 1e-4, size))).astype(np.float32)


def draw_photograph(surface: np.ndarray, rng: np.random.Generator) -> Image.Image:
    """Return an image of a surface (H, W) with texture; as JPEG of quality 90 about as large as a photograph's."""
    textured = surface[..., None] * rng.uniform(0.5, 1, 3) + 25 * np.sin(surface * 2)[..., None]
    noisy = textured + rng.normal(0, 9, (*surface.shape, 1))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def draw_mask(surface: np.ndarray, classes: int) -> Image.Image:
    """Return an image of class ids whose regions follow the surface."""
    return Image.fromarray(((surface / 20).astype(np.int64) % classes).astype(np.uint8))

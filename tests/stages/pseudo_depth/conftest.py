"""Tiny random estimators, and small image folders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.stages.pseudo_depth.tiny_estimators import write_depth_anything, write_dpt_dinov2


def draw_image(size: tuple[int, int], seed: int) -> np.ndarray:
    """Draw smooth random colours, sharp boxes and a little noise."""
    rng = np.random.default_rng(seed)
    coarse = torch.from_numpy(rng.random((1, 3, 4, 5))).float()
    pixels = torch.nn.functional.interpolate(coarse, size=size, mode="bilinear")[0].permute(1, 2, 0).numpy() * 200
    for _ in range(4):
        top, left = rng.integers(0, size[0] - 8), rng.integers(0, size[1] - 8)
        pixels[top : top + 8, left : left + 8] = rng.integers(0, 255, 3)
    return np.clip(pixels + rng.normal(0, 4, pixels.shape), 0, 255).astype(np.uint8)


def write_image_folder(root: Path, sizes: list[tuple[int, int]]) -> Path:
    """Write a ``folder`` dataset with one train image per size."""
    for kind in ("images", "masks"):
        (root / kind / "train").mkdir(parents=True)
    (root / "classes.txt").write_text("a\nb\n")
    for number, size in enumerate(sizes):
        Image.fromarray(draw_image(size, number)).save(root / "images" / "train" / f"{number:03d}.png")
        Image.fromarray(np.zeros(size, np.uint8)).save(root / "masks" / "train" / f"{number:03d}.png")
    return root


@pytest.fixture(scope="session")
def depth_anything_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_depth_anything(tmp_path_factory.mktemp("weights") / "tiny-depth-anything")


@pytest.fixture(scope="session")
def dpt_dinov2_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dpt_dinov2(tmp_path_factory.mktemp("weights") / "tiny-dpt-dinov2")


@pytest.fixture
def image() -> np.ndarray:
    """(60, 84, 3) uint8 with structure at every scale."""
    return draw_image((60, 84), seed=3)


@pytest.fixture(name="draw_image")
def _draw_image() -> Callable[..., np.ndarray]:
    return draw_image


@pytest.fixture(name="write_depth_anything")
def _write_depth_anything() -> Callable[..., Path]:
    return write_depth_anything


@pytest.fixture(name="write_image_folder")
def _write_image_folder() -> Callable[..., Path]:
    return write_image_folder

"""Tiny random estimators of the real classes on disk, and small image folders."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    DepthAnythingConfig,
    DepthAnythingForDepthEstimation,
    Dinov2Config,
    DPTConfig,
    DPTForDepthEstimation,
)

IMAGENET_MEAN = [0.485, 0.456, 0.406]
IMAGENET_STD = [0.229, 0.224, 0.225]


def write_depth_anything(folder: Path, *, metric: bool = False, seed: int = 0, bias: float = 0.5) -> Path:
    """Write a random Depth Anything of 30 k parameters with the published kind of preprocessor."""
    torch.manual_seed(seed)
    backbone = Dinov2Config(
        hidden_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        mlp_ratio=2,
        patch_size=14,
        image_size=56,
        out_indices=[1, 2, 3, 4],
        reshape_hidden_states=False,
    )
    network = DepthAnythingForDepthEstimation(
        DepthAnythingConfig(
            backbone_config=backbone,
            reassemble_hidden_size=16,
            neck_hidden_sizes=[8, 8, 8, 8],
            fusion_hidden_size=8,
            head_hidden_size=8,
            depth_estimation_type="metric" if metric else "relative",
            max_depth=20 if metric else 1,
        )
    )
    make_lively(network, bias)
    network.save_pretrained(folder)
    preprocessor = {
        "image_processor_type": "DPTImageProcessor",
        "do_resize": True,
        "size": {"height": 56, "width": 56},
        "keep_aspect_ratio": True,
        "ensure_multiple_of": 14,
        "resample": 3,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": IMAGENET_MEAN,
        "image_std": IMAGENET_STD,
        "do_pad": False,
        "size_divisor": None,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    return folder


def write_dpt_dinov2(folder: Path) -> Path:
    """Write a random DPT on DINOv2 with the preprocessor of the published ones: 0–255 statistics, centre pad."""
    torch.manual_seed(1)
    backbone = Dinov2Config(
        hidden_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        mlp_ratio=2,
        patch_size=14,
        image_size=56,
        out_indices=[1, 2, 3, 4],
        reshape_hidden_states=False,
        apply_layernorm=False,
    )
    network = DPTForDepthEstimation(
        DPTConfig(
            backbone_config=backbone,
            neck_hidden_sizes=[8, 8, 8, 8],
            fusion_hidden_size=8,
            readout_type="project",
            add_projection=False,
            use_bias_in_fusion_residual=False,
        )
    )
    make_lively(network, 5.0)
    network.save_pretrained(folder)
    preprocessor = {
        "image_processor_type": "DPTImageProcessor",
        "do_resize": False,
        "do_rescale": False,
        "do_normalize": True,
        "image_mean": [255 * value for value in IMAGENET_MEAN],
        "image_std": [255 * value for value in IMAGENET_STD],
        "do_pad": True,
        "size_divisor": 14,
        "resample": 3,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    return folder


def make_lively(network: torch.nn.Module, bias: float) -> None:
    """Random weights large enough that maps differ between images, and a last bias that clears the final ReLU."""
    for parameter in network.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.15)
    last = [module for module in network.modules() if isinstance(module, torch.nn.Conv2d) and module.out_channels == 1]
    torch.nn.init.constant_(last[-1].bias, bias)


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

"""Tiny random estimators of the real classes on disk."""

from __future__ import annotations

import json
from pathlib import Path

import torch
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

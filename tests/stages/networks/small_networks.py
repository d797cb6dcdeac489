"""Every network under the options that make it small enough for a test, which it declares itself."""

from __future__ import annotations

import pytest

from stages.networks import NETWORKS, load_network
from stages.networks.smp_architectures import ARCHITECTURES

NUM_CLASSES = 4
SMALL_CHANNELS = {"fpn": 64, "pan": 8, "upernet": 16, "segformer": 16, "deeplabv3": 16, "deeplabv3plus": 16}
SMALL_ENCODER = {"encoder": "tu-resnet10t", "encoder_weights": "none"}
SMALL_OPTIONS: dict[str, list[dict]] = {name: list(map(dict, load_network(name).small_options)) for name in NETWORKS}
CASES = [(name, options) for name, all_options in SMALL_OPTIONS.items() for options in all_options]
NETWORKS_OR_UNET = [pytest.param(name, marks=[] if name == "unet" else pytest.mark.exhaustive) for name in NETWORKS]
"""All networks, of which only the U-Net is tried where time is short."""
IN_FULL = {options.get("architecture", "unet") for options in SMALL_OPTIONS["unet"]}
"""Architectures of smp that are networks of their own here."""


def small_smp_options(architecture: str) -> dict:
    stages = isinstance(ARCHITECTURES[architecture].channels, tuple)
    channels = [16, 16, 8, 8, 8] if stages else SMALL_CHANNELS.get(architecture)
    return {"architecture": architecture, "decoder_channels": channels, **SMALL_ENCODER}


def case_name(case: tuple[str, dict]) -> str:
    name, options = case
    return f"{name}-{options['architecture']}" if "architecture" in options else name

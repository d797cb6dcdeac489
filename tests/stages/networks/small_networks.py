"""Every network under options that make it small enough for a test. A new network joins by one entry."""

from __future__ import annotations

from stages.networks.smp_architectures import ARCHITECTURES

NUM_CLASSES = 4
SMALL_CHANNELS = {"fpn": 64, "pan": 8, "upernet": 16, "segformer": 16, "deeplabv3": 16, "deeplabv3plus": 16}
SMALL_ENCODER = {"encoder": "tu-resnet10t", "encoder_weights": "none"}
IN_FULL = ("unet", "fpn", "pan", "deeplabv3plus")
"""Architectures of smp of each kind: any size, padded, dilated with a smallest map, not drawn again."""


def small_smp_options(architecture: str) -> dict:
    stages = isinstance(ARCHITECTURES[architecture].channels, tuple)
    channels = [16, 16, 8, 8, 8] if stages else SMALL_CHANNELS.get(architecture)
    return {"architecture": architecture, "decoder_channels": channels, **SMALL_ENCODER}


SMALL_OPTIONS: dict[str, list[dict]] = {
    "unet": [small_smp_options(architecture) for architecture in IN_FULL],
    "unet-classic": [{"width": 8}],
    "unet-valid": [{"width": 8}],
    "fcn32s": [{"width": 8, "fc_width": 16, "encoder_weights": "none"}],
    "fcn16s": [{"width": 8, "fc_width": 16, "encoder_weights": "none"}],
    "fcn8s": [
        {"width": 8, "fc_width": 16, "encoder_weights": "none"},
        {"width": 8, "fc_width": 16, "encoder_weights": "none", "padding": "caffe", "depth_branch": "full"},
        {"width": 8, "encoder_weights": "none", "head": "pool5"},
    ],
    "conv-vgg": [{"width": 8, "fc_width": 16, "encoder_weights": "none"}],
    "segnet": [{"width": 8, "encoder_weights": "none"}],
    "pspnet": [{"encoder": "resnet18", "decoder_channels": 16, "encoder_weights": "none", "aux": True}],
    "deeplabv3plus": [{"width": 8, "low_level_width": 4, **SMALL_ENCODER}],
    "deeplabv3plus-mff": [{"width": 8, "share_aspp": True, "encoder": "resnet18", "encoder_weights": "none"}],
    "bisenet": [{"width": 16, **SMALL_ENCODER}],
    "bisenet-mff": [{"width": 16, **SMALL_ENCODER}],
    "dcsa-resnet": [
        {"reduction": 8, "output_stride": 16, "modulated": True, **SMALL_ENCODER},
        {"reduction": 8, "decoder": "unet", "decoder_channels": [16, 16, 8, 8, 8], **SMALL_ENCODER},
    ],
}
"""Name → options under which the network is small enough for a test, one set per kind worth testing."""
CASES = [(name, options) for name, all_options in SMALL_OPTIONS.items() for options in all_options]


def case_name(case: tuple[str, dict]) -> str:
    name, options = case
    return f"{name}-{options['architecture']}" if "architecture" in options else name

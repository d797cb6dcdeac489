"""How much of an encoder's pretraining is kept: the segmentation lecture's modes as changes to a recipe."""

from __future__ import annotations

from typing import Any

from data_cache.errors import UserError
from pipeline.experiment.config import RunConfig
from stages.training.encoder_policy import EncoderPolicy
from stages.training.settings import TransferMode

LOW_LEVEL_DEPTH = 3
"""Encoder stages that a low-level extractor keeps: those down to 1/8 of the image. Ours; the lecture says "early"."""

POLICIES: dict[TransferMode, EncoderPolicy] = {
    "feature-extractor": "always-freeze",
    "low-level-extractor": "always-freeze",
    "fine-tune": "always-low-lr",
    "scratch": "train",
}


def apply_transfer(config: RunConfig) -> RunConfig:
    """Return the recipe with what its transfer mode means spelled out; the same recipe without a mode.

    Raises:
        UserError: the mode contradicts the recipe, or the network cannot be used so.
    """
    mode = config.training.transfer
    if mode is None:
        return config
    policy = POLICIES[mode]
    if config.training.encoder_policy not in ("train", policy):
        raise UserError(
            f"transfer {mode!r} means encoder policy {policy!r}, but the recipe asks for "
            f"{config.training.encoder_policy!r}; give only one of them"
        )
    changes: dict[str, Any] = {"training.encoder_policy": policy}
    if mode == "scratch":
        changes |= _without_pretraining(config)
    else:
        _check_pretrained(config, mode)
    if mode == "low-level-extractor":
        changes |= _truncated(config)
    return config.changed(changes)


def _without_pretraining(config: RunConfig) -> dict[str, Any]:
    return {"network.encoder_weights": "none"} if "encoder_weights" in _find_options(config) else {}


def _check_pretrained(config: RunConfig, mode: TransferMode) -> None:
    """Raise UserError where there is no pretraining that could be transferred."""
    weights = _find_options(config).get("encoder_weights", "none")
    if weights != "none":
        return
    network = config.network.name
    remedy = (
        'set network.encoder_weights to "imagenet" or to a safetensors file (see: pipeline fetch), or use transfer '
        '"scratch"'
        if "encoder_weights" in _find_options(config)
        else f"network {network!r} has none; choose another network, or transfer 'scratch'"
    )
    raise UserError(
        f"transfer {mode!r} keeps what an encoder learnt before, but the encoder of {network!r} would start from "
        f"random weights; {remedy}"
    )


def _truncated(config: RunConfig) -> dict[str, Any]:
    options = _find_options(config)
    if "encoder_depth" not in options:
        raise UserError(
            f"transfer 'low-level-extractor' cuts the encoder after {LOW_LEVEL_DEPTH} stages, but network "
            f"{config.network.name!r} needs all of them; use network 'unet' (any of its architectures), or transfer "
            "'feature-extractor'"
        )
    depth = min(LOW_LEVEL_DEPTH, options["encoder_depth"])
    changes: dict[str, Any] = {"network.encoder_depth": depth}
    channels = options.get("decoder_channels")
    if isinstance(channels, list | tuple):
        changes["network.decoder_channels"] = tuple(channels[-depth:])  # the decoder ends at the same resolution
    return changes


def _find_options(config: RunConfig) -> dict[str, Any]:
    """Return the network's options with its defaults beneath the recipe's."""
    from stages.networks import network_options

    return {**network_options(config.network.name), **config.network.options}

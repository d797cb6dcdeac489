"""An smp or timm encoder with all five stages, dilated to an output stride, its pretrained weights loaded."""

from __future__ import annotations

import warnings
from pathlib import Path

from segmentation_models_pytorch.encoders import get_encoder
from torch import nn

from data_cache.errors import UserError
from stages.networks.encoder_weights import (
    build_no_connection_error,
    is_weights_file,
    load_encoder_file,
    resolve_smp_weights,
)
from stages.networks.encoders import check_encoder_name, drop_unused_weights

FULL_STRIDE = 32
"""Of the deepest features when nothing is dilated."""


def build_encoder(
    encoder: str, encoder_weights: str, *, output_stride: int = FULL_STRIDE, can_stay_undilated: bool = True
) -> nn.Module:
    """Build an encoder that maps images to six feature maps, the first the image itself or of its size.

    Args:
        encoder: smp's name, or ``tu-`` and a timm name.
        encoder_weights: ``imagenet`` (or another published set), ``none``, or the path of a safetensors file.
        output_stride: 8, 16 or 32; below 32 the last stages are dilated and keep their resolution.
        can_stay_undilated: whether the network has an ``output_stride`` that the message may say to set to 32.

    Returns:
        The encoder with smp's ``out_channels``; weights that reach none of its features are gone.

    Raises:
        UserError: for an unknown encoder, one that cannot be dilated, and weights that cannot be had.
    """
    check_encoder_name(encoder)
    if output_stride not in (8, 16, FULL_STRIDE):
        raise UserError(
            f"encoder {encoder!r} cannot have output_stride {output_stride}; possible: 8, 16, {FULL_STRIDE}"
        )
    weights = resolve_smp_weights(encoder, encoder_weights)
    try:
        with warnings.catch_warnings():
            # smp warns about its own old names of timm encoders and offers them all the same.
            warnings.simplefilter("ignore")
            built = get_encoder(encoder, weights=weights, output_stride=output_stride)
    except OSError as error:
        raise build_no_connection_error(encoder, error) from error
    except (ValueError, TypeError, NotImplementedError, AssertionError, RuntimeError) as error:
        remedy = "choose another encoder"
        if output_stride != FULL_STRIDE:
            undilated = f"set output_stride = {FULL_STRIDE}, or " if can_stay_undilated else ""
            remedy = f"{undilated}choose a ResNet or MobileNet, which can be dilated"
        raise UserError(
            f"encoder {encoder!r} cannot be built with output_stride {output_stride} ({error}); {remedy}"
        ) from error
    if is_weights_file(encoder_weights):
        load_encoder_file(built, encoder, Path(encoder_weights))
    drop_unused_weights(built, encoder)
    return built

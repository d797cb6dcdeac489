"""smp's architectures as rows: how each spells its options, and what image sizes it needs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from data_cache.errors import UserError

DecoderChannels = int | Sequence[int] | None


class Architecture(NamedTuple):
    """One smp model class."""

    smp_class: str
    """Name in ``segmentation_models_pytorch``; also what an exported config.json names."""
    channels: tuple[int, ...] | int | None
    """Default ``decoder_channels``: one number per stage (for depth 5), one number, or None when it has no choice."""
    channel_keywords: tuple[tuple[str, int], ...] = (("decoder_channels", 1),)
    """smp's keywords for the channels, each with what our number is divided by."""
    channel_multiple: int = 1
    """The channels must be a multiple of this (group normalisation)."""
    min_depth: int = 1
    output_strides: tuple[int, ...] = ()
    """Strides the encoder can be dilated to, the default first; empty when the architecture does not dilate."""
    any_size: bool = False
    """Whether the decoder follows odd feature sizes; else images are padded to a multiple of the encoder stride."""
    min_features_px: int = 1
    """Smallest side of the deepest feature map; smaller images are padded."""
    pools_globally: bool = False
    """Whether batch norm follows a global pooling, so that training needs two images per batch."""
    global_context: bool = False
    """Whether the decoder mixes the whole image into every pixel, so that tiles of a large image can never equal it."""
    reinitialised: bool = True
    """Whether smp draws the decoder and head again by its own rule instead of keeping torch's initialisation."""
    upsampling_from_depth: bool = False
    """Whether the head's upsampling must be set, because smp's default is right at depth 5 only."""


STAGES = (256, 128, 64, 32, 16)

# fmt: off
ARCHITECTURES = {
    "unet":          Architecture("Unet", STAGES, any_size=True),
    "unetplusplus":  Architecture("UnetPlusPlus", STAGES),
    "manet":         Architecture("MAnet", STAGES, global_context=True),
    "linknet":       Architecture("Linknet", None),
    "fpn":           Architecture("FPN", 256, (("decoder_pyramid_channels", 1), ("decoder_segmentation_channels", 2)),
                                  channel_multiple=64, min_depth=3, upsampling_from_depth=True),
    "pan":           Architecture("PAN", 32, min_depth=3, output_strides=(16, 32), min_features_px=8,
                                  pools_globally=True, global_context=True),
    "upernet":       Architecture("UPerNet", 256, min_depth=3, pools_globally=True, global_context=True),
    "segformer":     Architecture("Segformer", 256, (("decoder_segmentation_channels", 1),), min_depth=3),
    "deeplabv3":     Architecture("DeepLabV3", 256, output_strides=(8, 16), reinitialised=False,
                                  pools_globally=True, global_context=True),
    "deeplabv3plus": Architecture("DeepLabV3Plus", 256, min_depth=3, output_strides=(16, 8), reinitialised=False,
                                  pools_globally=True, global_context=True),
}
# fmt: on
"""Name → row. Source: the model classes of segmentation_models_pytorch 0.6."""


def resolve_smp_keywords(
    name: str, *, encoder_depth: int, decoder_channels: DecoderChannels, output_stride: int | None
) -> dict[str, Any]:
    """Translate our options to the keywords of the architecture's smp class.

    Raises:
        UserError: for a depth, channels or output stride that the architecture cannot take.
    """
    architecture = ARCHITECTURES[name]
    if not architecture.min_depth <= encoder_depth <= 5:
        possible = f"{architecture.min_depth} to 5"
        raise UserError(f"architecture {name!r} cannot have encoder_depth {encoder_depth}; possible: {possible}")
    keywords: dict[str, Any] = {"encoder_depth": encoder_depth}
    keywords |= _channel_keywords(name, encoder_depth, decoder_channels)
    keywords |= _stride_keywords(name, output_stride)
    if architecture.upsampling_from_depth:
        keywords["upsampling"] = 2 ** (encoder_depth - 3)
    return keywords


def _channel_keywords(name: str, encoder_depth: int, decoder_channels: DecoderChannels) -> dict[str, Any]:
    architecture = ARCHITECTURES[name]
    default = architecture.channels
    if isinstance(default, tuple):
        # Fewer stages end at the same resolution, so they keep the last numbers, not the first.
        channels = default[-encoder_depth:] if decoder_channels is None else decoder_channels
        if isinstance(channels, int) or len(channels) != encoder_depth or min(channels) < 1:
            raise UserError(
                f"architecture {name!r} with encoder_depth {encoder_depth} cannot have decoder_channels {channels!r}; "
                f"give {encoder_depth} positive numbers, deepest first, for example {list(default[-encoder_depth:])}"
            )
        return {keyword: list(channels) for keyword, _ in architecture.channel_keywords}
    if default is None:
        if decoder_channels is not None:
            raise UserError(f"architecture {name!r} takes its channels from the encoder; drop decoder_channels")
        return {}
    width = default if decoder_channels is None else decoder_channels
    if not isinstance(width, int) or width < 1 or width % architecture.channel_multiple:
        raise UserError(
            f"architecture {name!r} cannot have decoder_channels {width!r}; give one positive multiple of "
            f"{architecture.channel_multiple}, for example {default}"
        )
    return {keyword: width // divisor for keyword, divisor in architecture.channel_keywords}


def _stride_keywords(name: str, output_stride: int | None) -> dict[str, Any]:
    possible = ARCHITECTURES[name].output_strides
    if not possible:
        if output_stride is not None:
            dilating = ", ".join(other for other, row in ARCHITECTURES.items() if row.output_strides)
            raise UserError(f"architecture {name!r} has no output_stride; drop it or choose one of {dilating}")
        return {}
    if output_stride is not None and output_stride not in possible:
        numbers = " or ".join(str(stride) for stride in sorted(possible))
        raise UserError(f"architecture {name!r} cannot have output_stride {output_stride}; possible: {numbers}")
    return {"encoder_output_stride": output_stride or possible[0]}

"""A shared encoder with two decoders of one kind, put together from smp's parts.

Source: the pseudo-depth paper, the multi-decoder U-Net; smp's other architectures by the same plug.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from segmentation_models_pytorch.base import SegmentationHead
from segmentation_models_pytorch.base.initialization import initialize_decoder, initialize_head
from torch import Tensor, nn

from data_cache.errors import UserError, unknown_name
from stages.networks.branched import BranchedNetwork
from stages.networks.encoder_weights import (
    build_no_connection_error,
    is_weights_file,
    load_encoder_file,
    resolve_smp_weights,
)
from stages.networks.encoders import check_encoder_name, drop_unused_weights, find_normalisation, follows_odd_sizes
from stages.networks.smp_architectures import ARCHITECTURES, Architecture, DecoderChannels, resolve_smp_keywords

_SMALL_ENCODER = {"encoder": "tu-resnet10t", "encoder_weights": "none"}


class SmpNetwork(BranchedNetwork):
    """Shared smp encoder, a decoder and head for segmentation, and unless stripped another pair for depth.

    With the same torch seed and options, encoder and segmentation branch start with the same bits whether or not the
    depth branch exists, and with those of smp's own model.
    """

    small_options = (
        {"decoder_channels": [16, 16, 8, 8, 8], **_SMALL_ENCODER},
        {"architecture": "fpn", "decoder_channels": 64, **_SMALL_ENCODER},
        {"architecture": "pan", "decoder_channels": 8, **_SMALL_ENCODER},
        {"architecture": "deeplabv3plus", "decoder_channels": 16, **_SMALL_ENCODER},
    )
    """Of smp's architectures one of each kind: any size, padded, dilated with a smallest map, not drawn again."""

    def __init__(
        self,
        num_classes: int,
        *,
        with_depth: bool = True,
        architecture: str = "unet",
        encoder: str = "resnet50",
        encoder_weights: str = "imagenet",
        encoder_depth: int = 5,
        decoder_channels: DecoderChannels = None,
        output_stride: int | None = None,
        encoder_options: Mapping[str, Any] | None = None,
    ) -> None:
        """Build the network.

        Args:
            num_classes: number of segmentation classes.
            with_depth: whether to build the depth branch.
            architecture: key of ``ARCHITECTURES``.
            encoder: smp's name, or ``tu-`` and a timm name.
            encoder_weights: ``imagenet`` (or another published set), ``none``, or the path of a safetensors file.
            encoder_depth: number of stages, each halving the resolution; weights of later ones are dropped.
            decoder_channels: width of the decoder; one number per stage for the U-Net family.
            output_stride: to which the encoder is dilated, for architectures that do so.
            encoder_options: keyword arguments of the timm model.

        Raises:
            UserError: for names and values that are not possible, and weights that cannot be had.
        """
        super().__init__()
        if architecture not in ARCHITECTURES:
            raise unknown_name("architecture", architecture, ARCHITECTURES)
        check_encoder_name(encoder)
        if encoder_options and not encoder.startswith("tu-"):
            raise UserError(f"encoder_options are passed to timm, but encoder {encoder!r} is smp's own; drop them")
        self.num_classes = num_classes
        self.architecture = architecture
        self.normalisation = find_normalisation(encoder, encoder_weights)
        self._smp_keywords = {
            "encoder_name": encoder,
            **resolve_smp_keywords(
                architecture,
                encoder_depth=encoder_depth,
                decoder_channels=decoder_channels,
                output_stride=output_stride,
            ),
            "classes": num_classes,
            **(encoder_options or {}),
        }
        model = self._build_smp_model(resolve_smp_weights(encoder, encoder_weights))
        if is_weights_file(encoder_weights):
            load_encoder_file(model.encoder, encoder, Path(encoder_weights))
        drop_unused_weights(model.encoder, encoder)
        self.encoder = model.encoder
        self.seg_decoder = model.decoder
        self.seg_head = model.segmentation_head
        if with_depth:
            redraw = ARCHITECTURES[architecture].reinitialised
            self.depth_decoder = _draw_decoder_like(self.seg_decoder, redraw=redraw)
            self.depth_head = _draw_depth_head_like(self.seg_head, redraw=redraw)
        self._set_sizes(ARCHITECTURES[architecture])

    def smp_config(self) -> dict[str, Any]:
        """Return the config.json with which ``smp.from_pretrained`` builds the segmentation half of this network."""
        return {
            "_model_class": ARCHITECTURES[self.architecture].smp_class,
            **self._smp_keywords,
            "encoder_weights": None,
        }

    def smp_state(self) -> dict[str, Tensor]:
        """Return encoder and segmentation branch under smp's names; stages dropped as unused are zeros there."""
        renamed = {
            "encoder": self.encoder.state_dict(),
            "decoder": self.seg_decoder.state_dict(),
            "segmentation_head": self.seg_head.state_dict(),
        }
        ours = {f"{part}.{key}": value for part, state in renamed.items() for key, value in state.items()}
        with torch.random.fork_rng(devices=[]):
            expected = self._build_smp_model(None).state_dict()
        assert ours.keys() <= expected.keys(), sorted(ours.keys() - expected.keys())
        return {key: ours[key] if key in ours else torch.zeros_like(value) for key, value in expected.items()}

    def _build_smp_model(self, weights: str | bool | None) -> Any:
        smp_class = getattr(smp, ARCHITECTURES[self.architecture].smp_class)
        encoder = self._smp_keywords["encoder_name"]
        try:
            with warnings.catch_warnings():
                # smp warns that tu- encoders want True and then lets its own models pass the name on all the same.
                warnings.simplefilter("ignore")
                return smp_class(**self._smp_keywords, encoder_weights=weights)
        except OSError as error:
            raise build_no_connection_error(encoder, error) from error
        except (ValueError, TypeError, NotImplementedError, AssertionError, RuntimeError) as error:
            options = {
                key: value for key, value in self._smp_keywords.items() if key not in ("encoder_name", "classes")
            }
            raise UserError(
                f"smp cannot build architecture {self.architecture!r} with encoder {encoder!r} and {options}: {error}; "
                "choose another encoder or architecture"
            ) from error

    def _set_sizes(self, row: Architecture) -> None:
        """Say which image sizes work; images in between are padded and the outputs cropped."""
        stride = int(self.encoder.output_stride)  # type: ignore[arg-type]
        self.pad_multiple_px = 1 if row.any_size and follows_odd_sizes(self.encoder) else stride
        self.pad_least_px = stride * row.min_features_px
        self.smallest_input_px = self.tile_grid_px = stride
        self.one_value_px = math.inf if row.pools_globally else stride
        self.global_context = row.global_context

    def describe(self) -> str:
        """Return what messages call this network."""
        return f"{self.architecture} with encoder {self._smp_keywords['encoder_name']}"

    def prepare(self, images: Tensor) -> Tensor:
        """Pad right and bottom with 0 (the mean colour) to a size that the architecture computes on."""
        multiple = self.pad_multiple_px
        if multiple == 1:
            return images
        height, width = images.shape[-2:]
        # Only positive numbers are divided: ONNX rounds the division of integers towards 0 where Python rounds down.
        pad_bottom = (torch.sym_max(height, self.pad_least_px) + multiple - 1) // multiple * multiple - height
        pad_right = (torch.sym_max(width, self.pad_least_px) + multiple - 1) // multiple * multiple - width
        # While exporting the sizes may be symbols, on which a branch would fix them.
        if not torch.compiler.is_exporting() and pad_bottom == pad_right == 0:
            return images
        return F.pad(images, (0, pad_right, 0, pad_bottom))  # type: ignore[arg-type]

    def restore(self, maps: Tensor, size: torch.Size) -> Tensor:
        """Undo the padding."""
        if self.pad_multiple_px == 1:
            return maps
        return super().restore(maps, size)


def _draw_decoder_like(decoder: nn.Module, *, redraw: bool) -> nn.Module:
    """Return a decoder of the same shape with weights of its own, drawn by the rule that smp follows."""
    drawn = copy.deepcopy(decoder)
    for module in drawn.modules():
        if any(True for _ in module.parameters(recurse=False)):
            module.reset_parameters()  # type: ignore[operator]
    if redraw:
        initialize_decoder(drawn)
    return drawn


def _draw_depth_head_like(seg_head: nn.Module, *, redraw: bool) -> nn.Module:
    """Return a head with one channel, otherwise like the segmentation head."""
    convolution, upsampling, _ = seg_head.children()
    assert isinstance(convolution, nn.Conv2d)
    scale = int(upsampling.scale_factor) if isinstance(upsampling, nn.Upsample) else 1  # type: ignore[arg-type]
    head = SegmentationHead(convolution.in_channels, 1, kernel_size=convolution.kernel_size[0], upsampling=scale)
    if redraw:
        initialize_head(head)
    return head

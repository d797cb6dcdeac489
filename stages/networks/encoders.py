"""Encoders of smp and timm: names, what they need, and dropping the weights that a chosen depth leaves unused."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

import timm
import torch
from segmentation_models_pytorch.encoders import encoders as smp_encoders
from torch import Tensor, nn

from data_cache.errors import UserError
from data_cache.sample import SMALLEST_INPUT_PX
from stages.networks.interface import Normalisation

IMAGENET = Normalisation((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
INCEPTION = Normalisation((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
DPN = Normalisation((124 / 255, 117 / 255, 104 / 255), (1 / (0.0167 * 255),) * 3)

NORMALISATIONS = (
    ("inception", INCEPTION),
    ("xception", INCEPTION),
    ("timm-tf_efficientnet_lite", INCEPTION),
    ("dpn", DPN),
)
"""Name prefixes of smp encoders whose pretraining did not use ImageNet's statistics.

Written down because smp 0.6 reads them from the Hub, which an offline machine cannot. Source: the `pretrained_settings`
that smp up to 0.4 carried in its encoder files.
"""


class Skipped(nn.Module):
    """Stands where an unused module was: hands its first input on, so that loops over stages need no change."""

    def forward(self, first: Any, *_: Any, **__: Any) -> Any:
        """Return the first input."""
        return first


def check_encoder_name(encoder: str) -> None:
    """Raise UserError with the nearest names unless smp (``resnet18``) or timm (``tu-resnet10t``) has the encoder."""
    if encoder in smp_encoders or (encoder.startswith("tu-") and timm.is_model(encoder.removeprefix("tu-"))):
        return
    names = [*smp_encoders, *(f"tu-{name}" for name in timm.list_models())]
    near = difflib.get_close_matches(encoder, names, n=3, cutoff=0.6)
    hint = f" (did you mean {' or '.join(map(repr, near))}?)" if near else ""
    raise UserError(
        f"unknown encoder {encoder!r}{hint}; known: {', '.join(smp_encoders)}, "
        "and every model of timm with tu- in front, for example tu-resnet10t"
    )


def find_normalisation(encoder: str, encoder_weights: str) -> Normalisation:
    """Return mean and standard deviation of RGB in [0, 1] that the encoder was pretrained with; needs no network."""
    if encoder.startswith("tu-"):
        config = timm.get_pretrained_cfg(encoder.removeprefix("tu-"), allow_unregistered=True)
        return Normalisation(tuple(config.mean), tuple(config.std)) if config else IMAGENET
    if encoder_weights == "advprop":
        return INCEPTION
    return next((found for prefix, found in NORMALISATIONS if encoder.startswith(prefix)), IMAGENET)


def drop_unused_weights(encoder: nn.Module, name: str) -> None:
    """Replace in place every module of the encoder whose weights reach none of its features.

    smp builds all stages whatever the depth, and some encoders carry layers of their classifier. Weights that nothing
    uses would be counted, saved and checked for gradients that never come. Names of the others stay as they were.

    Raises:
        UserError: when the encoder cannot take an image of ``SMALLEST_INPUT_PX``.
    """
    training = encoder.training
    # In evaluation mode nothing random is drawn and no batch-norm statistic moves.
    encoder.eval()
    try:
        with torch.enable_grad():
            features = encoder(_probe_images(encoder, SMALLEST_INPUT_PX))
    except (AssertionError, RuntimeError) as error:
        raise UserError(
            f"encoder {name!r} cannot take an image of {SMALLEST_INPUT_PX}x{SMALLEST_INPUT_PX} px ({error}); choose an "
            "encoder without a fixed image size, or for timm models that have the switch set "
            'encoder_options = {"strict_img_size": false}'
        ) from error
    finally:
        encoder.train(training)
    _replace_unused(encoder, set(encoder.parameters()) - _find_used(features))


def _find_used(outputs: Sequence[Tensor]) -> set[Tensor]:
    """Return the leaves that outputs depend on, from their graph: a backward pass would cost more than the forward."""
    waiting = [output.grad_fn for output in outputs if output.grad_fn is not None]
    seen, used = set(waiting), set[Tensor]()
    while waiting:
        node = waiting.pop()
        if (leaf := getattr(node, "variable", None)) is not None:
            used.add(leaf)
        behind = {found for found, _ in node.next_functions if found is not None} - seen
        seen |= behind
        waiting.extend(behind)
    return used


def _replace_unused(module: nn.Module, unused: set[nn.Parameter]) -> None:
    for name, child in module.named_children():
        weights = set(child.parameters())
        if weights and weights <= unused:
            setattr(module, name, Skipped())
        elif weights & unused:
            _replace_unused(child, unused)


@torch.no_grad()
def follows_odd_sizes(encoder: nn.Module) -> bool:
    """Whether the encoder takes an image whose every halving is odd; HRNet and Swin, say, need multiples."""
    training = encoder.training
    encoder.eval()
    try:
        encoder(_probe_images(encoder, SMALLEST_INPUT_PX + 1))
    except (AssertionError, RuntimeError):
        return False
    finally:
        encoder.train(training)
    return True


def _probe_images(encoder: nn.Module, side_px: int) -> Tensor:
    weight = next(encoder.parameters())
    return torch.zeros(1, 3, side_px, side_px, device=weight.device, dtype=weight.dtype)

"""What every network promises to the stages that train, measure and ship it."""

from __future__ import annotations

from typing import NamedTuple, Protocol, runtime_checkable

from torch import Tensor, nn

from stages.networks.parts import Part
from stages.networks.spec import NetworkSpec


class Outputs(NamedTuple):
    """What one forward pass computed; a field that was not asked for is None (and cost nothing)."""

    seg_logits: Tensor | None
    """(B, C, H, W), unnormalised, at the input's size."""
    depth: Tensor | None
    """(B, H, W), linear output in the units of the depth target, at the input's size."""
    aux_seg_logits: tuple[Tensor, ...] = ()
    """Auxiliary (B, C, H, W) logits, filled only in training mode; the loss weighs them by ``aux_weight``."""


class Normalisation(NamedTuple):
    """Per-channel statistics of RGB in [0, 1] that the encoder expects subtracted and divided."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


@runtime_checkable
class Network(Protocol):
    """A shared encoder with a segmentation branch and, unless built with ``with_depth=False``, a depth branch.

    Implementations are ``nn.Module``s. ``parts()`` covers all parameters and buffers and overlaps nowhere; every part
    is a direct attribute, so that the state dict of the network built ``with_depth=False`` is exactly the state dict
    of the full one without the keys of the depth parts. Any input of at least 64 px a side works; padding and cropping
    happen inside.
    """

    num_classes: int
    spec: NetworkSpec
    """How to build it again; set by ``build_network``."""
    normalisation: Normalisation
    aux_weight: float
    """Weight of each auxiliary segmentation loss; 0 for networks without auxiliary heads."""
    uncopied: frozenset[str]
    """State-dict names inside a branch that a decoder copy must skip because their shape depends on the task."""

    def parts(self) -> dict[Part, nn.Module]:
        """Return each single part's module; depth parts are missing when built without them."""
        ...

    def __call__(self, images: Tensor, *, seg: bool = True, depth: bool = True) -> Outputs: ...

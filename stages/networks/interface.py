"""What every network promises to the stages that train, measure and ship it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from data_cache.sample import SMALLEST_INPUT_PX
from stages.networks.parts import ENCODER, Part
from stages.networks.spec import NetworkSpec


class Outputs(NamedTuple):
    """What one forward pass computed; a field that was not asked for is None (and cost nothing)."""

    seg_logits: Tensor | None
    """(B or ``seg_rows``, C, H, W), unnormalised, at the input's size."""
    depth: Tensor | None
    """(B, H, W), linear output in the units of the depth target, at the input's size."""
    aux_seg_logits: tuple[Tensor, ...] = ()
    """Auxiliary (B, C, H, W) logits, filled only in training mode; the loss weighs them by ``aux_weight``."""


class Normalisation(NamedTuple):
    """Per-channel statistics of RGB in [0, 1] that the encoder expects subtracted and divided."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


class Network(nn.Module):
    """A shared encoder with a segmentation branch and, unless built with ``with_depth=False``, a depth branch.

    A network defines ``forward``, sets the attributes without a default, and states where it differs from the others.
    ``parts()`` covers all parameters and buffers and overlaps nowhere; every part is a direct attribute, so that the
    state dict of the network built ``with_depth=False`` is exactly the state dict of the full one without the keys of
    the depth parts. Any input of at least ``SMALLEST_INPUT_PX`` a side works; padding and cropping happen inside.
    """

    num_classes: int
    normalisation: Normalisation
    encoder: nn.Module
    seg_decoder: nn.Module
    seg_head: nn.Module
    depth_decoder: nn.Module
    depth_head: nn.Module

    spec: NetworkSpec
    """How to build it again; set by ``build_network``."""
    copyable_form: Mapping[str, Any] = {}
    """Options that give the decoders something to copy; of our own networks ``NetworkEntry`` says it."""
    small_options: Sequence[Mapping[str, Any]] = ({},)
    """Options under which it is small enough to be tried in a test, one set per kind worth trying."""
    copyable_form_helps: bool = True
    """False where another option leaves nothing to copy in that form either."""

    aux_weight: float = 0.0
    """Weight of each auxiliary segmentation loss; 0 for networks without auxiliary heads."""
    uncopied: frozenset[str] = frozenset()
    """State-dict names inside a branch that a decoder copy must skip because their shape depends on the task."""
    fresh_in_encoder: tuple[str, ...] = ()
    """Names, from the encoder on, of its modules that no pretrained weights cover: a frozen encoder trains them still.

    Networks that are never pretrained name none; in them a frozen encoder is frozen as a whole.
    """
    smallest_input_px: int = SMALLEST_INPUT_PX
    """Shorter sides are refused: nothing would be left of them in the deepest feature map."""
    tile_grid_px: int = 32
    """Windows of a tiled image must start on multiples of this to see the pooling grid of the whole image."""
    valid_border_px: int = 0
    """How much smaller, on each side, what ``forward_valid`` returns is than its windows; 0 where convolutions pad."""
    global_context: bool = False
    """Whether every pixel sees the whole image, so that tiles can never equal it."""
    rounding_outliers: float = 0.0
    """Share of logits that another runtime's rounding may move far, because it decides between equal alternatives."""

    __call__: Callable[..., Outputs]

    @staticmethod
    def settle_options(options: Mapping[str, Any]) -> dict[str, Any]:  # noqa: ARG004
        """Return those options that follow from others, spelled out; ``options`` holds all of them."""
        return {}

    def parts(self) -> dict[Part, nn.Module]:
        """Return each single part's module; depth parts are missing when built without them."""
        children = dict(self.named_children())
        names = {part: part.names()[0].replace("-", "_") for part in Part}
        return {part: children[name] for part, name in names.items() if name in children}

    @property
    def has_depth(self) -> bool:
        """Whether it was built with its depth branch."""
        return Part.DEPTH_HEAD in self.parts()

    def fresh_modules(self) -> dict[str, nn.Module]:
        """Return by dotted name the modules of ``fresh_in_encoder``."""
        encoder = self.parts()[ENCODER]
        return {f"encoder.{name}": encoder.get_submodule(name) for name in self.fresh_in_encoder}

    def forward(self, images: Tensor, *, seg: bool = True, depth: bool = True, seg_rows: int | None = None) -> Outputs:
        """Run the encoder once and then the branches asked for.

        Args:
            images: (B, 3, H, W), normalised by ``normalisation``.
            seg: whether to compute segmentation logits.
            depth: whether to compute depth; without a depth branch there is none.
            seg_rows: the segmentation branch is run on the first so many images alone, so that in training its batch
                norm sees nothing of the others, from which it learns nothing; None is all.

        Returns:
            Outputs at the size of the images.

        Raises:
            UserError: when a side is shorter than ``smallest_input_px``, or too short to train on a single image.
        """
        raise NotImplementedError

    def forward_valid(self, windows: Tensor, *, seg: bool = True, depth: bool = True) -> Outputs:
        """Run the network on windows that bring ``valid_border_px`` of border with them; others just run."""
        return self(windows, seg=seg, depth=depth)

    def compute_border_after(self, size: int) -> int:  # noqa: ARG002
        """Return how many pixels ``forward_valid`` needs behind ``valid_border_px`` and ``size`` of them."""
        return self.valid_border_px

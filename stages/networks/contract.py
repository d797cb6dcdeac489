"""The contract of networks as laws, each of which a network keeps or breaks: for our tests and for other people's code.

A law is a function of a ``Subject`` that raises ``Broken`` with what is wrong; the first line of its docstring is what
it demands.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data_cache.errors import UserError
from stages.networks import build_without_weights, find_network, strip_depth
from stages.networks.interface import Network, Normalisation, Outputs
from stages.networks.parts import DEPTH_BRANCH, SEG_BRANCH, Part

SIZES = ((64, 64), (65, 97))
"""(height, width) of the images that are tried, px: what every stride divides, and what none does."""
_CLASSES = 4
_CLOSE = 1e-4


class Broken(Exception):
    """A law is not kept."""


class Subject:
    """A network under some options, built from one seed as often as a law needs it.

    Args:
        name: of the network.
        options: of its constructor; pretrained weights are not loaded.
    """

    def __init__(self, name: str, options: dict[str, Any], num_classes: int = _CLASSES) -> None:
        self.name, self.options, self.num_classes = name, options, num_classes

    def build(self, seed: int = 0, **changes: Any) -> Network:
        """Return it in training mode; the global random state stays as it is."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return build_without_weights(self.name, self.num_classes, **{**self.options, **changes})

    @cached_property
    def fresh(self) -> Any:
        """A ``Network`` as it was built: to be looked at, or copied before it is run."""
        return self.build()

    @property
    def training(self) -> Any:
        """A copy in training mode."""
        return copy.deepcopy(self.fresh).train()

    @cached_property
    def trained(self) -> Any:
        """In evaluation mode; nothing that training may change is at its first value."""
        network = copy.deepcopy(self.fresh).eval()
        network.normalisation = Normalisation((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))  # weights may bring their own
        generator = torch.Generator().manual_seed(3)
        for tensor in (*network.parameters(), *network.buffers()):
            if tensor.is_floating_point():
                tensor.data += 0.01 * torch.rand(tensor.shape, generator=generator)  # some begin at zero
        return network

    @cached_property
    def stripped(self) -> Any:
        """The trained one without its depth branch."""
        return strip_depth(self.trained)


def is_a_network_with_its_facts(subject: Subject) -> None:
    """Derives from Network, and sets num_classes and normalisation."""
    network = subject.fresh
    _require(isinstance(network, Network), f"a {type(network).__name__} was built, which is no Network")
    found = getattr(network, "num_classes", "nothing")
    _require(found == subject.num_classes, f"num_classes is {found} after it was built for {subject.num_classes}")
    normalisation = getattr(network, "normalisation", None)
    _require(
        isinstance(normalisation, Normalisation) and len(normalisation.mean) == len(normalisation.std) == 3,
        "set self.normalisation = Normalisation(mean, std), three numbers each, of RGB in [0, 1]",
    )


def parts_cover_all_weights(subject: Subject) -> None:
    """Has encoder, seg_decoder, seg_head, depth_decoder, depth_head as attributes, which hold all weights, once."""
    network = subject.fresh
    parts = network.parts()
    missing = [_attribute(part) for part in Part if part not in parts]
    _require(not missing, f"set these attributes in __init__: {', '.join(missing)}")
    _require(list(parts) == list(Part), f"parts() returns {[str(part) for part in parts]} in another order")
    _require(set(network.children()) >= set(parts.values()), "every part must be an attribute of the network itself")
    for kind in ("parameters", "buffers"):
        in_parts = Counter(id(tensor) for part in parts.values() for tensor in getattr(part, kind)())
        outside = [name for name, tensor in getattr(network, f"named_{kind}")() if id(tensor) not in in_parts]
        _require(not outside, f"these {kind} are in no part, so no phase trains or copies them: {_some(outside)}")
        twice = [name for name, tensor in getattr(network, f"named_{kind}")() if in_parts[id(tensor)] > 1]
        _require(not twice, f"these {kind} are in two parts: {_some(twice)}")


def is_built_without_its_depth_branch(subject: Subject) -> None:
    """Built with_depth=False it has no depth_decoder and depth_head, and the rest starts equal."""
    single = subject.build(with_depth=False)
    left = [_attribute(part) for part in single.parts() if part in DEPTH_BRANCH]
    _require(not left, f"with_depth=False still builds {', '.join(left)}")
    full = dict(subject.fresh.named_parameters())
    unlike = [name for name, weight in single.named_parameters() if not _equal(weight, full.get(name))]
    _require(
        not unlike,
        f"weights start otherwise than with the depth branch: {_some(unlike)}; build all of the segmentation before "
        "the depth branch, so that the seed gives it the same weights",
    )


def weights_depend_on_the_seed_alone(subject: Subject) -> None:
    """Equal seeds give equal weights."""
    again = dict(subject.build().named_parameters())
    unlike = [name for name, weight in subject.fresh.named_parameters() if not _equal(weight, again[name])]
    _require(not unlike, f"the same seed gives other weights: {_some(unlike)}; draw them with torch's own generator")


def outputs_have_the_size_of_the_images(subject: Subject) -> None:
    """Returns Outputs(seg_logits (B, C, H, W), depth (B, H, W)) for images of any size, in both modes."""
    for height, width in SIZES:
        network = copy.deepcopy(subject.fresh)
        for training in (False, True):
            with torch.no_grad():
                outputs = network.train(training)(_draw(2, height, width))
            mode = f"for images of {height}x{width} px{' in training mode' if training else ''}"
            _require(type(outputs) is Outputs, f"forward returns a {type(outputs).__name__}, not Outputs, {mode}")
            _check_shape("seg_logits", outputs.seg_logits, (2, subject.num_classes, height, width), mode)
            _check_shape("depth", outputs.depth, (2, height, width), mode)
            _require(
                bool(outputs.aux_seg_logits) == (training and network.aux_weight > 0),
                f"aux_seg_logits are there exactly in training mode with aux_weight above 0; found "
                f"{len(outputs.aux_seg_logits)} with {network.aux_weight:g} {mode}",
            )
            for logits in outputs.aux_seg_logits:
                _check_shape("aux_seg_logits", logits, (2, subject.num_classes, height, width), mode)


def any_size_works_and_every_weight_learns(subject: Subject) -> None:
    """Under these options images of 513 and of 200 px a side work, and every weight is in the outputs' graph."""
    with torch.device("meta"):
        network: Any = build_without_weights(subject.name, 21, **subject.options)
    for side_px in (513, 200):
        outputs = network(torch.empty(2, 3, side_px, side_px, device="meta"))
        mode = f"for images of {side_px}x{side_px} px"
        for logits in (outputs.seg_logits, *outputs.aux_seg_logits):
            _check_shape("seg_logits", logits, (2, 21, side_px, side_px), mode, finite=False)
        _check_shape("depth", outputs.depth, (2, side_px, side_px), mode, finite=False)
    total = sum((each.sum() for each in outputs.aux_seg_logits), outputs.seg_logits.sum() + outputs.depth.sum())
    weights = dict(network.named_parameters())
    gradients = torch.autograd.grad(total, list(weights.values()), allow_unused=True)
    unused = [name for name, found in zip(weights, gradients, strict=True) if found is None]
    _require(not unused, f"these weights are never used: {_some(unused)}")


def what_is_not_asked_for_is_not_computed(subject: Subject) -> None:
    """forward(images, seg=False) and depth=False run no module of that branch, and return None for it."""
    network = copy.deepcopy(subject.fresh).eval()
    for other, branch in (("seg", SEG_BRANCH), ("depth", DEPTH_BRANCH)):
        for part, module in network.parts().items():
            ran = part in branch and count_leaf_calls(network, module, **{other: False})
            _require(not ran, f"{other}=False still runs {_attribute(part)}")
        with torch.no_grad():
            outputs = network(_draw(1, 64, 64), **{other: False})
        found = {"seg": outputs.seg_logits, "depth": outputs.depth}
        _require(found.pop(other) is None, f"{other}=False must return None in its place")
        _require(None not in found.values(), f"{other}=False must still return the other branch's output")


def the_encoder_runs_once_for_both_branches(subject: Subject) -> None:
    """The encoder is run once, whatever is asked for, and a branch is the same with and without the other."""
    network, images = copy.deepcopy(subject.fresh).eval(), _draw(1, 64, 80)
    encoder = network.parts()[Part.ENCODER]
    both = count_leaf_calls(network, encoder)
    _require(bool(both), "no module of the encoder is run")
    _require(both == count_leaf_calls(network, encoder, depth=False), "the encoder runs again for the second branch")
    with torch.no_grad():
        outputs = network(images)
        _require(_equal(outputs.seg_logits, network(images, depth=False).seg_logits), "depth=False changes seg_logits")
        _require(_equal(outputs.depth, network(images, seg=False).depth), "seg=False changes the depth")


def rows_left_to_depth_never_enter_the_segmentation_branch(subject: Subject) -> None:
    """forward(images, seg_rows=2) runs the segmentation branch on the first two images alone."""
    network, images = copy.deepcopy(subject.fresh).eval(), _draw(3, 64, 96)
    with torch.no_grad():
        full, some = network(images), network(images, seg_rows=2)
        _check_shape("seg_logits", some.seg_logits, (2, subject.num_classes, 64, 96), "with seg_rows=2 of 3 images")
        close = torch.allclose(some.seg_logits, full.seg_logits[:2], rtol=_CLOSE, atol=_CLOSE)
        _require(close, "seg_rows=2 changes the logits of the first two images")
        _require(_equal(some.depth, full.depth), "seg_rows=2 changes the depth, which is of all images")
        seen: set[int] = set()
        for part, module in network.train().parts().items():
            for leaf in module.modules() if part in SEG_BRANCH else ():
                leaf.register_forward_pre_hook(lambda _, given: seen.update(_find_batch_sizes(given)))
        outputs = network(images, seg_rows=2)
    _require(seen == {2}, f"with seg_rows=2 of 3 images the segmentation branch sees batches of {sorted(seen)}")
    lengths = {len(logits) for logits in (outputs.seg_logits, *outputs.aux_seg_logits)}
    _require(lengths == {2}, f"with seg_rows=2 there are logits of {sorted(lengths)} images")
    _require(len(outputs.depth) == 3, "with seg_rows=2 of 3 images there must be depth of all three")


def gradient_reaches_every_weight(subject: Subject) -> None:
    """A fresh network's losses send gradient into every weight, and not only zeros into any part."""
    network = subject.training
    outputs = network(_draw(2, 64, 96))
    generator = torch.Generator().manual_seed(2)
    labels = torch.randint(subject.num_classes, (2, 64, 96), generator=generator)
    loss = F.mse_loss(outputs.depth, torch.rand(2, 64, 96, generator=generator))
    for logits, weight in ((outputs.seg_logits, 1.0), *((each, network.aux_weight) for each in outputs.aux_seg_logits)):
        loss = loss + weight * F.cross_entropy(logits, labels)
    loss.backward()
    unreached = [name for name, weight in network.named_parameters() if weight.requires_grad and weight.grad is None]
    _require(not unreached, f"no gradient reaches {_some(unreached)}")
    for part, module in network.parts().items():
        gradients = [weight.grad.abs().max() for weight in module.parameters() if weight.grad is not None]
        # A part may be a place without weights, or with none that learns.
        learns = any(weight.requires_grad for weight in module.parameters())
        _require(not learns or bool(max(gradients) > 0), f"only zeros reach {_attribute(part)} as gradient")


def a_single_image_trains_or_the_remedy_is_named(subject: Subject) -> None:
    """One image of smallest_input_px a side can be trained on, or a UserError says to set batch_size to at least 2."""
    network, side_px = subject.training, subject.fresh.smallest_input_px
    try:
        outputs = network(_draw(1, side_px, side_px))
    except UserError as error:
        _require("set batch_size to at least 2" in str(error), f"the message names no remedy: {error}")
        outputs = network(_draw(2, side_px, side_px))
    _check_shape("seg_logits", outputs.seg_logits[:1], (1, subject.num_classes, side_px, side_px), "of its least size")


def smaller_images_are_refused_with_a_size_that_works(subject: Subject) -> None:
    """A side below smallest_input_px (at most 64) is a UserError that names sizes; see BranchedNetwork.check_size."""
    network = copy.deepcopy(subject.fresh).eval()
    least = network.smallest_input_px
    _require(least <= 64, f"smallest_input_px is {least}; images of 64 px a side must work")
    try:
        network(_draw(1, least - 1, 70))
    except UserError as error:
        wanted = (f"images of {least - 1}x70 px are too small", f"at least {least}x70")
        _require(all(words in str(error) for words in wanted), f"its message lacks {' … '.join(wanted)}: {error}")
        return
    raise Broken(f"images of {least - 1}x70 px are taken, though smallest_input_px is {least}")


def stripping_leaves_the_logits_equal(subject: Subject) -> None:
    """Without its depth branch, which is how it ships, it is the full one without the depth parts, bit for bit."""
    full, stripped = subject.trained, subject.stripped
    depth = tuple(f"{_attribute(part)}." for part in Part if part in DEPTH_BRANCH)
    wanted = [name for name in full.state_dict() if not name.startswith(depth)]
    _require(list(stripped.state_dict()) == wanted, "built with_depth=False its state has other names or order")
    _require(stripped.normalisation == full.normalisation, "stripping loses the normalisation")
    pointers = {tensor.data_ptr() for tensor in full.state_dict().values() if tensor.numel()}
    shared = {tensor.data_ptr() for tensor in stripped.state_dict().values()} & pointers
    _require(not shared, "the stripped network shares memory with the full one")
    for height, width in ((64, 64), (71, 90)):
        images = _draw(2, height, width)
        with torch.no_grad():
            outputs = stripped(images)
            _require(_equal(outputs.seg_logits, full(images).seg_logits), "stripped of depth it answers otherwise")
        _require(outputs.depth is None, "without a depth branch depth must be None")


LAWS: tuple[Callable[[Subject], None], ...] = (
    is_a_network_with_its_facts,
    parts_cover_all_weights,
    outputs_have_the_size_of_the_images,
    is_built_without_its_depth_branch,
    weights_depend_on_the_seed_alone,
    any_size_works_and_every_weight_learns,
    what_is_not_asked_for_is_not_computed,
    the_encoder_runs_once_for_both_branches,
    rows_left_to_depth_never_enter_the_segmentation_branch,
    gradient_reaches_every_weight,
    a_single_image_trains_or_the_remedy_is_named,
    smaller_images_are_refused_with_a_size_that_works,
    stripping_leaves_the_logits_equal,
)

FIRST = LAWS[:3]
"""Without these the others cannot be tried."""


def state_law(law: Callable[[Subject], None]) -> str:
    """Return what a law demands."""
    return (law.__doc__ or "").partition("\n")[0].rstrip(".")


def try_laws(name: str, options: dict[str, Any]) -> dict[str, str | None]:
    """Hold a network against the laws under some options.

    Returns:
        What each law demands → what is wrong, None where it is kept; those that could not be tried are left out.

    Raises:
        UserError: it cannot be built at all.
    """
    subject, plugin = Subject(name, options), find_network(name)
    found: dict[str, str | None] = {}
    assert isinstance(subject.fresh, nn.Module)
    for law in LAWS:
        if law is LAWS[len(FIRST)] and any(found.values()):
            break  # the others would only say the same in other words
        try:
            law(subject)
            found[state_law(law)] = None
        except (Broken, UserError) as problem:
            found[state_law(law)] = str(problem)
        except Exception as problem:  # whatever somebody's code raises
            if plugin is None:
                raise
            found[state_law(law)] = plugin.describe_failure(problem)
    return found


def count_leaf_calls(network: nn.Module, module: nn.Module, **asked: bool) -> Counter[str]:
    """Run the network once and count the calls of every leaf inside one of its modules."""
    calls: Counter[str] = Counter()
    hooks = [
        leaf.register_forward_hook(lambda *_, name=name: calls.update([name]))
        for name, leaf in module.named_modules()
        if not any(leaf.children())
    ]
    with torch.no_grad():
        network(_draw(1, 64, 64), **asked)
    for hook in hooks:
        hook.remove()
    return calls


def _require(kept: bool, otherwise: str) -> None:
    if not kept:
        raise Broken(otherwise)


def _check_shape(what: str, found: Any, wanted: tuple[int, ...], mode: str, *, finite: bool = True) -> None:
    shape = tuple(found.shape) if isinstance(found, Tensor) else found
    _require(shape == wanted, f"{what} must have shape {wanted} {mode}; found {shape}")
    _require(not finite or bool(found.isfinite().all()), f"{what} has values that are not finite {mode}")


def _draw(batch: int, height: int, width: int) -> Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(1))


def _equal(one: Tensor | None, other: Tensor | None) -> bool:
    return one is not None and other is not None and torch.equal(one, other)


def _find_batch_sizes(given: Any) -> set[int]:
    if isinstance(given, Tensor):
        return {len(given)}
    return set().union(*map(_find_batch_sizes, given)) if isinstance(given, tuple | list) else set()


def _attribute(part: Part) -> str:
    return part.names()[0].replace("-", "_")


def _some(names: list[str]) -> str:
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")

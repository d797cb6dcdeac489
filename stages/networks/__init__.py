"""The networks by name, our own and those of others. Nothing heavy is imported before a network is built."""

from __future__ import annotations

import contextlib
import importlib
import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, get_type_hints

from data_cache.errors import UserError, nearest
from data_cache.plugins import Plugin, describe_wrong_base, find_plugin, is_known
from stages.networks.option_types import describe, fits
from stages.networks.spec import NetworkSpec

if TYPE_CHECKING:
    from torch import nn

    from stages.networks.interface import Network


class NetworkEntry(NamedTuple):
    """A constructor that is imported when it is first called, and what must be known without importing it."""

    module: str
    class_name: str
    paper: str
    summary: str
    copyable_form: Mapping[str, Any] = {}
    """Options that give its decoders weights that do not depend on the task, where the plain form has none to copy."""

    def load(self) -> type[Network]:
        """Import the class."""
        return getattr(importlib.import_module(self.module), self.class_name)


_OWN_FC = {"depth_branch": "full"}

# fmt: off
NETWORKS = {
    "unet": NetworkEntry(
        "stages.networks.smp_network", "SmpNetwork", "pseudo-depth paper", "U-Net: one smp encoder, two smp decoders"),
    "unet-classic": NetworkEntry(
        "stages.networks.unet_classic", "UNetClassic", "Ronneberger 2015", "U-Net of 2015, padded, batch norm"),
    "unet-valid": NetworkEntry(
        "stages.networks.unet_classic", "UNetValid", "Ronneberger 2015", "U-Net of 2015, exact in tiles"),
    "fcn32s": NetworkEntry(
        "stages.networks.fcn", "Fcn32s", "Long 2015", "VGG16, scores at stride 32, learnt deconvolution", _OWN_FC),
    "fcn16s": NetworkEntry("stages.networks.fcn", "Fcn16s", "Long 2015", "FCN with a skip from pool4", _OWN_FC),
    "fcn8s": NetworkEntry(
        "stages.networks.fcn", "Fcn8s", "Long 2015; FCN-8s report", "FCN with skips from pool4 and pool3", _OWN_FC),
    "conv-vgg": NetworkEntry(
        "stages.networks.conv_vgg", "ConvVgg", "FCN-8s report", "VGG16 and one bilinear step, no skips"),
    "segnet": NetworkEntry(
        "stages.networks.segnet", "SegNet", "Badrinarayanan 2017", "VGG16-BN, decoder unpools to the pooled positions"),
    "pspnet": NetworkEntry(
        "stages.networks.pspnet", "PspNet", "Zhao 2017", "dilated ResNet, pyramid pooling at four scales"),
    "deeplabv3plus": NetworkEntry(
        "stages.networks.deeplabv3plus", "DeepLabV3Plus", "Chen 2018", "Xception65, atrous pyramid, skip"),
    "deeplabv3plus-mff": NetworkEntry(
        "stages.networks.deeplabv3plus", "DeepLabV3PlusMff", "Park & Heo 2021", "DeepLabV3+ on 3 depths"),
    "bisenet": NetworkEntry(
        "stages.networks.bisenet", "BiSeNet", "Yu 2018", "ResNet18 beside a spatial path, real-time"),
    "bisenet-mff": NetworkEntry(
        "stages.networks.bisenet", "BiSeNetMff", "Park & Heo 2021", "BiSeNet with multi-rate branches"),
    "dcsa-resnet": NetworkEntry(
        "stages.networks.dcsa", "DcsaNetwork", "DCSA paper", "ResNet with deformable self-attention",
        {"decoder": "unet"}),
}
# fmt: on
"""Name → constructor; the constructor's keyword arguments are the keys of the recipe's ``[network]`` table."""


def build_network(name: str, num_classes: int, *, with_depth: bool = True, **options: Any) -> Network:
    """Build a network of ``NETWORKS``; its random weights depend only on the torch seed at the call.

    Args:
        name: key of ``NETWORKS``, or of a plug-in.
        num_classes: number of segmentation classes, at least 1.
        with_depth: whether to build the depth branch.
        options: keyword arguments of that network; see ``network_options``.

    Returns:
        The network in training mode; ``network.spec`` remembers how it was built.

    Raises:
        UserError: for an unknown name or option, or a value that the network cannot take.
    """
    defaults = network_options(name)
    if unknown := [option for option in options if option not in defaults]:
        hints = ", ".join(f"{option!r}{nearest(option, defaults)}" for option in unknown)
        raise UserError(f"network {name!r} has no option {hints}; it has: {', '.join(defaults)}")
    if num_classes < 1:
        raise UserError(f"network {name!r} cannot have {num_classes} classes; give at least 1")
    _check_kinds(name, {**options, "with_depth": with_depth})
    build, resolved = load_network(name), {**defaults, **options}
    # What follows from other options is written down too, so that rebuilding without weights keeps it.
    resolved |= build.settle_options(resolved)
    with _blaming(name, f"cannot be built for {num_classes} classes with {resolved}"):
        network = build(num_classes=num_classes, with_depth=with_depth, **resolved)
    network.spec = NetworkSpec(name, num_classes, with_depth, resolved)
    network.copyable_form = find_copyable_form(name)
    return network


def find_network(name: str) -> Plugin | None:
    """Return the plug-in that a name stands for; None where it is a key of ``NETWORKS``.

    Raises:
        UserError: there is no network of that name. Whether a plug-in can be imported is found out by ``load_network``.
    """
    return find_plugin("network", name, NETWORKS)


def is_network_name(name: str) -> bool:
    """Whether a name can stand for a network; nothing is imported."""
    return is_known("network", name, NETWORKS)


def load_network(name: str) -> type[Network]:
    """Import the class of a network.

    Raises:
        UserError: there is none of that name, or it is not what every network must be before it can be built.
    """
    plugin = find_network(name)
    if plugin is None:
        return NETWORKS[name].load()
    found = plugin.load()
    if problems := list(_find_class_problems(found)):
        raise UserError(f"{plugin.what} is no network: {'; '.join(problems)}")
    return found


def _find_class_problems(found: Any) -> Iterator[str]:
    from stages.networks.interface import Network

    if problem := describe_wrong_base(found, Network):
        yield f"{problem} (or BranchedNetwork)"
        return
    parameters = inspect.signature(found).parameters
    for wanted, why in (("num_classes", "the number of classes"), ("with_depth", "whether the depth branch is built")):
        if wanted not in parameters:
            yield f"its __init__ does not take {wanted}, {why}"
    without = [name for name in _list_options(found) if parameters[name].default is inspect.Parameter.empty]
    if without:
        yield f"options of its __init__ have no default: {', '.join(without)}"


def find_copyable_form(name: str) -> Mapping[str, Any]:
    """Return the options that give a network's decoders something to copy, where its plain form has nothing."""
    return NETWORKS[name].copyable_form if find_network(name) is None else load_network(name).copyable_form


def identify_code(name: str) -> str | None:
    """Return the hash of a plug-in's source files; None for a network of our own. UserError as ``Plugin.identify``."""
    plugin = find_network(name)
    return None if plugin is None else plugin.identify()


@contextmanager
def _blaming(name: str, doing: str) -> Iterator[None]:
    """Let a plug-in's own exceptions be told as its own; ours are bugs."""
    plugin = find_network(name)
    with contextlib.nullcontext() if plugin is None else plugin.blaming(doing):
        yield


def _check_kinds(name: str, options: dict[str, Any]) -> None:
    """Refuse what no constructor expects, before it stumbles over it somewhere inside."""
    try:
        hints = get_type_hints(load_network(name).__init__)
    except NameError:  # of a plug-in that imports its types for a type checker alone
        hints = {}
    wrong = [
        f"{option} must be {describe(hints[option])}, found {value!r}"
        for option, value in options.items()
        if not fits(value, hints.get(option, Any))
    ]
    if wrong:
        raise UserError(f"network {name!r}: {'; '.join(wrong)}")


def rebuild_network(spec: NetworkSpec) -> Network:
    """Build the network of a spec."""
    return build_network(spec.name, spec.num_classes, with_depth=spec.with_depth, **spec.options)


def build_without_weights(name: str, num_classes: int, *, with_depth: bool = True, **options: Any) -> Network:
    """Build the network that ``build_network`` would, but load no pretrained weights: others follow.

    What follows from pretrained weights besides their values stays as with them: normalisation, and options that a
    network settles by them.
    """
    wanted = {**network_options(name), **options}
    weights = wanted.get("encoder_weights", "none")
    if weights == "none":
        return build_network(name, num_classes, with_depth=with_depth, **options)
    from stages.networks.encoder_weights import check_weights_name

    check_weights_name(wanted.get("encoder", "tu-vgg16"), weights)
    bare = {**options, **load_network(name).settle_options(wanted), "encoder_weights": "none"}
    network = build_network(name, num_classes, with_depth=with_depth, **bare)
    if "encoder" in wanted:
        from stages.networks.encoders import find_normalisation

        network.normalisation = find_normalisation(wanted["encoder"], weights)
    return network


_EVERY_NETWORK = ("num_classes", "with_depth")
"""Arguments of each constructor."""


def network_options(name: str) -> dict[str, Any]:
    """Return the options of a network with their defaults.

    Raises:
        UserError: when there is no network of that name.
    """
    network = load_network(name)
    parameters = inspect.signature(network).parameters
    return {option: parameters[option].default for option in _list_options(network)}


def _list_options(network: type[Network]) -> list[str]:
    """Return the arguments of a network's constructor that every network has not."""
    named = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(network).parameters
    return [name for name, each in parameters.items() if each.kind in named and name not in _EVERY_NETWORK]


def count_parameters(module: nn.Module) -> int:
    """Return the number of trainable and frozen weights; buffers such as batch-norm statistics do not count."""
    return sum(parameter.numel() for parameter in module.parameters())


def strip_depth(network: Network) -> Network:
    """Return a copy of the network that was built without the depth branch and carries the same other weights."""
    from stages.networks.stripping import build_stripped

    return build_stripped(network)


def segmentation_only(network: Network) -> nn.Module:
    """Return the network as a module from images to segmentation logits, which is what exporters understand."""
    from stages.networks.stripping import SegmentationOnly

    return SegmentationOnly(network)


__all__ = [
    "NETWORKS",
    "NetworkEntry",
    "NetworkSpec",
    "build_network",
    "build_without_weights",
    "count_parameters",
    "find_copyable_form",
    "find_network",
    "identify_code",
    "is_network_name",
    "load_network",
    "network_options",
    "rebuild_network",
    "segmentation_only",
    "strip_depth",
]

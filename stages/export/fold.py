"""Batch norm folded into the convolution before it, for runtimes that do not do it themselves."""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from data_cache.errors import UserError
from stages.export.job import quiet_libraries

_ATEN = torch.ops.aten
_CONVOLUTIONS = (_ATEN.conv2d.default, _ATEN.conv2d.padding, _ATEN.conv_transpose2d.input, _ATEN.convolution.default)
LARGEST_DIFFERENCE = 1e-4
"""Of a logit, relative to the largest one: what float32 loses when factors are multiplied in another order."""


class Folded(NamedTuple):
    """A network whose batch norms were folded where that changes nothing but rounding."""

    module: nn.Module
    folded: tuple[str, ...]
    """Names of the batch norms that are gone."""
    left: tuple[str, ...]
    """Those that stay: no convolution of their own lies straight before them."""


@torch.no_grad()
def fold_batchnorm(module: nn.Module, images: Tensor) -> Folded:
    """Return a copy of a network in eval mode with every batch norm folded that alone reads a convolution's output.

    Which do is read off the traced graph: whether modules stand beside each other says nothing of what happens between.

    Args:
        module: from images to logits.
        images: to trace it with.

    Raises:
        UserError: it cannot be traced, or answers differently then.
    """
    module = copy.deepcopy(module)
    expected = module(images)
    try:
        with quiet_libraries():
            program = torch.export.export(module, (images,))
    except RuntimeError as error:  # of which all that says no is a kind
        reason = str(error).strip().partition("\n")[0]
        raise UserError(f"the network cannot be traced to fold batch norm: {reason}; drop --fold-batchnorm") from error
    owners = program.graph_signature.inputs_to_parameters | program.graph_signature.inputs_to_buffers
    pairs = {}
    for node in program.graph.nodes:
        if node.target is _ATEN.batch_norm.default and _reads_alone(node, owners):
            convolution, norm = (owners[each.name].rpartition(".")[0] for each in (node.args[0].args[1], node.args[3]))
            pairs[norm] = convolution
    for norm, convolution in pairs.items():
        _fold(module, convolution, norm)
    largest = max(1.0, expected.abs().max().item())
    if not (module(images) - expected).abs().max().item() <= LARGEST_DIFFERENCE * largest:
        raise UserError("folding batch norm changes this network's answers beyond rounding; drop --fold-batchnorm")
    left = tuple(name for name, each in module.named_modules() if isinstance(each, nn.modules.batchnorm._BatchNorm))
    return Folded(module, tuple(pairs), left)


def _reads_alone(norm: fx.Node, owners: dict[str, str]) -> bool:
    """Whether a batch norm is all that reads a plain convolution, and their weights serve nothing else."""
    convolution = norm.args[0]
    if not isinstance(convolution, fx.Node) or convolution.target not in _CONVOLUTIONS or len(convolution.users) != 1:
        return False
    weights = (convolution.args[1], *norm.args[1:5])
    return all(isinstance(each, fx.Node) and each.name in owners and len(each.users) == 1 for each in weights)


def _fold(module: nn.Module, convolution_name: str, norm_name: str) -> None:
    convolution, norm = (module.get_submodule(name) for name in (convolution_name, norm_name))
    assert isinstance(convolution, nn.Conv2d | nn.ConvTranspose2d)
    assert isinstance(norm, nn.modules.batchnorm._BatchNorm)
    assert norm.running_mean is not None and norm.running_var is not None
    transposed = isinstance(convolution, nn.ConvTranspose2d)
    convolution.weight, convolution.bias = fuse_conv_bn_weights(
        convolution.weight,
        convolution.bias,
        norm.running_mean,
        norm.running_var,
        norm.eps,
        norm.weight,
        norm.bias,
        transpose=transposed,
    )
    # timm's batch norm brings what follows on it.
    after = [each for name in ("drop", "act") if isinstance(each := getattr(norm, name, None), nn.Module)]
    parent, _, name = norm_name.rpartition(".")
    setattr(module.get_submodule(parent), name, nn.Sequential(*after) if after else nn.Identity())

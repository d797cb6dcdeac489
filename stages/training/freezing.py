"""Which parts of a network learn: gradient and train/eval mode together, because either alone does not freeze."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from data_cache.errors import UserError
from stages.networks.interface import Network
from stages.networks.parts import Part


class TrainingScope:
    """Keeps exactly certain parts of a network learning; made by ``training_parts``."""

    def __init__(self, network: Network, parts: Part) -> None:
        self._network = network
        self.parts = parts

    def apply(self) -> None:
        """Set modes and gradients anew; call it after whatever called ``train()`` or ``eval()``: an evaluation.

        Frozen parts stand in eval mode: without gradient alone, their batch-norm statistics and dropout would move on.
        """
        as_module(self._network).train()
        for part, module in self._network.parts().items():
            learns = part in self.parts
            module.train(learns)
            for parameter in module.parameters():
                if parameter.requires_grad != learns:
                    parameter.requires_grad_(learns)


@contextmanager
def training_parts(network: Network, parts: Part) -> Iterator[TrainingScope]:
    """Let exactly these parts learn inside the ``with`` block and restore every flag on leaving it.

    Args:
        network: every part of it that is not named stays bit-identical, batch-norm statistics included.
        parts: one part or several joined with ``|``.

    Raises:
        UserError: the network lacks one of the parts.
    """
    check_parts_exist(network, parts)
    root = as_module(network)
    modes = {module: module.training for module in root.modules()}
    gradients = {parameter: parameter.requires_grad for parameter in root.parameters()}
    scope = TrainingScope(network, parts)
    try:
        scope.apply()
        yield scope
    finally:
        for module, mode in modes.items():
            module.training = mode
        for parameter, wanted in gradients.items():
            parameter.requires_grad_(wanted)


def check_parts_exist(network: Network, parts: Part) -> None:
    """Raise a UserError when the network was built without one of the parts."""
    present = network.parts()
    missing = [part.names()[0] for part in Part if part in parts and part not in present]
    if missing:
        raise UserError(
            f"this network has no {', '.join(missing)}; it has {', '.join(part.names()[0] for part in present)}. "
            "Build it with its depth branch, or choose a schedule that trains only what it has (seg-only)"
        )


def as_module(network: Network) -> nn.Module:
    """Return the network as the ``nn.Module`` that every implementation of the protocol is."""
    assert isinstance(network, nn.Module)
    return network

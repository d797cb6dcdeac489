"""Which parts of a network learn: gradient and train/eval mode together, because either alone does not freeze."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import nn

from data_cache.errors import UserError
from stages.networks.interface import Network
from stages.networks.parts import Part


class TrainingScope:
    """Keeps exactly certain modules of a network learning; made by ``training_parts``."""

    def __init__(self, network: Network, modules: Iterable[nn.Module]) -> None:
        self._network = network
        self._modules = tuple(modules)

    def apply(self) -> None:
        """Set modes and gradients anew; call it after whatever called ``train()`` or ``eval()``: an evaluation.

        What is frozen is in eval mode: without gradient alone, batch-norm statistics and dropout would move on.
        """
        learning = {parameter for module in self._modules for parameter in module.parameters()}
        self._network.train()
        for module in self._network.parts().values():
            module.eval()
        for module in self._modules:
            module.train()
        for parameter in self._network.parameters():
            if parameter.requires_grad != (parameter in learning):
                parameter.requires_grad_(parameter in learning)


def trained_modules(network: Network, parts: Part, *, fresh: bool = False) -> dict[str, nn.Module]:
    """Return what learns by dotted name: the parts, and if ``fresh`` the encoder's modules that were never pretrained.

    Raises:
        UserError: the network lacks one of the parts.
    """
    check_parts_exist(network, parts)
    modules = {part.names()[0]: module for part, module in network.parts().items() if part in parts}
    return (network.fresh_modules() if fresh else {}) | modules


@contextmanager
def training_parts(network: Network, parts: Part, *, fresh: bool = False) -> Iterator[TrainingScope]:
    """Let exactly these parts learn inside the ``with`` block and restore every flag on leaving it.

    Args:
        network: all else of it stays bit-identical, batch-norm statistics included.
        parts: one part or several joined with ``|``.
        fresh: whether the encoder's modules that were never pretrained learn too.

    Raises:
        UserError: the network lacks one of the parts.
    """
    scope = TrainingScope(network, trained_modules(network, parts, fresh=fresh).values())
    modes = {module: module.training for module in network.modules()}
    gradients = {parameter: parameter.requires_grad for parameter in network.parameters()}
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

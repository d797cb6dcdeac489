"""What a network was built from, so that it can be built again. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(frozen=True)
class NetworkSpec:
    """The name of a network with every option spelled out, so that a later change of a default alters nothing.

    Args:
        name: as of ``build_network``.
        num_classes: number of segmentation classes.
        with_depth: whether the depth branch exists.
        options: all other keyword arguments of the constructor, JSON values only.
    """

    name: str
    num_classes: int
    with_depth: bool
    options: Mapping[str, Any] = field(default_factory=dict)

    def without_depth(self) -> NetworkSpec:
        """Return the spec of the same network without its depth branch."""
        return replace(self, with_depth=False)

    def without_pretrained(self) -> NetworkSpec:
        """Return the spec that builds the same shapes but loads no weights, for networks that get theirs elsewhere."""
        if "encoder_weights" not in self.options:
            return self
        return replace(self, options={**self.options, "encoder_weights": "none"})

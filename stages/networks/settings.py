"""Which network. Imports no torch."""

from __future__ import annotations

from typing import Any

from pydantic import ConfigDict

from data_cache.settings import Decides, Section, setting


class NetworkSettings(Section):
    """A name in the networks table; every further key is an argument of that network's constructor."""

    model_config = ConfigDict(extra="allow")

    name: str = setting("unet", Decides.FIRST_WEIGHTS, flag="--network")
    """Name of the network (see `pipeline networks`), or package.module:Class of your own."""

    @property
    def options(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return dict(self.model_extra or {})

    @property
    def label(self) -> str:
        """Short name for folders, for example ``unet-resnet18``."""
        words = [self.options.get("architecture", self.name.rpartition(":")[2]), self.options.get("encoder", "")]
        return "-".join(str(word) for word in words if word)

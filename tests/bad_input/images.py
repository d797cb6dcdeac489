"""Images that cannot be read, or could be read as another image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tests.bad_input.world import Case, World


def _truncated(world: World) -> Sequence[str | Path]:
    world.truncate(world.image("train"))
    return world.with_recipe("pseudo-depth", "--split", "train")


CASES = [
    Case("a truncated PNG among the images to label", _truncated, ("train0",)),
]

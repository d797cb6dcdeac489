"""Makes the small networks of another folder importable, also under importlib mode; builds the smallest one."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "networks"))


@pytest.fixture(scope="module")
def tiny() -> Iterator[object]:
    """The smallest network, of three classes, which exporting can build again."""
    from tests.stages.export.tiny_network import build_tiny, registered

    with registered():
        yield build_tiny(3)

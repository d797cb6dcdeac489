"""Networks and datasets that other people write: what cannot be imported, and what is none."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.bad_input.world import Case, World

Prepare = Callable[[World], Sequence[str | Path]]
_numbers = itertools.count()
HEAD = """
import torch
from torch import nn
from pathlib import Path
from stages.networks.interface import Network, Normalisation, Outputs
from data_cache.datasets.folder import Folder

"""
PARTIAL = """class Tiny(Network):
    def __init__(self, num_classes, with_depth=True):
        super().__init__()
        self.num_classes, self.encoder, self.extra = num_classes, nn.Conv2d(3, 4, 1), nn.Conv2d(1, 1, 1)
"""


def _module(source: str, *words: str) -> Prepare:
    """Return the words of a command on a module with this source, which is called {module} in them."""

    def prepare(world: World) -> Sequence[str | Path]:
        name = f"somebodys_{next(_numbers)}"
        Path(f"{name}.py").write_text(HEAD + source)  # in the working directory
        return [word.format(module=name, data=world.data) for word in words]

    return prepare


def _check(source: str, name: str = "Tiny") -> Prepare:
    return _module(source, "check-network", f"{{module}}:{name}")


def _dataset(source: str) -> Prepare:
    return _module(source, "datasets", "{module}:Flat", "--data-root", "{data}")


CASES = [
    Case("a network in a module that is not there", lambda _: ["plan", "--network", "nobodys.nets:Tiny"],
         ("there is no module 'nobodys'", "PYTHONPATH")),
    Case("a network that the module does not have", _check(PARTIAL, "Tinny"), ("unknown class", "did you mean 'Tiny'")),
    Case("a network whose module imports what is not installed", _check("import nobodys_library"),
         ("imports 'nobodys_library', which is not installed",)),
    Case("a network whose module is no Python", _check("def (:"), ("cannot be imported: SyntaxError", "line 8")),
    Case("a network that is none", _check("Tiny = nn.Linear"), ("is no network", "not derived from", "Network")),
    Case("a network that is a function", _check("def Tiny(): ..."), ("is no network", "it is a function")),
    Case("a network without num_classes, and with an option that has no default",
         _check("class Tiny(Network):\n    def __init__(self, width, with_depth=True): ..."),
         ("does not take num_classes", "no default: width")),
    Case("a network whose constructor fails",
         _check("class Tiny(Network):\n    def __init__(self, num_classes, with_depth=True):\n        undefined()"),
         ("cannot be built", "NameError", "line 10")),
    Case("a network that breaks the contract: what is missing is named", _check(PARTIAL),
         ("set self.normalisation", "set these attributes", "seg_decoder, seg_head, depth_decoder, depth_head")),
    Case("a training with a network that breaks the contract",
         _module(PARTIAL, "plan", "--network", "{module}:Tiny", "--schedule", "seg-only", "--dataset", "folder",
                 "--data-root", "{data}", "--set", "data.crop=[64,64]"),
         ("does not keep the contract", "seg_decoder", "check-network")),
    Case("an option that somebody's network does not have",
         _module(PARTIAL, "plan", "--network", "{module}:Tiny", "--schedule", "seg-only", "--dataset", "folder",
                 "--data-root", "{data}", "--set", "network.width=3"), ("has no option 'width'",)),
    Case("a dataset that is none", _dataset("class Flat: ..."), ("is no dataset", "SegmentationDataset")),
    Case("a dataset of the name of another",
         _dataset("class Flat(Folder):\n    name = 'camvid'"), ("it sets name = 'camvid'", "leave name out")),
    Case("a dataset whose constructor fails",
         _dataset("class Flat(Folder):\n    def __init__(self, root, split):\n        undefined()"),
         ("cannot be opened", "NameError")),
    Case("a name of a class that is no name", lambda _: ["check-network", "my pkg:Tiny"],
         ("unknown network", "package.module:Class")),
    Case("a skeleton where a file is", lambda _: (Path("here.py").write_text(""), ["new", "network", "here"])[1],
         ("here.py is there already",)),
    Case("a skeleton that would hide a library", lambda _: ["new", "dataset", "torch"], ("'torch' is installed",)),
]  # fmt: skip

"""A network and a dataset that are no part of the program: written by `new`, trained, shipped, known by their code."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_cache import plugins
from stages.networks import build_network, network_options
from tests.bad_input.world import Answer

Call = Callable[..., Answer]
UNTYPED = """
from torch import nn
from stages.networks.branched import BranchedNetwork
from stages.networks.interface import Normalisation
class Net(BranchedNetwork):
    def __init__(self, num_classes, with_depth=True, width=4):
        super().__init__()
        self.num_classes, self.normalisation = num_classes, Normalisation((0.5,) * 3, (0.5,) * 3)
        self.encoder = nn.Conv2d(3, width, 3, padding=1)
        self.seg_decoder, self.seg_head = nn.Conv2d(width, width, 1), nn.Conv2d(width, num_classes, 1)
        if with_depth:
            self.depth_decoder, self.depth_head = nn.Conv2d(width, width, 1), nn.Conv2d(width, 1, 1)
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working directory, whose modules are forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield tmp_path
    forget(tmp_path)


def forget(folder: Path) -> None:
    """Forget the modules of a folder, as a new process has."""
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None) or "").startswith(str(folder)):
            del sys.modules[name]
    plugins._imported.clear()


@pytest.mark.slow
def test_skeletons_keep_the_contract_and_are_trained_and_shipped(here: Path, call: Call) -> None:
    network, data = (call("new", *words).json for words in (("network", "my_pkg.nets:Mine"), ("dataset", "flat_data")))
    assert (network["reference"], data["reference"]) == ("my_pkg.nets:Mine", "flat_data:FlatData")
    checked = call("check-network", network["reference"])
    assert checked.status == 0 and not checked.json["problems"] and len(checked.json["laws"]) == 13
    assert checked.json["options"] == {"width": "16"} and set(checked.json["copied"].values()) == {6}
    assert call("new", "recipe", "mine").json["files"] == ["mine.toml"]
    draw = np.random.default_rng(0)
    for split, number in {"train": 4, "val": 2}.items():
        for kind, high, shape in ((split, 256, (64, 64, 3)), (f"{split}_masks", 2, (64, 64))):
            (here / "data" / kind).mkdir(parents=True)
            for place in range(number):
                pixels = draw.integers(0, high, shape, dtype=np.uint8)
                Image.fromarray(pixels).save(here / "data" / kind / f"{place}.png")
    assert call("datasets", data["reference"], "--data-root", "data").json["problems"] == []
    words = ["--recipe", "mine.toml", "--dataset", data["reference"], "--data-root", "data"]
    labelled = call("pseudo-depth", *words)
    assert labelled.json["labelled"] == 6 and "flat_data-FlatData" in labelled.json["stores"][0]
    assert call("cache", "preview", *words, "--out", "sheets").json["files"]
    chooses = call("plan", *words, "--keep", "best", "--set", "evaluation.split=test")
    assert chooses.status == 2 and "test" in chooses.json["error"], "val would be there to choose by"
    trained = call("run", *words, "--network", network["reference"], "--iterations", "1", "--set", "data.crop=[64,64]")
    assert trained.status == 0, trained.stderr
    run = trained.json["run"]
    assert run.startswith("Mine-depth-first+copy-s0-")
    assert call("evaluate", run).json["metrics"] == trained.json["metrics"]
    shipped = call("export", run, "--formats", "safetensors,onnx", "--no-benchmark", "--out", "shipped")
    assert shipped.json["proof"]["max_abs_difference"]["stripped_vs_full"] == 0

    nets = here / "my_pkg" / "nets.py"
    nets.write_text(nets.read_text() + "\n# edited\n")
    refused = call("plan", *words, "--network", network["reference"])
    assert refused.status == 2 and "has changed since this process imported it" in refused.json["error"]
    forget(here)
    again = call("predict", "shipped", "data/val/0.png", "--out", "found")
    assert again.status == 0 and "has changed since run" in again.stderr, "old weights, new code: said, not hidden"
    words += ["--network", network["reference"], "--iterations", "1", "--set", "data.crop=[64,64]"]
    planned = call("run", *words).json
    assert [phase["key"] for phase in planned["phases"]] != [phase["key"] for phase in trained.json["phases"]]
    assert not any(phase["reused"] for phase in planned["phases"]), "an edited network is another training"

    shutil.rmtree(here / "my_pkg")
    forget(here)
    for lost in (call("predict", run, "data/val/0.png", "--out", "lost"), call("evaluate", "shipped")):
        assert lost.status == 2 and f"run {run} was trained with code that is not part of" in lost.json["error"]
        assert "there is no module 'my_pkg" in lost.json["error"]
    assert not (here / "lost").exists()
    (here / "my_pkg").mkdir()
    (here / "my_pkg" / "nets.py").write_text(f"open({str(here / 'ran')!r}, 'w')")
    sys.path[:] = [place for place in sys.path if place not in ("", str(here))]
    shutil.copyfile(here / "my_pkg" / "nets.py", here / "flat_data.py")
    for words in (("benchmark", "shipped"), ("evaluate", "shipped", "--format", "onnx")):
        assert call(*words).status == 2 and not (here / "ran").exists(), "a file named it, no person"


def test_type_hints_are_not_required(here: Path) -> None:
    (here / "untyped_nets.py").write_text(UNTYPED)
    assert network_options("untyped_nets:Net") == {"width": 4}
    network = build_network("untyped_nets:Net", 3, width=6)
    assert network.spec.options == {"width": 6} and json.dumps(network.spec.options)
    assert network.seg_head.in_channels == 6

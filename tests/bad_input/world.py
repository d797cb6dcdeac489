"""A small world in which every command has something to work on, and what a bad input is."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from tests.stages.pseudo_depth.tiny_estimators import write_depth_anything

SIZE = (64, 64)
"""(height, width) of every image, px."""
SPLITS = {"train": 4, "val": 2, "test": 2}
RECIPE = """
[data]
dataset = "folder"
crop = [64, 64]
root = {root}

[depth]
estimator = {estimator}
kind = "relative"

[network]
name = "unet"
encoder = "tu-test_resnet"
encoder_weights = "none"
decoder_channels = [8, 8, 8, 8, 8]

[training]
iterations = 1
batch_size = 2
precision = "float32"
log_every = 1

[schedule]
name = "depth-first-direct"
copy_weights = true

[evaluation]
panels = 1
"""


class Answer(NamedTuple):
    """What a command answered."""

    status: int
    stdout: str
    stderr: str

    @property
    def json(self) -> dict[str, Any]:
        """The one object on stdout."""
        return json.loads(self.stdout)


@dataclass(frozen=True)
class World:
    """Own data, a work directory in which it is labelled, trained by two schedules and exported, and foreign files."""

    root: Path

    @property
    def data(self) -> Path:
        """A ``folder`` dataset: images/, masks/ of train, val and test, classes.txt (ground, thing)."""
        return self.root / "data"

    @property
    def estimator(self) -> Path:
        """A tiny random Depth Anything: config.json, model.safetensors, preprocessor_config.json."""
        return self.root / "estimator"

    @property
    def work(self) -> Path:
        """The work directory: labels of train and val, runs seg-only and depth-first-direct+copy (the newest)."""
        return self.root / "work"

    @property
    def export(self) -> Path:
        """An export of the newest run: safetensors and ONNX."""
        return self.root / "export"

    @property
    def user(self) -> Path:
        """Files that this program did not write: thesis.tex, notes.txt, photo.png, optimizer.pt."""
        return self.root / "user"

    @property
    def recipe(self) -> Path:
        """The recipe of both runs."""
        return self.root / "recipe.toml"

    def image(self, split: str, number: int = 0) -> Path:
        """Return one image file."""
        return self.data / "images" / split / f"{split}{number}.png"

    def mask(self, split: str, number: int = 0) -> Path:
        """Return one mask file."""
        return self.data / "masks" / split / f"{split}{number}.png"

    def run_folder(self, schedule: str = "depth-first-direct+copy") -> Path:
        """Return the folder of one of the two runs."""
        (folder,) = (path for path in (self.work / "runs").iterdir() if f"-{schedule}-s0" in path.name)
        return folder

    def node_folders(self, schedule: str = "depth-first-direct+copy") -> list[Path]:
        """Return the folders of a run's phases, first to last."""
        record = json.loads((self.run_folder(schedule) / "run.json").read_text())
        return [self.work / "nodes" / phase["key"] for phase in record["phases"]]

    def store(self, split: str = "train") -> Path:
        """Return the folder of a split's depth store."""
        (folder,) = (self.work / "depth" / "folder").glob(f"{split}-*")
        return folder

    def edit_json(self, path: Path, change: Callable[[dict[str, Any]], object]) -> None:
        """Rewrite a JSON file after a change in place."""
        value = json.loads(path.read_text())
        change(value)
        path.write_text(json.dumps(value))

    def flip_byte(self, path: Path, place: float = 0.5) -> None:
        """Change one byte of a file, at a share of its length; size and modification time stay."""
        content, status = bytearray(path.read_bytes()), path.stat()
        content[int(place * (len(content) - 1))] ^= 0x5A
        path.write_bytes(content)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))

    def truncate(self, path: Path, share: float = 0.5) -> None:
        """Cut a file off."""
        content = path.read_bytes()
        path.write_bytes(content[: int(share * len(content))])

    def with_recipe(self, command: str, *words: str | Path) -> list[str | Path]:
        """Return the words of a command on the world's recipe."""
        return [command, "--recipe", self.recipe, *words]


@dataclass(frozen=True)
class Case:
    """One bad input and what has to come of it."""

    input: str
    """What is bad, in plain words: a row of docs/bad-input.md."""
    prepare: Callable[[World], Sequence[str | Path]]
    """Makes the world bad; returns the words of the command."""
    words: tuple[str, ...]
    """What stdout and stderr together must contain: what, where, what to do."""
    exit: int = 2
    check: Callable[[World, Answer], None] | None = None
    """What else must hold, above all where the input is legitimate and the exit status 0."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables with which the command runs as a process of its own (seconds: use sparingly)."""
    exhaustive: bool = False
    """Whether that process loads or waits for what takes many seconds; `make test-all` tries those."""
    changes: tuple[str, ...] = ()
    """Files of the user's, relative to the world, that the command may write."""


def build_world(root: Path, call: Callable[..., Answer]) -> World:
    """Build the world under ``root`` with the command line itself."""
    world = World(root)
    rng = np.random.default_rng(0)
    for split, number_of_images in SPLITS.items():
        world.image(split).parent.mkdir(parents=True)
        world.mask(split).parent.mkdir(parents=True)
        for number in range(number_of_images):
            coarse = Image.fromarray(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8))
            coarse.resize(SIZE[::-1], Image.Resampling.BICUBIC).save(world.image(split, number))
            labels = Image.fromarray(rng.integers(0, 2, (8, 8), dtype=np.uint8))
            labels.resize(SIZE[::-1], Image.Resampling.NEAREST).save(world.mask(split, number))
    (world.data / "classes.txt").write_text("ground\nthing\n")
    write_depth_anything(world.estimator)
    world.recipe.write_text(RECIPE.format(root=json.dumps(str(world.data)), estimator=json.dumps(str(world.estimator))))
    world.user.mkdir()
    (world.user / "thesis.tex").write_text("\\documentclass{book}\n")
    (world.user / "notes.txt").write_text("mine\n")
    Image.fromarray(rng.integers(0, 255, (*SIZE, 3), dtype=np.uint8)).save(world.user / "photo.png")
    (world.user / "optimizer.pt").write_bytes(b"somebody's optimizer state")
    for command in (
        world.with_recipe("pseudo-depth"),
        world.with_recipe("run", "--schedule", "seg-only"),
        world.with_recipe("run"),
        ["export", "--out", world.export, "--formats", "safetensors,onnx", "--no-benchmark"],
    ):
        answer = call(world, *command)
        if answer.status:
            raise RuntimeError(f"{command}: {answer.stderr}")
    return world


def copy_world(template: World, root: Path) -> World:
    """Copy a world to a place of its own; what names the place in it is rewritten."""
    shutil.copytree(template.root, root)
    world = World(root)
    world.recipe.write_text(world.recipe.read_text().replace(str(template.root), str(root)))
    return world

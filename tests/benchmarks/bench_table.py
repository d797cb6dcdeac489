"""The schedule table against its rows one by one, whole processes with the threads that users have: the demo's network.

One by one is ``--no-reuse``: every row trains all of its phases. Both begin with drawn and labelled scenes.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

from tests.benchmarks.harness import Goal, Line, alternate

RECIPE = """
[data]
dataset = "scenes"
crop = [96, 128]
options = {{ counts = {{ train = 48, val = 4, test = 4 }} }}

[depth]
estimator = "dataset"

[network]
name = "unet"
encoder = "resnet18"
encoder_weights = "none"
decoder_channels = [128, 64, 32, 16, 16]

[training]
iterations = {iterations}
batch_size = 8
lr = 1e-3

[evaluation]
panels = 0
"""
WHY = {
    "table": "what every row pays for itself, shared or not: its evaluation, and the start of the process",
    "jobs": "where two trainings of one thread are no faster than one of two, or the tree has no two free branches",
}


def lines(*, small: bool) -> Iterator[Line]:
    """Yield the lines of this bench."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        recipe = folder / "recipe.toml"
        recipe.write_text(RECIPE.format(iterations=1 if small else 12))
        run(folder / "prepared", "pseudo-depth", "--recipe", recipe, "--split", "train", "--split", "val")
        turns = alternate(
            [prepare(folder, recipe, *words) for words in (["--no-reuse"], [], ["--jobs", "2"])],
            passes=1,  # of minutes each, in which a moment's disturbance counts little
            warm_up=0,
        )
    seconds = [f"{turns.seconds(side):.0f} s" for side in range(3)]
    yield Line(
        "schedule table / rows one by one", turns.ratio(1, 0), Goal(at_most=0.72),
        f"{seconds[1]} and {seconds[0]}", WHY["table"],
    )  # fmt: skip
    yield Line(
        "schedule table with --jobs 2 / rows one by one", turns.ratio(2, 0), Goal(at_most=0.5),
        f"{seconds[2]} and {seconds[0]}", WHY["jobs"],
    )  # fmt: skip


def prepare(folder: Path, recipe: Path, *words: str) -> Callable[[], None]:
    """Return what trains the whole table in a work directory of its own; copying the data there takes milliseconds."""
    numbers = count()

    def train() -> None:
        work = folder / f"{'-'.join(words)}-{next(numbers)}"
        shutil.copytree(folder / "prepared", work)
        run(work, "table", "schedules", "--seeds", "0", "--recipe", recipe, *words)
        shutil.rmtree(work)

    return train


def run(work: Path, *words: str | Path) -> None:
    """Run a command of the pipeline on a work directory, with threads as it chooses them where nobody else does."""
    chosen_here = ("OMP_NUM_THREADS", "GOMP_SPINCOUNT")
    environment = {name: value for name, value in os.environ.items() if name not in chosen_here}
    command = [sys.executable, "-c", "from pipeline.cli import main; main()", "--workdir", work, "--quiet", *words]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)

"""How time and memory grow: labelling 1,000 to 30,000 tiny images, evaluating up to 100,000, comparing
10 to 1,000 runs.

Every size is measured in a fresh process, ``python -m tests.benchmarks.bench_growth WHAT NUMBER FOLDER``.
"""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from data_cache.datasets.interface import SegmentationDataset, Sources
from data_cache.image_scores import ImageScores, write_image_scores
from data_cache.images import NotedImage
from data_cache.metrics import HEADLINE, IMAGES_FILE, METRICS
from data_cache.sample import DepthKind, PackedBatch
from pipeline.commands.compare import compare_runs
from pipeline.session import Session
from stages.comparison.bootstrap import pool_miou
from stages.comparison.formats import FORMATS
from stages.evaluation.evaluate import evaluate
from stages.evaluation.settings import EVALUATION_VERSION
from stages.pseudo_depth.aliases import EstimatorSpec
from stages.pseudo_depth.estimators import DepthEstimator
from stages.pseudo_depth.labelling import label_split
from stages.pseudo_depth.model_folder import Preprocessing
from stages.training.schedules import TABLE_ROWS
from tests.benchmarks.harness import Goal, Line, Spread

COUNTS = {
    "label": ((1_000, 10_000, 30_000), "images"),
    "evaluate": ((1_000, 10_000, 100_000), "images"),
    "compare": ((10, 100, 1_000), "runs"),
}
"""What → how many, and of what; 100,000 maps would take five minutes."""
LINEAR, FLAT = Goal(at_most=1.1), Goal(at_most=1.05)
CLASSES, BATCH = 11, 50
NORMALISATION = ((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
WHY_TIME = "something is gone through once per item for every item"
WHY_MEMORY = {
    "label": "0.7 kB are kept of every map: checksum and statistics, by which poor maps are found",
    "evaluate": "something is kept of every image",
    "compare": "the table is of all runs",
}


class Probe(NamedTuple):
    """What a process said of itself."""

    seconds: float
    peak_mb: float


def lines(*, small: bool) -> Iterator[Line]:
    """Yield the lines of this bench: for each command the exponent of its time, and its memory at the largest size."""
    for what, (counts, unit) in COUNTS.items():
        counts = tuple(count // 10 for count in counts[:2]) if small else counts
        found = [run_probe(what, count) for count in counts]
        spent = ", ".join(
            f"{probe.seconds:.2g} s and {probe.peak_mb:.0f} MB for {count:,}"
            for count, probe in zip(counts, found, strict=True)
        )
        exponents = [
            math.log(after.seconds / before.seconds) / math.log(counts[place + 1] / counts[place])
            for place, (before, after) in enumerate(pairwise(found))
        ]
        slope = float(np.polyfit(np.log(counts), np.log([probe.seconds for probe in found]), 1)[0])
        spread = Spread(slope, min(exponents), max(exponents))
        reach = f"{counts[0]:,} to {counts[-1]:,} {unit}"
        yield Line(f"{what}: time grows with the power a of {reach}", spread, LINEAR, spent, WHY_TIME)
        yield Line(
            f"{what}: peak memory, {counts[-1]:,} / {counts[0]:,} {unit}",
            Spread.of([found[-1].peak_mb / found[0].peak_mb]), FLAT, "", WHY_MEMORY[what],
        )  # fmt: skip


def run_probe(what: str, count: int) -> Probe:
    """Measure one size in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        words = [sys.executable, "-m", "tests.benchmarks.bench_growth", what, str(count), folder]
        return Probe(**json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout))


class NumberedImages(SegmentationDataset):
    """Any number of images of 14×14, known by their number."""

    name, split, classes, palette, raw_ids = "numbered", "train", ("one",), ((0, 0, 0),), {0: 0}  # type: ignore[misc]

    def __init__(self, count: int) -> None:
        self._count = count

    @cached_property
    def image_ids(self) -> list[str]:  # type: ignore[override]
        """Return the names, in folders of a thousand."""
        return [f"group{number // 1000}/image{number}" for number in range(self._count)]

    def read_noted_image(self, index: int) -> NotedImage:
        """Return (14, 14, 3) that tell the number."""
        return NotedImage(np.full((14, 14, 3), index % 251, np.uint8) + np.arange(14, dtype=np.uint8)[:, None, None])

    def read_labels(self, index: int) -> np.ndarray:  # noqa: ARG002 - all alike
        """Return (14, 14) zeros."""
        return np.zeros((14, 14), np.uint8)

    def sources(self, index: int) -> Sources:
        """Return words that tell everything."""
        return Sources((f"image {index}",), ("none",), ())

    def describe(self, index: int) -> str:
        """Return the name."""
        return self.image_ids[index]


class _Answer(NamedTuple):
    predicted_depth: Tensor


class Luminance(nn.Module):
    """The cheapest of depth estimators."""

    def forward(self, pixel_values: Tensor) -> _Answer:
        """Return the mean over the colours of (B, 3, h, w)."""
        return _Answer(pixel_values.mean(dim=1) + 3)


def label(count: int, folder: Path) -> None:
    """Label so many images; nothing but the estimator's own arithmetic is left out."""
    spec = EstimatorSpec("luminance", None, None, DepthKind.RELATIVE, 14, 14, "none")
    prepared = Preprocessing((128.0,) * 3, (64.0,) * 3, "bilinear")
    estimator = DepthEstimator(
        spec, Luminance(), prepared, weights_sha256="0" * 64, device=torch.device("cpu"), precision="float32"
    )
    report = label_split(NumberedImages(count), estimator, folder)
    assert report.labelled == count


def evaluate_many(count: int, _folder: Path) -> None:
    """Evaluate a network that answers at once on so many images of 32×32."""
    rows = torch.arange(32 * 32).view(32, 32) // 100
    logits = nn.functional.one_hot(rows, CLASSES).permute(2, 0, 1).float().expand(BATCH, -1, -1, -1)

    def batches() -> Iterator[PackedBatch]:
        labels = rows.roll(3, dims=0).expand(BATCH, -1, -1).byte()
        images = torch.zeros(BATCH, 3, 32, 32, dtype=torch.uint8)
        for first in range(0, count, BATCH):
            names = tuple(str(number) for number in range(first, first + BATCH))
            yield PackedBatch(names, images, labels)

    names = [f"class{number}" for number in range(CLASSES)]
    found = evaluate(
        lambda images: logits[: len(images)],
        batches(),
        normalisation=NORMALISATION,
        num_classes=CLASSES,
        class_names=names,
    )
    assert found.images == count


def draw_image_scores(seed: int) -> ImageScores:
    """Return what a few images scored."""
    draw = np.random.default_rng(seed)
    counts = [draw.integers(1000, size=(20, CLASSES)) for _ in range(4)]
    values = [draw.random(20) for _ in range(6)]
    names = np.array([f"image{k}" for k in range(20)]), np.array([f"class{k}" for k in range(CLASSES)])
    return ImageScores(*names, *counts, *values)


def prepare_runs(count: int, folder: Path) -> None:
    """Write run.json of so many runs: the rows of the schedule table, seed after seed."""
    confusion = [[1000] * CLASSES for _ in range(CLASSES)]
    for number in range(count):
        row, seed = TABLE_ROWS[number % len(TABLE_ROWS)], number // len(TABLE_ROWS)
        of_images = draw_image_scores(number)
        metrics = {name: 0.5 + 0.4 * math.sin(number + len(name)) for name in METRICS}
        metrics[HEADLINE] = float(pool_miou(of_images)[0])
        phases = [{"name": "seg", "steps": 200, "seconds": 12.5, "reused": False, "key": f"{number:08x}"}]
        facts = {
            "format": 2, "run": f"unet-{row}-s{seed}", "name": row, "seed": seed, "network": "unet",
            "dataset": "scenes", "recipe": "demo", "metrics": metrics, "phases": phases, "total_steps": 200,
            "per_class": [{"name": f"class{k}", "iou": 0.5, "acc": 0.5, "pixels": 10} for k in range(CLASSES)],
            "confusion": confusion, "classes": [f"class{k}" for k in range(CLASSES)],
            "palette": [[k, k, k] for k in range(CLASSES)], "image_size": [96, 128], "depth_store": None,
            "nodes": [f"{number:08x}"], "schedule": {"name": row, "steps": ["seg"], "own": False},
            "config": {"data": {"root": None}, "network": {}, "schedule": {}, "evaluation": {}},
            "evaluation": {"version": EVALUATION_VERSION, "key": "k"},
            "identity": {
                "data": "d", "split": "s", "depth": None, "numerics": {"dtype": "float32"},
                "evaluation": EVALUATION_VERSION, "settings": {"training.lr": 1e-3},
            },
            "parameters": 1_000_000, "started_at": "2026-01-01T00:00:00+00:00",
            "finished_at": "2026-01-01T00:10:00+00:00",
        }  # fmt: skip
        run = folder / "runs" / facts["run"]
        run.mkdir(parents=True)
        (run / "run.json").write_text(json.dumps(facts))
        write_image_scores(of_images, run / IMAGES_FILE)


def compare(_count: int, folder: Path) -> None:
    """Compare all runs of a work directory."""
    assert FORMATS["markdown"](compare_runs(Session.start(folder, json_mode=True, quiet=True), ()))


PREPARATIONS: dict[str, Callable[[int, Path], None]] = {"compare": prepare_runs}
ACTIONS: dict[str, Callable[[int, Path], None]] = {"label": label, "evaluate": evaluate_many, "compare": compare}


def main(what: str, count: int, folder: Path) -> dict[str, Any]:
    """Do one thing at one size; return seconds, and the peak memory of the process."""
    if what in PREPARATIONS:
        PREPARATIONS[what](count, folder)
    elif what in ACTIONS:
        ACTIONS[what](BATCH, folder / "warm-up")
    started_at = time.perf_counter()
    ACTIONS[what](count, folder)
    seconds = time.perf_counter() - started_at
    peak = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
    return {"seconds": seconds, "peak_mb": int(peak.group(1)) / 1e3 if peak else math.nan}


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))))

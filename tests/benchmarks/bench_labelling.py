"""Labelling against the bare model, against transformers' pipeline, and against what the machine multiplies.

Random weights of Depth-Anything-V2-Small's architecture, JPEGs of 375×500 (392×518 for the network), no network needed.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation, pipeline

from data_cache.datasets import open_dataset
from stages.pseudo_depth.estimators import load_estimator
from stages.pseudo_depth.labelling import label_split
from tests.benchmarks.drawings import draw_photograph, draw_surface
from tests.benchmarks.flops import count_flops, measure_matmul_peak
from tests.benchmarks.harness import BFLOAT16_CPU, Goal, Line, alternate

SOURCE_SIZE = (375, 500)
WHY = {
    "bare": "decoding and resizing, checksums and the store take what the threads of the model would have had",
    "pipeline": "the forward pass is the same arithmetic for both; only what surrounds it can be saved",
}


def lines(*, small: bool) -> Iterator[Line]:
    """Yield the lines of this bench."""
    images, passes = (2, 1) if small else (8, 5)
    with tempfile.TemporaryDirectory() as scratch:
        root, weights = Path(scratch) / "data", Path(scratch) / "weights"
        write_images(root, images, (56, 70) if small else SOURCE_SIZE)
        write_estimator(weights)
        yield from compare(root, weights, passes)


def compare(root: Path, weights: Path, passes: int) -> Iterator[Line]:
    """Time labelling, the bare model and the pipeline in turns."""
    dataset, estimator = open_dataset("folder", root, "train"), load_estimator(str(weights))
    prepared = [estimator.prepare(dataset.read_image(index)) for index in range(len(dataset))]
    batches = [torch.stack(prepared[first : first + 2]) for first in range(0, len(prepared), 2)]  # as labelling does
    theirs = pipeline("depth-estimation", model=str(weights), device="cpu")
    paths = [str(path) for path in sorted((root / "images" / "train").iterdir())]
    count = iter(range(10**6))

    def label() -> None:
        label_split(dataset, estimator, root / f"depth-{next(count)}")

    def run_bare() -> None:
        for batch in batches:
            estimator.predict(batch)

    def run_pipeline() -> None:
        for path in paths:
            theirs(path)

    turns = alternate([label, run_bare, run_pipeline], passes)
    ours, bare, pipe = (len(prepared) / turns.seconds(side) for side in range(3))
    peak = measure_matmul_peak(torch.device("cpu"), getattr(torch, estimator.precision))
    flops = count_flops(lambda: estimator.predict(batches[0])) / len(batches[0])
    size = "×".join(map(str, prepared[0].shape[-2:]))
    yield Line(
        f"labelling / bare model (images per second, ViT-S {size})", turns.ratio(1, 0), Goal(at_least=0.95),
        f"{ours:.2f} and {bare:.2f} images/s in {estimator.precision}", WHY["bare"],
    )  # fmt: skip
    yield Line(
        "labelling / transformers' depth pipeline", turns.ratio(2, 0), Goal(at_least=1.4 if BFLOAT16_CPU else 1.05),
        f"{ours:.2f} and {pipe:.2f} images/s; labelling computes at {ours * flops / peak:.0%} of the matmul peak "
        f"({peak / 1e9:,.0f} GFLOP/s in {estimator.precision})", WHY["pipeline"],
    )  # fmt: skip


def write_images(root: Path, number: int, size: tuple[int, int]) -> None:
    """Write a ``folder`` dataset of JPEGs, about as costly to decode as photographs."""
    rng = np.random.default_rng(0)
    for kind in ("images", "masks"):
        (root / kind / "train").mkdir(parents=True)
    (root / "classes.txt").write_text("a\nb\n")
    for index in range(number):
        image = draw_photograph(draw_surface(size, rng), rng)
        image.save(root / "images" / "train" / f"{index:03d}.jpg", quality=90)
        Image.fromarray(np.zeros(size, np.uint8)).save(root / "masks" / "train" / f"{index:03d}.png")


def write_estimator(folder: Path) -> None:
    """Write random weights of Depth-Anything-V2-Small's architecture with its published preprocessor."""
    torch.manual_seed(0)
    config = DepthAnythingConfig()  # the defaults are the small model's; V2 taps earlier layers
    config.backbone_config.out_indices = [3, 6, 9, 12]
    network = DepthAnythingForDepthEstimation(config)
    torch.nn.init.normal_(network.head.conv3.weight)  # as it is, random maps differ by less than float16 can say
    torch.nn.init.constant_(network.head.conv3.bias, 1.0)
    network.save_pretrained(folder)
    preprocessor = {
        "image_processor_type": "DPTImageProcessor",
        "do_resize": True,
        "size": {"height": 518, "width": 518},
        "keep_aspect_ratio": True,
        "ensure_multiple_of": 14,
        "resample": 3,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
        "do_pad": False,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))

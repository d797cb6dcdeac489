"""The loader on one core against bare decoding of the same files: JPEG of 360×480, PNG masks, stored depth maps.

Crops, scales, flips and jitter are those of the camvid recipe. Drawing a scene is held to the same decoding.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from data_cache.content import ContentHashes
from data_cache.datasets import open_dataset
from data_cache.datasets.interface import SegmentationDataset
from data_cache.datasets.scenes import Scenes
from data_cache.depth_map import Provenance
from data_cache.depth_store import DepthStore, store_folder
from data_cache.depth_writer import DepthStoreWriter
from data_cache.loaders import build_training_loader
from data_cache.sample import DepthKind
from data_cache.samples import Source
from data_cache.split_depth import SplitDepth, compute_checksums, match_depth
from pipeline.experiment.config import load_config
from tests.benchmarks.drawings import draw_mask, draw_photograph, draw_surface
from tests.benchmarks.harness import Goal, Line, alternate

SIZE, MAP_SIZE, CLASSES, BATCH = (360, 480), (392, 518), 11, 4
CODECS = ("gzip", "blosc")
"""The default, and the fastest."""
WHY = {
    False: "resizing crops of drawn scale, and copies between Pillow, numpy and torch",
    True: "unpacking a map that has more pixels than its image, and resizing it beside the image",
}


def lines(*, small: bool) -> Iterator[Line]:
    """Yield the lines of this bench."""
    images, passes = (4, 2) if small else (40, 9)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            write_images(root, images)
            dataset = open_dataset("folder", root, "train")
            sides = [load(dataset, None), *(load(dataset, write_depth(root, dataset, codec)) for codec in CODECS)]
            turns = alternate([*sides, decode_bare(dataset), draw_scenes(images)], passes)
    finally:
        torch.set_num_threads(threads)
    found = [1e3 * turns.seconds(side) / images for side in range(2 + len(CODECS))]
    kinds = ["without depth", *(f"with depth, {codec}" for codec in CODECS)]
    for side, kind in enumerate(kinds):
        yield Line(
            f"loader / bare decoding of JPEG and PNG, one core, {kind}", turns.ratio(side, len(kinds)),
            Goal(at_most=2.0 if side else 1.6), f"{found[side]:.1f} and {found[-1]:.1f} ms per image", WHY[side > 0],
        )  # fmt: skip
    decoding, drawing = len(kinds), len(kinds) + 1
    yield Line(
        "drawing a scene / bare decoding of JPEG and PNG, one core", turns.ratio(drawing, decoding),
        Goal(at_most=9), f"{1e3 * turns.seconds(drawing) / images:.1f} ms per scene", "every pixel is traced in numpy",
    )  # fmt: skip


def draw_scenes(number: int) -> Callable[[], None]:
    """Return what draws scenes of the demo's size, which nothing keeps."""
    scenes = Scenes(None, "train")

    def draw() -> None:
        for index in range(number):
            scenes.read_labels(index)

    return draw


def load(dataset: SegmentationDataset, depth: SplitDepth | None) -> Callable[[], None]:
    """Return an epoch of training batches, loaded in this process."""
    augmentation = load_config("camvid").data
    source = Source(dataset, depth)

    def epoch() -> None:
        loader = build_training_loader(
            source, augmentation=augmentation, batch_size=BATCH, seed=0, first_step=0,
            last_step=len(dataset) // BATCH, with_depth=depth is not None,
        )  # fmt: skip
        for _ in loader:
            pass

    return epoch


def decode_bare(dataset: SegmentationDataset) -> Callable[[], None]:
    """Return what decodes the same files into arrays, and does nothing else."""
    pairs = [dataset.sources(index) for index in range(len(dataset))]

    def decode() -> None:
        for pair in pairs:
            for path in (*pair.image, *pair.labels):
                np.asarray(Image.open(path))

    return decode


def write_images(root: Path, number: int) -> None:
    """Write a ``folder`` dataset of JPEGs and masks."""
    rng = np.random.default_rng(0)
    for kind in ("images", "masks"):
        (root / kind / "train").mkdir(parents=True)
    (root / "classes.txt").write_text("".join(f"class{number}\n" for number in range(CLASSES)))
    for index in range(number):
        surface = draw_surface(SIZE, rng)
        draw_photograph(surface, rng).save(root / "images" / "train" / f"{index:03d}.jpg", quality=93, subsampling=0)
        draw_mask(surface, CLASSES).save(root / "masks" / "train" / f"{index:03d}.png")


def write_depth(root: Path, dataset: SegmentationDataset, codec: str) -> SplitDepth:
    """Store maps of the dataset's images as labelling does."""
    rng, hashes = np.random.default_rng(1), ContentHashes()
    numbers = ("", "", DepthKind.RELATIVE, "1", None, "", "none", None, "float32")
    provenance = Provenance("folder", "train", "bench", *numbers, codec, "", {}, "")
    folder = store_folder(root / codec, provenance)
    with DepthStoreWriter(folder, provenance) as writer:
        for index, image_id in enumerate(dataset.image_ids):
            checksums = compute_checksums(dataset, index, hashes=hashes, of_depth=False)
            writer.add(writer.prepare(image_id, draw_surface(MAP_SIZE, rng), SIZE, *checksums))
    return match_depth(dataset, DepthStore(folder), hashes)

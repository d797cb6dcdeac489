"""How fast this machine labels, trains, loads and reads: what the doctor and the benchmarks of GPUs measure.

Through ``train_phase``, ``label_split`` and the loaders, as the work itself does it, on noise: weights and images are
random, no network is needed. The device is an argument throughout.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from data_cache.datasets.interface import SegmentationDataset
from data_cache.leftovers import name_temporary
from data_cache.loaders import build_training_loader
from data_cache.sample import DepthKind, PackedBatch
from data_cache.samples import Source
from data_cache.settings import AugmentationSettings
from stages.networks.interface import Network
from stages.networks.precision import resolve_dtype
from stages.pseudo_depth.aliases import EstimatorSpec
from stages.pseudo_depth.estimator_network import build_small_network
from stages.pseudo_depth.estimators import DepthEstimator
from stages.pseudo_depth.labelling import label_split
from stages.pseudo_depth.model_folder import Preprocessing
from stages.training.loop import train_phase
from stages.training.schedules import JOINT
from stages.training.settings import LossSettings, TrainingSettings

CLASSES = 8
Size = tuple[int, int]


def vision_transformer(width: int, layers: int, heads: int, necks: tuple[int, ...], fusion: int) -> dict[str, Any]:
    """Return the sizes of a Depth Anything network on a DINOv2 backbone, for ``build_small_network``."""
    taps = [layers * quarter // 4 for quarter in (1, 2, 3, 4)]
    backbone = {
        "hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads, "patch_size": 14,
        "image_size": 518, "out_indices": taps,
    }  # fmt: skip
    head = {"reassemble_hidden_size": width, "neck_hidden_sizes": list(necks), "fusion_hidden_size": fusion}
    return {"backbone": backbone, "head": head}


VITS = {
    "ViT-S": vision_transformer(384, 12, 6, (48, 96, 192, 384), 64),
    "ViT-B": vision_transformer(768, 12, 12, (96, 192, 384, 768), 128),
    "ViT-L": vision_transformer(1024, 24, 16, (256, 512, 1024, 1024), 256),
    "tiny": vision_transformer(32, 4, 2, (8, 16, 16, 16), 16),
}
"""The sizes of Depth Anything V2, and one for tests."""


def build_estimator(sizes: Mapping[str, Any], device: torch.device, size_px: int) -> DepthEstimator:
    """Build an estimator of random weights, in the best precision of the device.

    Args:
        sizes: one of ``VITS``.
        device: where it computes.
        size_px: of the smaller side of its input.
    """
    network = build_small_network(sizes, seed=0)
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):  # as built, maps differ by less than float16 can say
            nn.init.kaiming_normal_(module.weight)
    return DepthEstimator(
        EstimatorSpec("random", None, None, DepthKind.RELATIVE, 14, size_px, "none"),
        network,
        Preprocessing((123.7, 116.3, 103.5), (58.4, 57.1, 57.4), "bicubic"),
        weights_sha256="0" * 64,
        device=device,
        precision=resolve_dtype("auto", str(device)),
    )


def write_images(root: Path, number: int, size: Size) -> float:
    """Write a ``folder`` dataset of noisy JPEGs, split train, as costly to decode as photographs.

    Returns:
        Bytes of an image file, on average.
    """
    rng = np.random.default_rng(0)
    height, width = size
    for kind in ("images", "masks"):
        (root / kind / "train").mkdir(parents=True)
    (root / "classes.txt").write_text("".join(f"class{one}\n" for one in range(CLASSES)), encoding="utf8")
    for one in range(number):
        coarse = Image.fromarray(rng.integers(0, 255, (12, 16, 3), np.uint8)).resize((width, height))
        noisy = np.asarray(coarse, np.float32) + rng.normal(0, 9, (height, width, 1))
        image = Image.fromarray(noisy.clip(0, 255).astype(np.uint8))
        image.save(root / "images" / "train" / f"{one:04d}.jpg", quality=90)
        mask = Image.fromarray(np.asarray(coarse)[..., 0] // np.uint8(256 // CLASSES))
        mask.save(root / "masks" / "train" / f"{one:04d}.png")
    sizes = [path.stat().st_size for path in (root / "images").rglob("*.jpg")]
    return sum(sizes) / len(sizes)


def make_batch(number: int, size: Size, seed: int = 0) -> PackedBatch:
    """Return noise, with labels and depth that have something to do with it."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (number, *size, 3), generator=generator, dtype=torch.uint8)
    return PackedBatch(
        tuple(f"noise{place}" for place in range(number)),
        images.permute(0, 3, 1, 2),
        images[..., 0] // (256 // CLASSES),
        (images[..., 1].float() / 255).half(),
    )


def time_model(estimator: DepthEstimator, images: torch.Tensor) -> float:
    """Return images per second of the network alone on prepared images (B, 3, h, w): the best of five batches."""
    seconds = [time_call(lambda: estimator.predict(images), estimator.device) for _ in range(6)]
    return len(images) / min(seconds[1:])


def time_labelling(estimator: DepthEstimator, dataset: SegmentationDataset, folder: Path, workers: int) -> float:
    """Return images per second from files to the store, the second time: the first chooses batch size and kernels."""
    label_split(dataset, estimator, folder / "first", workers=workers)
    return label_split(dataset, estimator, folder / "second", workers=workers).images_per_second


def time_loader(dataset: SegmentationDataset, *, size: Size, batch_size: int, steps: int, workers: int) -> float:
    """Return images per second that come out of the loader once its workers run."""
    loader = build_training_loader(
        Source(dataset, None), augmentation=augment(size), batch_size=batch_size, seed=0, first_step=0,
        last_step=steps + 2 * workers, workers=workers, with_depth=False,
    )  # fmt: skip
    batches = iter(loader)
    for _ in islice(batches, 2 * workers):  # what was prepared while the first workers started
        pass
    started_at = time.perf_counter()
    number = sum(len(batch.image_ids) for batch in batches)
    return number / (time.perf_counter() - started_at)


def augment(size: Size) -> AugmentationSettings:
    """Return the usual variation of training samples."""
    return AugmentationSettings(crop=size, scale=(0.75, 1.5), jitter=0.3)


def time_steps(network: Network, device: torch.device, batch: PackedBatch, steps: int, **settings: Any) -> float:
    """Return images per second of joint training steps on a batch that is there already.

    Args:
        settings: of the training, by name.
    """
    if device.type == "cuda":  # as the loader does
        depth = batch.inverse_depth
        batch = batch._replace(
            images=batch.images.pin_memory(),
            seg_labels=batch.seg_labels.pin_memory(),
            inverse_depth=None if depth is None else depth.pin_memory(),
        )
    warm_up = max(1, steps // 4)
    started_at = 0.0

    def batches(_first_step: int) -> Iterator[PackedBatch]:
        nonlocal started_at
        for step in range(warm_up + steps):
            if step == warm_up:
                wait_for(device)
                started_at = time.perf_counter()
            yield batch

    chosen = TrainingSettings(**settings)
    train_phase(
        network, JOINT, batches, total_steps=warm_up + steps, seed=0, key="speed", settings=chosen,
        losses=LossSettings(), device=device, dtype=resolve_dtype(chosen.precision, str(device)),
    )  # fmt: skip
    wait_for(device)
    return steps * len(batch.image_ids) / (time.perf_counter() - started_at)


def time_disk(folder: Path, size: int) -> float:
    """Return bytes per second of a file in a folder that is read back from the disk, not from memory."""
    path = name_temporary(folder / "speed")
    try:
        with path.open("wb") as file:
            file.write(os.urandom(size))
            file.flush()
            os.fsync(file.fileno())
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        started_at = time.perf_counter()
        path.read_bytes()
        return size / (time.perf_counter() - started_at)
    finally:
        path.unlink(missing_ok=True)


def time_call(call: Callable[[], object], device: torch.device) -> float:
    """Return seconds until a device has done what a call gave it."""
    wait_for(device)
    started_at = time.perf_counter()
    call()
    wait_for(device)
    return time.perf_counter() - started_at


def wait_for(device: torch.device) -> None:
    """Return when a GPU has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)

"""Does a GPU compute what the CPU does, and what limits the work on this machine: the looks of `pipeline doctor --gpu`.

The device is an argument throughout: the same looks run on a CPU, which is then compared with itself. Everything goes
through ``train_phase``, ``label_split`` and the loaders, as the work itself does.
"""

from __future__ import annotations

import copy
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from data_cache.datasets import open_dataset
from data_cache.datasets.interface import SegmentationDataset
from data_cache.errors import UserError
from data_cache.leftovers import name_temporary
from data_cache.loaders import build_training_loader
from data_cache.sample import DepthKind, PackedBatch
from data_cache.samples import Source
from data_cache.settings import AugmentationSettings
from pipeline.experiment.config import load_config
from pipeline.threads import count_usable_cpus
from stages.networks import NETWORKS, build_network
from stages.networks.interface import Network
from stages.networks.precision import resolve_dtype, set_tf32
from stages.pseudo_depth.aliases import EstimatorSpec
from stages.pseudo_depth.estimator_network import build_small_network
from stages.pseudo_depth.estimators import DepthEstimator
from stages.pseudo_depth.labelling import label_split
from stages.pseudo_depth.model_folder import Preprocessing
from stages.training.interruption import Interrupted, StopFlag
from stages.training.loop import train_phase
from stages.training.metrics_log import StepReport
from stages.training.schedules import JOINT
from stages.training.settings import LossSettings, TrainingSettings

CLASSES = 8
CPU = torch.device("cpu")
LARGEST_DIFFERENCE = {"gradient": 1e-2}
"""Relative, by the name of a number; float32 sums in another order differ by far less."""
LARGEST_LOSS_DIFFERENCE = 1e-3
LARGEST_PRODUCT_ERROR = 1e-5
"""Of a float32 product against float64, relative to its largest entry; TF32 has errors of about 1e-3."""
RESUMED_STEPS = 3

VIT_SMALL = {
    "backbone": {
        "hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6, "patch_size": 14, "image_size": 518,
        "out_indices": [3, 6, 9, 12],
    },
    "head": {"reassemble_hidden_size": 384, "neck_hidden_sizes": [48, 96, 192, 384], "fusion_hidden_size": 64},
}  # fmt: skip
"""Depth-Anything-V2-Small, with random weights: what labelling usually runs."""


class Finding(NamedTuple):
    """One row of the doctor's table."""

    name: str
    ok: bool
    found: str
    remedy: str = ""


@dataclass(frozen=True)
class Effort:
    """How much is computed: for a minute on a GPU, or as little as shows that it runs."""

    networks: tuple[str, ...] = tuple(NETWORKS)
    """Those that are compared, in the narrow forms of the recipe scenes-small."""
    encoder: str = "resnet50"
    """Of the U-Net whose steps are timed."""
    size: tuple[int, int] = (512, 512)
    """Of its crops, px; images are a third larger."""
    batch_size: int = 8
    steps: int = 30
    images: int = 64
    """On the disk, for labelling and the loader."""
    estimator: Mapping[str, Any] = field(default_factory=lambda: VIT_SMALL)
    """Sizes of the network that labels."""
    estimator_px: int = 518
    """Of the smaller side of its input."""
    disk_bytes: int = 256_000_000


class Speeds(NamedTuple):
    """Images per second of each of what a training needs."""

    step: float
    loader: float
    disk: float
    workers: int
    """Of the loader."""


def examine_gpu(device: torch.device, folder: Path, effort: Effort) -> Iterator[Finding]:
    """Yield what is found, in order; what fails is a finding, too, and the rest goes on.

    Args:
        device: what is examined.
        folder: on the disk that is to be measured; nothing stays there.
        effort: how much is computed.
    """
    looks: list[Callable[[], Iterator[Finding]]] = [
        lambda: _look_at_numbers(device),
        *(lambda name=name: _look_at_network(name, device) for name in effort.networks),
        lambda: _look_at_resumption(device),
        lambda: _look_at_speed(device, folder, effort),
    ]
    for look in looks:
        try:
            yield from look()
        except (UserError, RuntimeError) as problem:  # of torch and its drivers; a GPU that is unfit shows so
            said = " ".join(str(problem).split())[:300]
            yield Finding(str(device), False, said, "see the installation of driver and torch, or use --device cpu")


def _look_at_numbers(device: torch.device) -> Iterator[Finding]:
    dtype = resolve_dtype("auto", str(device))
    words = {"float16": "absent; float16 with scaled losses is used", "float32": "absent; float32 is used"}
    yield Finding("bfloat16", True, words.get(dtype, "multiplied by the hardware"))
    set_tf32(False)  # as trainings do unless training.tf32 is set
    strict = _measure_product_error(device)
    set_tf32(True)
    loose = _measure_product_error(device)
    set_tf32(False)
    yield Finding(
        "float32 is float32",
        strict <= LARGEST_PRODUCT_ERROR,
        f"error {strict:.0e} of products and convolutions; with training.tf32 {loose:.0e}",
        "something multiplies float32 with fewer bits; look for NVIDIA_TF32_OVERRIDE in the environment",
    )


def _measure_product_error(device: torch.device) -> float:
    """Return the largest relative error of a matrix product and a convolution in float32."""
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(256, 256, generator=generator)
    image, kernel = matrix.view(1, 16, 64, 64), torch.randn(16, 16, 3, 3, generator=generator)
    pairs = [
        (matrix.double() @ matrix.double(), (matrix.to(device) @ matrix.to(device)).cpu()),
        (
            nn.functional.conv2d(image.double(), kernel.double()),
            nn.functional.conv2d(image.to(device), kernel.to(device)).cpu(),
        ),
    ]
    return max(float((exact - found).abs().max() / exact.abs().max()) for exact, found in pairs)


def _look_at_network(name: str, device: torch.device) -> Iterator[Finding]:
    torch.manual_seed(0)
    network = build_network(name, CLASSES, **load_config("scenes-small").network_options.get(name, {}))
    yield compare_networks(name, network, copy.deepcopy(network), device)


def compare_networks(name: str, reference: Network, network: Network, device: torch.device) -> Finding:
    """Compare the first joint step of a network on the CPU with that of another on a device, in float32.

    Args:
        name: for people.
        reference: trained for a step on the CPU.
        network: of the same weights; trained for a step on the device.
    """
    expected, found = _measure_step(reference, CPU), _measure_step(network, device)
    differences = {term: abs(found[term] - value) / max(abs(value), 1e-6) for term, value in expected.items()}
    ok = all(value <= LARGEST_DIFFERENCE.get(term, LARGEST_LOSS_DIFFERENCE) for term, value in differences.items())
    words = ", ".join(f"{term} {found[term]:.4g} (off by {value:.0e})" for term, value in differences.items())
    return Finding(f"{name}: {device} as cpu", ok, words, "do not trust trainings of this network on this device")


def _measure_step(network: Network, device: torch.device) -> dict[str, float]:
    """Return the losses and the gradient norm of one float32 step."""
    for module in network.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0  # the devices draw other masks
    reports: list[StepReport] = []
    batches = [_make_batch(2, (96, 128))]
    _train(network, device, lambda _: batches, 1, TrainingSettings(precision="float32"), on_step=reports.append)
    gradient = reports[0].grad_norm
    assert gradient is not None, "only steps in float16 may come without"
    return {**reports[0].raw, "gradient": gradient}


def _train(
    network: Network,
    device: torch.device,
    batches_from: Callable[[int], Iterable[PackedBatch]],
    steps: int,
    settings: TrainingSettings,
    **options: Any,
) -> None:
    train_phase(
        network, JOINT, batches_from, total_steps=steps, seed=0, key="doctor", settings=settings,
        losses=LossSettings(), device=device, dtype=resolve_dtype(settings.precision, str(device)), **options,
    )  # fmt: skip


def _make_batch(number: int, size: tuple[int, int], seed: int = 0) -> PackedBatch:
    """Return noise, with labels and depth that have something to do with it."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (number, *size, 3), generator=generator, dtype=torch.uint8)
    return PackedBatch(
        tuple(f"noise{place}" for place in range(number)),
        images.permute(0, 3, 1, 2),
        images[..., 0] // (256 // CLASSES),
        (images[..., 1].float() / 255).half(),
    )


def _look_at_resumption(device: torch.device) -> Iterator[Finding]:
    torch.manual_seed(0)
    network = build_network("unet", CLASSES, encoder="resnet18", encoder_weights="none")
    interrupted = copy.deepcopy(network)
    batches = [_make_batch(2, (64, 64), seed) for seed in range(2 * RESUMED_STEPS)]
    settings, stop = TrainingSettings(deterministic=True), StopFlag()

    def batches_until_stopped(_first_step: int) -> Iterator[PackedBatch]:
        for step, batch in enumerate(batches, start=1):
            if step == RESUMED_STEPS:
                stop.set()
            yield batch

    _train(network, device, lambda _: batches, len(batches), settings)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "checkpoint"
        with suppress(Interrupted):
            _train(
                interrupted, device, batches_until_stopped, len(batches), settings, stop=stop,
                checkpoint_folder=checkpoint,
            )  # fmt: skip
        _train(
            interrupted, device, lambda first_step: batches[first_step:], len(batches), settings,
            checkpoint_folder=checkpoint,
        )  # fmt: skip
    yield compare_states(network.state_dict(), interrupted.state_dict(), device)


def compare_states(straight: Mapping[str, Tensor], resumed: Mapping[str, Tensor], device: torch.device) -> Finding:
    """Compare the weights after a training with those after one that was stopped half-way and resumed."""
    different = [name for name, value in straight.items() if not torch.equal(value.cpu(), resumed[name].cpu())]
    found = f"{len(different)} of {len(straight)} tensors differ" if different else "the same bits as without a stop"
    remedy = "resumed trainings on this device are close to undisturbed ones, but not equal"
    return Finding(f"resumed training on {device}", not different, found, remedy)


def _look_at_speed(device: torch.device, folder: Path, effort: Effort) -> Iterator[Finding]:
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        image_bytes = _write_images(root, effort)
        dataset = open_dataset("folder", root, "train")
        bare, labelling = _time_labelling(dataset, device, root, effort)
        yield Finding(
            "labelling",
            True,
            f"{labelling:.1f} images/s of the {bare:.1f} that the network alone would do ({labelling / bare:.0%})"
            + ("" if labelling >= 0.9 * bare else "; reading limits it: more --workers help as far as there are cores"),
        )
        workers = max(1, count_usable_cpus() - 1)
        loader = _time_loader(dataset, workers, effort)
    step = _time_steps(device, effort)
    megabytes = _measure_disk(folder, effort.disk_bytes) / 1e6
    yield Finding("training step", True, f"{step:.1f} images/s, {effort.encoder} U-Net {_px(effort.size)}")
    yield Finding("loader", True, f"{loader:.1f} images/s with {workers} workers")
    yield Finding("disk", True, f"{megabytes:.0f} MB/s read from {folder}")
    yield Finding("limit", True, name_limit(Speeds(step, loader, megabytes * 1e6 / image_bytes, workers)))


def name_limit(speeds: Speeds) -> str:
    """Return what trainings of large images wait for on this machine, and what to do about it."""
    step, loader, disk, workers = speeds
    if min(loader, disk) >= step:
        return f"the step: data comes {min(loader, disk) / step:.1f} times as fast; --compile may make it faster"
    if disk < loader:
        return (
            f"the disk: {disk:.0f} images/s, the step takes {step:.0f}; put the images on a local disk, or keep them "
            "in memory with --cache-images auto"
        )
    needed = math.ceil(workers * step / loader)
    return (
        f"the data: {loader:.0f} images/s from {workers} workers, the step takes {step:.0f}; set --workers {needed} if "
        "there are as many cores, keep decoded images in memory with --cache-images auto, or store smaller images"
    )


def _write_images(root: Path, effort: Effort) -> float:
    """Write a ``folder`` dataset of noisy JPEGs as costly to decode as photographs; return the bytes of one."""
    rng = np.random.default_rng(0)
    height, width = (side * 4 // 3 for side in effort.size)
    for kind in ("images", "masks"):
        (root / kind / "train").mkdir(parents=True)
    (root / "classes.txt").write_text("".join(f"class{number}\n" for number in range(CLASSES)), encoding="utf8")
    for number in range(effort.images):
        coarse = Image.fromarray(rng.integers(0, 255, (12, 16, 3), np.uint8)).resize((width, height))
        noisy = np.asarray(coarse, np.float32) + rng.normal(0, 9, (height, width, 1))
        image = Image.fromarray(noisy.clip(0, 255).astype(np.uint8))
        image.save(root / "images" / "train" / f"{number:03d}.jpg", quality=90)
        mask = Image.fromarray(np.asarray(coarse)[..., 0] // np.uint8(256 // CLASSES))
        mask.save(root / "masks" / "train" / f"{number:03d}.png")
    sizes = [path.stat().st_size for path in (root / "images").rglob("*.jpg")]
    return sum(sizes) / len(sizes)


def _time_labelling(
    dataset: SegmentationDataset, device: torch.device, folder: Path, effort: Effort
) -> tuple[float, float]:
    """Return images per second of the network alone, and of labelling with it."""
    spec = EstimatorSpec("vit", None, None, DepthKind.RELATIVE, 14, effort.estimator_px, "none")
    network = build_small_network(effort.estimator, seed=0)
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):  # as built, maps differ by less than float16 can say
            nn.init.kaiming_normal_(module.weight)
    preprocessing = Preprocessing((123.7, 116.3, 103.5), (58.4, 57.1, 57.4), "bicubic")
    estimator = DepthEstimator(
        spec, network, preprocessing, weights_sha256="0" * 64, device=device,
        precision=resolve_dtype("auto", str(device)),
    )  # fmt: skip
    images = torch.stack([estimator.prepare(dataset.read_image(index)) for index in range(min(16, len(dataset)))])
    seconds = [_time(lambda: estimator.predict(images), device) for _ in range(4)]
    label_split(dataset, estimator, folder / "first")  # chooses kernels and batch size
    report = label_split(dataset, estimator, folder / "second")
    return len(images) / min(seconds), report.images_per_second


def _time_loader(dataset: SegmentationDataset, workers: int, effort: Effort) -> float:
    """Return images per second that come out of the loader, once its workers run."""
    epochs_of_steps = effort.steps + 2 * workers
    loader = build_training_loader(
        Source(dataset, None), augmentation=AugmentationSettings(crop=effort.size, scale=(0.75, 1.5), jitter=0.3),
        batch_size=effort.batch_size, seed=0, first_step=0, last_step=epochs_of_steps, workers=workers,
        with_depth=False,
    )  # fmt: skip
    batches = iter(loader)
    for _ in islice(batches, 2 * workers):  # what was prepared while the first workers started
        pass
    started_at = time.perf_counter()
    number = sum(len(batch.image_ids) for batch in batches)
    return number / (time.perf_counter() - started_at)


def _time_steps(device: torch.device, effort: Effort) -> float:
    """Return images per second of joint training steps whose batches are there already."""
    network = build_network("unet", CLASSES, encoder=effort.encoder, encoder_weights="none")
    batch = _make_batch(effort.batch_size, effort.size)
    if device.type == "cuda":  # as the loader does
        batch = batch._replace(images=batch.images.pin_memory(), seg_labels=batch.seg_labels.pin_memory())
    warm_up = max(1, effort.steps // 4)
    started_at = 0.0

    def batches(_first_step: int) -> Iterator[PackedBatch]:
        nonlocal started_at
        for step in range(warm_up + effort.steps):
            if step == warm_up:
                _wait_for(device)
                started_at = time.perf_counter()
            yield batch

    _train(network, device, batches, warm_up + effort.steps, TrainingSettings())
    _wait_for(device)
    return effort.steps * effort.batch_size / (time.perf_counter() - started_at)


def _measure_disk(folder: Path, size: int) -> float:
    """Return bytes per second of a file that is read back from the disk, not from memory."""
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


def _time(call: Callable[[], object], device: torch.device) -> float:
    _wait_for(device)
    started_at = time.perf_counter()
    call()
    _wait_for(device)
    return time.perf_counter() - started_at


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _px(size: tuple[int, int]) -> str:
    return f"{size[0]}×{size[1]}"

"""Does a GPU compute what the CPU does, and what limits the work on this machine: the looks of `pipeline doctor --gpu`.

The device is an argument throughout: the same looks run on a CPU, which is then compared with itself. Everything goes
through ``train_phase``, ``label_split`` and the loaders, as the work itself does.
"""

from __future__ import annotations

import copy
import math
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from data_cache.datasets import open_dataset
from data_cache.errors import UserError
from data_cache.sample import PackedBatch
from pipeline.experiment.config import load_config
from pipeline.speeds import (
    CLASSES,
    VITS,
    build_estimator,
    make_batch,
    time_disk,
    time_labelling,
    time_loader,
    time_model,
    time_steps,
    write_images,
)
from pipeline.threads import count_usable_cpus
from stages.networks import NETWORKS, build_network
from stages.networks.interface import Network
from stages.networks.precision import resolve_dtype, set_tf32
from stages.training.interruption import Interrupted, StopFlag
from stages.training.loop import train_phase
from stages.training.metrics_log import StepReport
from stages.training.schedules import JOINT
from stages.training.settings import LossSettings, TrainingSettings

CPU = torch.device("cpu")
LARGEST_DIFFERENCE = {"gradient": 1e-2}
"""Relative, by the name of a number; float32 sums in another order differ by far less."""
LARGEST_LOSS_DIFFERENCE = 1e-3
LARGEST_PRODUCT_ERROR = 5e-5
"""Of a float32 product against float64, relative to its largest entry: float32 has 5e-7, TF32 3e-4."""
RESUMED_STEPS = 3


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
    images: int = 192
    """On the disk, for labelling and the loader."""
    estimator: str = "ViT-S"
    """Which of ``VITS`` labels."""
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
    batches = [make_batch(2, (96, 128))]
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


def _look_at_resumption(device: torch.device) -> Iterator[Finding]:
    torch.manual_seed(0)
    network = build_network("unet", CLASSES, encoder="resnet18", encoder_weights="none")
    interrupted = copy.deepcopy(network)
    batches = [make_batch(2, (64, 64), seed) for seed in range(2 * RESUMED_STEPS)]
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
    workers = max(1, count_usable_cpus() - 1)
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        height, width = (side * 4 // 3 for side in effort.size)
        image_bytes = write_images(root, effort.images, (height, width))
        dataset = open_dataset("folder", root, "train")
        estimator = build_estimator(VITS[effort.estimator], device, effort.estimator_px)
        bare = time_model(estimator, torch.stack([estimator.prepare(dataset.read_image(0))] * effort.batch_size))
        labelling = time_labelling(estimator, dataset, root, workers)
        advice = "" if labelling >= 0.9 * bare else "; reading and writing limit it: it needs more cores"
        yield Finding(
            f"labelling, {effort.estimator}",
            True,
            f"{labelling:.1f} images/s of the {bare:.1f} that the network alone does ({labelling / bare:.0%}){advice}",
        )
        loader = time_loader(
            dataset, size=effort.size, batch_size=effort.batch_size, steps=effort.steps, workers=workers
        )
    network = build_network("unet", CLASSES, encoder=effort.encoder, encoder_weights="none")
    step = time_steps(network, device, make_batch(effort.batch_size, effort.size), effort.steps)
    disk = time_disk(folder, effort.disk_bytes)
    size = "×".join(map(str, effort.size))
    yield Finding("training step", True, f"{step:.1f} images/s, {effort.encoder} U-Net {size}")
    yield Finding("loader", True, f"{loader:.1f} images/s with {workers} workers")
    yield Finding("disk", True, f"{disk / 1e6:.0f} MB/s read from {folder}")
    yield Finding("limit", True, name_limit(Speeds(step, loader, disk / image_bytes, workers)))


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

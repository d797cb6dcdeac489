"""Training step against hand-written ones, in one process and turn by turn: python tests/benchmarks/bench_training.py.

Prints ratios of the fastest step times: what other programs add is never negative, so the fastest of many steps is the
least disturbed one. On a busy machine set OMP_NUM_THREADS=1: threads that wait for each other measure the neighbours.
"""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F

from data_cache.sample import Batch, PackedBatch
from data_cache.unpacking import unpack
from stages.networks import build_network
from stages.networks.encoders import IMAGENET
from stages.networks.precision import resolve_dtype
from stages.training.loop import train_phase
from stages.training.metrics_log import MetricsLog
from stages.training.schedule import Phase
from stages.training.schedules import JOINT, SEG
from stages.training.settings import LossSettings, TrainingSettings
from stages.training.trainer import PhaseTrainer

CPU = torch.device("cpu")
DTYPE = resolve_dtype("auto", "cpu")
BATCH, HEIGHT, WIDTH, CLASSES, LR = 8, 96, 128, 9, 1e-4
WARMUP_STEPS, MEASURED_STEPS = 3, 20


def main() -> None:
    """Print each comparison with its budget."""
    print(
        f"ResNet18 U-Net, batch {BATCH}, {HEIGHT}x{WIDTH}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    )
    joint, hand = measure(JOINT, build("unet"), hand_written_step(build("unet")))
    print(f"our joint step / hand-written one, same network and precision: {joint / hand:.3f} (at most 1.03)")
    ours, plain = measure(SEG, build("unet"), plain_smp_step())
    print(f"plain smp float32 step / our default seg step: {plain / ours:.2f} (at least 2.2)")
    single = build("unet", with_depth=False)
    dual, alone = measure(SEG, build("unet"), our_step(SEG, single))
    print(f"seg step on the dual / on the single-decoder network: {dual / alone:.3f} (at most 1.02)")


def build(name: str, **options: bool) -> torch.nn.Module:
    """Return a small network with the same weights every time."""
    torch.manual_seed(0)
    return build_network(name, CLASSES, encoder="resnet18", encoder_weights="none", **options)


def measure(phase: Phase, network: torch.nn.Module, rival: Callable[[PackedBatch], object]) -> tuple[float, float]:
    """Return the fewest seconds of a step of ``train_phase``, log and all, and of the rival's, measured in turns."""
    ours: list[float] = []
    theirs: list[float] = []

    def batches_from(_first_step: int) -> Iterator[PackedBatch]:
        batch = make_batch()
        for _ in range(WARMUP_STEPS + MEASURED_STEPS):
            started_at = time.perf_counter()
            yield batch  # the loop does its whole step before it asks for the next batch
            ours.append(time.perf_counter() - started_at)
            started_at = time.perf_counter()
            rival(batch)
            theirs.append(time.perf_counter() - started_at)
        yield batch

    with tempfile.TemporaryDirectory() as folder, MetricsLog(Path(folder) / "metrics.jsonl", log_every=1) as log:
        train_phase(
            network, phase, batches_from, total_steps=WARMUP_STEPS + MEASURED_STEPS + 1, seed=0, key="",
            settings=TrainingSettings(lr=LR), losses=LossSettings(), device=CPU, dtype=DTYPE, log=log,
        )  # fmt: skip
    return min(ours[WARMUP_STEPS:]), min(theirs[WARMUP_STEPS:])


def hand_written_step(network: torch.nn.Module) -> Callable[[PackedBatch], None]:
    """Return the least that a joint step with the same arithmetic has to do."""
    network.to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.Adam(network.parameters(), LR, fused=True)

    def step(packed: PackedBatch) -> None:
        batch = make_floats(packed)
        images = batch.images.to(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16, enabled=DTYPE == "bfloat16"):
            outputs = network(images)
        surprise = F.cross_entropy(outputs.seg_logits.float(), batch.seg_labels, ignore_index=255, reduction="none")
        focal = ((1 - torch.exp(-surprise)) ** 2 * surprise).sum() / (batch.seg_labels != 255).sum()
        mse = F.mse_loss(outputs.depth.float()[batch.depth_valid], batch.inverse_depth[batch.depth_valid])
        loss = 0.85 * focal + 0.15 * mse
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()

    return step


def plain_smp_step() -> Callable[[PackedBatch], None]:
    """Return the step of a plain script: smp's network and loss, torch's defaults."""
    torch.manual_seed(0)
    network = smp.Unet("resnet18", encoder_weights=None, classes=CLASSES).train()
    criterion = smp.losses.FocalLoss("multiclass", ignore_index=255)
    optimizer = torch.optim.Adam(network.parameters(), LR)

    def step(packed: PackedBatch) -> None:
        batch = make_floats(packed)
        loss = criterion(network(batch.images), batch.seg_labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()

    return step


def our_step(phase: Phase, network: torch.nn.Module) -> Callable[[PackedBatch], object]:
    """Return one step of the trainer behind ``train_phase``."""
    network.to(memory_format=torch.channels_last).train()
    trainer = PhaseTrainer(
        network, phase, total_steps=1000, seed=0, settings=TrainingSettings(lr=LR), losses=LossSettings(),
        device=CPU, dtype=DTYPE,
    )  # fmt: skip
    steps = itertools.count()
    return lambda batch: trainer.train_step(next(steps), batch)


def make_batch() -> PackedBatch:
    """Return noise of the right shapes."""
    generator = torch.Generator().manual_seed(0)
    shape = (BATCH, HEIGHT, WIDTH)
    images = torch.randint(256, (BATCH, HEIGHT, WIDTH, 3), generator=generator, dtype=torch.uint8)
    depth = torch.rand(shape, generator=generator).half()
    return PackedBatch(
        image_ids=tuple(map(str, range(BATCH))),
        images=images.permute(0, 3, 1, 2),
        seg_labels=torch.randint(0, CLASSES, shape, generator=generator, dtype=torch.uint8),
        inverse_depth=depth.where(torch.rand(shape, generator=generator) > 0.1, torch.nan),
    )


def make_floats(packed: PackedBatch) -> Batch:
    """Return what a rival computes with; every program has to make floats of its pixels."""
    return unpack(packed, IMAGENET, CPU)


if __name__ == "__main__":
    main()

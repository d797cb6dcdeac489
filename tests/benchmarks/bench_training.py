"""Training steps against hand-written ones: ResNet18 U-Net, 96×128, batch 8, as in the demo; ResNet50 at 256×256."""

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
from stages.networks.interface import Network
from stages.networks.precision import resolve_dtype
from stages.training.loop import train_phase
from stages.training.metrics_log import MetricsLog
from stages.training.schedule import Phase
from stages.training.schedules import JOINT, SEG
from stages.training.settings import LossSettings, TrainingSettings
from stages.training.trainer import PhaseTrainer
from tests.benchmarks.harness import BFLOAT16_CPU, Goal, Line, Turns

CPU = torch.device("cpu")
DTYPE = resolve_dtype("auto", "cpu")
CLASSES, LR, WARMUP_STEPS = 9, 1e-4, 3
Step = Callable[[PackedBatch], object]
WHY = {
    "hand": "what the step does besides the network's own arithmetic: masked update, seeds, logging",
    "plain": "what bfloat16 gains is bound by the share of the step that is convolutions; batch norm, upsampling, "
    "losses and optimiser cost the same in both",
    "dual": "the depth branch is neither run nor moved: what is left is noise, or time spent on its parameters",
}


def lines(*, small: bool) -> Iterator[Line]:
    """Yield the lines of this bench."""
    batch, steps = make_batch(2 if small else 8, (64, 64) if small else (96, 128)), 2 if small else 25
    joint = measure(JOINT, build("resnet18"), hand_written_step(build("resnet18")), batch, steps)
    yield Line(
        "our step / hand-written step (joint phase, this machine's best precision)", joint.ratio(0, 1),
        Goal(at_most=1.03), describe(joint), WHY["hand"],
    )  # fmt: skip
    default = measure(SEG, build("resnet18"), plain_smp_step(), batch, steps)
    yield Line(
        "plain float32 smp loop / our default step", default.ratio(1, 0), Goal(at_least=2.2 if BFLOAT16_CPU else 1.0),
        describe(default), WHY["plain"],
    )  # fmt: skip
    cases = [("resnet18", batch, steps)] + ([] if small else [("resnet50", make_batch(4, (256, 256)), 7)])
    for encoder, given, number in cases:
        single = build(encoder, with_depth=False)
        dual = measure(SEG, build(encoder), our_step(SEG, single), given, number)
        what = f"segmentation step, dual / single-decoder network ({encoder})"
        yield Line(what, dual.ratio(0, 1), Goal(at_most=1.02), describe(dual), WHY["dual"])


def describe(turns: Turns) -> str:
    """Return the medians of our and the other step."""
    return f"{1e3 * turns.seconds(0):.0f} and {1e3 * turns.seconds(1):.0f} ms, ours in {DTYPE}"


def build(encoder: str, **options: bool) -> Network:
    """Return a U-Net with the same weights every time."""
    torch.manual_seed(0)
    return build_network("unet", CLASSES, encoder=encoder, encoder_weights="none", **options)


def measure(phase: Phase, network: Network, rival: Step, batch: PackedBatch, steps: int) -> Turns:
    """Time steps of ``train_phase``, log and all, and of the rival, in turns: the loop asks for batches in between."""
    ours: list[float] = []
    theirs: list[float] = []

    def batches_from(_first_step: int) -> Iterator[PackedBatch]:
        for _ in range(WARMUP_STEPS + steps):
            started_at = time.perf_counter()
            yield batch  # the loop does its whole step before it asks for the next batch
            ours.append(time.perf_counter() - started_at)
            started_at = time.perf_counter()
            rival(batch)
            theirs.append(time.perf_counter() - started_at)
        yield batch

    with tempfile.TemporaryDirectory() as folder, MetricsLog(Path(folder) / "metrics.jsonl") as log:
        train_phase(
            network, phase, batches_from, total_steps=WARMUP_STEPS + steps + 1, seed=0, key="",
            settings=TrainingSettings(lr=LR), losses=LossSettings(), device=CPU, dtype=DTYPE, log=log,
        )  # fmt: skip
    return Turns((tuple(ours[WARMUP_STEPS:]), tuple(theirs[WARMUP_STEPS:])))


def hand_written_step(network: Network) -> Step:
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


def plain_smp_step() -> Step:
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


def our_step(phase: Phase, network: Network) -> Step:
    """Return one step of the trainer behind ``train_phase``."""
    network.to(memory_format=torch.channels_last).train()
    trainer = PhaseTrainer(
        network, phase, total_steps=1000, seed=0, settings=TrainingSettings(lr=LR), losses=LossSettings(),
        device=CPU, dtype=DTYPE,
    )  # fmt: skip
    steps = itertools.count()
    return lambda batch: trainer.train_step(next(steps), batch)


def make_batch(number: int, size: tuple[int, int]) -> PackedBatch:
    """Return noise of the right shapes."""
    generator = torch.Generator().manual_seed(0)
    shape = (number, *size)
    images = torch.randint(256, (*shape, 3), generator=generator, dtype=torch.uint8)
    depth = torch.rand(shape, generator=generator).half()
    return PackedBatch(
        image_ids=tuple(map(str, range(number))),
        images=images.permute(0, 3, 1, 2),
        seg_labels=torch.randint(0, CLASSES, shape, generator=generator, dtype=torch.uint8),
        inverse_depth=depth.where(torch.rand(shape, generator=generator) > 0.1, torch.nan),
    )


def make_floats(packed: PackedBatch) -> Batch:
    """Return what a rival computes with; every program has to make floats of its pixels."""
    return unpack(packed, IMAGENET, CPU)

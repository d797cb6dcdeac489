"""What a person with a GPU asks, in minutes: ``python -m tests.benchmarks.gpu [--json FILE]``.

Weights and images are noise; nothing is fetched. ``--device cpu --small`` runs every line at toy sizes.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F

from data_cache.datasets import open_dataset
from data_cache.datasets.interface import SegmentationDataset
from data_cache.errors import UserError
from data_cache.idleness import IdleClock, find_marks
from data_cache.loaders import build_training_loader
from data_cache.sample import PackedBatch
from data_cache.samples import Source
from data_cache.unpacking import unpack
from pipeline.experiment.devices import choose_device
from pipeline.speeds import (
    CLASSES,
    VITS,
    augment,
    build_estimator,
    make_batch,
    time_labelling,
    time_loader,
    time_model,
    time_steps,
    write_images,
)
from pipeline.threads import count_usable_cpus
from stages.networks import build_network
from stages.networks.interface import Network
from stages.networks.precision import autocast, resolve_dtype
from stages.training.loop import train_phase
from stages.training.schedules import SEG
from stages.training.settings import LossSettings, TrainingSettings
from tests.benchmarks.bench_depth_store import bench_reading
from tests.benchmarks.flops import count_flops, measure_matmul_peak
from tests.benchmarks.harness import Goal, Line, Spread, Turns, describe_machine, run_benches, wait_for, write_figures

MODES = ("default", "reduce-overhead")
"""Ways of torch.compile that are compared; the second records CUDA graphs. Others take minutes to compile."""


@dataclass(frozen=True)
class Sizes:
    """How much is computed."""

    estimators: tuple[str, ...] = ("ViT-S", "ViT-B", "ViT-L")
    estimator_px: int = 518
    label_batch: int = 32
    label_images: int = 384
    encoder: str = "resnet50"
    crop: tuple[int, int] = (512, 512)
    batch_size: int = 16
    steps: int = 40
    images: int = 128
    turns: int = 2
    matmul_s: float = 0.7


SMALL = Sizes(("tiny",), 56, 2, 4, "tu-resnet10t", (64, 64), 2, 2, 4, 1, 0.02)


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, write; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda", help="what is measured; default the first GPU")
    parser.add_argument("--small", action="store_true", help="toy sizes: shows that every line runs")
    parser.add_argument("--json", type=Path, help="also write the figures there")
    parser.add_argument(
        "--modes", nargs="*", help=f"ways of torch.compile; default {', '.join(MODES)}, and none with --small"
    )
    options = parser.parse_args(arguments)
    try:
        device = choose_device(options.device)
    except UserError as problem:
        print(f"{problem}; --device cpu --small shows that every line runs", file=sys.stderr)
        return 2
    sizes = SMALL if options.small else Sizes()
    modes = options.modes if options.modes is not None else () if options.small else MODES
    with tempfile.TemporaryDirectory() as folder:
        benches: list[tuple[str, Callable[[], Iterable[Line]]]] = [
            ("matmul", partial(bench_matmul, device, sizes)),
            ("labelling", partial(bench_labelling, device, Path(folder), sizes)),
            ("step", partial(bench_step, device, sizes, modes)),
            ("data", partial(bench_data, device, Path(folder), sizes)),
            ("codec", partial(bench_codec, Path(folder), options.small)),
        ]
        words = f"python -m tests.benchmarks.gpu --device {options.device}{' --small' if options.small else ''}"
        figures = run_benches(benches, describe_machine(device) | {"command": words})
    if options.json:
        write_figures(options.json, figures)
    return 1 if figures["failed"] else 0


def bench_matmul(device: torch.device, sizes: Sizes) -> Iterator[Line]:
    """Yield what the device multiplies at most, and what TF32 gains in a product."""
    peak = measure_matmul_peak(device, torch.bfloat16, seconds=sizes.matmul_s)
    strict = measure_matmul_peak(device, torch.float32, seconds=sizes.matmul_s)
    torch.backends.cuda.matmul.allow_tf32 = True
    loose = measure_matmul_peak(device, torch.float32, seconds=sizes.matmul_s)
    torch.backends.cuda.matmul.allow_tf32 = False
    yield Line("matmul, bfloat16 / float32", Spread.of([peak / strict]), None, f"{peak / 1e12:.3g} TFLOP/s in bfloat16")
    yield Line("matmul, TF32 / float32", Spread.of([loose / strict]), None, f"{strict / 1e12:.3g} TFLOP/s in float32")


def bench_labelling(device: torch.device, folder: Path, sizes: Sizes) -> Iterator[Line]:
    """Yield for each estimator how well it uses the device, and how much of that labelling keeps."""
    root = folder / "square"
    write_images(root, sizes.label_images, (sizes.estimator_px, sizes.estimator_px))
    dataset = open_dataset("folder", root, "train")
    for name in sizes.estimators:
        estimator = build_estimator(VITS[name], device, sizes.estimator_px)
        images = torch.stack([estimator.prepare(dataset.read_image(0))] * sizes.label_batch)
        flops = count_flops(lambda: estimator.predict(images[:1]))  # noqa: B023 - called at once
        peak = measure_matmul_peak(device, getattr(torch, estimator.precision), seconds=sizes.matmul_s)
        bare = time_model(estimator, images)
        rate = time_labelling(estimator, dataset, root / name, count_usable_cpus())
        place = f"{name}, {sizes.estimator_px}×{sizes.estimator_px}"
        yield Line(
            f"labelling / matmul peak: MFU ({place})", Spread.of([rate * flops / peak]),
            Goal(at_least=0.45) if name == "ViT-L" else None,
            f"{rate:.1f} images/s of {flops / 1e12:.3g} TFLOP in {estimator.precision}; the network alone "
            f"{bare * flops / peak:.0%}", "small products, attention and the head's convolutions at low width",
        )  # fmt: skip
        yield Line(
            f"labelling / network alone ({place})", Spread.of([rate / bare]), Goal(at_least=0.95),
            f"{rate:.1f} and {bare:.1f} images/s", "decoding and resizing on the CPU's cores, or the disk",
        )  # fmt: skip


def bench_step(device: torch.device, sizes: Sizes, modes: Iterable[str]) -> Iterator[Line]:
    """Yield our step, compiled each way, against a bare one that is compiled as well; then TF32 against float32."""
    batch = make_batch(sizes.batch_size, sizes.crop)
    size = "×".join(map(str, sizes.crop))
    ways: dict[str, dict[str, object]] = {"eager": {}}
    ways |= {mode: {"compile": True, "compile_mode": mode} for mode in modes}
    compiled = bool(ways.keys() - {"eager"})
    rates = measure_in_turns(
        {
            "bare": lambda: time_bare_steps(build(sizes), device, batch, sizes.steps, compiled=compiled),
            **{
                way: partial(time_steps, build(sizes), device, batch, sizes.steps, **settings)
                for way, settings in ways.items()
            },
        },
        sizes.turns,
    )
    for way in ways:
        best = way == min(ways, key=lambda name: rates.seconds(name))
        yield Line(
            f"our step / bare {'compiled' if compiled else 'eager'} step, images per second "
            f"({way}, dual U-Net {sizes.encoder}, {size})",
            rates.ratio("bare", way), Goal(at_least=0.9) if best else None,
            f"{1 / rates.seconds(way):.1f} and {1 / rates.seconds('bare'):.1f} images/s",
            "what the step does besides: masked updates, moving numbers, batch-norm copies",
        )  # fmt: skip
    rates = measure_in_turns(
        {
            str(tf32): partial(time_steps, build(sizes), device, batch, sizes.steps, precision="float32", tf32=tf32)
            for tf32 in (False, True)
        },
        sizes.turns,
    )
    yield Line(
        "float32 step with TF32 / without, images per second", rates.ratio("False", "True"), None,
        f"{1 / rates.seconds('True'):.1f} and {1 / rates.seconds('False'):.1f} images/s",
    )  # fmt: skip


@dataclass(frozen=True)
class Rates:
    """Turns of named sides, in seconds per image."""

    names: tuple[str, ...]
    turns: Turns

    def seconds(self, name: str) -> float:
        """Return the median seconds per image of a side."""
        return self.turns.seconds(self.names.index(name))

    def ratio(self, name: str, other: str) -> Spread:
        """Return a side's seconds per image divided by another's."""
        return self.turns.ratio(self.names.index(name), self.names.index(other))


def measure_in_turns(sides: dict[str, Callable[[], float]], turns: int) -> Rates:
    """Let sides that return their own images per second take turns."""
    found: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(turns):
        for name, side in sides.items():
            torch.compiler.reset()  # each compiles for itself, and none runs into the limit of recompilations
            found[name].append(1 / side())
    return Rates(tuple(sides), Turns(tuple(map(tuple, found.values()))))


def build(sizes: Sizes) -> Network:
    """Return a network with the same weights every time."""
    torch.manual_seed(0)
    return build_network("unet", CLASSES, encoder=sizes.encoder, encoder_weights="none")


def time_bare_steps(
    network: Network, device: torch.device, packed: PackedBatch, steps: int, *, compiled: bool
) -> float:
    """Return images per second of the least that a joint step has to do, on a batch that is on the device already."""
    network.to(device).to(memory_format=torch.channels_last).train()
    batch = unpack(packed, network.normalisation, device)
    images = batch.images.contiguous(memory_format=torch.channels_last)
    dtype = resolve_dtype("auto", str(device))
    optimizer = torch.optim.Adam(network.parameters(), 1e-4, fused=True)
    torch.backends.cudnn.benchmark = True  # as our step has it
    run = torch.compile(network) if compiled else network

    def step() -> None:
        with autocast(device, dtype):
            outputs = run(images)
        surprise = F.cross_entropy(outputs.seg_logits.float(), batch.seg_labels, ignore_index=255, reduction="none")
        loss = 0.85 * ((1 - torch.exp(-surprise)) ** 2 * surprise).mean()
        loss = loss + 0.15 * F.mse_loss(outputs.depth.float(), batch.inverse_depth)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    for _ in range(max(1, steps // 4)):
        step()
    wait_for(device)
    started_at = time.perf_counter()
    for _ in range(steps):
        step()
    wait_for(device)
    return steps * len(batch.image_ids) / (time.perf_counter() - started_at)


def bench_data(device: torch.device, folder: Path, sizes: Sizes) -> Iterator[Line]:
    """Yield the share of a training that waits for data, and what the loader gives."""
    root = folder / "large"
    height, width = (side * 4 // 3 for side in sizes.crop)
    write_images(root, sizes.images, (height, width))
    dataset = open_dataset("folder", root, "train")
    workers = max(1, count_usable_cpus() - 1)
    share, rate = measure_waits(dataset, device, sizes, workers)
    loaded = time_loader(dataset, size=sizes.crop, batch_size=sizes.batch_size, steps=sizes.steps, workers=workers)
    yield Line(
        "waiting for data / training", Spread.of([share]), Goal(at_most=0.02),
        f"trained {rate:.1f} images/s, the loader of {workers} workers gives {loaded:.1f}",
        "decoding and augmentation on the CPU's cores; --cache-images auto spares the decoding",
    )  # fmt: skip


def measure_waits(
    dataset: SegmentationDataset, device: torch.device, sizes: Sizes, workers: int
) -> tuple[float, float]:
    """Train from files; return the share of time in which the device idled for want of data, and images per second."""
    warm_up = 2 * workers
    steps = warm_up + 3 * sizes.steps
    idle = IdleClock(find_marks(device))
    began_at = before_s = 0.0

    def batches(first_step: int) -> Iterator[PackedBatch]:
        nonlocal before_s, began_at
        loader = iter(
            build_training_loader(
                Source(dataset, None),
                augmentation=augment(sizes.crop),
                batch_size=sizes.batch_size,
                seed=0,
                first_step=first_step,
                last_step=steps,
                workers=workers,
                device=device,
                with_depth=False,
            )
        )
        for step in range(steps):
            if step == warm_up:
                wait_for(device)
                began_at, before_s = time.perf_counter(), idle.seconds
            with idle.count():
                batch = next(loader)
            yield batch

    train_phase(
        build(sizes), SEG, batches, total_steps=steps, seed=0, key="data", settings=TrainingSettings(),
        losses=LossSettings(), device=device, dtype=resolve_dtype("auto", str(device)),
    )  # fmt: skip
    wait_for(device)
    seconds = time.perf_counter() - began_at
    return (idle.seconds - before_s) / seconds, (steps - warm_up) * sizes.batch_size / seconds


def bench_codec(folder: Path, small: bool) -> Iterator[Line]:
    """Yield what reading a map of 518×518 costs beside decoding its image."""
    return bench_reading(folder, "518×518", (518, 518), (518, 518), passes=2 if small else 30)


if __name__ == "__main__":
    sys.exit(main())

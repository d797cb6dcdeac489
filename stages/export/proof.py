"""proof.json: what dropping the depth branch changed (nothing) and saved, and how far each file is from the network."""

from __future__ import annotations

import copy
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import segmentation_models_pytorch as smp
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from data_cache.errors import UserError
from data_cache.sample import SMALLEST_INPUT_PX
from stages.export.formats import EXPORT_FORMATS, ExportFormat
from stages.export.job import SegmentationFunction, quiet_libraries
from stages.export.strip import OpensWithSmp
from stages.networks import count_parameters, segmentation_only
from stages.networks.interface import Network

SMP_MULTIPLE_PX = 32
"""Sizes that smp's models accept whatever their stride."""

PROVEN_PACKAGES = ("torch", "segmentation-models-pytorch", "timm", "onnx", "onnxruntime")


def choose_verified_sizes(input_size: tuple[int, int], *, dynamic: bool) -> tuple[tuple[int, int], ...]:
    """Return the sizes at which files are compared: the meant one, if dynamic also a smaller, larger and odd one."""
    if not dynamic:
        return (input_size,)
    height, width = input_size
    smaller = (max(SMALLEST_INPUT_PX, height * 3 // 4), max(SMALLEST_INPUT_PX, width * 3 // 4))
    larger = (height + SMP_MULTIPLE_PX, width * 5 // 4)
    odd = ((height + 13) | 1, (width + 29) | 1)
    return (input_size, smaller, larger, odd)


def build_reference(network: Network) -> Network:
    """Return a copy on the CPU, float32, contiguous, in evaluation mode: other layouts add in another order."""
    reference = copy.deepcopy(network).to("cpu", torch.float32).to(memory_format=torch.contiguous_format)
    return reference.eval()


@torch.no_grad()
def compute_proof(
    full: Network,
    stripped: Network,
    folder: Path,
    *,
    format_facts: dict[str, dict[str, Any]],
    input_size: tuple[int, int],
    dynamic: bool,
    latency_repeats: int,
) -> dict[str, Any]:
    """Compare the written folder with the network it came from.

    Args:
        full: as trained; ``build_reference`` of it.
        stripped: ``full`` without its depth branch.
        folder: holds the files of every format in ``format_facts``.
        format_facts: format → facts its writer returned.
        input_size: height and width in pixels.
        dynamic: whether sizes other than ``input_size`` were promised.
        latency_repeats: timed runs of each network.

    Returns:
        The content of proof.json.

    Raises:
        UserError: when a format's file answers differently from the network.
        RuntimeError: when stripping changed a logit, which is a bug.
    """
    sizes = choose_verified_sizes(input_size, dynamic=dynamic)
    images = _draw_images(1, input_size)
    return {
        "max_abs_difference": {
            "stripped_vs_full": _compare_stripped(full, stripped, sizes),
            "smp_vs_stripped": _compare_smp(stripped, folder, input_size),
        },
        "formats": {
            name: facts | {"sizes": _verify_format(name, stripped, folder, sizes, facts)}
            for name, facts in format_facts.items()
        },
        "input_size": list(input_size),
        "parameters": {"before": count_parameters(full), "after": count_parameters(stripped)},
        "flops": {"before": _count_flops(full, images), "after": _count_flops(stripped, images)},
        "latency_ms": _measure_latencies(full, stripped, images, latency_repeats),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PROVEN_PACKAGES}},
    }


def _compare_stripped(full: Network, stripped: Network, sizes: Sequence[tuple[int, int]]) -> float:
    difference = 0.0
    for size in sizes:
        images = _draw_images(1, size)
        before, after = full(images).seg_logits, stripped(images).seg_logits
        assert before is not None and after is not None
        difference = max(difference, (before - after).abs().max().item())
    if difference != 0:
        raise RuntimeError(f"stripping the depth branch moved a segmentation logit by {difference}")
    return difference


def _compare_smp(stripped: Network, folder: Path, input_size: tuple[int, int]) -> float | None:
    """Return the largest difference after opening the folder with smp; None for networks that smp does not have."""
    if not isinstance(stripped, OpensWithSmp):
        return None
    size = tuple(-(-side // SMP_MULTIPLE_PX) * SMP_MULTIPLE_PX for side in input_size)
    images = _draw_images(1, (max(size[0], 128), max(size[1], 128)))  # PAN needs 128 px
    with quiet_libraries():  # huggingface_hub 2.4 prints where it loads from
        reopened = smp.from_pretrained(str(folder)).eval()
    difference = (reopened(images) - segmentation_only(stripped)(images)).abs().max().item()
    if difference != 0:
        raise RuntimeError(f"the folder opened with smp differs from the network by {difference}")
    return difference


def _verify_format(
    name: str, stripped: Network, folder: Path, sizes: Sequence[tuple[int, int]], facts: dict[str, Any]
) -> list[dict[str, Any]]:
    row = EXPORT_FORMATS[name]
    opened = row.load().open_folder(folder)
    reference = segmentation_only(stripped)
    outliers = 0.0 if row.max_difference == 0 else stripped.rounding_outliers
    batches = (1, 3) if facts.get("dynamic_batch", True) else (1,)
    cases = [(batches[-1] if size == sizes[0] else 1, size) for size in sizes]
    if batches[-1] != 1:
        cases.insert(0, (1, sizes[0]))
    remedy = f"leave {name!r} out of the formats"
    if len(sizes) > 1:
        remedy = f"export without dynamic sizes, or {remedy}"
    return [_verify_case(name, row, opened, reference, batch, size, remedy, outliers) for batch, size in cases]


def _verify_case(
    name: str,
    row: ExportFormat,
    opened: SegmentationFunction,
    reference: nn.Module,
    batch: int,
    size: tuple[int, int],
    remedy: str,
    outliers: float,
) -> dict[str, Any]:
    images = _draw_images(batch, size)
    expected = reference(images)
    where = f"{name} at batch {batch}, {size[0]}x{size[1]} px"
    try:
        answered = opened(images)
    except Exception as error:  # a foreign runtime may raise anything; whatever it is, the file is unfit
        raise UserError(f"the written file fails: {where}: {error}; {remedy}") from error
    if answered.shape != expected.shape:
        shapes = f"{tuple(answered.shape)} instead of {tuple(expected.shape)}"
        raise UserError(f"the written file answers with another shape: {where}: {shapes}; {remedy}")
    differences = (answered - expected).abs()
    difference = differences.max().item()
    agreement = (answered.argmax(1) == expected.argmax(1)).double().mean().item()
    allowed = row.max_difference * max(1.0, expected.abs().max().item())
    beyond = 1 - (differences <= allowed).double().mean().item()  # counted so, nan is beyond
    if beyond > outliers or agreement < row.min_agreement:
        exempt = f" but for {outliers:.1%} of them" if outliers else ""
        raise UserError(
            f"the written file answers differently: {where}: logits differ by up to {difference:.3g} (allowed "
            f"{allowed:.3g}{exempt}) and {agreement:.2%} of pixels keep their class; {remedy}"
        )
    return {
        "batch": batch,
        "height": size[0],
        "width": size[1],
        "max_abs_difference": difference,
        "argmax_agreement": agreement,
        "share_beyond_tolerance": beyond,
    }


def _measure_latencies(full: Network, stripped: Network, images: Tensor, repeats: int) -> dict[str, Any]:
    """Time both networks in turns, so that a busy machine slows both alike."""
    runs: dict[str, Callable[[], object]] = {"before": lambda: full(images), "after": lambda: stripped(images)}
    times_ms: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    for _ in range(repeats):
        for name, run in runs.items():
            started_at = time.perf_counter()
            run()
            times_ms[name].append((time.perf_counter() - started_at) * 1000)
    medians = {name: round(statistics.median(values), 3) for name, values in times_ms.items()}
    return {**medians, "repeats": repeats, "threads": torch.get_num_threads(), "device": "cpu", "batch": 1}


def _count_flops(network: Network, images: Tensor) -> int:
    """Return floating-point operations of one forward pass; a multiply-add counts as two."""
    with FlopCounterMode(display=False) as counter:
        network(images)
    return counter.get_total_flops()


def _draw_images(batch: int, size: tuple[int, int]) -> Tensor:
    generator = torch.Generator().manual_seed(size[0] * 10_007 + size[1])
    return torch.randn(batch, 3, *size, generator=generator)

"""proof.json: what dropping the depth branch changed (nothing) and saved, and how far each file is from the network."""

from __future__ import annotations

import copy
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any

import segmentation_models_pytorch as smp
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from data_cache.errors import UserError
from data_cache.sample import SMALLEST_INPUT_PX
from stages.export.formats import EXPORT_FORMATS
from stages.export.job import ExportJob, quiet_libraries
from stages.export.safetensors_file import OpensWithSmp
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
    full: Network, job: ExportJob, *, format_facts: dict[str, dict[str, Any]], latency_repeats: int
) -> dict[str, Any]:
    """Compare the written folder with the network it came from.

    Args:
        full: as trained; ``build_reference`` of it.
        job: what was written, from ``full`` without its depth branch.
        format_facts: format → facts its writer returned.
        latency_repeats: timed runs of each network.

    Returns:
        The content of proof.json.

    Raises:
        UserError: when a format's file answers differently from the network.
        RuntimeError: when stripping changed a logit, which is a bug.
    """
    stripped, images = job.network, _draw_images(1, job.input_size)
    sizes = choose_verified_sizes(job.input_size, dynamic=job.dynamic)
    return {
        "max_abs_difference": {
            "stripped_vs_full": _compare_stripped(full, stripped, sizes),
            "smp_vs_stripped": _compare_smp(job),
        },
        "formats": {
            name: facts | {"sizes": _verify_format(name, job, sizes, dynamic_batch=facts.get("dynamic_batch", True))}
            for name, facts in format_facts.items()
        },
        "input_size": list(job.input_size),
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


def _compare_smp(job: ExportJob) -> float | None:
    """Return the largest difference after opening the folder with smp; None for networks that smp does not have."""
    if not isinstance(job.network, OpensWithSmp):
        return None
    height, width = (max(128, -(-side // SMP_MULTIPLE_PX) * SMP_MULTIPLE_PX) for side in job.input_size)
    images = _draw_images(1, (height, width))  # PAN needs 128 px
    with quiet_libraries():  # huggingface_hub 2.4 prints where it loads from
        reopened = smp.from_pretrained(str(job.folder)).eval()
    difference = (reopened(images) - segmentation_only(job.network)(images)).abs().max().item()
    if difference != 0:
        raise RuntimeError(f"the folder opened with smp differs from the network by {difference}")
    return difference


def _verify_format(
    name: str, job: ExportJob, sizes: Sequence[tuple[int, int]], *, dynamic_batch: bool
) -> list[dict[str, Any]]:
    """Return how far a written file is from the network, at each size; UserError where it is too far."""
    row = EXPORT_FORMATS[name]
    opened, reference = row.load().open_folder(job.folder), segmentation_only(job.network)
    outliers = 0.0 if row.max_difference == 0 else job.network.rounding_outliers
    remedy = f"{'export without dynamic sizes, or ' if len(sizes) > 1 else ''}leave {name!r} out of the formats"
    cases = []
    for batch, size in [(1, sizes[0]), *([(3, sizes[0])] if dynamic_batch else []), *((1, size) for size in sizes[1:])]:
        where = f"{name} at batch {batch}, {size[0]}x{size[1]} px"
        images = _draw_images(batch, size)
        expected = reference(images)
        try:
            answered = opened(images)
        except Exception as error:  # a foreign runtime may raise anything; whatever it is, the file is unfit
            raise UserError(f"the written file fails: {where}: {error}; {remedy}") from error
        if answered.shape != expected.shape:
            shapes = f"{tuple(answered.shape)} instead of {tuple(expected.shape)}"
            raise UserError(f"the written file answers with another shape: {where}: {shapes}; {remedy}")
        allowed = row.max_difference * max(1.0, expected.abs().max().item())
        case = {"batch": batch, "height": size[0], "width": size[1], **_compare(answered, expected, allowed)}
        if case["share_beyond_tolerance"] > outliers or case["argmax_agreement"] < row.min_agreement:
            exempt = f" but for {outliers:.1%} of them" if outliers else ""
            raise UserError(
                f"the written file answers differently: {where}: logits differ by up to "
                f"{case['max_abs_difference']:.3g} (allowed {allowed:.3g}{exempt}) and {case['argmax_agreement']:.2%} "
                f"of pixels keep their class; {remedy}"
            )
        cases.append(case)
    return cases


def _compare(answered: Tensor, expected: Tensor, allowed: float) -> dict[str, float]:
    differences = (answered - expected).abs()
    return {
        "max_abs_difference": differences.max().item(),
        "argmax_agreement": (answered.argmax(1) == expected.argmax(1)).double().mean().item(),
        "share_beyond_tolerance": 1 - (differences <= allowed).double().mean().item(),  # counted so, nan is beyond
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

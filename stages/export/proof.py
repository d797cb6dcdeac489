"""proof.json: what dropping the depth branch changed (nothing) and saved, and how far each file is from the network."""

from __future__ import annotations

import copy
import platform
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import segmentation_models_pytorch as smp
import torch
from numpy.typing import NDArray
from PIL import ExifTags, Image
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from data_cache.errors import UserError
from data_cache.images import read_image
from data_cache.sample import SMALLEST_INPUT_PX
from stages.export import standalone
from stages.export.bench import REFERENCE, describe_file, measure_formats
from stages.export.formats import EXPORT_FORMATS, PREDICT_FILE, find_format
from stages.export.job import (
    CannotExport,
    ExportJob,
    LabelFunction,
    ProofImage,
    Scored,
    SegmentationFunction,
    quiet_libraries,
)
from stages.export.machine import RUNTIMES, describe_cpu, find_versions
from stages.export.safetensors_file import OpensWithSmp
from stages.export.signal_stack import keeping_signal_stack
from stages.export.turns import take_turns
from stages.networks import count_parameters, rebuild_network, segmentation_only
from stages.networks.framing import resize_bilinear
from stages.networks.interface import Network

SMP_MULTIPLE_PX = 32
"""Sizes that smp's models accept whatever their stride."""
_ROOM_BYTES = 2**29
"""For the network's answers that are kept from one format to the next."""


class _Case(NamedTuple):
    """Images on which written files are compared with the network."""

    where: str
    """For messages; each has its own."""
    about: dict[str, Any]
    """What proof.json says of it."""
    images: Tensor
    """(B, 3, h, w) as they enter."""
    size: tuple[int, int]
    """Height and width at which classes are compared."""


class _Reference:
    """What the network answers, computed once for all formats as far as there is room to keep it."""

    def __init__(self, network: Network) -> None:
        self._segment = segmentation_only(network)
        self._kept: dict[str, Tensor] = {}
        self._room = _ROOM_BYTES

    def answer(self, case: _Case) -> Tensor:
        """Return the logits (B, C, H, W) of a case."""
        if (kept := self._kept.get(case.where)) is not None:
            return kept
        logits = self._segment(case.images)
        if logits.nbytes <= self._room:
            self._room -= logits.nbytes
            self._kept[case.where] = logits
        return logits


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
    full: Network, job: ExportJob, *, format_facts: dict[str, dict[str, Any]], passes: int, benchmark: bool
) -> dict[str, Any]:
    """Compare the written folder with the network it came from.

    Args:
        full: as trained; ``build_reference`` of it.
        job: what was written, from ``full`` without its depth branch.
        format_facts: format → facts its writer returned.
        passes: timed runs of each network.
        benchmark: whether each file's latency and memory are measured.

    Returns:
        The content of proof.json.

    Raises:
        CannotExport: when a format's file answers differently from the network.
        RuntimeError: when stripping changed a logit, which is a bug.
    """
    stripped = job.network
    sizes = choose_verified_sizes(job.input_size, dynamic=job.dynamic)
    reference = _Reference(stripped)
    formats = {
        name: facts | _verify_format(name, job, reference, sizes, dynamic_batch=facts.get("dynamic_batch", True))
        for name, facts in format_facts.items()
    }
    networks = _measure_networks(full, stripped, draw_images(1, job.input_size), passes)
    latencies = {key: networks[name]["latency_ms"]["median"] for key, name in _BEFORE_AFTER.items()}
    return {
        "max_abs_difference": {
            "stripped_vs_full": _compare_stripped(full, stripped, sizes),
            "smp_vs_stripped": _compare_smp(job),
        },
        "formats": formats,
        "table": _tabulate(job, formats, benchmark=benchmark),
        "predict_py": _verify_script(job),
        "input_size": list(job.input_size),
        "size_rule": job.size_rule.model_dump(mode="json"),
        "networks": networks,
        "parameters": {key: networks[name]["parameters"] for key, name in _BEFORE_AFTER.items()},
        "flops": {key: 2 * networks[name]["macs"] for key, name in _BEFORE_AFTER.items()},
        "latency_ms": {**latencies, "repeats": passes, "threads": torch.get_num_threads(), "device": "cpu", "batch": 1},
        "machine": describe_cpu() | {"threads": torch.get_num_threads()},
        "versions": {"python": platform.python_version(), **find_versions(RUNTIMES)},
    }


def _tabulate(job: ExportJob, formats: Mapping[str, Mapping[str, Any]], *, benchmark: bool) -> list[dict[str, Any]]:
    """Return a row for each format: size, score and what it lost, agreement, latency and memory where wanted."""
    scored = {name: _score_format(name, job) for name in formats}
    threads = torch.get_num_threads()
    measured = measure_formats(job.folder, list(formats), job.input_size, threads=threads) if benchmark else {}
    reference = scored[REFERENCE]
    rows = []
    for name, facts in formats.items():
        score = scored[name]
        row = describe_file(name, job.folder) | {
            "argmax_agreement": _weigh_agreement([*facts["images"]] or facts["sizes"]),
            "score": None if score is None else score._asdict(),
            "drop": None if score is None or reference is None else reference.miou_macro - score.miou_macro,
        }
        rows.append(row | measured.get(name, {}))
    return rows


def _score_format(name: str, job: ExportJob) -> Scored | None:
    """Return what a file's labels score; None where no images are known."""
    return None if job.score_labels is None else job.score_labels(_open_labels(name, job))


def _open_labels(name: str, job: ExportJob) -> LabelFunction:
    """Return a written file as a function from an image's bytes to labels of its size."""
    row = EXPORT_FORMATS[name]
    if row.labels_bytes:
        return row.load().open_labels(job.folder)
    segment = row.load().open_folder(job.folder)

    def label(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return _label(segment(job.normalise(image)), (image.shape[0], image.shape[1]))[0].numpy().astype(np.uint8)

    return label


def _compare_stripped(full: Network, stripped: Network, sizes: Sequence[tuple[int, int]]) -> float:
    difference = 0.0
    for size in sizes:
        images = draw_images(1, size)
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
    images = draw_images(1, (height, width))  # PAN needs 128 px
    with quiet_libraries():  # huggingface_hub 2.4 prints where it loads from
        reopened = smp.from_pretrained(str(job.folder)).eval()
    difference = (reopened(images) - segmentation_only(job.network)(images)).abs().max().item()
    if difference != 0:
        raise RuntimeError(f"the folder opened with smp differs from the network by {difference}")
    return difference


def _verify_format(
    name: str, job: ExportJob, reference: _Reference, sizes: Sequence[tuple[int, int]], *, dynamic_batch: bool
) -> dict[str, list[dict[str, Any]]]:
    """Return how far a written file is from the network, at each size of drawn noise and on each real image."""
    row = EXPORT_FORMATS[name]
    if row.labels_bytes:
        return {"sizes": [], "images": _verify_labels(name, job, reference)}
    opened = row.load().open_folder(job.folder)
    noise = [(1, sizes[0]), *([(3, sizes[0])] if dynamic_batch else []), *((1, size) for size in sizes[1:])]
    cases = [_compare(name, job, opened, reference, _draw_case(batch, size)) for batch, size in noise]
    shown = [_compare(name, job, opened, reference, _build_case(job, sample)) for sample in vary_images(job.samples)]
    if row.max_difference is None and shown and not job.force:  # judged by all images together
        _check_agreement(name, job, shown)
    return {"sizes": cases, "images": shown}


def _draw_case(batch: int, size: tuple[int, int]) -> _Case:
    """Return a case of drawn noise."""
    about = {"batch": batch, "height": size[0], "width": size[1]}
    return _Case(f"at batch {batch}, {_px(size)}", about, draw_images(batch, size), size)


def _build_case(job: ExportJob, sample: ProofImage) -> _Case:
    """Return the case of one image."""
    size = (sample.pixels.shape[0], sample.pixels.shape[1])
    about = {"image": sample.name, "height": size[0], "width": size[1]}
    return _Case(f"on image {sample.name}", about, job.normalise(sample.pixels), size)


def _verify_labels(name: str, job: ExportJob, reference: _Reference) -> list[dict[str, Any]]:
    """Return on how many pixels a file that takes bytes and answers labels agrees with the network."""
    label = _open_labels(name, job)
    shown = []
    for sample in vary_images(job.samples or [ProofImage("a drawn image", _draw_bytes(job.input_size))]):
        case = _build_case(job, sample)
        expected = _label(reference.answer(case), case.size)[0].numpy()
        answered = label(sample.pixels)
        if answered.shape != case.size:
            reason = f"labels of shape {answered.shape} for image {sample.name} of {_px(case.size)}"
            raise CannotExport(name, f"the written file answers with another shape: {name} {reason}", job)
        shown.append(case.about | {"argmax_agreement": float((answered == expected).mean())})
    _check_agreement(name, job, shown)
    return shown


def _check_agreement(name: str, job: ExportJob, shown: Sequence[Mapping[str, Any]]) -> None:
    row, agreement = EXPORT_FORMATS[name], _weigh_agreement(shown)
    if agreement < row.min_agreement:
        found = (
            f"{agreement:.2%} of the pixels of {len(shown)} images keep their class (wanted {row.min_agreement:.1%})"
        )
        if row.labels_bytes:
            raise _differs(name, job, found)
        raise UserError(  # few bits answer so at any size
            f"the written file answers differently: {name}: {found}; publish it all the same with --force, or leave "
            f"{name!r} out of the formats"
        )


def _weigh_agreement(cases: Sequence[Mapping[str, Any]]) -> float:
    """Return the share of all pixels of all cases that keep their class."""
    pixels = [case.get("batch", 1) * case["height"] * case["width"] for case in cases]
    return sum(case["argmax_agreement"] * number for case, number in zip(cases, pixels, strict=True)) / sum(pixels)


def _verify_script(job: ExportJob) -> dict[str, Any] | None:
    """Return how far predict.py is from the network on real image files; None without a script, or without images."""
    if not job.samples or not (job.folder / PREDICT_FILE).exists():
        return None
    reference, equal, pixels = segmentation_only(job.network), 0.0, 0
    with keeping_signal_stack(), tempfile.TemporaryDirectory() as folder:
        model, run = standalone.open_model(job.folder)
        for number, sample in enumerate(job.samples):
            exif = Image.Exif()
            exif[ExifTags.Base.Orientation] = 1 + number % 8 if number else 6  # lying on its side, and others
            file = Path(folder, f"{number}.png")
            Image.fromarray(sample.pixels).save(file, exif=exif)
            image = read_image(file).pixels
            found = standalone.label(run, standalone.read_image(file), dict(job.preprocess))
            wanted = _label(reference(job.normalise(image)), (image.shape[0], image.shape[1]))[0].numpy()
            if found.shape != wanted.shape:
                raise RuntimeError(
                    f"{PREDICT_FILE} reads image {sample.name} turned as {found.shape}, not {wanted.shape}"
                )
            equal, pixels = equal + float((found == wanted).sum()), pixels + found.size
    name = find_format(Path(model))
    assert name is not None
    if equal < EXPORT_FORMATS[name].min_agreement * pixels:
        kept = f"{equal / pixels:.2%} of pixels keep their class"
        raise _differs(name, job, f"in {PREDICT_FILE} on {len(job.samples)} images: {kept}")
    return {"model": model, "images": len(job.samples), "argmax_agreement": equal / pixels}


def vary_images(samples: Sequence[ProofImage]) -> Iterator[ProofImage]:
    """Yield real images, and the first of them upright from its side and cut to other shapes."""
    yield from samples
    if samples:
        name, pixels = samples[0].name, samples[0].pixels
        height, width = pixels.shape[:2]
        yield ProofImage(f"{name}, on its side", np.ascontiguousarray(np.rot90(pixels)))
        yield ProofImage(f"{name}, its left part", pixels[:, : width * 5 // 8])
        yield ProofImage(f"{name}, its upper part", pixels[: height * 5 // 8 | 1, : width - 1 | 1])
        yield ProofImage(f"{name}, its corner", pixels[: SMALLEST_INPUT_PX * 5 // 8 | 1, : SMALLEST_INPUT_PX | 1])


def _compare(
    name: str, job: ExportJob, opened: SegmentationFunction, reference: _Reference, case: _Case
) -> dict[str, Any]:
    """Return how far an answer is from the network's; refuse what is too far."""
    row, where = EXPORT_FORMATS[name], case.where
    expected = reference.answer(case)
    try:
        answered = opened(case.images)
    except Exception as error:  # a foreign runtime may raise anything; whatever it is, the file is unfit
        raise CannotExport(
            name, f"the written file fails: {name} {where}: {' '.join(str(error).split())}", job
        ) from error
    if answered.shape != expected.shape:
        shapes = f"{tuple(answered.shape)} instead of {tuple(expected.shape)}"
        raise CannotExport(name, f"the written file answers with another shape: {name} {where}: {shapes}", job)
    differences = (answered - expected).abs()
    labels, wanted = (_label(logits, case.size) for logits in (answered, expected))
    found = case.about | {
        "max_abs_difference": differences.max().item(),
        "argmax_agreement": (labels == wanted).double().mean().item(),
    }
    if row.max_difference is None:
        if not answered.isfinite().all():
            raise _differs(name, job, f"{where} some logits are not finite")
        return found
    outliers = 0.0 if row.max_difference == 0 else job.network.rounding_outliers
    allowed = row.max_difference * max(1.0, expected.abs().max().item())
    beyond = 1 - (differences <= allowed).double().mean().item()  # counted so, nan is beyond
    if beyond > outliers or found["argmax_agreement"] < row.min_agreement:
        exempt = f" but for {outliers:.1%} of them" if outliers else ""
        raise _differs(
            name,
            job,
            f"{where} logits differ by up to {found['max_abs_difference']:.3g} (allowed {allowed:.3g}{exempt}) and "
            f"{found['argmax_agreement']:.2%} of pixels keep their class",
        )
    return found | {"share_beyond_tolerance": beyond}


def _differs(name: str, job: ExportJob, found: str) -> CannotExport:
    return CannotExport(name, f"the written file answers differently: {name} {found}", job)


def _label(logits: Tensor, size: tuple[int, int]) -> Tensor:
    return (logits if tuple(logits.shape[-2:]) == size else resize_bilinear(logits, size)).argmax(1)


def _px(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]} px"


_BEFORE_AFTER = {"before": "full", "after": "stripped"}
"""Key of numbers that proof.json has told from the beginning → network."""


def _measure_networks(full: Network, stripped: Network, images: Tensor, passes: int) -> dict[str, dict[str, Any]]:
    """Return what the network costs in PyTorch with depth branch, without it, and built without one."""
    with torch.random.fork_rng(devices=[]):
        plain = rebuild_network(stripped.spec.without_pretrained()).eval()
    networks = {"full": full, "stripped": stripped, "plain": plain}
    turns = take_turns([partial(_time_run, network, images) for network in networks.values()], passes)
    return {
        name: {
            "parameters": count_parameters(network),
            "macs": count_macs(network, images),
            "latency_ms": turns.milliseconds(place).to_json(),
        }
        for place, (name, network) in enumerate(networks.items())
    }


def _time_run(network: Network, images: Tensor) -> float:
    started_at = time.perf_counter()
    network(images)
    return time.perf_counter() - started_at


def count_macs(network: Network, images: Tensor) -> int:
    """Return the multiply-adds of convolutions and matrix products of one forward pass; nothing else is counted."""
    with FlopCounterMode(display=False) as counter:
        network(images)
    return counter.get_total_flops() // 2  # it takes one for two operations


def _draw_bytes(size: tuple[int, int]) -> NDArray[np.uint8]:
    """Return an image of coloured patches."""
    patches = np.random.default_rng(0).integers(0, 256, (size[0] // 8, size[1] // 8, 3), dtype=np.uint8)
    return np.array(Image.fromarray(patches).resize(size[::-1], Image.Resampling.BICUBIC))


def draw_images(batch: int, size: tuple[int, int]) -> Tensor:
    """Return normal noise (B, 3, H, W), always the same of one size."""
    generator = torch.Generator().manual_seed(size[0] * 10_007 + size[1])
    return torch.randn(batch, 3, *size, generator=generator)

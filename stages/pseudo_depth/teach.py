"""Teach a depth estimator the depth a dataset owns: from nothing, or starting from an estimator that exists.

The result is a folder that ``from_pretrained`` opens, with an ``estimator.json`` beside it that says what its numbers
mean. The bundled teacher is made by exactly this stage; the same call adapts any teacher to depth one owns.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.functional import interpolate

from data_cache.datasets.interface import SegmentationDataset
from data_cache.errors import UserError
from data_cache.fingerprint import dataset_fingerprint
from data_cache.sample import DepthKind
from stages.pseudo_depth.aliases import ESTIMATORS, EstimatorSpec
from stages.pseudo_depth.depth_losses import metric_depth_loss, relative_depth_loss
from stages.pseudo_depth.estimators import (
    build_small_network,
    choose_precision,
    open_network,
    read_stored_dtype,
    resolve_estimator,
    write_network,
)
from stages.pseudo_depth.geometry import compute_input_size
from stages.pseudo_depth.model_folder import (
    Preprocessing,
    read_preprocessing,
    write_preprocessing,
    write_spec,
)
from stages.pseudo_depth.teach_data import TeachBatch, TeachOptions, iterate_batches
from stages.pseudo_depth.teach_state import RECORD, UNFINISHED, check_out_folder, find_finished, load_state, save_state

SIZES = {
    "mini": {
        "backbone": {
            "hidden_size": 192,
            "num_hidden_layers": 5,
            "num_attention_heads": 6,
            "mlp_ratio": 3,
            "patch_size": 14,
            "image_size": 126,
            "out_indices": [1, 2, 4, 5],
        },
        "head": {
            "reassemble_hidden_size": 192,
            "neck_hidden_sizes": [32, 48, 64, 96],
            "fusion_hidden_size": 32,
            "head_hidden_size": 16,
        },
    },
    "nano": {
        "backbone": {
            "hidden_size": 32,
            "num_hidden_layers": 4,
            "num_attention_heads": 2,
            "mlp_ratio": 2,
            "patch_size": 14,
            "image_size": 56,
            "out_indices": [1, 2, 3, 4],
        },
        "head": {
            "reassemble_hidden_size": 32,
            "neck_hidden_sizes": [8, 16, 16, 16],
            "fusion_hidden_size": 16,
            "head_hidden_size": 8,
        },
    },
}
"""Networks to start from nothing: ``mini`` is the bundled teacher's (2.4 M parameters), ``nano`` is for trials."""

_FRESH_PREPROCESSING = Preprocessing(
    mean=(0.485 * 255, 0.456 * 255, 0.406 * 255), std=(0.229 * 255, 0.224 * 255, 0.225 * 255), resampling="bicubic"
)


class TeachProgress(NamedTuple):
    """Where a teaching stands, for whoever shows it."""

    step: int
    steps: int
    loss: float
    images_per_second: float
    eta_s: float


class TeachReport(NamedTuple):
    """What a teaching did."""

    folder: Path
    steps: int
    resumed_at: int
    """Step at which this call took over; 0 for a fresh start."""
    final_loss: float
    seconds: float


class _Start(NamedTuple):
    """What is taught."""

    spec: EstimatorSpec
    network: nn.Module
    preprocessing: Preprocessing
    stored_as: torch.dtype
    """Precision of the weights file; teaching itself is in float32."""
    anchor: float


def teach(
    dataset: SegmentationDataset,
    init: str,
    out_folder: Path,
    *,
    options: TeachOptions | None = None,
    kind: DepthKind | None = None,
    device: str | torch.device = "cpu",
    accept_noncommercial: bool = False,
    progress: Callable[[TeachProgress], None] | None = None,
    stop: Callable[[], bool] | None = None,
) -> TeachReport:
    """Train an estimator on a dataset's ground-truth depth; called again it continues, and once finished does nothing.

    Args:
        dataset: must bring ground-truth depth.
        init: a name of ``SIZES`` (from nothing), or an estimator: alias, folder or Hub id.
        out_folder: becomes the model folder.
        options: how long and how.
        kind: what the numbers of ``init`` mean, where neither table nor folder says it.
        device: where to train.
        accept_noncommercial: start from weights whose licence forbids commercial use.
        progress: called after every step.
        stop: asked after every step; True ends the teaching with its state saved.

    Raises:
        UserError: when the dataset has no depth, its depth cannot teach this kind of estimator, the folder holds
            something else, or the loss is not finite.
        KeyboardInterrupt: ``stop`` said so.
    """
    options = options or TeachOptions()
    device = torch.device(device)
    task = {"init": init, "dataset": dataset_fingerprint(dataset, labels=False, depth=True), **asdict(options)}
    if (finished := find_finished(out_folder, task)) is not None:
        return TeachReport(out_folder, options.steps, options.steps, finished, 0.0)
    start = _open_start(init, kind, options, accept_noncommercial)
    spec, preprocessing = start.spec, start.preprocessing
    _check_dataset(dataset, spec)
    check_out_folder(out_folder, task)
    size = _choose_input_size(dataset, spec)
    network = start.network.to(device).to(memory_format=torch.channels_last).train()
    optimizer = _build_optimizer(network, options)
    first_step = load_state(out_folder, network, optimizer)
    started = time.perf_counter()
    loss = math.nan
    batches = iterate_batches(dataset, spec, preprocessing, size, options, first_step)
    for step, batch in enumerate(batches, start=first_step):
        loss = _train_step(network, optimizer, batch, step, start, options, device)
        if progress is not None:
            rate = (step + 1 - first_step) * options.batch_size / (time.perf_counter() - started)
            left_s = (options.steps - step - 1) * options.batch_size / rate
            progress(TeachProgress(step + 1, options.steps, loss, rate, left_s))
        stopped = stop is not None and stop()
        if step + 1 < options.steps and (stopped or (step + 1) % options.checkpoint_every == 0):
            save_state(out_folder, network, optimizer, task, step + 1)
        if stopped and step + 1 < options.steps:
            raise KeyboardInterrupt(
                f"teaching stopped after {step + 1} of {options.steps} steps; the state is in {out_folder}; "
                "repeat the command to go on"
            )
    _publish(out_folder, start, {**task, "final_loss": loss})
    return TeachReport(out_folder, options.steps, first_step, loss, time.perf_counter() - started)


def _open_start(init: str, kind: DepthKind | None, options: TeachOptions, accept_noncommercial: bool) -> _Start:
    if init in SIZES:
        spec = replace(ESTIMATORS["bundled"], alias=init, licence="that of the data it was taught with")
        network = build_small_network(SIZES[init], seed=options.seed)
        start = _Start(spec, network, _FRESH_PREPROCESSING, torch.float16, anchor=0.1)
    else:
        spec, folder = resolve_estimator(init, kind=kind, accept_noncommercial=accept_noncommercial)
        start = _Start(spec, open_network(folder), read_preprocessing(folder), read_stored_dtype(folder), anchor=0.0)
    if options.anchor is not None:
        start = start._replace(anchor=options.anchor)
    if options.input_size is not None:
        start = start._replace(spec=replace(start.spec, recommended_size=options.input_size))
    return start


def _check_dataset(dataset: SegmentationDataset, spec: EstimatorSpec) -> None:
    if dataset.ground_truth_depth_kind is None:
        raise UserError(
            f"dataset {dataset.name!r} brings no ground-truth depth to teach; "
            "take scenes, cityscapes (disparity) or a folder dataset with depth/"
        )
    if spec.kind is DepthKind.METRIC and dataset.ground_truth_depth_kind is DepthKind.RELATIVE:
        raise UserError(
            f"estimator {spec.alias!r} speaks metres, but the depth of {dataset.name!r} has no unit; "
            "start from a relative estimator such as depth-anything-v2-small"
        )


def _choose_input_size(dataset: SegmentationDataset, spec: EstimatorSpec) -> tuple[int, int]:
    """Return one size for all batches, that of the first image; others are stretched to it."""
    height, width = dataset.read_image(0).shape[:2]
    return compute_input_size((height, width), recommended=spec.recommended_size, multiple=spec.size_multiple)


def _build_optimizer(network: nn.Module, options: TeachOptions) -> torch.optim.AdamW:
    trained = [tensor for tensor in network.parameters() if tensor.requires_grad]
    groups = [
        {"params": [tensor for tensor in trained if tensor.ndim > 1], "weight_decay": options.weight_decay},
        {"params": [tensor for tensor in trained if tensor.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=options.lr, betas=(0.9, 0.99), fused=True)


def _train_step(
    network: nn.Module,
    optimizer: torch.optim.AdamW,
    batch: TeachBatch,
    step: int,
    start: _Start,
    options: TeachOptions,
    device: torch.device,
) -> float:
    for group in optimizer.param_groups:
        group["lr"] = _compute_lr(step, options)
    mean = torch.tensor(start.preprocessing.mean, device=device).view(1, 3, 1, 1)
    std = torch.tensor(start.preprocessing.std, device=device).view(1, 3, 1, 1)
    pixels = ((batch.images.to(device) - mean) / std).to(memory_format=torch.channels_last)
    target, valid = batch.target.to(device), batch.valid.to(device)
    with torch.autocast(device.type, torch.bfloat16, enabled=choose_precision(options.precision, device) == "bfloat16"):
        predicted = network(pixel_values=pixels).predicted_depth.float()
    if predicted.shape[-2:] != target.shape[-2:]:
        predicted = interpolate(predicted[:, None], size=target.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
    if start.spec.kind is DepthKind.METRIC:
        loss = metric_depth_loss(predicted, target, valid)
    else:
        loss = relative_depth_loss(predicted, target, valid, anchor=start.anchor)
    if not torch.isfinite(loss):
        raise UserError(f"the loss is {loss.item()} at step {step}; continue with a lower --lr or --precision float32")
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(network.parameters(), 1.0)
    optimizer.step()
    return loss.item()


def _compute_lr(step: int, options: TeachOptions) -> float:
    warmup = max(1, options.steps // 20)
    if step < warmup:
        return options.lr * (step + 1) / warmup
    return options.lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, options.steps - warmup)))


def _publish(folder: Path, start: _Start, record: Mapping[str, Any]) -> None:
    """Write the model folder; the weights come last, so a folder with weights is complete."""
    (folder / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf8")
    write_preprocessing(start.preprocessing, folder, start.spec)
    write_spec(
        replace(start.spec, alias=folder.resolve().name, hub_id=None, revision=None, weights_sha256=None), folder
    )
    write_network(start.network, folder, dtype=start.stored_as)
    unfinished = folder / UNFINISHED
    if unfinished.is_dir():
        for path in unfinished.iterdir():
            path.unlink()
        unfinished.rmdir()

"""Teaching a depth estimator the depth a dataset owns: what the one training loop is given, and what becomes of it.

The result is a folder that ``from_pretrained`` opens, with an ``estimator.json`` beside it that says what its numbers
mean. The bundled teacher was made so; in the same way any teacher is adapted to depth one owns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import interpolate

from data_cache.datasets.interface import SegmentationDataset
from data_cache.errors import UserError
from data_cache.files import read_json, write_json
from data_cache.records import Record, parse_record
from data_cache.sample import DepthKind
from stages.networks.interface import Network, Normalisation, Outputs
from stages.networks.parts import Part
from stages.pseudo_depth.aliases import ESTIMATORS, EstimatorSpec
from stages.pseudo_depth.depth_losses import metric_depth_loss, relative_depth_loss
from stages.pseudo_depth.estimator_network import (
    build_small_network,
    open_network,
    read_stored_type,
    run_network,
    write_network,
)
from stages.pseudo_depth.estimators import check_input_size, resolve_estimator
from stages.pseudo_depth.model_folder import Preprocessing, read_preprocessing, write_preprocessing, write_spec
from stages.pseudo_depth.teach_data import TeachOptions
from stages.pseudo_depth.weight_files import WEIGHTS_FILE

RECORD = "teaching.json"
"""What is taught by what, written before the first step; the final loss is added when it is finished."""

SIZES: dict[str, dict[str, dict[str, Any]]] = {
    "mini": {
        "backbone": {
            "hidden_size": 192, "num_hidden_layers": 5, "num_attention_heads": 6, "mlp_ratio": 3, "patch_size": 14,
            "image_size": 126, "out_indices": [1, 2, 4, 5],
        },
        "head": {
            "reassemble_hidden_size": 192, "neck_hidden_sizes": [32, 48, 64, 96], "fusion_hidden_size": 32,
            "head_hidden_size": 16,
        },
    },
    "nano": {
        "backbone": {
            "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "mlp_ratio": 2, "patch_size": 14,
            "image_size": 56, "out_indices": [1, 2, 3, 4],
        },
        "head": {
            "reassemble_hidden_size": 32, "neck_hidden_sizes": [8, 16, 16, 16], "fusion_hidden_size": 16,
            "head_hidden_size": 8,
        },
    },
}  # fmt: skip
"""Networks to start from nothing: ``mini`` is the bundled teacher's (2.4 M parameters), ``nano`` is for trials."""

_FRESH_PREPROCESSING = Preprocessing(
    mean=(0.485 * 255, 0.456 * 255, 0.406 * 255), std=(0.229 * 255, 0.224 * 255, 0.225 * 255), resampling="bicubic"
)
_FRESH_ANCHOR = 0.1
"""Weight of the plain difference, which brings an estimator that starts from nothing into the target's range."""


class TaughtEstimator(Network):
    """A depth estimator as a network of encoder and depth branch, which the one training loop can train.

    Args:
        estimator: of transformers; its first child is the encoder and its last one the head.
        preprocessing: how it wants its pixels.
    """

    def __init__(self, estimator: nn.Module, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.estimator = estimator
        mean, std = preprocessing.mean, preprocessing.std  # on the scale 0 to 255
        self.normalisation = Normalisation(
            (mean[0] / 255, mean[1] / 255, mean[2] / 255), (std[0] / 255, std[1] / 255, std[2] / 255)
        )

    def parts(self) -> dict[Part, nn.Module]:
        """Return the encoder, what lies between, and the head."""
        encoder, *between, head = self.estimator.children()
        return {Part.ENCODER: encoder, Part.DEPTH_DECODER: nn.ModuleList(between), Part.DEPTH_HEAD: head}

    def forward(
        self,
        images: Tensor,
        *,
        seg: bool = False,
        depth: bool = True,
        seg_rows: int | None = None,  # noqa: ARG002
    ) -> Outputs:
        """Return raw depth at the input's size."""
        assert depth and not seg, "an estimator gives depth and nothing else"
        raw = run_network(self.estimator, images, type(self.estimator).__name__).float()
        if raw.shape[-2:] != images.shape[-2:]:
            raw = interpolate(raw[:, None], size=images.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
        return Outputs(None, raw)


class Teaching(NamedTuple):
    """What is taught, and how its maps are judged."""

    spec: EstimatorSpec
    network: TaughtEstimator
    preprocessing: Preprocessing
    stored_as: torch.dtype
    """Precision of the weights file; teaching itself is in float32."""
    loss: Callable[[Tensor, Tensor, Tensor], Tensor]
    """Of (depth, target, valid)."""


def open_start(
    init: str, options: TeachOptions, *, kind: DepthKind | None = None, accept_noncommercial: bool = False
) -> Teaching:
    """Open what a teaching starts from.

    Args:
        init: a name of ``SIZES`` (from nothing), or an estimator: alias, folder or Hub id.
        options: ``seed`` of fresh weights, ``input_size``.
        kind: what the numbers of ``init`` mean, where neither table nor folder says it.
        accept_noncommercial: start from weights whose licence forbids commercial use.

    Raises:
        UserError: there is no such estimator, or it cannot be opened.
    """
    if init in SIZES:
        spec = replace(ESTIMATORS["bundled"], alias=init, licence="that of the data it was taught with")
        estimator = build_small_network(SIZES[init], seed=options.seed)
        preprocessing, stored_as, anchor = _FRESH_PREPROCESSING, torch.float16, _FRESH_ANCHOR
    else:
        spec, folder = resolve_estimator(init, kind=kind, accept_noncommercial=accept_noncommercial)
        estimator, _ = open_network(folder)
        preprocessing, stored_as, anchor = read_preprocessing(folder), read_stored_type(folder), 0.0
    if options.input_size is not None:
        spec = replace(spec, recommended_size=check_input_size(options.input_size, spec))
    loss = metric_depth_loss if spec.kind is DepthKind.METRIC else partial(relative_depth_loss, anchor=anchor)
    return Teaching(spec, TaughtEstimator(estimator, preprocessing), preprocessing, stored_as, loss)


def check_dataset(dataset: SegmentationDataset, spec: EstimatorSpec) -> None:
    """Raise a UserError when a dataset has no depth, or none that this kind of estimator can learn."""
    if dataset.ground_truth_depth_kind is None:
        raise UserError(
            f"dataset {dataset.name!r} brings no ground-truth depth to teach; "
            "take scenes, cityscapes (disparity) or a folder dataset with depth/"
        )
    if spec.kind is DepthKind.METRIC and dataset.ground_truth_depth_kind is DepthKind.RELATIVE:
        raise UserError(
            f"estimator {spec.alias!r} predicts metres, but the depth of {dataset.name!r} has no unit; "
            "start from a relative estimator such as depth-anything-v2-small"
        )
    if not any(_can_teach(dataset.read_depth(index)) for index in range(len(dataset))):
        raise UserError(
            f"the ground-truth depth of {dataset.name} {dataset.split} teaches nothing: no map has two pixels of known "
            "and different depth; look at it with: pipeline datasets"
        )


def _can_teach(depth: NDArray[np.float32]) -> bool:
    known = depth[np.isfinite(depth)]
    return known.size > 1 and bool(known.min() < known.max())


class _FinishedTeaching(Record):
    """What a finished teaching adds to its record."""

    final_loss: float


def find_finished(folder: Path, task: Mapping[str, Any]) -> float | None:
    """Return the final loss of the same teaching, None when the folder is free for it or holds its beginning.

    Raises:
        UserError: it holds anything else.
    """
    remedy = "choose another --out, or delete that folder"
    record = read_json(folder / RECORD, remedy) if (folder / RECORD).is_file() else {}
    finished = (folder / WEIGHTS_FILE).exists()
    changed = ", ".join(f"{name} was {record.get(name)!r}" for name, value in task.items() if record.get(name) != value)
    if finished and changed:
        otherwise = f", taught otherwise ({changed})" if record else ""
        raise UserError(f"{folder} already holds a finished estimator{otherwise}; choose another --out or delete it")
    if record and changed:
        raise UserError(
            f"{folder} holds a teaching that was begun with other options ({changed}); "
            "repeat them to continue, or choose another --out"
        )
    if not record and folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty and no stopped teaching; choose another --out")
    if not finished:
        return None
    return parse_record(record, _FinishedTeaching, str(folder / RECORD), remedy).final_loss


def write_record(folder: Path, task: Mapping[str, Any]) -> None:
    """Write into a folder, made when missing, what it is for."""
    write_json(folder / RECORD, task)


def publish(folder: Path, taught: Teaching, task: Mapping[str, Any], final_loss: float) -> None:
    """Write the model folder; the weights come last, so a folder with weights is complete."""
    write_record(folder, {**task, "final_loss": final_loss})
    write_preprocessing(taught.preprocessing, folder, taught.spec)
    write_spec(
        replace(taught.spec, alias=folder.resolve().name, hub_id=None, revision=None, weights_sha256=None), folder
    )
    write_network(taught.network.estimator, folder, dtype=taught.stored_as)

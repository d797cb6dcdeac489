"""Measure a network on a split: stream batches, argmax at label size, count, compute."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from data_cache.errors import UserError
from data_cache.metrics import in_declared_order
from data_cache.sample import Batch, PackedBatch
from data_cache.unpacking import Normalisation, unpack
from stages.evaluation.boundary import BoundaryScores
from stages.evaluation.depth_errors import DepthErrors
from stages.evaluation.forward import Precision, Predicted, evaluation_mode
from stages.evaluation.metrics import ClassScore, SegCounts, find_background
from stages.evaluation.tiling import predict
from stages.networks.interface import Outputs

OnPredictions = Callable[[PackedBatch, Tensor, Tensor | None], None]
"""Called per batch with the batch, (B, H, W) uint8 predictions and (B, H, W) float32 depth or None, all on the CPU."""


@dataclass(frozen=True)
class Evaluation:
    """What one pass over a split measured."""

    metrics: dict[str, float]
    """In the order of ``METRICS``, those of depth only where it was asked for; finite."""
    metrics_paper: dict[str, float]
    """Those of ``SegCounts`` once more, with void counted as false positive. Of these, what is consistent with every
    printed row of the pseudo-depth paper is ``miou_micro_imagewise``, ``iiou_macro_fg`` and ``acc_binary``."""
    per_class: list[ClassScore]
    confusion: list[list[int]]
    """[truth][prediction] pixel counts over labelled pixels."""
    images: int
    elapsed_s: float

    def to_json(self) -> dict[str, Any]:
        """Return the same as JSON values; per-class rows become objects."""
        return asdict(self) | {"per_class": [score._asdict() for score in self.per_class]}


def evaluate(
    network: Callable[..., Any],
    batches: Iterable[PackedBatch],
    *,
    normalisation: Normalisation,
    num_classes: int,
    class_names: Sequence[str],
    device: torch.device | str = "cpu",
    precision: Precision = "float32",
    with_depth: bool = False,
    depth_target: str = "robust",
    on_predictions: OnPredictions | None = None,
) -> Evaluation:
    """Measure a network over all batches, in memory that does not grow with the split.

    Logits are resized to the label size (bilinear) before the argmax, so a network fed at recipe size is scored at the
    size of its labels. Each module's train or eval mode is as before when this returns or raises.

    Args:
        network: a ``Network``, or anything that maps (B, 3, H, W) images to (B, C, h, w) logits, such as an exported
            segmentation-only module; in tiles as a ``TiledNetwork``. An ``nn.Module`` must already be on ``device``.
        batches: may differ in batch size and resolution; void pixels are not scored.
        normalisation: mean and standard deviation that the network expects.
        class_names: one per class; the one called background, if any, is left out of the iIoU metrics.
        with_depth: also run the depth branch and score it against the batches' targets.
        depth_target: what the depth branch was trained on, see ``DepthErrors``.

    Raises:
        UserError: no image, no labelled pixel, a network with another number of classes or without a depth branch,
            batches without depth, or a non-finite output.
    """
    if len(class_names) != num_classes:
        raise ValueError(f"{len(class_names)} class names for {num_classes} classes")
    scores = _Scores(
        SegCounts(num_classes, background=find_background(class_names)),
        BoundaryScores(num_classes),
        DepthErrors(depth_target) if with_depth else None,
    )
    started = time.perf_counter()
    with evaluation_mode(network), torch.inference_mode():
        for packed in batches:
            batch = unpack(packed, normalisation, torch.device(device))
            try:
                predicted = predict(
                    network,
                    batch.images,
                    batch.seg_labels.shape[-2:],
                    precision=precision,
                    depth=with_depth,
                    on_outputs=partial(_check_outputs, batch.image_ids, num_classes, with_depth=with_depth),
                )
            except UserError as error:
                raise UserError(f"image {', '.join(batch.image_ids)}: {error}") from error
            depth = scores.update(batch, predicted)
            if on_predictions is not None:
                on_predictions(packed, predicted.seg_labels.cpu(), None if depth is None else depth.cpu())
    _check_counts(scores.counts)
    return Evaluation(
        metrics=scores.compute(),
        metrics_paper=in_declared_order(scores.counts.compute("fp")),
        per_class=scores.counts.per_class(class_names),
        confusion=scores.counts.confusion.tolist(),
        images=scores.counts.num_images,
        elapsed_s=time.perf_counter() - started,
    )


@dataclass(frozen=True)
class _Scores:
    """The running scores of one pass."""

    counts: SegCounts
    boundary: BoundaryScores
    depth_errors: DepthErrors | None

    def update(self, batch: Batch, predicted: Predicted) -> Tensor | None:
        """Score one batch; return its depth at label size."""
        self.counts.update(predicted.seg_labels, batch.seg_labels)
        self.boundary.update(predicted.seg_labels, batch.seg_labels)
        if self.depth_errors is None:
            return None
        assert predicted.depth is not None
        if batch.inverse_depth is None or batch.depth_valid is None:
            raise UserError(
                f"no depth for image {batch.image_ids[0]!r}, so the depth branch cannot be scored; "
                "give the evaluation a depth store (pipeline pseudo-depth) or evaluate without depth"
            )
        self.depth_errors.update(predicted.depth, batch.inverse_depth, batch.depth_valid)
        return predicted.depth

    def compute(self) -> dict[str, float]:
        metrics = self.counts.compute() | {"boundary_f1": self.boundary.compute()}
        return in_declared_order(metrics | (self.depth_errors.compute() if self.depth_errors else {}))


def _check_outputs(image_ids: Sequence[str], num_classes: int, outputs: Outputs, *, with_depth: bool) -> None:
    """Refuse outputs that cannot be scored."""
    logits, depth = outputs.seg_logits, outputs.depth
    if logits is None or logits.ndim != 4 or logits.shape[1] != num_classes:
        found = "no logits" if logits is None else f"outputs of shape {tuple(logits.shape)}"
        raise UserError(
            f"the network gives {found}, but the data has {num_classes} classes and needs (B, {num_classes}, H, W); "
            "evaluate it on the data set it was trained for"
        )
    _check_finite("segmentation logits", logits, image_ids)
    if with_depth:
        if depth is None:
            raise UserError("the network has no depth branch (a stripped export?); evaluate it without depth")
        _check_finite("depth", depth, image_ids)


def _check_finite(what: str, values: Tensor, image_ids: Sequence[str]) -> None:
    """Refuse NaN and infinity, which an argmax would silently turn into a class."""
    if bool(torch.isfinite(values).all()):
        return
    finite = torch.isfinite(values.flatten(1)).all(dim=1).tolist()
    bad = [image_id for image_id, fine in zip(image_ids, finite, strict=True) if not fine]
    raise UserError(
        f"the network's {what} are not finite for {', '.join(bad)}; the weights are broken or the precision overflows;"
        " try --precision float32, and train again if it persists"
    )


def _check_counts(counts: SegCounts) -> None:
    if not counts.num_images:
        raise UserError("nothing to evaluate: the split has no image; choose another split")
    if not counts.labelled_pixels:
        raise UserError(
            f"nothing to evaluate: none of the {counts.num_images} images has a labelled pixel (all void); "
            "choose a split with labels or check the masks with: pipeline datasets NAME --data-root DIR"
        )

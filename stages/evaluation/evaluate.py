"""Measure a network on a split: stream batches, argmax at label size, count, compute."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from data_cache.errors import UserError, explaining_memory
from data_cache.image_scores import ImageScores
from data_cache.metrics import find_background, in_declared_order
from data_cache.sample import Batch, PackedBatch
from data_cache.unpacking import Normalisation, unpack
from stages.evaluation.boundary import BoundaryScores
from stages.evaluation.depth_errors import DepthErrors
from stages.evaluation.forward import Precision, Predicted, evaluation_mode
from stages.evaluation.metrics import ClassScore, SegCounts
from stages.evaluation.per_image import ImageLog
from stages.evaluation.tiling import TiledNetwork, predict
from stages.networks.interface import Outputs

OnPredictions = Callable[[PackedBatch, Tensor, Tensor | None], None]
"""Called per batch with the batch as it came, and on the device (B, H, W) uint8 predictions and (B, H, W) float32 depth
or None. Whether these are finite is found out later."""
_CHECKS_AT_ONCE = 64


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
    image_log: ImageLog
    """Of every image, in few bytes."""

    @cached_property
    def image_scores(self) -> ImageScores:
        """What each image scored."""
        return self.image_log.compute()

    def to_json(self) -> dict[str, Any]:
        """Return the same as JSON values; of the images, ``examples`` holds the worst, median and best."""
        facts = {each.name: getattr(self, each.name) for each in fields(self) if each.name != "image_log"}
        return facts | {
            "per_class": [score._asdict() for score in self.per_class],
            "examples": self.image_scores.find_examples(),
        }


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
    together: bool = False,
) -> Evaluation:
    """Measure a network over all batches, in memory that does not grow with the split but for the scores of each image.

    Nothing waits for the device between batches: what was counted stays there, and outputs that are not finite are
    found out some batches late.

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
        together: whether all ranks of the job evaluate, each some of the batches; each returns the scores of all.

    Raises:
        UserError: no image, no labelled pixel, a network with another number of classes or without a depth branch,
            batches without depth, a non-finite output, or too little memory.
    """
    if len(class_names) != num_classes:
        raise ValueError(f"{len(class_names)} class names for {num_classes} classes")
    place, checks = torch.device(device), _FiniteChecks()
    scores = _Scores.begin(class_names, depth_target if with_depth else None, place)
    started = time.perf_counter()
    with evaluation_mode(network), torch.inference_mode():
        for packed in batches:
            with explaining_memory(_describe_shortage(packed, network, place, precision)):
                batch = unpack(packed, normalisation, place)
                try:
                    predicted = predict(
                        network,
                        batch.images,
                        batch.seg_labels.shape[-2:],
                        precision=precision,
                        depth=with_depth,
                        on_outputs=partial(_check_outputs, checks, batch.image_ids, num_classes, with_depth=with_depth),
                    )
                except UserError as error:
                    raise UserError(f"image {', '.join(batch.image_ids)}: {error}") from error
                scores.update(batch, predicted)
            if on_predictions is not None:
                on_predictions(packed, predicted.seg_labels, predicted.depth)
    checks.read()
    if together:
        scores.sum_over_ranks()
    return scores.compute(class_names, time.perf_counter() - started)


@dataclass(frozen=True)
class _Scores:
    """The running scores of one pass."""

    counts: SegCounts
    boundary: BoundaryScores
    depth_errors: DepthErrors | None
    images: ImageLog

    @classmethod
    def begin(cls, class_names: Sequence[str], depth_target: str | None, device: torch.device) -> _Scores:
        """Return those of no image; ``depth_target`` None scores no depth."""
        num_classes = len(class_names)
        return cls(
            SegCounts(num_classes, background=find_background(class_names), device=device),
            BoundaryScores(num_classes, device=device),
            DepthErrors(depth_target, device=device) if depth_target else None,
            ImageLog(class_names, with_depth=depth_target is not None),
        )

    def update(self, batch: Batch, predicted: Predicted) -> None:
        """Score one batch."""
        counts = self.counts.update(predicted.seg_labels, batch.seg_labels)
        boundary_f1 = self.boundary.update(predicted.seg_labels, batch.seg_labels)
        self.images.add(batch.image_ids, counts, boundary_f1, self._score_depth(batch, predicted))

    def _score_depth(self, batch: Batch, predicted: Predicted) -> Tensor | None:
        if self.depth_errors is None:
            return None
        assert predicted.depth is not None
        if batch.inverse_depth is None or batch.depth_valid is None:
            raise UserError(
                f"no depth for image {batch.image_ids[0]!r}, so the depth branch cannot be scored; "
                "give the evaluation a depth store (pipeline pseudo-depth) or evaluate without depth"
            )
        return self.depth_errors.update(predicted.depth, batch.inverse_depth, batch.depth_valid)

    def sum_over_ranks(self) -> None:
        """Add what the other ranks have scored."""
        for scores in (self.counts, self.boundary, self.depth_errors):
            if scores is not None:
                scores.sum_over_ranks()
        self.images.gather_over_ranks()

    def compute(self, class_names: Sequence[str], elapsed_s: float) -> Evaluation:
        """Return what they come to; UserError where there was nothing to score."""
        _check_counts(self.counts)
        metrics = self.counts.compute() | {"boundary_f1": self.boundary.compute()}
        return Evaluation(
            metrics=in_declared_order(metrics | (self.depth_errors.compute() if self.depth_errors else {})),
            metrics_paper=in_declared_order(self.counts.compute("fp")),
            per_class=self.counts.per_class(class_names),
            confusion=self.counts.confusion.tolist(),
            images=self.counts.num_images,
            elapsed_s=elapsed_s,
            image_log=self.images,
        )


def _describe_shortage(
    packed: PackedBatch, network: Callable[..., Any], device: torch.device, precision: Precision
) -> str:
    """Return what to change where a batch does not fit into memory."""
    images, (height, width) = len(packed.image_ids), packed.images.shape[-2:]
    remedies = [f"set evaluation.batch_size to {images // 2} (--set, of run and table)"] if images > 1 else []
    remedies.append(
        f"cut smaller tiles than --tile {network.tile} with --margin {network.margin}"
        if isinstance(network, TiledNetwork)
        else "cut the images into tiles (pipeline evaluate … --tile 512)"
    )
    return (
        f"{device} has too little memory to evaluate {images} images of {height}x{width} px at once in {precision}; "
        f"{', or '.join(remedies)}"
    )


def _check_outputs(
    checks: _FiniteChecks, image_ids: Sequence[str], num_classes: int, outputs: Outputs, *, with_depth: bool
) -> None:
    """Refuse outputs that cannot be scored."""
    logits, depth = outputs.seg_logits, outputs.depth
    if logits is None or logits.ndim != 4 or logits.shape[1] != num_classes:
        found = "no logits" if logits is None else f"outputs of shape {tuple(logits.shape)}"
        raise UserError(
            f"the network gives {found}, but the data has {num_classes} classes and needs (B, {num_classes}, H, W); "
            "evaluate it on the data set it was trained for"
        )
    checks.add("segmentation logits", logits, image_ids)
    if with_depth:
        if depth is None:
            raise UserError("the network has no depth branch (a stripped export?); evaluate it without depth")
        checks.add("depth", depth, image_ids)


class _FiniteChecks:
    """Refuses NaN and infinity, which an argmax would silently turn into a class; read late, many at once."""

    def __init__(self) -> None:
        self._waiting: list[tuple[str, Sequence[str], Tensor]] = []

    def add(self, what: str, values: Tensor, image_ids: Sequence[str]) -> None:
        """Look at the outputs (B, …) of a batch."""
        inner = tuple(range(1, values.ndim))
        finite = torch.isfinite(values.amin(inner)) & torch.isfinite(values.amax(inner))
        self._waiting.append((what, image_ids, finite))
        if len(self._waiting) >= _CHECKS_AT_ONCE:
            self.read()

    def read(self) -> None:
        """Raise UserError where outputs were not finite."""
        waiting, self._waiting = self._waiting, []
        found = iter(torch.cat([finite for *_, finite in waiting]).tolist() if waiting else ())
        for what, image_ids, _ in waiting:
            bad = [image_id for image_id in image_ids if not next(found)]
            if bad:
                raise UserError(
                    f"the network's {what} are not finite for {', '.join(bad)}; the weights are broken or the "
                    "precision overflows; try --precision float32, and train again if it persists"
                )


def _check_counts(counts: SegCounts) -> None:
    if not counts.num_images:
        raise UserError("nothing to evaluate: the split has no image; choose another split")
    if not counts.labelled_pixels:
        raise UserError(
            f"nothing to evaluate: none of the {counts.num_images} images has a labelled pixel (all void); "
            "choose a split with labels or check the masks with: pipeline datasets NAME --data-root DIR"
        )

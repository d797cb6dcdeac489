"""Numbers of 8 bits by NNCF: chosen on training images, layers put back into float until the score on val holds."""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from data_cache.errors import UserError
from stages.export.formats import INPUT_NAME
from stages.export.job import ExportJob, SegmentationFunction, build_exporter_error, quiet_libraries
from stages.export.signal_stack import keeping_signal_stack

RANKING_IMAGES = 16
"""On half as many, those that 8 bits harm most, a graph with one layer put back is compared with the float one."""


class Quantised(NamedTuple):
    """A graph of 8 bits, and the macro mIoU of the float one it was made from, in the same runtime."""

    graph: Any
    float_score: float


def check_images(name: str, job: ExportJob) -> None:
    """Look whether there is what a format is calibrated on and judged by, before work is spent on the others.

    Raises:
        UserError: there is not.
    """
    if job.calibration is None or job.score is None:
        raise UserError(
            f"format {name!r} is calibrated on training images and judged on val, which were not given; give them, or "
            f"leave {name!r} out of the formats"
        )
    if next(job.calibration(), None) is None:
        raise UserError(
            f"format {name!r} is calibrated on training images of the run's own dataset, and there are none; add some, "
            f"or leave {name!r} out of the formats"
        )


def quantise(name: str, job: ExportJob, graph: Any, open_prepared: Callable[[Any], SegmentationFunction]) -> Quantised:
    """Return a graph with weights and activations of 8 bits, as far as the score allows.

    Args:
        name: of the format, for messages.
        job: tells images to calibrate on, the score, and how far it may drop.
        graph: an ``onnx.ModelProto`` or an ``openvino.Model``.
        open_prepared: makes a function of what NNCF prepares of such a graph to run it.

    Raises:
        UserError: NNCF cannot quantise the graph.
    """
    assert job.calibration is not None and job.score is not None
    score, images = job.score, _Again(job.calibration)
    nncf = _import_nncf()
    num_images = sum(1 for _ in images)
    step = -(-num_images // RANKING_IMAGES)
    ranking = _Ranking(list(itertools.islice(images, None, None, step)), score, open_prepared)
    try:
        with quiet_libraries(), keeping_signal_stack():
            quantised = nncf.quantize_with_accuracy_control(
                graph,
                calibration_dataset=nncf.Dataset(images, _name_input),
                validation_dataset=nncf.Dataset(range(len(ranking.images))),
                validation_fn=ranking.validate,
                max_drop=job.max_drop,
                preset=nncf.QuantizationPreset.MIXED,
                subset_size=num_images,
                advanced_accuracy_restorer_parameters=nncf.AdvancedAccuracyRestorerParameters(
                    ranking_subset_size=-(-len(ranking.images) // 2), num_ranking_workers=1
                ),
            )
    except (nncf.ValidationError, nncf.UnsupportedModelError, nncf.InternalError, RuntimeError) as error:
        raise build_exporter_error(name, job, error) from error
    return Quantised(quantised, ranking.scores[0])


def judge(
    name: str, job: ExportJob, float_score: float, written: SegmentationFunction, is_float: Mapping[str, bool]
) -> dict[str, Any]:
    """Return what a written file costs, for proof.json.

    Args:
        name: of the format, for messages.
        job: tells the score, and how far it may drop.
        float_score: macro mIoU of the float file in the same runtime.
        written: the file, opened.
        is_float: layer with weights → whether it was left in float.

    Raises:
        UserError: the score drops by more than the job allows, and the file is not to be published all the same.
    """
    assert job.score is not None
    score = job.score(written)
    drop, left = float_score - score, [layer for layer, in_float in is_float.items() if in_float]
    if drop > job.max_drop and not job.force:
        raise UserError(
            f"{name} costs {drop:.4f} of macro mIoU on val ({float_score:.4f} -> {score:.4f}; {len(left)} of "
            f"{len(is_float)} layers were left in float), and {job.max_drop:g} is allowed, so nothing is published; "
            f"allow more with --max-drop, publish it all the same with --force, or leave {name!r} out of the formats"
        )
    scores = {"before": float_score, "after": score, "drop": drop, "max_drop": job.max_drop}
    return {"miou_macro": scores, "layers": len(is_float), "layers_in_float": left}


class _Ranking:
    """Judges graphs for NNCF: a whole one by its score, one with a single layer put back by its answers to few images.

    NNCF calls the first a validation of all items and the second one of some; it ranks ONNX graphs in no other way.
    """

    def __init__(
        self,
        images: list[Tensor],
        score: Callable[[SegmentationFunction], float],
        open_prepared: Callable[[Any], SegmentationFunction],
    ) -> None:
        self.images = images
        self.scores: list[float] = []
        """Of the graphs seen so far; the first is the float one."""
        self._score, self._open_prepared = score, open_prepared
        self._expected: list[Tensor] = []

    def validate(self, prepared: Any, places: Iterable[int]) -> tuple[float, list[float]]:
        """Return how good a graph is, and how near its logits are to those of the float one on each image."""
        segment = self._open_prepared(prepared)
        self._expected = self._expected or [segment(image) for image in self.images]
        places = list(places)
        nearness = [_compute_nearness(segment(self.images[place]), self._expected[place]) for place in places]
        if len(places) < len(self.images):
            return sum(nearness) / len(nearness), nearness
        self.scores.append(self._score(segment))
        return self.scores[-1], nearness


def _compute_nearness(answered: Tensor, expected: Tensor) -> float:
    """Return the negative squared error relative to the squared logits; 0 is equal."""
    return -((answered - expected).square().sum() / expected.square().sum()).item()


class _Again:
    """Images that can be iterated over several times, read anew each time."""

    def __init__(self, read: Callable[[], Iterator[Tensor]]) -> None:
        self._read = read

    def __iter__(self) -> Iterator[Tensor]:
        return self._read()


def _name_input(image: Tensor) -> dict[str, NDArray[np.float32]]:
    return {INPUT_NAME: image.numpy()}


def _import_nncf() -> ModuleType:
    """Import NNCF without what it does besides: it reports its use over the network, and changes all loggers."""
    os.environ.setdefault("NNCF_CI", "1")  # then it reports nothing
    logger_class = logging.getLoggerClass()
    with quiet_libraries():
        import nncf
    logging.setLoggerClass(logger_class)
    logging.getLogger("nncf").setLevel(logging.ERROR)
    return nncf

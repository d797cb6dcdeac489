"""What an export reads of its run's dataset: images to compare files on, to choose numbers of few bits by, to score."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import torch
from torch import Tensor

from data_cache.errors import Notice, UserError
from data_cache.metrics import HEADLINE
from data_cache.size_rule import SizeRule
from pipeline.experiment.artifacts import open_split
from pipeline.experiment.models import Model, check_classes, obey_rule
from pipeline.experiment.scoring import evaluate_split
from pipeline.session import Session
from stages.evaluation.metrics import SegCounts
from stages.evaluation.panels import spread_over
from stages.export.job import LabelFunction, ProofImage, Scored, SegmentationFunction, normalise_image

PROOF_IMAGES = 4
CALIBRATION_IMAGES = 300
"""The usual number for post-training quantisation."""
SCORED_IMAGES = 200
"""On which each file is scored at most: it takes as long for every one of them."""


def read_proof_images(model: Model, session: Session) -> list[ProofImage]:
    """Return a few images from all over the reported split; none, with a warning, where it cannot be read."""
    try:
        dataset = open_split(model.config, session.workspace, model.config.evaluation.split)
        check_classes(model, dataset)
        places = spread_over(len(dataset), PROOF_IMAGES)
        return [ProofImage(dataset.image_ids[place], *dataset.read_pair(place)) for place in places]
    except UserError as problem:
        warnings.warn(
            f"the files are compared on drawn noise alone, without real images: {problem}", Notice, stacklevel=2
        )
        return []


def iterate_calibration(model: Model, session: Session, rule: SizeRule) -> Iterator[Tensor]:
    """Yield training images from all over their split, normalised, (1, 3, h, w) at the size at which they enter.

    Raises:
        UserError: they cannot be read.
    """
    dataset = open_split(model.config, session.workspace, "train")
    for place in spread_over(len(dataset), CALIBRATION_IMAGES):
        yield normalise_image(dataset.read_image(place), model.normalisation, rule)


def score_segmentation(
    model: Model, session: Session, segment: SegmentationFunction, *, rule: SizeRule
) -> dict[str, float]:
    """Return the metrics of a function on the reported split under a size rule.

    Raises:
        UserError: the split cannot be read.
    """
    config = obey_rule(model.config, rule)
    dataset = open_split(config, session.workspace, config.evaluation.split)
    check_classes(model, dataset)
    evaluation = evaluate_split(segment, model.normalisation, dataset, None, config, torch.device("cpu"), None)
    return evaluation.metrics


def score_labels(model: Model, session: Session, label: LabelFunction) -> Scored:
    """Return what a function from images to labels scores on images from all over the reported split.

    Raises:
        UserError: the split cannot be read.
    """
    dataset = open_split(model.config, session.workspace, model.config.evaluation.split)
    check_classes(model, dataset)
    counts, places = SegCounts(len(dataset.classes)), spread_over(len(dataset), SCORED_IMAGES)
    for place in places:
        image, wanted = dataset.read_pair(place)
        counts.update(torch.from_numpy(label(image))[None], torch.from_numpy(wanted)[None])
    return Scored(counts.compute()[HEADLINE], len(places), len(dataset), dataset.split)

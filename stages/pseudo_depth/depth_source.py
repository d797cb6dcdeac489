"""Where the depth of an image comes from: what labelling asks of an estimator, and of a dataset's own depth."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data_cache.datasets.interface import SegmentationDataset
from data_cache.depth_map import Provenance
from data_cache.errors import UserError
from data_cache.images import ImageNote
from data_cache.sample import DepthKind
from stages.pseudo_depth.aliases import GROUND_TRUTH


class Reading(NamedTuple):
    """An image as its depth is made from it."""

    content: Tensor
    """uint8 (3, h, w) for a network, or ground-truth depth (h, w) as it will be stored."""
    source_size: tuple[int, int]
    """(H, W) of the image."""
    notes: tuple[ImageNote, ...]


class Batched(Protocol):
    """What is computed of the images of a split in batches of one size."""

    device: torch.device

    def read(self, dataset: SegmentationDataset, index: int) -> Reading:
        """Read an image of the dataset; called from several threads."""

    def predict(self, images: Tensor) -> Tensor:
        """Return (B, …) of what was read of B images, stacked; it may still be computed."""


class DepthSource(Batched, Protocol):
    """What gives a raw map (h', w') for every image of a split."""

    def describe(self, dataset: SegmentationDataset, provenance: Provenance) -> Provenance:
        """Return how its maps of a dataset are made, given what is the same for every source.

        Raises:
            UserError: it has none for that dataset.
        """

    def check_alive(self, images: Tensor, maps: Tensor) -> None:
        """Raise UserError when the first maps tell that all will be worthless."""

    def check_map(self, raw: NDArray[np.float32]) -> None:
        """Raise UnfitMap when a map (h', w') is not fit to be stored."""


class GroundTruthDepth:
    """The estimator that is none: passes the dataset's ground-truth depth on into a store."""

    device = torch.device("cpu")

    def describe(self, dataset: SegmentationDataset, provenance: Provenance) -> Provenance:
        """Return what the dataset says of its depth."""
        kind = dataset.ground_truth_depth_kind
        if kind is None:
            if dataset.sources(0).depth:
                dataset.read_depth(0)  # maps of which nobody said what they mean: the message says how
            raise UserError(
                f"dataset {dataset.name!r} brings no ground-truth depth: estimator {GROUND_TRUTH!r} has nothing to "
                "store; choose another, e.g. --estimator bundled"
            )
        unit = "m" if kind is DepthKind.METRIC else "1"
        return replace(provenance, kind=kind, unit=unit, depth_rule=dataset.depth_rule)

    def read(self, dataset: SegmentationDataset, index: int) -> Reading:
        """Read the depth that belongs to an image; the image is read too, because a broken one is not labelled."""
        image, notes = dataset.read_noted_image(index)
        height, width = image.shape[:2]
        depth = np.array(dataset.read_matching_depth(index, (height, width)), np.float32)
        return Reading(torch.from_numpy(depth), (height, width), notes)

    def predict(self, images: Tensor) -> Tensor:
        """Return the depth as it was read."""
        return images

    def check_alive(self, images: Tensor, maps: Tensor) -> None:
        """Take the dataset at its word."""

    def check_map(self, raw: NDArray[np.float32]) -> None:
        """Take the dataset at its word: nan is unknown, inf the sky."""

"""Some images of one split or several, one after another, with their masks or without: what a phase reads."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_cache.datasets.interface import SegmentationDataset, Sources
from data_cache.images import NotedImage
from data_cache.sample import IGNORE_INDEX


class Part(NamedTuple):
    """Images of one split."""

    dataset: SegmentationDataset
    indices: Sequence[int]
    """Of the images, in order."""
    labels: bool
    """Whether masks are read; without, every pixel is void, and no mask is opened."""


class View(SegmentationDataset):
    """The images of several parts in a row, under the ids they have in their splits.

    Those of another split than the first part's have its name before their ids, since splits may use the same ones.
    """

    def __init__(self, parts: Sequence[Part]) -> None:
        """Hold what each part says of its images; parts without any do not count."""
        self.parts = tuple(part for part in parts if len(part.indices)) or tuple(parts[:1])
        first = self.parts[0].dataset
        # What a class says of its splits, a view takes from the split it is of.
        vars(self).update({name: getattr(first, name) for name in ("name", "licence", "prediction_ids", "code")})
        vars(self)["is_mapped"] = all(part.dataset.is_mapped for part in self.parts)
        self.has_masks = any(part.labels for part in self.parts)
        self.split = "+".join(dict.fromkeys(part.dataset.split for part in self.parts))
        self.classes, self.palette, self.raw_ids = first.classes, first.palette, dict(first.raw_ids)
        self.ground_truth_depth_kind, self.depth_rule = first.ground_truth_depth_kind, first.depth_rule
        self.image_ids = tuple(
            part.dataset.image_ids[index]
            if part.dataset.split == first.split
            else f"{part.dataset.split}/{part.dataset.image_ids[index]}"
            for part in self.parts
            for index in part.indices
        )
        self._ends = tuple(accumulate(len(part.indices) for part in self.parts))

    def read_pair(self, index: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Return image and labels."""
        part, place = self._find(index)
        if part.labels:
            return part.dataset.read_pair(place)
        image = part.dataset.read_image(place)
        return image, np.full(image.shape[:2], IGNORE_INDEX, np.uint8)

    def read_noted_image(self, index: int) -> NotedImage:
        """Return (H, W, 3) RGB, and what had to be decided to read it."""
        part, place = self._find(index)
        return part.dataset.read_noted_image(place)

    def read_size(self, index: int) -> tuple[int, int]:
        """Return (height, width) of an image."""
        part, place = self._find(index)
        return part.dataset.read_size(place)

    def read_labels(self, index: int) -> NDArray[np.uint8]:
        """Return (H, W) train ids; void everywhere where masks are not read."""
        part, place = self._find(index)
        return part.dataset.read_labels(place) if part.labels else self.read_pair(index)[1]

    def read_depth(self, index: int) -> NDArray[np.float32]:
        """Return the depth that the split brings."""
        part, place = self._find(index)
        return part.dataset.read_depth(place)

    def sources(self, index: int) -> Sources:
        """Return the image's files, without the mask where it is not read."""
        part, place = self._find(index)
        found = part.dataset.sources(place)
        return found if part.labels else found._replace(labels=())

    def describe(self, index: int) -> str:
        """Return what the image's split says."""
        part, place = self._find(index)
        return part.dataset.describe(place)

    def _find(self, index: int) -> tuple[Part, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"{self.name} {self.split} has {len(self)} images here, none at {index}")
        number = bisect_right(self._ends, index)
        part = self.parts[number]
        return part, part.indices[index - self._ends[number] + len(part.indices)]

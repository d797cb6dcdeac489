"""What every dataset promises: arrays by index, ids that name images for ever, and words for messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from data_cache.images import NotedImage
from data_cache.sample import DepthKind

RGB = tuple[int, int, int]


class Sources(NamedTuple):
    """What the arrays of an image are made from: files, whose contents tell, or words that tell everything."""

    image: tuple[Path | str, ...]
    labels: tuple[Path | str, ...]
    depth: tuple[Path | str, ...]
    """Of the ground-truth depth; empty where the dataset has none."""


@runtime_checkable
class SegmentationDataset(Protocol):
    """One split of one dataset.

    Instances are small and can be pickled: workers get a copy and open files themselves. Reading raises ``UserError``
    for what is wrong with a file; an index outside the split is an ``IndexError``.
    """

    @property
    def name(self) -> str:
        """Key in ``DATASETS``."""
        ...

    @property
    def split(self) -> str: ...

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names; the position is the train id."""
        ...

    @property
    def palette(self) -> tuple[RGB, ...]:
        """One display colour per class."""
        ...

    @property
    def image_ids(self) -> Sequence[str]:
        """Unique names in a fixed order; they are also the keys of depth stores."""
        ...

    @property
    def raw_ids(self) -> Mapping[int, int]:
        """Id in the mask file -> train id or IGNORE_INDEX; any other id in a file is an error."""
        ...

    @property
    def ground_truth_depth_kind(self) -> DepthKind | None:
        """What the dataset's ground-truth depth means; None when it brings none."""
        ...

    @property
    def depth_rule(self) -> str:
        """How ground-truth depth follows from its files, in words: whatever changes its numbers besides the files."""
        ...

    def __len__(self) -> int: ...

    def read_image(self, index: int) -> NDArray[np.uint8]:
        """Return (H, W, 3) RGB."""
        ...

    def read_noted_image(self, index: int) -> NotedImage:
        """Return (H, W, 3) RGB, and what had to be decided to read it."""
        ...

    def read_labels(self, index: int) -> NDArray[np.uint8]:
        """Return (H, W) train ids, IGNORE_INDEX where void; always of the image's size."""
        ...

    def read_depth(self, index: int) -> NDArray[np.float32]:
        """Return (h, w) depth of ``ground_truth_depth_kind``; nan = unknown, inf = infinitely far (metric only)."""
        ...

    def sources(self, index: int) -> Sources:
        """Return what the image, its labels and its depth are made from; a file need not be there."""
        ...

    def describe(self, index: int) -> str:
        """Return the image's path, or what else tells a person which image is meant."""
        ...

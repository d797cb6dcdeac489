"""What a depth decoder may be taught in place of an image's own depth: what is gained from it, too, is not geometry.

Each is the depth of one split as any other, so that targets are scaled as an estimator's are.
"""

from __future__ import annotations

import hashlib
import json
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_cache.content import ContentHashes
from data_cache.datasets.interface import SegmentationDataset
from data_cache.depth_map import DepthMap, DepthStats, MapRecord, Provenance, compute_depth_stats
from data_cache.depth_target import compute_inverse_depth_target
from data_cache.errors import UserError
from data_cache.fingerprint import dataset_fingerprint
from data_cache.sample import DepthKind
from data_cache.split_depth import SplitDepth

LUMA = np.array((0.299, 0.587, 0.114))  # ITU-R BT.601
NOISE_SHAPE = (6, 8)
"""Independent heights of a map of noise, interpolated in between: as smooth as depth, so that a decoder can draw it,
and unforeseeable from the image, so that it can only be learnt by heart."""
MIDDLE = DepthStats(0, 1, 0, 1, 0.5, 0.5, 0.5, 0.5, 0.5, valid_share=1, row_correlation=0)
"""Of a constant that scaling leaves in the middle of its range; a map without spread would become 0."""


class ShuffledDepth(SplitDepth):
    """Every image has the map of another image of its split: depth such as these images have, and none of this one.

    The images stand in a circle, in an order that follows from their names alone, and each has its neighbour's map. So
    no image keeps its own, and with an image more or less hardly any other changes.
    """

    def __init__(self, dataset: SegmentationDataset, places: Sequence[int], depth: SplitDepth) -> None:
        """Hold the maps of a split.

        Args:
            dataset: the split, or some of its images.
            places: of each of these in the split.
            depth: of the whole split.

        Raises:
            UserError: the split has a single image, so no other one.
        """
        names = depth.image_ids
        if len(names) < 2:
            raise UserError(
                f"depth.source 'shuffled' gives each image another one's map, but {dataset.name} {dataset.split} has "
                "only one image; add images, or choose another --depth-source"
            )
        circle = np.array(sorted(range(len(names)), key=lambda place: _digest(names[place])))
        after = np.empty_like(circle)
        after[circle] = np.roll(circle, -1)
        self._dataset, self._depth, self._others = dataset, depth, after[list(places)]
        self.image_ids, self.folder, self.doubts = dataset.image_ids, depth.folder, depth.doubts
        self.provenance = depth.provenance  # to whom maps are given makes no other teacher of theirs
        self._fingerprint = _digest("shuffled", depth.fingerprint(), *dataset.image_ids)

    def read(self, index: int) -> DepthMap:
        """Read the other image's map, stretched to this one's shape."""
        return self._depth.read(int(self._others[index]))._replace(source_size=self._dataset.read_size(index))


class MadeUpDepth(SplitDepth):
    """Maps that no estimator made and no store holds: relative inverse depth."""

    source: str
    """As in ``depth.source``."""

    def __init__(self, dataset: SegmentationDataset, hashes: ContentHashes | None = None) -> None:
        """Make maps of a split.

        Args:
            hashes: of files, remembered from earlier calls.
        """
        self._dataset, self.image_ids = dataset, dataset.image_ids
        self.folder = Path(f"depth.source={self.source}")  # what messages name in the place of a store
        self.provenance = Provenance(
            dataset=dataset.name, split=dataset.split, estimator=f"{self.source} (a control, no depth)",
            revision="", weights_sha256="", kind=DepthKind.RELATIVE, unit="1", max_depth_m=None, depth_rule="",
            resize_rule="none", input_size=None, dtype="float32", codec="none", licence="none", tool_versions={},
            created_at="",
        )  # fmt: skip
        self._fingerprint = _digest(self.source, dataset_fingerprint(dataset, hashes, labels=False))

    def read(self, index: int) -> DepthMap:
        """Make the map of an image."""
        values = self._make(index).astype(np.float16)
        stats = self._summarise(values)
        record = MapRecord("", "", 0, stats.std, stats.valid_share, stats.row_correlation)
        return DepthMap(values, stats, self._dataset.read_size(index), record)

    @abstractmethod
    def _make(self, index: int) -> NDArray[np.float32]:
        """Return (h, w), large = near."""

    def _summarise(self, values: NDArray[np.float16]) -> DepthStats:
        return compute_depth_stats(values, DepthKind.RELATIVE, None)


class ConstantDepth(MadeUpDepth):
    """The same depth everywhere: a second task that costs as many steps and has nothing to teach."""

    source = "constant"

    def _make(self, index: int) -> NDArray[np.float32]:  # noqa: ARG002 - all are alike
        return np.full((1, 1), MIDDLE.median, np.float32)

    def _summarise(self, values: NDArray[np.float16]) -> DepthStats:  # noqa: ARG002 - they have no spread
        return MIDDLE


class LuminanceDepth(MadeUpDepth):
    """The image's own luminance, bright = near: a second task of the same kind, about nothing but the colours."""

    source = "gray"

    def _make(self, index: int) -> NDArray[np.float32]:
        return (self._dataset.read_image(index) @ LUMA / 255).astype(np.float32)


class NoiseDepth(MadeUpDepth):
    """Hills and valleys that follow from the image's name alone."""

    source = "noise"

    def _make(self, index: int) -> NDArray[np.float32]:
        seed = int(_digest(self.source, self._dataset.image_ids[index])[:16], 16)
        return np.random.default_rng(seed).random(NOISE_SHAPE, np.float32)


MADE_UP = {kind.source: kind for kind in (ConstantDepth, LuminanceDepth, NoiseDepth)}
"""``depth.source`` → maps that need no store."""
COMPARED_MAPS = 64
"""Images of a split by which a control is held against an estimator's maps."""
_GRID = (48, 64)


def correlate_maps(control: SplitDepth, depth: SplitDepth) -> float | None:
    """Return how much of the images' depth a control keeps: the mean, over images from all over a split, of the
    correlation of inverse depth with the maps of an estimator; None where no map of either has any spread."""
    count = len(depth.image_ids)
    places = np.unique(np.linspace(0, count - 1, min(count, COMPARED_MAPS)).round().astype(int))
    found = [_correlate(control, depth, int(place)) for place in places]
    known = [value for value in found if value is not None]
    return float(np.mean(known)) if known else None


def _correlate(control: SplitDepth, depth: SplitDepth, place: int) -> float | None:
    values, valid = [], np.ones(_GRID, bool)
    for maps in (control, depth):
        read, made = maps.read(place), maps.provenance
        target = compute_inverse_depth_target(read.raw.astype(np.float32), read.stats, made.kind, made.max_depth_m)
        at = np.ix_(*((np.arange(wanted) * had // wanted) for wanted, had in zip(_GRID, read.raw.shape, strict=True)))
        values.append(target.inverse_depth[at])
        valid &= target.valid[at]
    one, other = (each[valid] for each in values)
    if one.size < 2 or not (one.std() > 0 and other.std() > 0):
        return None
    return float(np.corrcoef(one, other)[0, 1])


def _digest(*words: str) -> str:
    return hashlib.sha256(json.dumps(words).encode()).hexdigest()

"""Single samples of a split: read, cut and resized, in whatever process asks for them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from data_cache.datasets.interface import SegmentationDataset
from data_cache.depth_map import widen
from data_cache.depth_target import compute_inverse_depth_target
from data_cache.errors import UserError
from data_cache.image_cache import ImageCache
from data_cache.photometric import draw_recolouring
from data_cache.settings import AugmentationSettings
from data_cache.size_rule import SizeRule
from data_cache.split_depth import SplitDepth
from data_cache.transforms import (
    Box,
    ColourJitter,
    Geometry,
    Size,
    cut_window,
    draw_colour_jitter,
    draw_geometry,
    to_float16,
    to_map_box,
    transform_depth,
    transform_image,
    transform_labels,
)

SAMPLE_STREAM, _POOL_SAMPLE_STREAM = 1, 6
"""First words of the random streams of samples; the orders of images, and whatever else is drawn, use others."""


@dataclass(frozen=True)
class Source:
    """What loaders read."""

    dataset: SegmentationDataset
    store: SplitDepth | None
    target_mode: str = "robust"
    """One of ``depth_target.TARGET_MODES``."""
    cache: ImageCache | None = None
    """Where decoded images are kept."""
    pool: int = 0
    """Images at the end of the dataset that come on top of batches of the others, without labels."""

    def read(self, index: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Return image (H, W, 3) and labels (H, W), not to be written to.

        Raises:
            UserError: what is wrong with one of them.
        """
        if self.cache is not None and (kept := self.cache.find(index)) is not None:
            return kept
        image, labels = self.dataset.read_pair(index)
        if self.cache is not None:
            self.cache.add(index, image, labels)
        return image, labels


class Sample(NamedTuple):
    """One image with its targets, after the joint geometry; shapes as in ``PackedBatch`` without the batch axis."""

    image_id: str
    image: Tensor
    seg_labels: Tensor
    inverse_depth: Tensor | None
    placed: tuple[int, int, int, int]
    jitter: ColourJitter | None
    labelled: bool = True
    """Whether it is none of a pool."""


class Failure(NamedTuple):
    """A UserError on its way out of a worker: raised there, it would arrive wrapped in a traceback."""

    message: str


class Samples(Dataset, ABC):
    """Reads single samples; what is wrong with an image is returned, not raised, since it may be a worker's."""

    def __init__(self, source: Source, with_depth: bool) -> None:
        self._source, self._with_depth = source, with_depth

    def __getitem__(self, key: Any) -> Sample | Failure:
        try:
            return self._build(key)
        except UserError as error:
            return Failure(str(error))

    @abstractmethod
    def _build(self, key: Any) -> Sample:
        """Read and prepare the sample of a key; UserError says what is wrong with it."""

    def _read_depth(self, index: int, image_size: Size, geometry: Geometry, zoom: float) -> Tensor | None:
        """Return inverse depth on the geometry's canvas, NaN where invalid, as seen in an input ``zoom`` times the
        image."""
        store = self._source.store
        if not self._with_depth or store is None:
            return None
        dataset = self._source.dataset
        depth = store.read(index)
        if depth.source_size != image_size:
            raise UserError(
                f"{dataset.describe(index)} is {_px(image_size)} but was {_px(depth.source_size)} when {store.folder} "
                f"was made; remove that folder and label again: {store.provenance.label_command()}"
            )
        # Only the window that is seen becomes a target; its scale comes from whole-image statistics.
        map_size = _size(depth.values)
        window, box = cut_window(to_map_box(geometry.box, image_size, map_size), map_size)
        kind, max_depth_m = store.provenance.kind, store.provenance.max_depth_m
        target = compute_inverse_depth_target(
            widen(depth.values[window]), depth.stats, kind, max_depth_m, self._source.target_mode, zoom=zoom
        )
        return transform_depth(torch.from_numpy(target.inverse_depth), torch.from_numpy(target.valid), box, geometry)


class TrainingSamples(Samples):
    """Key: (epoch, index)."""

    def __init__(self, source: Source, augmentation: AugmentationSettings, seed: int, with_depth: bool) -> None:
        super().__init__(source, with_depth)
        self._augmentation, self._seed = augmentation, seed

    def _build(self, key: tuple[int, int]) -> Sample:
        epoch, index = key
        dataset = self._source.dataset
        image, labels = self._source.read(index)
        pooled = index - (len(dataset) - self._source.pool)
        stream = (SAMPLE_STREAM, self._seed, epoch, index)
        if pooled >= 0:  # images with labels are the same whether or not there is a pool
            stream = (_POOL_SAMPLE_STREAM, self._seed, epoch, pooled)
        rng = np.random.default_rng(stream)
        geometry = draw_geometry(self._augmentation, _size(image), rng)
        jitter = draw_colour_jitter(self._augmentation.jitter, rng)
        recolouring = draw_recolouring(self._augmentation.photometric, rng)
        depth = self._read_depth(index, _size(image), geometry, geometry.zoom)
        return Sample(
            dataset.image_ids[index],
            transform_image(image, geometry, recolouring),
            transform_labels(labels, geometry),
            None if depth is None else to_float16(depth),
            geometry.placed,
            jitter,
            pooled < 0,
        )


class EvaluationSamples(Samples):
    """Key: index."""

    def __init__(self, source: Source, rule: SizeRule | None, with_depth: bool) -> None:
        super().__init__(source, with_depth)
        self._rule = rule

    def _build(self, key: int) -> Sample:
        dataset = self._source.dataset
        image, labels = self._source.read(key)
        try:
            shown = np.array(image if self._rule is None else self._rule.fit(image))
        except UserError as error:
            raise UserError(f"{dataset.describe(key)}: {error}") from error
        whole, zoom = _whole(_size(image), _size(labels)), _whole(_size(image), _size(shown)).zoom
        return Sample(
            dataset.image_ids[key],
            torch.from_numpy(shown).permute(2, 0, 1),
            torch.from_numpy(np.array(labels)),
            self._read_depth(key, _size(image), whole, zoom),
            (0, 0, *_size(shown)),
            jitter=None,
        )


def check_source(source: Source, with_depth: bool) -> None:
    """Find out before the first step what would stop a later one."""
    dataset, store = source.dataset, source.store
    if len(dataset) == 0:
        raise UserError(f"{dataset.name} {dataset.split} has no images")
    if not with_depth:
        return
    if store is None:
        raise UserError(
            f"depth is asked of {dataset.name} {dataset.split} but there is no depth store; make one with: "
            f"pipeline pseudo-depth --dataset {dataset.name} --split {dataset.split}"
        )
    if list(store.image_ids) != list(dataset.image_ids):
        raise ValueError(f"the depth of {store.folder} was matched with another split than {dataset.split}")


def _whole(source: Size, target: Size) -> Geometry:
    return Geometry(Box(0, 0, *source), target, (0, 0), target, flip=False)


def _size(array: np.ndarray) -> Size:
    return array.shape[0], array.shape[1]


def _px(size: Size) -> str:
    return f"{size[0]} x {size[1]} px"

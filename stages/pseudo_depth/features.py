"""What a depth network makes of whole images on the way to their depth: features by which images can be told apart."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data_cache.datasets.interface import SegmentationDataset
from data_cache.errors import UserError
from stages.pseudo_depth.batching import Batching
from stages.pseudo_depth.depth_source import Reading
from stages.pseudo_depth.estimators import DepthEstimator
from stages.pseudo_depth.reading import FailedImage, iterate_batches, prepare_image

_SHOWN = 5


class EncodedImages(NamedTuple):
    """Features of one batch."""

    image_ids: tuple[str, ...]
    features: NDArray[np.float32]
    """(B, C)."""


def encode_images(
    dataset: SegmentationDataset,
    indices: Sequence[int],
    estimator: DepthEstimator,
    *,
    batch_size: int | None = None,
    workers: int = 2,
) -> Iterator[EncodedImages]:
    """Yield the features of images of a split, batch by batch, read and gathered as for labelling.

    Raises:
        UserError: images cannot be read (all of them are in one message, the others came before), their features are
            not finite, or the device has too little memory.
    """
    source = _Encoder(estimator)
    failed: list[FailedImage] = []
    prepare: Callable = partial(prepare_image, dataset, source, lambda _index: ("", ""))
    batching = Batching(source, batch_size)
    for batch in iterate_batches(prepare, indices, batching, workers, failed):
        image_ids = tuple(image.image_id for image in batch)
        features = batching.predict(torch.stack([image.content for image in batch])).cpu().numpy()
        if not np.isfinite(features).all():
            raise UserError(
                f"estimator {estimator.spec.alias!r} gives features that are not finite for images "
                f"{', '.join(image_ids[:_SHOWN])}; choose another, or try --set depth.precision=float32"
            )
        yield EncodedImages(image_ids, features)
    if failed:
        raise UserError(
            f"{len(failed)} images cannot be read, so nothing tells how they differ from others; repair or remove them:"
            + "".join(f"\n  {image.image}: {image.reason}" for image in failed)
        )


class _Encoder:
    """An estimator that is asked for features in the place of maps."""

    def __init__(self, estimator: DepthEstimator) -> None:
        self.device = estimator.device
        self._estimator = estimator

    def read(self, dataset: SegmentationDataset, index: int) -> Reading:
        """Read an image at the estimator's input size."""
        return self._estimator.read(dataset, index)

    def predict(self, images: Tensor) -> Tensor:
        """Return features (B, C)."""
        return self._estimator.encode(images)

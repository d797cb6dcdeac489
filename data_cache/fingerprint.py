"""What a store or a run was made from: a short hash, equal for equal data wherever it lies; and whether it still is."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from data_cache.content import ContentHashes
from data_cache.datasets.interface import SegmentationDataset
from data_cache.errors import UserError

if TYPE_CHECKING:
    from data_cache.depth_store import DepthStore

COMPARED_IMAGES = 16
"""Images of a split that are read to find out whether a store is theirs."""


def dataset_fingerprint(
    dataset: SegmentationDataset, hashes: ContentHashes | None = None, *, labels: bool = True, depth: bool = False
) -> str:
    """Return 16 hex digits that change when what is read of a split changes: its images, their names, their contents.

    Folders and dates do not count: a copy of the data has the same fingerprint. Every file is read, unless ``hashes``
    remembers it.

    Args:
        dataset: a split.
        hashes: of files, remembered from earlier calls.
        labels: also cover the masks, the classes, their colours and the id table.
        depth: also cover the ground-truth depth and how it is read.
    """
    hashes = hashes or ContentHashes()
    header: list[object] = [dataset.name, dataset.split]
    if labels:
        header += [*dataset.classes, *dataset.palette, *sorted(dataset.raw_ids.items())]
    if depth:
        header += [dataset.ground_truth_depth_kind, dataset.depth_rule]
    digest = hashlib.blake2b(digest_size=8)
    # JSON puts boundaries between the strings: ("ab", "c") and ("a", "bc") differ.
    digest.update(json.dumps([labels, depth, header]).encode())
    for index, image_id in enumerate(dataset.image_ids):
        sources = dataset.sources(index)
        parts = [sources.image, *([sources.labels] if labels else []), *([sources.depth] if depth else [])]
        digest.update(json.dumps([image_id, *map(hashes.hash, parts)]).encode())
    hashes.save()
    return digest.hexdigest()


def check_stored_images(dataset: SegmentationDataset, store: DepthStore, command: str) -> None:
    """Refuse a store that lacks images of a split, or was made from other images of the same names and sizes.

    Args:
        command: the command line that labels the split, for messages.
    """
    missing = store.missing(dataset.image_ids)
    if missing:
        shown = ", ".join(missing[:3]) + (", …" if len(missing) > 3 else "")
        raise UserError(
            f"{store.folder} lacks depth for {len(missing)} of {len(dataset)} images ({shown}); add it with: {command}"
        )
    check_unchanged_images(dataset, store, range(len(dataset)), command)


def check_unchanged_images(
    dataset: SegmentationDataset, store: DepthStore, indices: Sequence[int], command: str
) -> None:
    """Refuse a store that was made from other images; some of those at ``indices`` are read to find out."""
    count = min(COMPARED_IMAGES, len(indices))
    for index in (indices[place * len(indices) // count] for place in range(count)):
        if store.read(dataset.image_ids[index]).checksum != ContentHashes().hash(dataset.sources(index).image):
            raise UserError(
                f"{store.folder} was made from other images: {dataset.describe(index)} has changed since; "
                f"remove that folder and label again: {command}"
            )

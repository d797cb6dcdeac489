"""What a store or a run was made from: a short hash, equal for equal data wherever it lies; and whether it still is."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from data_cache.datasets.interface import SegmentationDataset
from data_cache.errors import UserError

if TYPE_CHECKING:
    from data_cache.depth_store import DepthStore

COMPARED_IMAGES = 16
"""Images of a split that are read to find out whether a store is theirs."""


def dataset_fingerprint(dataset: SegmentationDataset, *, labels: bool = True) -> str:
    """Return 16 hex digits that change when the split's images, or how they are read, change.

    Cheap: file sizes stand for contents, so an edit that keeps a file's size goes unseen (the checksums in a depth
    store see it). Folders and dates do not count: a copy of the data has the same fingerprint.

    Args:
        dataset: a split.
        labels: also cover the masks, the classes and the id table; False covers the images alone, which is all that
            depth labelling looks at.
    """
    digest = hashlib.blake2b(digest_size=8)
    header = [dataset.name, dataset.split, "labels" if labels else "images"]
    if labels:
        header += [*dataset.classes, *(f"{raw}>{train}" for raw, train in sorted(dataset.raw_ids.items()))]
    # JSON puts boundaries between the strings: ("ab", "c") and ("a", "bc") differ.
    digest.update(json.dumps(header).encode())
    for image_id in dataset.image_ids:
        digest.update(json.dumps(image_id).encode())
    for fact in dataset.iterate_facts(labels=labels):
        digest.update(json.dumps(fact).encode())
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
    """Refuse a store that was made from other images; some of those at ``indices`` are read to find out.

    A fingerprint sees the sizes of files, and different images of an uncompressed format have equal ones.
    """
    count = min(COMPARED_IMAGES, len(indices))
    for index in (indices[place * len(indices) // count] for place in range(count)):
        if store.read(dataset.image_ids[index]).checksum != dataset.checksum(index):
            raise UserError(
                f"{store.folder} was made from other images: {dataset.describe(index)} has changed since; "
                f"remove that folder and label again: {command}"
            )

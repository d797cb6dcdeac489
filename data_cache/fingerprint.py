"""What a run was made from: a short hash, equal for equal data wherever it lies."""

from __future__ import annotations

import hashlib
import json

from data_cache.content import ContentHashes
from data_cache.datasets.interface import SegmentationDataset


def dataset_fingerprint(
    dataset: SegmentationDataset, hashes: ContentHashes | None = None, *, labels: bool = True, depth: bool = False
) -> str:
    """Return 16 hex digits that change when what is read of a split changes: its images, their names, their contents;
    with a dataset of others also when its code does.

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
    if dataset.code:
        header.append(dataset.code)
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

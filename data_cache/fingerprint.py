"""What a store or a run was made from, as a short hash: equal for equal data wherever it lies."""

from __future__ import annotations

import hashlib
import json

from data_cache.datasets.interface import SegmentationDataset


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

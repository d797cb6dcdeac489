"""Depth of exactly the images of one split: each map was made from the image as it is now, whatever else a store holds.

A store is of a dataset's name, a split and an estimator, not of a set of images. Images come and go, and two folders
of own data may use the same names: which map belongs to an image is decided by the image's checksum.
"""

from __future__ import annotations

import hashlib
import json
import shlex
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

import numpy as np

from data_cache.content import ContentHashes
from data_cache.datasets.interface import SegmentationDataset
from data_cache.depth_map import DepthMap, MapRecord, Provenance, label_command
from data_cache.depth_quality import check_worth, describe_suspicious, find_suspicious
from data_cache.depth_store import DepthStore
from data_cache.errors import UserError
from data_cache.images import format_examples

_SHOWN = 3


class SplitDepth(ABC):
    """Read access to the maps of a split by the index of the image; safe to hand to DataLoader workers.

    What loaders and keys ask of it, be it a store's or made up.
    """

    image_ids: Sequence[str]
    """Those of the split, in its order."""
    folder: Path
    """Where the maps lie, for messages."""
    provenance: Provenance
    """How the maps were made."""
    doubts: tuple[str, ...] = ()
    """Lines on maps that hardly look like depth."""
    _fingerprint: str

    def fingerprint(self) -> str:
        """Return 64 hex digits over everything that decides the maps, and whose they are."""
        return self._fingerprint

    @abstractmethod
    def read(self, index: int) -> DepthMap:
        """Return the map of an image; UserError where it cannot be read."""


class StoredDepth(SplitDepth):
    """Maps of a store."""

    def __init__(self, store: DepthStore, image_ids: Sequence[str], found: Sequence[tuple[str, MapRecord]]) -> None:
        """Hold which file has the map of each image; ``match_depth`` finds that out."""
        self._store, self.image_ids = store, image_ids
        self.folder, self.provenance = store.folder, store.provenance
        self._names = sorted({name for name, _ in found})
        numbers = {name: number for number, name in enumerate(self._names)}
        self._files = np.array([numbers[name] for name, _ in found], np.int32)
        self._crcs = np.array([record.crc32 for _, record in found], np.uint32)
        by_image = dict(zip(image_ids, (record for _, record in found), strict=True))
        check_worth(by_image, store.folder)
        self.doubts = tuple(describe_suspicious(find_suspicious(by_image)))
        self._fingerprint = _fingerprint(store.provenance, image_ids, [record for _, record in found])

    def read(self, index: int) -> DepthMap:
        """Read the map of an image.

        Raises:
            UserError: it is damaged, or not the one that was matched.
        """
        image_id = self.image_ids[index]
        name = self._names[self._files[index]]
        found = self._store.read(image_id, name)
        if found.record.crc32 != self._crcs[index]:
            raise UserError(
                f"{self.folder / name} holds another map of image {image_id!r} than its list of maps says; if it was "
                "just labelled anew, repeat the command, else drop it with: pipeline cache repair "
                f"{shlex.quote(str(self.folder))}, then label again"
            )
        return found


class JoinedDepth(SplitDepth):
    """Depth of the images of several splits in a row, each read from its own store; it is described as the first's.

    Args:
        image_ids: of all, in order.
        parts: the depth of each split's images.
    """

    def __init__(self, image_ids: Sequence[str], parts: Sequence[SplitDepth]) -> None:
        self._parts, self.image_ids = parts, image_ids
        self.folder, self.provenance = parts[0].folder, parts[0].provenance
        self._ends = list(accumulate(len(part.image_ids) for part in parts))
        self.doubts = tuple(doubt for part in parts for doubt in part.doubts)
        self._fingerprint = hashlib.sha256(json.dumps([part.fingerprint() for part in parts]).encode()).hexdigest()

    def read(self, index: int) -> DepthMap:
        """Read the map of an image; UserError as for one split."""
        number = bisect_right(self._ends, index)
        return self._parts[number].read(index - self._ends[number] + len(self._parts[number].image_ids))


def compute_checksums(
    dataset: SegmentationDataset, index: int, hashes: ContentHashes, *, of_depth: bool
) -> tuple[str, str]:
    """Return the checksums by which a map is known: of the image, and of the depth where the map is taken from it."""
    sources = dataset.sources(index)
    return hashes.hash(sources.image), hashes.hash(sources.depth) if of_depth else ""


def match_depth(
    dataset: SegmentationDataset, store: DepthStore, hashes: ContentHashes | None = None, *, command: str | None = None
) -> SplitDepth:
    """Find the map of every image of a split in a store; every image's checksum is compared.

    Args:
        hashes: of files, remembered from earlier calls.
        command: the command line that labels the split, for messages; None names dataset, split and estimator.

    Raises:
        UserError: the store is of another dataset, split or depth option, lacks an image or was made from another
            state of it, or holds nothing to learn from.
    """
    made_for, hashes = store.provenance, hashes or ContentHashes()
    if (made_for.dataset, made_for.split) != (dataset.name, dataset.split):
        raise UserError(
            f"{store.folder} holds the depth of {made_for.dataset} {made_for.split}, not of {dataset.name} "
            f"{dataset.split}; label that with: {label_command(dataset.name, dataset.split, made_for.estimator)}"
        )
    command = command or made_for.label_command()
    if made_for.depth_rule not in ("", dataset.depth_rule):
        raise UserError(
            f"{store.folder} was made with other depth options ({made_for.depth_rule}; now {dataset.depth_rule}); "
            f"label with these with: {command}"
        )
    held = store.records()
    found: list[tuple[str, MapRecord]] = []
    missing: list[str] = []
    changed: list[str] = []
    for index, image_id in enumerate(dataset.image_ids):
        made_from = compute_checksums(dataset, index, hashes, of_depth=made_for.depth_rule != "")
        maps = held.get(image_id, [])
        match = [(name, record) for name, record in maps if (record.checksum, record.depth_checksum) == made_from]
        if match:
            found.append(match[-1])
        else:
            (changed if maps else missing).append(image_id)
    hashes.save()
    _check_complete(dataset, store, missing, changed, command)
    return StoredDepth(store, dataset.image_ids, found)


def _check_complete(
    dataset: SegmentationDataset, store: DepthStore, missing: list[str], changed: list[str], command: str
) -> None:
    problems = [
        f"{words} {len(image_ids)} of {len(dataset)} images ({format_examples(image_ids[:_SHOWN], len(image_ids))})"
        for words, image_ids in (("lacks depth for", missing), ("was made from another state of", changed))
        if image_ids
    ]
    if problems:
        raise UserError(f"{store.folder} {' and '.join(problems)}; label these, and only these, with: {command}")


def _fingerprint(provenance: Provenance, image_ids: Sequence[str], records: Sequence[MapRecord]) -> str:
    digest = hashlib.sha256(provenance.fingerprint().encode())
    for image_id, record in zip(image_ids, records, strict=True):
        digest.update(json.dumps([image_id, record.checksum, record.depth_checksum, record.crc32]).encode())
    return digest.hexdigest()

"""The files of one depth store: their names, how they appear on disk at once or not at all, and who may write.

    index.h5                 an external link per image
    shard-00003.h5           up to ``shard_size`` maps
    batch-00004-0007.h5      one labelled batch, waiting to be merged into shard 4

A batch file counts only while its shard does not exist. So publishing the shard retires its batches in one instant, and
a writer killed anywhere between leaves each map exactly once. Of N ranks that write together, rank r has every N-th
number, so that each merges its own batches into shards of its own; numbers may be missing.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple

from data_cache.files import atomic_file

INDEX = "index.h5"
_SHARD = re.compile(r"shard-(\d{5,})\.h5")
_BATCH = re.compile(r"batch-(\d{5,})-(\d{4,})\.h5")


class StoreFiles(NamedTuple):
    """Names of the files that hold maps, in the order they were written."""

    shards: tuple[str, ...]
    batches: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """All of them; of two that hold an image, the later counts."""
        return self.shards + self.batches

    @property
    def next_shard(self) -> int:
        """Number of the shard to be written next, into which the present batches go."""
        after_shards = 1 + max(map(number_of, self.shards), default=-1)
        return max(after_shards, *map(number_of, self.batches), 0)

    @property
    def next_batch(self) -> int:
        """Number of the batch to be written next."""
        return 1 + max((int(name[:-3].split("-")[2]) for name in self.batches), default=-1)


def shard_name(number: int) -> str:
    """Return the file name of a shard."""
    return f"shard-{number:05d}.h5"


def batch_name(shard_number: int, batch_number: int) -> str:
    """Return the file name of a batch that will be merged into that shard."""
    return f"batch-{shard_number:05d}-{batch_number:04d}.h5"


def is_map_file(name: str) -> bool:
    """Whether a shard or batch may have that name."""
    return bool(_SHARD.fullmatch(name) or _BATCH.fullmatch(name))


def list_store_files(folder: Path) -> StoreFiles:
    """List the files that count; batches already merged into a shard do not."""
    names = os.listdir(folder)  # noqa: PTH208 - names only, and quick for many
    shards = sorted((name for name in names if _SHARD.fullmatch(name)), key=number_of)
    merged = {number_of(name) for name in shards}
    batches = [name for name in names if _BATCH.fullmatch(name) and number_of(name) not in merged]
    return StoreFiles(tuple(shards), tuple(sorted(batches, key=lambda name: (number_of(name), len(name), name))))


def remove_leftovers(folder: Path) -> None:
    """Remove what a killed writer left: batches that are already part of a shard."""
    live = list_store_files(folder)
    for path in folder.glob("batch-*"):
        if _BATCH.fullmatch(path.name) and path.name not in live.batches:
            path.unlink(missing_ok=True)


def publish(path: Path, content: bytes | memoryview) -> None:
    """Write a file so that it is absent or complete, and stays so after a power cut; UserError on a full disk."""
    with atomic_file(path) as temporary:
        temporary.write_bytes(content)


def folder_name(split: str, estimator: str, key: str) -> str:
    """Return ``<split>-<estimator>-<hash8>`` with the estimator made fit for a file name."""
    return f"{split}-{_slug(estimator)}-{key}"


def dataset_folder(depth_root: Path, dataset: str) -> Path:
    """Return the folder of a dataset's stores, its name made fit for a file name."""
    return depth_root / _slug(dataset)


def matching_folders(depth_root: Path, dataset: str, split: str, estimator: str) -> list[Path]:
    """Return the store folders of a dataset split and estimator, any hash, sorted by name."""
    prefix = f"{split}-{_slug(estimator)}-"
    pattern = re.compile(re.escape(prefix) + r"[0-9a-f]{8}")
    parent = dataset_folder(depth_root, dataset)
    return sorted(path for path in parent.iterdir() if pattern.fullmatch(path.name)) if parent.is_dir() else []


def number_of(name: str) -> int:
    """Return the number of a shard, or of the shard that a batch will be merged into."""
    return int(name.split("-")[1].removesuffix(".h5"))


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._]+", "-", name).strip("-")[-60:]

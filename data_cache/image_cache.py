"""Decoded images and labels kept in memory that a loader's processes share, so that only the first epoch decodes.

The memory is an anonymous file of Linux (memfd): it has no name, needs no /dev/shm, takes space only where something
was written, and is gone with the last process that has it open, however that ends. Each worker writes into a part of
its own, so none waits for another, and a killed one leaves nothing locked.
"""

from __future__ import annotations

import mmap
import os
from multiprocessing.reduction import DupFd
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import get_worker_info

from data_cache.datasets.interface import SegmentationDataset

CacheChoice = Literal["auto", "on", "off"]

_AUTO_SHARE = 0.5
"""Of the memory that is free when a phase begins, so much may be taken where no limit is given."""
_LOOKED_AT = 32
"""Images from all over a split whose sizes tell how large it is."""
_MARGIN = 1.2
"""The others may be larger, and workers do not fill their parts evenly."""
_MEMORY_FILE = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")


def open_cache(
    dataset: SegmentationDataset, choice: CacheChoice, limit_gb: float | None, *, share: float = 1.0
) -> ImageCache | None:
    """Return room for the images of a split, or None where they are read from their files every time.

    Args:
        dataset: the split.
        choice: ``auto`` keeps a split that fits within the limit and costs time to decode, ``on`` as much as fits.
        limit_gb: None is half of what is free.
        share: of that half for this process; 0 to 1.
    """
    limit = int(share * _AUTO_SHARE * measure_free_memory() if limit_gb is None else limit_gb * 1e9)
    if choice == "off" or not hasattr(os, "memfd_create") or (choice == "auto" and dataset.is_mapped):
        return None
    needed = _estimate_bytes(dataset)
    if choice == "auto" and needed > limit:
        return None
    return ImageCache(len(dataset), min(limit, needed))


def measure_free_memory() -> float:
    """Return the bytes that this process may still take: of the machine, within its control group; 0 if unknown."""
    free = 0.0
    try:
        for line in _MEMORY_FILE.read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                free = 1024 * float(line.split()[1])
        granted = (_CGROUP / "memory.max").read_text(encoding="ascii").strip()
        if granted != "max":
            free = min(free, int(granted) - int((_CGROUP / "memory.current").read_text(encoding="ascii")))
    except (OSError, ValueError):
        pass
    return max(0.0, free)


def _estimate_bytes(dataset: SegmentationDataset) -> int:
    places = {number * len(dataset) // _LOOKED_AT for number in range(_LOOKED_AT)}
    sizes = [height * width for height, width in map(dataset.read_size, sorted(places))]
    return int(_MARGIN * 4 * max(sum(sizes) / len(sizes) * len(dataset), max(sizes)))


class ImageCache:
    """Room for decoded images and labels; may be handed to workers of any start method.

    Args:
        images: of the split.
        limit: bytes; what has no room is not kept.
    """

    def __init__(self, images: int, limit: int) -> None:
        self._images, self._limit = images, limit
        self._taken = 0
        """Bytes of this process's part."""
        self._file = os.memfd_create("images")
        os.ftruncate(self._file, self._size)
        self._map()

    def __getstate__(self) -> dict[str, Any]:
        return {"images": self._images, "limit": self._limit, "file": DupFd(self._file)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._images, self._limit, self._taken = state["images"], state["limit"], 0
        self._file = state["file"].detach()
        self._map()

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            os.close(self._file)

    def find(self, index: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]] | None:
        """Return the image (H, W, 3) and the labels (H, W), not to be written to; None where they are not kept."""
        start, height, width = self._places[index].tolist()
        if not start:
            return None
        pixels = height * width
        kept = self._bytes[start - 1 : start - 1 + 4 * pixels]
        return kept[: 3 * pixels].reshape(height, width, 3), kept[3 * pixels :].reshape(height, width)

    def add(self, index: int, image: NDArray[np.uint8], labels: NDArray[np.uint8]) -> None:
        """Keep an image and its labels if there is room."""
        worker = get_worker_info()
        part, parts = (worker.id, worker.num_workers) if worker else (0, 1)
        room = self._limit // parts
        if self._taken + image.size + labels.size > room or labels.shape != image.shape[:2]:
            return
        start = part * room + self._taken
        self._taken += image.size + labels.size
        self._bytes[start : start + image.size] = image.ravel()
        self._bytes[start + image.size : start + image.size + labels.size] = labels.ravel()
        self._places[index, 1:] = labels.shape
        self._places[index, 0] = start + 1  # last: from then on it is found

    @property
    def _size(self) -> int:
        return 24 * self._images + self._limit

    def _map(self) -> None:
        memory = mmap.mmap(self._file, self._size)
        self._places = np.frombuffer(memory, np.int64, 3 * self._images).reshape(-1, 3)
        """Per image: 1 + where it begins, or 0; height and width."""
        self._bytes = np.frombuffer(memory, np.uint8, self._limit, offset=24 * self._images)

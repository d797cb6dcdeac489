"""How many images a source of depth is given at once: what the device's memory holds, less when that was too much."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from data_cache.errors import Notice, UserError, is_out_of_memory
from stages.pseudo_depth.depth_source import Batched

CPU_BATCH_PX = 400_000
"""Input pixels per batch on a CPU: enough to keep its cores busy, small enough for its caches."""
LARGEST_AUTO_BATCH = 64
"""Keeps any GPU busy; more would only be more to lose when the process is killed."""
MEMORY_SHARE = 0.8
"""Of the free memory that batches may take; the rest is for what else the device is used for."""


class Batching:
    """Runs batches of a source, of a size that fits its device.

    Unless it is given, the size follows from what two images of the first input size need on the device. Where memory
    runs out all the same, because others use the device or images are larger, the batch is run in halves and so is
    all that follows; what is stored is the same, up to the rounding of another batch size.

    Args:
        source: what is run.
        wanted: images per batch; None chooses.
    """

    def __init__(self, source: Batched, wanted: int | None) -> None:
        self._source = source
        self._wanted = wanted
        self._largest_px: int | None = None
        """Input pixels that fit at once; None as long as nobody knows."""

    def choose_size(self, shape: torch.Size) -> int:
        """Return how many images of an input shape (…, h, w) go into a batch."""
        if self._largest_px is None and self._wanted is not None:
            return self._wanted
        if self._largest_px is None:
            self._largest_px = _measure_largest_px(self._source, shape)
        return max(1, min(self._wanted or LARGEST_AUTO_BATCH, self._largest_px // _area(shape)))

    def predict(self, images: Tensor) -> Tensor:
        """Return what the source makes of a batch.

        Raises:
            UserError: the device has too little memory for a single image.
        """
        size = len(images)
        while (maps := self._try(images, size)) is None:
            size = (size + 1) // 2
            self._largest_px = size * _area(images.shape)
        if size < len(images):
            height, width = images.shape[-2:]
            warnings.warn(
                f"{self._source.device} has too little memory for {len(images)} images of {height}x{width} at once; "
                f"labelling goes on with {size} at a time",
                Notice,
                stacklevel=2,
            )
        return maps

    def _try(self, images: Tensor, size: int) -> Tensor | None:
        """Return the maps of a batch, run in parts of a size, or None where there is too little memory for that."""
        try:
            return torch.cat([self._source.predict(part) for part in images.split(size)])
        except (RuntimeError, MemoryError) as problem:
            if not is_out_of_memory(problem):
                raise
            if size == 1:
                height, width = images.shape[-2:]
                raise UserError(
                    f"{self._source.device} has too little memory for one image of {height}x{width}; choose a smaller "
                    "--input-size, --set depth.precision=bfloat16 (float16 on older GPUs), or a smaller estimator"
                ) from problem
        # only now: the exception kept what the pass had computed
        if self._source.device.type == "cuda":
            torch.cuda.empty_cache()
        return None


def _area(shape: torch.Size) -> int:
    return shape[-2] * shape[-1]


def _measure_largest_px(source: Batched, shape: torch.Size) -> int:
    """Return how many input pixels fit on the source's device at once."""
    device = source.device
    if device.type != "cuda":
        return CPU_BATCH_PX
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    try:
        with torch.compiler.set_stance("force_eager"):  # compiled for this batch, it would be compiled again
            source.predict(torch.zeros((2, *shape), dtype=torch.uint8))
    except RuntimeError as problem:
        if not is_out_of_memory(problem):
            raise
        return _area(shape)
    torch.cuda.synchronize(device)
    need = torch.cuda.max_memory_allocated(device) - before
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return compute_largest_px(need, 2 * _area(shape), torch.cuda.mem_get_info(device)[0] + unused)


def compute_largest_px(need_bytes: int, of_px: int, free_bytes: int) -> int:
    """Return how many input pixels fit, when so many needed that much.

    What does not grow with their number counts as if it did: the estimate is rather too small than too large.
    """
    return int(MEMORY_SHARE * free_bytes / max(1, need_bytes) * of_px)

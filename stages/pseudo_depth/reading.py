"""Images on their way to a source of depth: read ahead by threads, gathered into batches of one size."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from data_cache.datasets.interface import SegmentationDataset
from data_cache.errors import UserError
from data_cache.idleness import IdleClock, find_marks
from data_cache.images import ImageNote
from stages.pseudo_depth.batching import Batching
from stages.pseudo_depth.depth_source import Batched

Waited = Literal["images", "disk"]
_UNREADABLE = (UserError, OSError, ValueError, SyntaxError)
"""What reading one bad image raises; Pillow reports a broken PNG as SyntaxError."""
_WAITING_BATCHES = 8
"""Images of rare sizes wait for company; beyond this many batches the fullest group is run as it is."""
_LEAST_AHEAD = 8
_LARGEST_AHEAD_BYTES = 256 << 20
"""What is read ahead of the source: a batch of a network's input, a few maps of a camera's own depth."""


class FailedImage(NamedTuple):
    """An image that was left out, and why."""

    image: str
    reason: str


class Prepared(NamedTuple):
    """An image that is ready for its source of depth."""

    image_id: str
    content: Tensor
    """See ``Reading``."""
    source_size: tuple[int, int]
    checksums: tuple[str, str]
    """See ``compute_checksums``."""
    notes: tuple[ImageNote, ...]


class Waits:
    """Seconds in which the device had nothing to do, by what it waited for."""

    def __init__(self, device: torch.device) -> None:
        self._clocks: dict[str, IdleClock] = {what: IdleClock(find_marks(device)) for what in get_args(Waited)}

    @property
    def seconds(self) -> dict[str, float]:
        """What was counted so far."""
        return {what: clock.seconds for what, clock in self._clocks.items()}

    def count(self, what: Waited) -> AbstractContextManager[None]:
        """Return a context whose time counts, but for that in which the device still has work from before."""
        return self._clocks[what].count()

    def count_each(self, what: Waited, batches: Iterator[list[Prepared]]) -> Iterator[list[Prepared]]:
        """Yield batches, counting the time it takes to get each."""
        while True:
            with self.count(what):
                batch = next(batches, None)
            if batch is None:
                return
            yield batch


def prepare_image(
    dataset: SegmentationDataset, source: Batched, identify: Callable[[int], tuple[str, str]], index: int
) -> Prepared | FailedImage:
    """Read one image; what is wrong with it is a result, not an exception."""
    image_id = dataset.image_ids[index]
    try:
        checksums = identify(index)
        content, source_size, notes = source.read(dataset, index)
    except _UNREADABLE as error:
        return FailedImage(image_id, f"{error}")
    return Prepared(image_id, content, source_size, checksums, notes)


def iterate_batches(
    prepare: Callable[[int], Prepared | FailedImage],
    todo: Sequence[int],
    batching: Batching,
    workers: int,
    failed: list[FailedImage],
) -> Iterator[list[Prepared]]:
    """Yield batches of images that share a size; unreadable images go to ``failed``."""
    groups: dict[torch.Size, list[Prepared]] = {}
    num_waiting = 0
    for prepared in _iterate_prepared(prepare, todo, batching, workers):
        if isinstance(prepared, FailedImage):
            failed.append(prepared)
            continue
        group = groups.setdefault(prepared.content.shape, [])
        group.append(prepared)
        num_waiting += 1
        full = batching.choose_size(prepared.content.shape)
        if len(group) < full and num_waiting >= _WAITING_BATCHES * full:
            group = max(groups.values(), key=len)
            full = len(group)
        if len(group) >= full:
            del groups[group[0].content.shape]
            num_waiting -= len(group)
            yield group
    yield from groups.values()


def _iterate_prepared(
    prepare: Callable[[int], Prepared | FailedImage], todo: Sequence[int], batching: Batching, workers: int
) -> Iterator[Prepared | FailedImage]:
    """Yield images in order, read ahead by threads: decoding and resizing release the interpreter lock."""
    waiting: deque[Future[Prepared | FailedImage]] = deque()
    ahead = _LEAST_AHEAD
    pool = ThreadPoolExecutor(workers, thread_name_prefix="read")
    try:
        for index in todo:
            waiting.append(pool.submit(prepare, index))
            if len(waiting) > workers + ahead:
                yield (prepared := waiting.popleft().result())
                if isinstance(prepared, Prepared):
                    size = batching.choose_size(prepared.content.shape)
                    ahead = max(_LEAST_AHEAD, min(size, _LARGEST_AHEAD_BYTES // prepared.content.nbytes))
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)

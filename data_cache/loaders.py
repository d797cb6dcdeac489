"""Batches of a split: for training the steps of a phase in a reproducible order, for evaluation every image once.

A training sample is a function of (seed, epoch, index) and a batch of (seed, step). So resuming at step k is asking for
``first_step=k``, any number of workers gives the same batches, and torch's global random state is never touched.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from multiprocessing.queues import Queue
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from data_cache.errors import UserError, say_reason
from data_cache.idleness import IdleClock, find_marks
from data_cache.order import steps_per_epoch
from data_cache.ranks import own_rows, share_of, world_size
from data_cache.sample import PackedBatch
from data_cache.samples import EvaluationSamples, Failure, Sample, Samples, Source, TrainingSamples, check_source
from data_cache.settings import AugmentationSettings
from data_cache.size_rule import SizeRule

_CPU = torch.device("cpu")
_ORDER_STREAM, _POOL_ORDER_STREAM = 0, 5
"""First words of the random streams of orders, see ``samples.SAMPLE_STREAM``."""


def build_training_loader(
    source: Source,
    *,
    augmentation: AugmentationSettings,
    batch_size: int,
    pool_size: int = 0,
    parts: int = 1,
    seed: int,
    first_step: int,
    last_step: int,
    workers: int = 0,
    device: torch.device = _CPU,
    with_depth: bool,
) -> Loader:
    """Return the batches of steps ``first_step`` to ``last_step - 1`` of a phase, of several ranks this one's rows.

    Args:
        batch_size: images of all ranks; of a source with a pool labelled ones, the same as without the pool.
        pool_size: images of the source's pool that follow them in every batch.
        parts: into which the batch of every step is cut, one after another; each has its share of both kinds.
        seed: of order and augmentation, at least 0.
        workers: processes that read and augment; 0 does so in this one. The batches are the same.
        device: whom the batches are for; a GPU fetches them by itself, from page-locked memory.
        with_depth: whether batches carry depth; images and labels are the same either way.

    Raises:
        UserError: depth is asked for but missing, or the store belongs to another dataset; while iterating, what a
            person can repair about an image.
    """
    check_source(source, with_depth)
    assert pool_size == 0 or source.pool > 0
    whole = _Steps(len(source.dataset) - source.pool, batch_size, source.pool, pool_size, seed, first_step, last_step)
    steps = _Parts(whole, parts)
    samples = TrainingSamples(source, augmentation, seed, with_depth)
    if world_size() == 1:
        return Loader(samples, steps, workers, device)
    return SharedLoader(samples, steps, workers, device, source.dataset.image_ids)


def build_evaluation_loader(
    source: Source,
    *,
    rule: SizeRule | None,
    batch_size: int,
    workers: int = 0,
    device: torch.device = _CPU,
    with_depth: bool,
    together: bool = False,
    only: Sequence[int] | None = None,
) -> Loader:
    """Return every image of a split once, in order, unaugmented.

    Labels and depth have the labels' own size whatever the rule is, so that scores do not depend on it. A batch holds
    up to ``batch_size`` neighbours of equal size.

    Args:
        rule: at what size images enter; None leaves even those as they are that are too small for networks.
        device: as for training.
        together: whether the ranks of the job share the batches, which are those of one process: each gets some.
        only: indices of the images wanted; None takes all.

    Raises:
        UserError: as for training.
    """
    check_source(source, with_depth)
    wanted = range(len(source.dataset)) if only is None else only
    chunks = [list(wanted[start : start + batch_size]) for start in range(0, len(wanted), batch_size)]
    if together:
        chunks = [chunks[place] for place in share_of(len(chunks))]
    samples = EvaluationSamples(source, rule, with_depth)
    return Loader(samples, chunks, workers, device)


def batch_of_step(step: int, num_images: int, batch_size: int, seed: int) -> tuple[int, list[int]]:
    """Return the epoch and the image indices of a step, in order; a pure function.

    Each epoch visits the images in an order of its own and leaves out the rest that fills no batch.
    """
    epoch, place = divmod(step, steps_per_epoch(num_images, batch_size))
    return epoch, _order(num_images, seed, epoch)[place * batch_size : (place + 1) * batch_size]


def _order(num_images: int, seed: int, epoch: int, stream: int = _ORDER_STREAM) -> list[int]:
    order: list[int] = np.random.default_rng((stream, seed, epoch)).permutation(num_images).tolist()
    return order


class _Steps:
    """The batches of a range of steps as lists of (epoch, index); each epoch's order is drawn once.

    Images of the pool come behind the others in the source as in each batch. Theirs is an order of its own without end:
    as often as all were shown, another one follows, be it within a batch.
    """

    def __init__(
        self, num_images: int, batch_size: int, pool: int, pool_size: int, seed: int, first_step: int, last_step: int
    ) -> None:
        if batch_size < 1 or not 0 <= first_step <= last_step:
            raise ValueError(f"batch_size {batch_size}, steps {first_step} to {last_step}")
        self.num_images, self._batch_size, self._seed = num_images, batch_size, seed
        self._pool, self.pool_size = pool, pool_size
        self._steps = range(first_step, last_step)

    def __len__(self) -> int:
        return len(self._steps)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order: tuple[int, list[int]] = (-1, [])
        pool_order: tuple[int, list[int]] = (-1, [])
        for step in self._steps:
            epoch, place = divmod(step, steps_per_epoch(self.num_images, self._batch_size))
            if order[0] != epoch:
                order = epoch, _order(self.num_images, self._seed, epoch)
            batch = [(epoch, index) for index in order[1][place * self._batch_size : (place + 1) * self._batch_size]]
            for number in range(step * self.pool_size, (step + 1) * self.pool_size):
                epoch, place = divmod(number, self._pool)
                if pool_order[0] != epoch:
                    pool_order = epoch, _order(self._pool, self._seed, epoch, _POOL_ORDER_STREAM)
                batch.append((epoch, self.num_images + pool_order[1][place]))
            yield batch


class _Parts:
    """The batches of steps in equal parts, or nearly so."""

    def __init__(self, steps: _Steps, parts: int) -> None:
        self._steps, self._parts = steps, parts

    def __len__(self) -> int:
        return self._parts * len(self._steps)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for batch in self._steps:
            num_first = len(batch) - self._steps.pool_size
            kinds = (batch[:num_first], batch[num_first:])
            for part in range(self._parts):
                yield [key for kind in kinds for key in _cut(kind, part, self._parts)]

    def count_labelled(self, batch: list[tuple[int, int]]) -> int | None:
        """Return how many images of a batch are not of the pool; None where all are of one kind."""
        return sum(index < self._steps.num_images for _, index in batch) if self._steps.pool_size else None


def _cut(keys: list[tuple[int, int]], part: int, parts: int) -> list[tuple[int, int]]:
    return keys[len(keys) * part // parts : len(keys) * (part + 1) // parts]


class _Rows:
    """This rank's rows of batches."""

    def __init__(self, steps: _Parts) -> None:
        self._steps = steps

    def __len__(self) -> int:
        return len(self._steps)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for batch in self._steps:
            labelled = self._steps.count_labelled(batch)
            yield [batch[row] for row in own_rows(len(batch) if labelled is None else labelled, len(batch))]


class Loader:
    """Batches, as often as it is iterated over; ``len`` counts what the workers are sent, not always batches."""

    def __init__(self, samples: Samples, keys: Any, workers: int, device: torch.device) -> None:
        self._loader = DataLoader(
            samples,
            batch_sampler=keys,
            collate_fn=_collate,
            num_workers=workers,
            pin_memory=device.type == "cuda",
            persistent_workers=workers > 0,
            worker_init_fn=_prepare_worker,
            generator=torch.Generator(),  # its own, or every iteration would draw from the global state
        )
        self.workers = workers
        self._idle = IdleClock(find_marks(device))
        self._first_at: float | None = None
        self._last_at = 0.0

    def __len__(self) -> int:
        return len(self._loader)

    @property
    def waited_s(self) -> float:
        """Seconds in which the device idled for want of batches, but for the first, which waits for workers to start.

        A GPU that still has steps to do does not idle, however long this process waits.
        """
        return self._idle.seconds

    @property
    def wait_share(self) -> float:
        """Share of the time since the first batch in which the device idled for want of others; 0 to 1."""
        return 0.0 if self._first_at is None else self.waited_s / max(self._last_at - self._first_at, 1e-9)

    def __iter__(self) -> Iterator[PackedBatch]:
        try:
            fetched = iter(self._loader)
            while True:
                with nullcontext() if self._first_at is None else self._idle.count():
                    collated = next(fetched, None)
                self._last_at = time.perf_counter()
                if self._first_at is None:
                    self._first_at = self._last_at
                if collated is None:
                    return
                if isinstance(collated, Failure):
                    raise UserError(collated.message)
                yield from collated
        except (RuntimeError, ConnectionError, EOFError) as error:
            # A dead worker is a RuntimeError of torch's, or a broken pipe while its tensors were being handed over.
            if isinstance(error, RuntimeError) and "DataLoader worker (pid" not in str(error):
                raise
            raise UserError(
                f"a data loading worker died ({say_reason(error)}); often there is no memory left, or no shared memory "
                "(/dev/shm). Use fewer workers (--set data.workers=0 uses none) or a smaller batch"
            ) from error


class SharedLoader(Loader):
    """This rank's rows of the batches of several ranks, with the ids and the labelled count of all their images."""

    def __init__(
        self, samples: Samples, steps: _Parts, workers: int, device: torch.device, image_ids: Sequence[str]
    ) -> None:
        super().__init__(samples, _Rows(steps), workers, device)
        self._steps, self._image_ids = steps, image_ids

    def __iter__(self) -> Iterator[PackedBatch]:
        for batch, rows in zip(self._steps, super().__iter__(), strict=True):
            image_ids = tuple(self._image_ids[index] for _, index in batch)
            # Without a pool in the batches a rank's rows are all labelled, or none is: their count is right as it is.
            labelled = self._steps.count_labelled(batch)
            yield rows._replace(image_ids=image_ids, num_labelled=rows.num_labelled if labelled is None else labelled)


def _prepare_worker(_worker: int) -> None:
    """Leave to the parent what is its to answer.

    What a terminal sends to all of its processes: it ends the workers when it is ready to. And a batch that shared
    memory has no space for: Python prints a traceback and drops it, and the parent would wait for it for ever; it
    notices the end of the worker.
    """
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    Queue._on_queue_feeder_error = staticmethod(lambda _problem, _batch: os._exit(1))  # type: ignore[attr-defined]


def _collate(samples: Sequence[Sample | Failure]) -> list[PackedBatch] | Failure:
    groups: list[list[Sample]] = []
    for sample in samples:
        if isinstance(sample, Failure):
            return sample
        if groups and _shapes(groups[-1][0]) == _shapes(sample):
            groups[-1].append(sample)
        else:
            groups.append([sample])
    return [_stack(group) for group in groups]


def _shapes(sample: Sample) -> tuple[torch.Size, torch.Size]:
    return sample.image.shape, sample.seg_labels.shape


def _stack(samples: Sequence[Sample]) -> PackedBatch:
    # Stacked with the channels last, as they lie in memory: channels_last training then needs no copy.
    images = torch.stack([sample.image.permute(1, 2, 0) for sample in samples]).permute(0, 3, 1, 2)
    depths = [sample.inverse_depth for sample in samples if sample.inverse_depth is not None]
    jitters = [sample.jitter for sample in samples if sample.jitter is not None]
    covered = all(sample.placed == (0, 0, *images.shape[2:]) for sample in samples)
    return PackedBatch(
        tuple(sample.image_id for sample in samples),
        images,
        torch.stack([sample.seg_labels for sample in samples]),
        torch.stack(depths) if depths else None,
        None if covered else torch.tensor([sample.placed for sample in samples], dtype=torch.int32),
        torch.tensor(jitters) if jitters else None,
        None if samples[-1].labelled else sum(sample.labelled for sample in samples),
    )

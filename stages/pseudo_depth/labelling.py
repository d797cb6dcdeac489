"""Label a dataset split: images in, depth store out. Reading and writing overlap the network; restarts redo nothing."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from data_cache.arrival import Arrival
from data_cache.content import ContentHashes
from data_cache.datasets.interface import SegmentationDataset
from data_cache.depth_file_build import StoredMap
from data_cache.depth_map import MapRecord, Provenance, UnfitMap
from data_cache.depth_quality import Suspicion, check_worth, find_suspicious
from data_cache.depth_store import store_folder
from data_cache.depth_writer import DepthStoreWriter
from data_cache.errors import UserError
from data_cache.files import check_space
from data_cache.images import ImageNote, NoteTally
from data_cache.ranks import gather_over_ranks, rank, share_of, wait_for_all, world_size
from data_cache.sample import DepthKind
from data_cache.split_depth import compute_checksums
from stages.pseudo_depth.aliases import GROUND_TRUTH
from stages.pseudo_depth.batching import Batching
from stages.pseudo_depth.depth_source import DepthSource
from stages.pseudo_depth.reading import FailedImage, Prepared, Waits, iterate_batches, prepare_image

_STORED_SHARE = 0.5
"""Of the bytes of float16 that a map is certain to take after compression; about 0.75 is usual."""
_QUEUED_BATCHES = 2
"""Finished batches that may wait for the disk."""


class LabelProgress(NamedTuple):
    """Where labelling stands, for whoever shows it."""

    done: int
    """Images labelled or failed in this call."""
    total: int
    """Images this call has to label."""
    images_per_second: float
    eta_s: float
    waits: dict[str, float]
    """As in ``LabelReport``."""


class LabelReport(NamedTuple):
    """What a labelling call did."""

    store: Path
    images: int
    """Images of the split."""
    labelled: int
    skipped: int
    """Images that were in the store already."""
    failed: tuple[FailedImage, ...]
    suspicious: tuple[Suspicion, ...]
    """Maps of the split that are stored but hardly look like depth, those of earlier calls too."""
    notes: tuple[str, ...]
    """How the images of this call were read where that was not a matter of course."""
    seconds: float
    images_per_second: float
    waits: dict[str, float]
    """Share of the time in which the device had nothing to do, by what it waited for: ``images``, ``disk``."""


def describe_store(dataset: SegmentationDataset, source: DepthSource, *, codec: str = "gzip") -> Provenance:
    """Return the provenance of the store that labelling a split would make.

    Raises:
        UserError: when the dataset's ground-truth depth is asked for and there is none.
    """
    own = Provenance(
        dataset=dataset.name,
        split=dataset.split,
        estimator=GROUND_TRUTH,
        revision="",
        weights_sha256="",
        kind=DepthKind.RELATIVE,
        unit="1",
        max_depth_m=None,
        depth_rule="",
        resize_rule="none",
        input_size=None,
        dtype="float32",
        codec=codec,
        licence="the dataset's",
        tool_versions={name: version(name) for name in ("torch", "transformers", "h5py", "pseudo-depth-pipeline")},
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    return source.describe(dataset, own)


def label_split(
    dataset: SegmentationDataset,
    source: DepthSource,
    depth_root: Path,
    *,
    batch_size: int | None = None,
    workers: int = 2,
    codec: str = "gzip",
    hashes: ContentHashes | None = None,
    progress: Callable[[LabelProgress], None] | None = None,
) -> LabelReport:
    """Store a depth map for every image of a split that has none yet, or has changed since.

    Which images those are is decided image by image, by checksum; of maps from ground truth also by that of the depth
    files. So one more image costs one map, and one image less costs nothing.

    Images of one input size form a batch, whatever their own sizes. An image that cannot be read, or for which the
    estimator gives nothing usable, is reported and left out; the others are kept.

    Args:
        dataset: the split.
        source: an opened estimator, or ``GroundTruthDepth()``.
        depth_root: the store becomes ``<dataset>/<split>-<estimator>-<hash8>`` in it.
        batch_size: images per batch; None chooses by input size and the device's memory.
        workers: threads that read and resize images.
        codec: compression of the store.
        hashes: of files, remembered from earlier calls.
        progress: called after every batch.

    Raises:
        UserError: when there is too little space, the store cannot be written or the device has too little memory;
            what was stored is kept.
    """
    if workers < 1 or (batch_size is not None and batch_size < 1):
        raise UserError(f"labelling needs at least 1 worker and batches of at least 1, got {workers} and {batch_size}")
    hashes = hashes or ContentHashes()
    provenance = describe_store(dataset, source, codec=codec)
    folder = store_folder(depth_root, provenance)
    started = time.perf_counter()
    with DepthStoreWriter(folder, provenance, together=world_size() > 1) as writer:
        identify = partial(compute_checksums, dataset, hashes=hashes, of_depth=provenance.depth_rule != "")
        looked_at = share_of(len(dataset))
        found = _find_stored(dataset, looked_at, writer, identify)
        missing = [index for index in looked_at if dataset.image_ids[index] not in found]
        todo = [index for of_rank in gather_over_ranks(missing) for index in of_rank]
        own = [todo[place] for place in share_of(len(todo))]
        writer.expect(dataset.image_ids[index] for index in set(todo).difference(own))
        prepare = partial(prepare_image, dataset, source, identify)
        labelling = _Labelling(source, writer, own, len(todo), progress)
        labelling.run(prepare, Batching(source, batch_size), workers)
        labelling.records |= found
        done = labelling.gather()
    with suppress(OSError):  # where not one map could be made, no store is left that later commands would ask about
        folder.rmdir()
    _save_in_turn(hashes)
    check_worth(done.records, folder)
    return done.report(dataset, folder, len(todo), time.perf_counter() - started)


def _find_stored(
    dataset: SegmentationDataset,
    indices: Iterable[int],
    writer: DepthStoreWriter,
    identify: Callable[[int], tuple[str, str]],
) -> dict[str, MapRecord]:
    """Return the records of the images among these whose map is in the store already."""
    records: dict[str, MapRecord] = {}
    for index in indices:
        if (image_id := dataset.image_ids[index]) in writer.image_ids:
            with suppress(UserError):  # an image that cannot be read any more is reported when it is its turn
                if (record := writer.find(image_id, *identify(index))) is not None:
                    records[image_id] = record
    return records


def _save_in_turn(hashes: ContentHashes) -> None:
    """Save what ranks have hashed, one after the other, so that none replaces what another has just added."""
    for turn in range(world_size()):
        if turn == rank():
            hashes.save()
        wait_for_all()


class _Labelled(NamedTuple):
    """What one rank, or all, have done."""

    records: dict[str, MapRecord]
    """Of the maps of the split that are in the store."""
    failed: list[FailedImage]
    noted: Sequence[tuple[str, Sequence[str]]]
    waits: dict[str, float]
    """Seconds; of all ranks their mean."""

    def report(self, dataset: SegmentationDataset, store: Path, num_asked: int, seconds: float) -> LabelReport:
        """Return what the call did that was to label so many images, in the order of the split."""
        order = {image_id: index for index, image_id in enumerate(dataset.image_ids)}
        tally = NoteTally()
        for image_id, notes in sorted(self.noted, key=lambda noted: order[noted[0]]):
            tally.add(image_id, notes)
        records = {image_id: self.records[image_id] for image_id in sorted(self.records, key=order.__getitem__)}
        labelled = num_asked - len(self.failed)
        return LabelReport(
            store=store,
            images=len(dataset),
            labelled=labelled,
            skipped=len(dataset) - num_asked,
            failed=tuple(sorted(self.failed, key=lambda failure: order[failure.image])),
            suspicious=tuple(find_suspicious(records)),
            notes=tuple(f"{dataset.split}: {line}" for line in tally.lines()),
            seconds=seconds,
            images_per_second=labelled / seconds,
            waits={what: round(waited_s / seconds, 4) for what, waited_s in self.waits.items()},
        )


class _Labelling:
    """Images on their way into a store: read ahead, estimated, written behind."""

    def __init__(
        self,
        source: DepthSource,
        writer: DepthStoreWriter,
        own: Sequence[int],
        total: int,
        progress: Callable[[LabelProgress], None] | None,
    ) -> None:
        self.records: dict[str, MapRecord] = {}
        """Of the maps stored in this call."""
        self.failed: list[FailedImage] = []
        self.noted: list[tuple[str, tuple[ImageNote, ...]]] = []
        self.waits = Waits(source.device)
        self._source, self._writer, self._own, self._total, self._progress = source, writer, own, total, progress

    def run(self, prepare: Callable[[int], Prepared | FailedImage], batching: Batching, workers: int) -> None:
        """Label this rank's images; left only when all that was submitted is written, also after Ctrl-C."""
        started, done = time.perf_counter(), 0
        batches = iterate_batches(prepare, self._own, batching, workers, self.failed)
        with (
            ThreadPoolExecutor(workers, thread_name_prefix="pack") as self._packers,
            ThreadPoolExecutor(1, thread_name_prefix="store") as disk,
        ):
            waiting: deque[Future[None]] = deque()
            for batch in self.waits.count_each("images", batches):
                images = torch.stack([image.content for image in batch])
                if done == 0:
                    self._check_space(images.shape)
                maps = batching.predict(images)
                if done == 0:
                    self._source.check_alive(images, maps)
                waiting.append(disk.submit(self._store, batch, Arrival(maps)))
                if len(waiting) > _QUEUED_BATCHES:
                    with self.waits.count("disk"):
                        waiting.popleft().result()
                done += len(batch)
                self._report(done + len(self.failed), time.perf_counter() - started)
            with self.waits.count("disk"):
                for written in waiting:
                    written.result()

    def _check_space(self, shape: torch.Size) -> None:
        """Compare what all ranks are to store with the space there is; the first images stand for all."""
        bytes_needed = int(self._total * shape[-2] * shape[-1] * 2 * _STORED_SHARE)
        check_space(self._writer.folder, bytes_needed, f"the depth maps of {self._total} images")

    def _store(self, batch: list[Prepared], maps: Arrival) -> None:
        """Check and write the maps (B, h, w) of a batch; unusable ones are failures."""
        for image, stored in zip(batch, self._packers.map(self._pack, batch, maps.wait().numpy()), strict=True):
            try:
                if isinstance(stored, UnfitMap):
                    raise stored
                self.records[image.image_id] = self._writer.add(stored)
            except UnfitMap as problem:
                self.failed.append(FailedImage(image.image_id, str(problem)))
            if image.notes:
                self.noted.append((image.image_id, image.notes))
        self._writer.commit()

    def _pack(self, image: Prepared, raw: NDArray[np.float32]) -> StoredMap | UnfitMap:
        """Check a map and make it ready for the disk; several at once, in threads of their own."""
        try:
            self._source.check_map(raw)
            return self._writer.prepare(image.image_id, raw, image.source_size, *image.checksums)
        except UnfitMap as problem:
            return problem

    def _report(self, seen: int, elapsed_s: float) -> None:
        """Say how far all ranks are, taking the others to be as far as this one."""
        if self._progress is not None:
            seen = round(seen * self._total / len(self._own))
            rate = seen / elapsed_s
            waits = {what: waited_s / elapsed_s for what, waited_s in self.waits.seconds.items()}
            self._progress(LabelProgress(seen, self._total, rate, (self._total - seen) / rate, waits))

    def gather(self) -> _Labelled:
        """Return what all ranks have done."""
        own = _Labelled(self.records, self.failed, self.noted, dict(self.waits.seconds))
        every = [_Labelled(*parts) for parts in gather_over_ranks(own)]
        return _Labelled(
            {image_id: MapRecord(*record) for each in every for image_id, record in each.records.items()},
            [FailedImage(*failure) for each in every for failure in each.failed],
            [(image_id, notes) for each in every for image_id, notes in each.noted],
            {what: sum(each.waits[what] for each in every) / len(every) for what in own.waits},
        )

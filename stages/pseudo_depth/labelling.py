"""Label a dataset split: images in, depth store out. Reading and writing overlap the network; restarts redo nothing."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data_cache.content import ContentHashes
from data_cache.datasets.interface import SegmentationDataset
from data_cache.depth_map import MapRecord, Provenance, UnfitMap
from data_cache.depth_quality import Suspicion, check_worth, find_suspicious
from data_cache.depth_store import store_folder
from data_cache.depth_writer import DepthStoreWriter
from data_cache.errors import UserError
from data_cache.files import check_space
from data_cache.images import ImageNote, NoteTally
from data_cache.sample import DepthKind
from data_cache.split_depth import compute_checksums
from stages.pseudo_depth.aliases import GROUND_TRUTH
from stages.pseudo_depth.estimators import DepthEstimator

_UNREADABLE = (UserError, OSError, ValueError, SyntaxError)
"""What reading one bad image raises; Pillow reports a broken PNG as SyntaxError."""

_BATCH_PIXELS = {"cpu": 400_000, "cuda": 8_000_000}
"""Input pixels per batch when no batch size is given: enough to keep the device busy, far from filling it."""
_LARGEST_AUTO_BATCH = 64
_GROUND_TRUTH_AHEAD = 8
_WAITING_BATCHES = 8
"""Images of rare sizes wait for company; beyond this many batches the fullest group is run as it is."""
_STORED_SHARE = 0.5
"""Of the bytes of float16 that a map is certain to take after compression; about 0.75 is usual."""
_QUEUED_BATCHES = 2
"""Finished batches that may wait for the disk."""


@dataclass(frozen=True)
class GroundTruthDepth:
    """The estimator that is none: passes the dataset's ground-truth depth on into a store."""


class LabelProgress(NamedTuple):
    """Where labelling stands, for whoever shows it."""

    done: int
    """Images labelled or failed in this call."""
    total: int
    """Images this call has to label."""
    images_per_second: float
    eta_s: float


class FailedImage(NamedTuple):
    """An image that was left out, and why."""

    image: str
    reason: str


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


class _Prepared(NamedTuple):
    """An image that is ready: for the network as uint8 (3, h, w), or ground-truth depth (h, w) as it will be stored."""

    image_id: str
    content: Tensor
    source_size: tuple[int, int]
    checksums: tuple[str, str]
    """See ``compute_checksums``."""
    notes: tuple[ImageNote, ...]


def describe_store(
    dataset: SegmentationDataset, estimator: DepthEstimator | GroundTruthDepth, *, codec: str = "lzf"
) -> Provenance:
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
        kind=dataset.ground_truth_depth_kind or DepthKind.RELATIVE,
        unit="m" if dataset.ground_truth_depth_kind is DepthKind.METRIC else "1",
        max_depth_m=None,
        depth_rule=dataset.depth_rule,
        resize_rule="none",
        input_size=None,
        dtype="float32",
        codec=codec,
        licence="the dataset's",
        tool_versions={name: version(name) for name in ("torch", "transformers", "h5py", "pseudo-depth-pipeline")},
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    if isinstance(estimator, DepthEstimator):
        return replace(
            own,
            estimator=estimator.spec.alias,
            revision=estimator.revision or "",
            weights_sha256=estimator.weights_sha256,
            kind=estimator.spec.kind,
            unit=estimator.spec.unit,
            max_depth_m=estimator.spec.max_depth_m,
            depth_rule="",
            resize_rule=estimator.resize_rule,
            input_size=estimator.spec.recommended_size,
            dtype=estimator.precision,
            licence=estimator.spec.licence,
        )
    if dataset.ground_truth_depth_kind is None:
        if dataset.sources(0).depth:
            dataset.read_depth(0)  # maps of which nobody said what they mean: the message says how
        raise UserError(
            f"dataset {dataset.name!r} brings no ground-truth depth: estimator {GROUND_TRUTH!r} has nothing to store; "
            "choose another, e.g. --estimator bundled"
        )
    return own


def label_split(
    dataset: SegmentationDataset,
    estimator: DepthEstimator | GroundTruthDepth,
    depth_root: Path,
    *,
    batch_size: int | None = None,
    workers: int = 2,
    codec: str = "lzf",
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
        estimator: an opened estimator, or ``GroundTruthDepth()``.
        depth_root: the store becomes ``<dataset>/<split>-<estimator>-<hash8>`` in it.
        batch_size: images per batch; None chooses by input size and device.
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
    provenance = describe_store(dataset, estimator, codec=codec)
    folder = store_folder(depth_root, provenance)
    started = time.perf_counter()
    with DepthStoreWriter(folder, provenance) as writer:
        identify = partial(compute_checksums, dataset, hashes=hashes, of_depth=provenance.depth_rule != "")
        records = _find_stored(dataset, writer, identify)
        todo = [index for index, image_id in enumerate(dataset.image_ids) if image_id not in records]
        failed: list[FailedImage] = []
        tally = NoteTally()
        done = 0
        prepare = partial(_prepare, dataset, estimator, identify)
        _check_space(prepare, todo, folder)
        store = partial(_store, writer, estimator, failed, records)
        # Left only when all that was submitted is written, also after Ctrl-C.
        with ThreadPoolExecutor(1, thread_name_prefix="store") as disk:
            waiting: deque[Future[None]] = deque()
            for batch in _iterate_batches(prepare, estimator, todo, batch_size, workers, failed):
                maps = _estimate(estimator, batch)
                if done == 0:
                    _check_alive(estimator, batch, maps)
                waiting.append(disk.submit(store, batch, maps))
                if len(waiting) > _QUEUED_BATCHES:
                    waiting.popleft().result()
                done += len(batch)
                for image in batch:
                    tally.add(image.image_id, image.notes)
                if progress is not None:
                    seen = done + len(failed)
                    rate = seen / (time.perf_counter() - started)
                    progress(LabelProgress(seen, len(todo), rate, (len(todo) - seen) / rate))
            for written in waiting:
                written.result()
    hashes.save()
    check_worth(records, folder)
    seconds = time.perf_counter() - started
    labelled = len(todo) - len(failed)
    order = {image_id: index for index, image_id in enumerate(dataset.image_ids)}
    return LabelReport(
        store=folder,
        images=len(dataset),
        labelled=labelled,
        skipped=len(dataset) - len(todo),
        failed=tuple(sorted(failed, key=lambda failure: order[failure.image])),
        suspicious=tuple(find_suspicious(records)),
        notes=tuple(f"{dataset.split}: {line}" for line in tally.lines()),
        seconds=seconds,
        images_per_second=labelled / seconds,
    )


def _find_stored(
    dataset: SegmentationDataset, writer: DepthStoreWriter, identify: Callable[[int], tuple[str, str]]
) -> dict[str, MapRecord]:
    """Return the records of the images whose map is in the store already."""
    records: dict[str, MapRecord] = {}
    for index, image_id in enumerate(dataset.image_ids):
        if image_id in writer.image_ids:
            with suppress(UserError):  # an image that cannot be read any more is reported when it is its turn
                if (record := writer.find(image_id, *identify(index))) is not None:
                    records[image_id] = record
    return records


def _check_space(prepare: Callable[[int], _Prepared | FailedImage], todo: list[int], folder: Path) -> None:
    """Compare what is still to be stored with the space there is; the first image that can be read stands for all."""
    first = next((image for image in map(prepare, todo) if isinstance(image, _Prepared)), None)
    if first is not None:
        height, width = first.content.shape[-2:]
        bytes_needed = int(len(todo) * height * width * 2 * _STORED_SHARE)
        check_space(folder, bytes_needed, f"the depth maps of {len(todo)} images")


def _estimate(estimator: DepthEstimator | GroundTruthDepth, batch: list[_Prepared]) -> Tensor:
    images = torch.stack([image.content for image in batch])
    if isinstance(estimator, GroundTruthDepth):
        return images
    try:
        return estimator.predict(images)
    except torch.OutOfMemoryError as error:
        height, width = images.shape[-2:]
        raise UserError(
            f"{estimator.device} has too little memory for {len(batch)} images of {height}x{width}; "
            f"lower --batch-size below {len(batch)}, or --input-size"
        ) from error


def _check_alive(estimator: DepthEstimator | GroundTruthDepth, batch: list[_Prepared], maps: Tensor) -> None:
    """Refuse an estimator that sees nothing, by its first maps (B, h, w), before the data set is spent on it.

    A blank image may have a flat map. So where no map tells anything, the estimator is shown noise.
    """
    if isinstance(estimator, GroundTruthDepth) or any(_tells_something(each) for each in maps):
        return
    shape = (1, *batch[0].content.shape)
    noise = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    of_noise = estimator.predict(noise)[0]
    if not _tells_something(of_noise):
        low, high = float(of_noise.min()), float(of_noise.max())
        gives = f"depth from {low:.4g} to {high:.4g}" if high > low else f"depth {low:.4g} everywhere"
        hint = "; try --set depth.precision=float32" if estimator.precision != "float32" else ""
        raise UserError(
            f"estimator {estimator.spec.alias!r} gives {gives}, for the first images and for noise; its weights are "
            f"damaged or untrained, fetch or teach them again{hint}"
        )


def _tells_something(depth: Tensor) -> bool:
    """Whether a map (h, w), as it would be stored, is finite and not constant."""
    stored = depth.half()
    return bool(torch.isfinite(stored).all()) and bool(stored.min() != stored.max())


def _iterate_batches(
    prepare: Callable[[int], _Prepared | FailedImage],
    estimator: DepthEstimator | GroundTruthDepth,
    todo: list[int],
    batch_size: int | None,
    workers: int,
    failed: list[FailedImage],
) -> Iterator[list[_Prepared]]:
    """Yield batches of images that share a size; unreadable images go to ``failed``."""
    # for a network a whole batch ahead, resized; ground-truth depth comes at full size and goes straight to the disk
    ahead = _GROUND_TRUTH_AHEAD if isinstance(estimator, GroundTruthDepth) else _LARGEST_AUTO_BATCH
    groups: dict[torch.Size, list[_Prepared]] = {}
    num_waiting = 0
    for prepared in _iterate_prepared(prepare, todo, workers, ahead):
        if isinstance(prepared, FailedImage):
            failed.append(prepared)
            continue
        group = groups.setdefault(prepared.content.shape, [])
        group.append(prepared)
        num_waiting += 1
        full = _batch_size(estimator, prepared.content.shape, batch_size)
        if len(group) < full and num_waiting >= _WAITING_BATCHES * full:
            group = max(groups.values(), key=len)
            full = len(group)
        if len(group) >= full:
            del groups[group[0].content.shape]
            num_waiting -= len(group)
            yield group
    yield from groups.values()


def _batch_size(estimator: DepthEstimator | GroundTruthDepth, shape: torch.Size, wanted: int | None) -> int:
    if wanted is not None:
        return wanted
    device = "cpu" if isinstance(estimator, GroundTruthDepth) else estimator.device.type
    budget = _BATCH_PIXELS.get(device, _BATCH_PIXELS["cpu"])
    return min(_LARGEST_AUTO_BATCH, max(1, budget // (shape[-2] * shape[-1])))


def _iterate_prepared(
    prepare: Callable[[int], _Prepared | FailedImage], todo: list[int], workers: int, ahead: int
) -> Iterator[_Prepared | FailedImage]:
    """Yield images in order, read ahead by threads: decoding and resizing release the interpreter lock."""
    waiting: deque[Future[_Prepared | FailedImage]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="read")
    try:
        for index in todo:
            waiting.append(pool.submit(prepare, index))
            if len(waiting) > workers + ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _prepare(
    dataset: SegmentationDataset,
    estimator: DepthEstimator | GroundTruthDepth,
    identify: Callable[[int], tuple[str, str]],
    index: int,
) -> _Prepared | FailedImage:
    try:
        checksums = identify(index)
        image, notes = dataset.read_noted_image(index)
        if isinstance(estimator, GroundTruthDepth):
            content = torch.from_numpy(np.array(dataset.read_matching_depth(index, image.shape[:2]), np.float32))
        else:
            content = estimator.prepare(image)
    except _UNREADABLE as error:
        return FailedImage(dataset.image_ids[index], f"{error}")
    height, width = image.shape[:2]
    return _Prepared(dataset.image_ids[index], content, (height, width), checksums, notes)


def _store(
    writer: DepthStoreWriter,
    estimator: DepthEstimator | GroundTruthDepth,
    failed: list[FailedImage],
    records: dict[str, MapRecord],
    batch: list[_Prepared],
    maps: Tensor,
) -> None:
    """Fetch the maps (B, h, w) of a batch from the device, check and write them; unusable ones go to ``failed``."""
    for image, raw in zip(batch, maps.cpu().numpy(), strict=True):
        try:
            _check_finite(raw, estimator)
            records[image.image_id] = writer.add(image.image_id, raw, image.source_size, *image.checksums)
        except UnfitMap as problem:
            failed.append(FailedImage(image.image_id, str(problem)))
    writer.commit()


def _check_finite(raw: NDArray[np.float32], estimator: DepthEstimator | GroundTruthDepth) -> None:
    if isinstance(estimator, GroundTruthDepth):  # it may say nan for unknown and inf for the sky
        return
    num_bad = int(np.count_nonzero(~np.isfinite(raw)))
    if num_bad:
        hint = "; try --precision float32" if estimator.precision != "float32" else ""
        raise UnfitMap(f"the estimator gave {num_bad} of {raw.size} values that are not finite{hint}")

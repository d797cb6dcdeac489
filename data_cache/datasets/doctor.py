"""Examine a dataset before hours are spent on it: pairs, ids, sizes, void, classes, all problems in one go."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_cache.content import ContentHashes
from data_cache.datasets import DATASETS, check_dataset_arguments, open_dataset
from data_cache.datasets.interface import SegmentationDataset
from data_cache.datasets.mask_files import LabelProblem, format_id_table
from data_cache.errors import UserError
from data_cache.images import EXAMPLES, MissingFile, NoteTally, format_examples
from data_cache.sample import IGNORE_INDEX, SMALLEST_INPUT_PX

_SMALL = f"with a side below {SMALLEST_INPUT_PX} px, the least that networks promise to take"

_MUCH_VOID = 0.3
"""Share of void pixels worth a note; Pascal VOC has about 0.06, CamVid 0.04."""

_KINDS = {
    "image": "images that cannot be read",
    "unpaired image": "images without a mask",
    "unpaired mask": "masks without an image",
    "mask": "masks that cannot be read",
    "colour": "masks that are RGB images instead of ids",
    "size": "masks of another size than their image",
    "ids": "masks with ids outside the table",
    "depth": "ground-truth depth maps that cannot be read",
}


@dataclass(frozen=True)
class DoctorReport:
    """What was found; plain values, ready for JSON. All mappings go by split."""

    dataset: str
    problems: list[str]
    """What will stop or spoil a training, one sentence each."""
    notes: list[str]
    """What is worth knowing and may be meant so."""
    images: dict[str, int]
    labelled: dict[str, int]
    """Images with a usable mask."""
    classes: dict[str, dict[str, float]]
    """Share of each class in the labelled pixels, in [0, 1]."""
    void: dict[str, float]
    """Share of void in the pixels of usable masks, in [0, 1]."""
    sizes: dict[str, dict[str, int]]
    """Images per size ("width x height"), the ten most frequent."""
    id_table: str
    """What each id in a mask file means."""


@dataclass
class _Finding:
    count: int = 0
    examples: list[str] = field(default_factory=list)
    detail: str = ""


class _SplitExamination:
    """Counts of one split, gathered image by image."""

    def __init__(self, dataset: SegmentationDataset) -> None:
        self.dataset = dataset
        self.hashes = ContentHashes()
        self.findings: dict[str, _Finding] = {}
        self.sizes: Counter[str] = Counter()
        self.pixels = np.zeros(256, dtype=np.int64)
        self.labelled = 0
        self.unknown_ids: set[int] = set()
        self.tally = NoteTally()

    def note(self, kind: str, example: str, detail: str = "") -> None:
        finding = self.findings.setdefault(kind, _Finding())
        finding.count += 1
        if len(finding.examples) < EXAMPLES:
            finding.examples.append(example)
        finding.detail = finding.detail or detail

    def look_at(self, index: int) -> str | None:
        """Examine an image with all that belongs to it; return its checksum if it could be read."""
        image_id = self.dataset.image_ids[index]
        try:
            image = self.dataset.read_noted_image(index)
            checksum = self.hashes.hash(self.dataset.sources(index).image)
        except UserError as error:
            self.note("image", image_id, str(error))
            return None
        height, width = image.pixels.shape[:2]
        self.sizes[f"{width} x {height}"] += 1
        self.tally.add(image_id, (*image.notes, *([_SMALL] if min(height, width) < SMALLEST_INPUT_PX else [])))
        self._look_at_labels(index, image_id)
        if self.dataset.ground_truth_depth_kind is not None:
            try:
                self.dataset.read_depth(index)
            except UserError as error:
                self.note("depth", image_id, str(error))
        return checksum

    def _look_at_labels(self, index: int, image_id: str) -> None:
        try:
            self._count(self.dataset.read_labels(index))
        except MissingFile as missing:
            self.note("unpaired image", image_id, f"the first belongs at {missing.path}")
        except LabelProblem as problem:
            self.note(problem.kind, image_id, problem.detail and f"the first has {problem.detail}")
            # A resized mask may have thousands of stray values; a few are enough.
            self.unknown_ids.update(problem.unknown_ids[:32])
        except UserError as error:
            self.note("mask", image_id, str(error))

    def _count(self, labels: NDArray[np.uint8]) -> None:
        self.labelled += 1
        self.pixels += np.bincount(labels.ravel(), minlength=256)

    def compute_shares(self) -> tuple[dict[str, float], float]:
        """Return each class's share of the labelled pixels, and void's share of all."""
        counts = self.pixels[: len(self.dataset.classes)]
        labelled, void = int(counts.sum()), int(self.pixels[IGNORE_INDEX])
        shares = {
            name: float(count / labelled) if labelled else 0.0
            for name, count in zip(self.dataset.classes, counts.tolist(), strict=True)
        }
        return shares, void / (labelled + void) if labelled + void else 0.0

    def list_problems(self) -> list[str]:
        lines = []
        for kind, words in _KINDS.items():
            if kind not in self.findings:
                continue
            finding = self.findings[kind]
            detail = finding.detail
            if kind == "ids":
                ids = format_examples(map(str, sorted(self.unknown_ids)[:20]), len(self.unknown_ids))
                table = format_id_table(self.dataset.raw_ids, self.dataset.classes)
                detail = f"ids {ids}; the table is {table}"
            examples = format_examples(finding.examples, finding.count)
            lines.append(f"{self.dataset.split}: {words}: {finding.count} ({examples}){'; ' if detail else ''}{detail}")
        return lines


def examine(
    name: str,
    root: Path | None,
    *,
    splits: tuple[str, ...] | None = None,
    progress: Callable[[str, int, int], None] | None = None,
    **options: Any,
) -> DoctorReport:
    """Examine a dataset: every image, mask and ground-truth depth map is read once, one at a time.

    Args:
        name: key of ``DATASETS``.
        root: its folder.
        splits: which to look at; by default those of ``find_splits``.
        progress: called with split, images done and images in the split.
        options: of the dataset.

    Returns:
        The report; problems of the data are in it and raise nothing.

    Raises:
        UserError: for an unknown dataset or option, or a missing root.
    """
    check_dataset_arguments(name, root, options)
    report = DoctorReport(name, [], [], {}, {}, {}, {}, {}, "")
    id_table = ""
    seen: dict[str, str] = {}
    for split in splits or DATASETS[name].find_splits(root):
        try:
            dataset = open_dataset(name, root, split, **options)
        except UserError as error:
            _add_unopened(report, split, str(error), asked_for=splits is not None)
            continue
        id_table = format_id_table(dataset.raw_ids, dataset.classes)
        examination = _SplitExamination(dataset)
        twins = _look_through(examination, seen, progress)
        _add_split(report, examination, twins)
    return DoctorReport(**{**vars(report), "id_table": id_table})


def _look_through(
    examination: _SplitExamination, seen: dict[str, str], progress: Callable[[str, int, int], None] | None
) -> Counter[str]:
    """Look at every image; return how many have a byte-identical twin in each split seen so far."""
    dataset = examination.dataset
    twins: Counter[str] = Counter()
    for index in range(len(dataset)):
        checksum = examination.look_at(index)
        if checksum is not None:
            if checksum in seen:
                twins[seen[checksum]] += 1
            seen.setdefault(checksum, dataset.split)
        if progress is not None:
            progress(dataset.split, index + 1, len(dataset))
    for orphan in dataset.orphans:
        examination.note("unpaired mask", orphan.name)
    return twins


def _add_unopened(report: DoctorReport, split: str, message: str, *, asked_for: bool) -> None:
    """Record a split that does not open; without a test split one can still work."""
    report.images[split] = 0
    lines = report.problems if asked_for or split != "test" else report.notes
    if message not in report.problems:
        lines.append(message)


def _add_split(report: DoctorReport, examination: _SplitExamination, twins: Counter[str]) -> None:
    dataset = examination.dataset
    split = dataset.split
    shares, void = examination.compute_shares()
    report.images[split] = len(dataset)
    report.labelled[split] = examination.labelled
    report.classes[split] = shares
    report.void[split] = void
    report.sizes[split] = dict(examination.sizes.most_common(10))
    unpaired = examination.findings.get("unpaired image")
    if split == "test" and unpaired is not None and unpaired.count == len(dataset):
        # Test labels are often kept back by the makers of a dataset.
        del examination.findings["unpaired image"]
        report.notes.append(f"{split}: no image has a mask; it can be labelled with depth and predicted, not scored")
    report.problems.extend(examination.list_problems())
    report.notes.extend(f"{split}: {line}" for line in examination.tally.lines())
    for other, count in twins.items():
        where = "within the split" if other == split else f"in {other}"
        report.problems.append(f"{split}: images with a byte-identical copy {where}: {count}; scores would flatter")
    if examination.labelled:
        if void == 1.0:
            report.problems.append(f"{split}: every pixel is void; there is nothing to learn or score")
        elif void > _MUCH_VOID:
            report.notes.append(f"{split}: {void:.0%} of the pixels are void")
        absent = [name for name, share in shares.items() if share == 0.0]
        if absent and void < 1.0:
            report.notes.append(f"{split}: no pixel of {', '.join(absent)}")

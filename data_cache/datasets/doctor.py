"""Examine a dataset before hours are spent on it: pairs, ids, sizes, void, classes, all problems in one go."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_cache.content import ContentHashes
from data_cache.datasets import EmptySplit, check_dataset_arguments, find_dataset, open_dataset
from data_cache.datasets.examination import UNPAIRED, Examination, Progress, examine_splits
from data_cache.datasets.interface import SegmentationDataset
from data_cache.datasets.mask_files import format_id_table
from data_cache.datasets.spoilers import find_missing_splits, find_spoilers
from data_cache.errors import UserError


@dataclass
class DoctorReport:
    """What was found; plain values, ready for JSON. All mappings go by split."""

    dataset: str
    problems: list[str] = field(default_factory=list)
    """What will stop or spoil a training, one sentence each."""
    notes: list[str] = field(default_factory=list)
    """What is worth knowing and may be meant so."""
    images: dict[str, int] = field(default_factory=dict)
    labelled: dict[str, int] = field(default_factory=dict)
    """Images with a usable mask."""
    classes: dict[str, dict[str, float]] = field(default_factory=dict)
    """Share of each class in the labelled pixels, in [0, 1]; of splits whose masks are read."""
    void: dict[str, float] = field(default_factory=dict)
    """Share of void in the pixels of usable masks, in [0, 1]."""
    sizes: dict[str, dict[str, int]] = field(default_factory=dict)
    """Images per size ("width x height"), the ten most frequent."""
    id_table: str = ""
    """What each id in a mask file means."""


def examine(
    name: str,
    root: Path | None,
    *,
    splits: tuple[str, ...] | None = None,
    needed: tuple[str, ...] = ("train", "val"),
    weighted: bool = False,
    progress: Progress | None = None,
    **options: Any,
) -> DoctorReport:
    """Examine a dataset: every image, mask and ground-truth depth map is read once.

    Args:
        name: key of ``DATASETS``, or of a plug-in.
        root: its folder.
        splits: which to look at; by default those of ``find_splits``.
        needed: splits that a training needs; of no account where ``splits`` says which to look at.
        weighted: whether rare classes weigh more in the loss.
        progress: called with split, images done and images in the split.
        options: of the dataset.

    Returns:
        The report; problems of the data are in it and raise nothing.

    Raises:
        UserError: for an unknown dataset or option, or a missing root.
    """
    check_dataset_arguments(name, root, options)
    report = DoctorReport(name)
    datasets: list[SegmentationDataset] = []
    for split in splits or find_dataset(name).find_splits(root, options):
        try:
            datasets.append(open_dataset(name, root, split, **options))
        except EmptySplit as error:
            if split != find_dataset(name).pool_split or splits is not None:
                _add_unopened(report, split, str(error), asked_for=splits is not None)
        except UserError as error:
            _add_unopened(report, split, str(error), asked_for=splits is not None)
        else:
            report.id_table = format_id_table(datasets[-1].raw_ids, datasets[-1].classes)
    seen = list(examine_splits(datasets, ContentHashes(), progress=progress, thorough=True))
    for examination in seen:
        _add_split(report, examination)
    problems, notes = find_spoilers(seen, weighted=weighted)
    missing = find_missing_splits(report.images, () if splits else needed)
    report.problems[:0] = missing
    report.problems += problems
    absent = "train: classes of which no pixel"
    told = any(line.startswith(absent) for line in problems)  # as a problem, which is a note in other splits
    report.notes = [line for line in report.notes if not (told and line.startswith(absent))] + notes
    return report


def _add_unopened(report: DoctorReport, split: str, message: str, *, asked_for: bool) -> None:
    """Record a split that does not open; without a test split one can still work."""
    report.images[split] = 0
    lines = report.problems if asked_for or split != "test" else report.notes
    if message not in report.problems:
        lines.append(message)


def _add_split(report: DoctorReport, examination: Examination) -> None:
    dataset = examination.dataset
    split = dataset.split
    report.images[split] = len(dataset)
    report.labelled[split] = examination.labelled
    report.void[split] = 0.0
    if dataset.has_masks:
        report.classes[split], report.void[split] = examination.compute_shares()
    report.sizes[split] = dict(examination.sizes.most_common(10))
    if split == "test" and examination.flaws.counts[UNPAIRED] == len(dataset):
        # Test labels are often kept back by the makers of a dataset.
        del examination.flaws.counts[UNPAIRED]
        report.notes.append(f"{split}: no image has a mask; it can be labelled with depth and predicted, not scored")
    report.problems += [*examination.list_problems(), *examination.list_doubts()]
    report.notes += examination.list_notes()

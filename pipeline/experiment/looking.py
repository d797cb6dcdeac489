"""Looking at images and masks before anything is trained or scored: all that is wrong is told at once."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from data_cache.datasets.examination import UNPAIRED, Examination, examine_splits, list_copies, remember_looks
from data_cache.datasets.interface import SegmentationDataset
from data_cache.errors import UserError
from data_cache.images import EXAMPLES, format_examples
from pipeline.experiment.artifacts import open_split
from pipeline.experiment.config import RunConfig
from pipeline.session import Session
from pipeline.workspace import Workspace


def open_masked_split(config: RunConfig, workspace: Workspace, split: str) -> SegmentationDataset:
    """Open a split whose masks are needed.

    Raises:
        UserError: as ``open_split``, or none of its masks are read.
    """
    dataset = open_split(config, workspace, split)
    if not dataset.has_masks:
        raise UserError(
            f"split {split!r} of {dataset.name} is of images without masks, so nothing can be scored on it; choose "
            "another split (--split, evaluation.split)"
        )
    return dataset


def look_at_splits(config: RunConfig, session: Session, splits: Iterable[str]) -> list[Examination]:
    """Look at every image and mask of splits; see ``look_at``."""
    return look_at(
        config, session, [open_masked_split(config, session.workspace, split) for split in dict.fromkeys(splits)]
    )


def look_at(
    config: RunConfig, session: Session, datasets: Sequence[SegmentationDataset], *, tolerated: Collection[str] = ()
) -> list[Examination]:
    """Look at every image, and every mask that is read; what was looked at before and is unchanged is not read again.

    Args:
        tolerated: kinds of flaws that are none here.

    Raises:
        UserError: at least one is bad, or a split has no labelled pixel; the message has all of it.
    """
    workspace = session.workspace
    memory = remember_looks(workspace.root / "looks.json")
    names = ", ".join(dict.fromkeys(each.split for each in datasets))
    title = f"looking at the images and masks of {config.data.dataset} {names}"
    looked: list[Examination] = []
    with session.console.progress(title, sum(map(len, datasets))) as advance:

        def show(_split: str, seen: int, _whole: int) -> None:
            advance(sum(len(each.dataset) for each in looked) + seen)

        for found in examine_splits(datasets, workspace.content_hashes(), memory, show):
            looked.append(found)
    problems = [line for each in looked for line in each.list_problems(tolerated)]
    unpaired = [each.dataset.split for each in looked if UNPAIRED in each.flaws.counts]
    if "train" in unpaired and UNPAIRED not in tolerated and config.data.unlabelled != "allow":
        problems.append("training images without a mask are read as such with: --unlabelled allow")
    if problems:
        raise UserError(f"dataset {config.data.dataset!r}: " + "\n".join(problems))
    return looked


def check_held_out(pool: SegmentationDataset, config: RunConfig, session: Session) -> None:
    """Compare the images that a dataset brings without masks with those that are scored.

    Raises:
        UserError: some are the same files.
    """
    workspace, problems = session.workspace, []
    for split in dict.fromkeys(("val", config.evaluation.split)):
        try:
            held_out = open_split(config, workspace, split)
        except UserError:
            continue  # there need not be a val split; the reported one was opened before
        if split != "train" and (same := list_copies(pool, held_out, workspace.content_hashes())):
            problems.append(
                f"{pool.split}: images of the {split} split, by checksum: {len(same)} "
                f"({format_examples(same[:EXAMPLES], len(same))})"
            )
    if problems:
        raise UserError(
            f"dataset {pool.name!r}: " + "\n".join(problems) + "\nwhat is scored must not be learned from: take these "
            f"out of {pool.split}, or leave it unread with --unlabelled ignore"
        )

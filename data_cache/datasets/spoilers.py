"""What lets a training run through and spoils it: found in splits that were looked at thoroughly, with remedies."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from data_cache.datasets.alignment import describe_move, find_better_move, follow_nothing
from data_cache.datasets.examination import Examination
from data_cache.datasets.folder import Folder
from data_cache.datasets.paired_files import PairedFiles
from data_cache.errors import UserError
from data_cache.images import EXAMPLES, format_examples
from data_cache.likeness import find_near
from data_cache.sample import IGNORE_INDEX

_NEARLY_ALL = 0.99
"""Share of one class in the labelled pixels of train from which others are hardly learned unless they weigh more."""
_ONE_SCENE = 0.25
"""Share of all pairs of images from which they are of one scene, and not copies of each other."""
_MASKS_READ = 8
_MOST_VOID_IDS = 8
"""More ids outside the table are no void that somebody forgot, but smoothed edges or another table."""


def find_missing_splits(images: Mapping[str, int], needed: Collection[str]) -> Iterator[str]:
    """Yield a line for each split that a training needs and that was not found at all.

    Args:
        images: number of images by split that was looked for.
        needed: splits that are trained on or scored.
    """
    for split in needed:
        if split not in images:
            use = "is trained on" if split == "train" else "is scored"
            there = ", ".join(name for name, count in images.items() if count) or "none"
            yield (
                f"there is no {split} split, which {use} (there are: {there}); `pipeline init DIR --out mine.toml` "
                "divides the images without moving a file"
            )


def find_spoilers(seen: Sequence[Examination], *, weighted: bool) -> tuple[list[str], list[str]]:
    """Return problems, and notes, of splits that were looked at thoroughly.

    Args:
        seen: the splits.
        weighted: whether rare classes weigh more in the loss.
    """
    problems: list[str] = []
    notes: list[str] = []
    for examination in seen:
        split, dataset = examination.dataset.split, examination.dataset
        fits = [look.fits for look in examination.looks if look.fits is not None]
        if (move := find_better_move(fits)) is not None:
            problems.append(f"{split}: masks {describe_move(move)}")
        elif follow_nothing(fits):
            notes.append(
                f"{split}: masks follow the edges of their images nowhere, so whether they belong to them cannot be "
                "told by looking for edges; look at a few"
            )
        problems += _suggest_void(examination)
        if split == "train" and dataset.has_masks:
            problems += _find_missing_classes(examination)
            shares, _ = examination.compute_shares()
            name, share = max(shares.items(), key=lambda item: item[1])
            if share > _NEARLY_ALL and len(shares) > 1:
                line = f"{split}: {name} has {share:.2%} of the labelled pixels"
                remedy = 'weigh the others: loss.class_weights = "median-frequency"'
                if weighted:
                    notes.append(f"{line}, and loss.class_weights makes up for it")
                else:
                    problems.append(f"{line}, so that a network learns to say nothing else; {remedy}")
    train = next((each for each in seen if each.dataset.split == "train"), None)
    for other in seen:
        if train is not None and other.dataset.split in ("val", "test"):
            found, of_one_scene = _find_near(train, other)
            (notes if of_one_scene else problems).extend(found)
    return problems, notes


def _find_missing_classes(examination: Examination) -> Iterator[str]:
    shares, _ = examination.compute_shares()
    absent = [name for name, share in shares.items() if share == 0.0]
    own = isinstance(examination.dataset, Folder)  # nobody can add to the classes of others, or take some out
    if not own or not examination.labelled or not absent or len(absent) == len(shares):
        return  # where nothing at all is labelled, that is said already
    if _read_raw_ids(examination) == {0, IGNORE_INDEX}:
        names = list(examination.dataset.classes)
        present = next(name for name, share in shares.items() if share > 0.0)
        yield (
            f"train: masks hold the ids 0 and {IGNORE_INDEX} alone, and {IGNORE_INDEX} is read as void, so nothing but "
            f"{present} is learned; if {IGNORE_INDEX} is a class: data.options.ids = [0, {IGNORE_INDEX}]"
            + ("" if len(names) == 2 else ", and two lines of classes")
        )
        return
    yield (
        f"train: classes of which no pixel is labelled: {', '.join(absent)}; they cannot be learned: add images that "
        "show them, or take them out: data.options.classes, with data.options.ids for the ids of the others"
    )


def _read_raw_ids(examination: Examination) -> set[int]:
    """Return the ids in a few masks; none where they are colours or cannot be read."""
    dataset, found = examination.dataset, set[int]()
    if not isinstance(dataset, PairedFiles):
        return found
    usable = [index for index, look in enumerate(examination.looks) if look.pixels is not None]
    for index in usable[:: max(1, len(usable) // _MASKS_READ)]:
        with contextlib.suppress(UserError):
            raw = dataset.read_raw_mask(index)
            found |= set(np.unique(raw).tolist()) if raw.ndim == 2 else {-1}
    return found


def _suggest_void(examination: Examination) -> Iterator[str]:
    """Yield the line of a recipe for ids outside the table, where they may be void."""
    unknown, table = sorted(examination.unknown_ids), examination.dataset.raw_ids
    if not unknown or not isinstance(examination.dataset, Folder):
        return
    if len(unknown) > _MOST_VOID_IDS:
        yield (
            f"{examination.dataset.split}: {len(unknown)} ids outside the table are too many for void: edges were "
            "smoothed, or the masks are of other classes; `pipeline init` says what they hold"
        )
        return
    void = sorted({raw for raw, train in table.items() if train == IGNORE_INDEX} | set(unknown))
    yield (
        f"{examination.dataset.split}: if {format_examples(unknown, len(unknown))} mean void, write into the recipe: "
        f"data.options.void_ids = {void}; if they are classes, name them in data.options.classes and data.options.ids"
    )


def _find_near(train: Examination, other: Examination) -> tuple[list[str], bool]:
    """Return a line on images that nearly equal one of train, and whether all are of one scene."""
    some, others = _collect_shown(train), _collect_shown(other)
    names: dict[str, str] = {}
    num_pairs = 0
    for one, near in find_near([shown for _, shown in some], [shown for _, shown in others]):
        for two in near.tolist():
            mine, theirs = some[one][0], others[two][0]
            if train.checksums[mine] != other.checksums[theirs]:  # equal ones are told apart from these
                num_pairs += 1
                names.setdefault(other.dataset.image_ids[theirs], train.dataset.image_ids[mine])
    if not names:
        return [], False
    split, of_one_scene = other.dataset.split, num_pairs > _ONE_SCENE * len(some) * len(others)
    shown = format_examples([f"{two} ~ {one}" for two, one in sorted(names.items())[:EXAMPLES]], len(names))
    if of_one_scene:
        line = f"{split}: most images nearly equal one of train ({shown}), as of one scene; scores hold for that alone"
        return [line], True
    return [
        f"{split}: images that nearly equal one of train: {len(names)} ({shown}); scores would flatter: put such on "
        "one side, as `pipeline init` does where it divides the images"
    ], False


def _collect_shown(examination: Examination) -> list[tuple[int, Any]]:
    return [(index, look.shown) for index, look in enumerate(examination.looks) if look.shown is not None]

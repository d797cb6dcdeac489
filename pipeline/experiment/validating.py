"""On which images a training is scored while it runs: the reported ones for a curve to look at, others to choose by.

Imports no torch.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections import Counter
from collections.abc import Mapping

from data_cache.datasets import choose_root, find_dataset
from data_cache.datasets.interface import EmptySplit, SegmentationDataset
from data_cache.datasets.views import Part, View
from data_cache.errors import UserError
from data_cache.fingerprint import dataset_fingerprint
from data_cache.sample import IGNORE_INDEX
from pipeline.experiment.artifacts import open_split
from pipeline.experiment.config import RunConfig
from pipeline.experiment.looking import look_at
from pipeline.experiment.reading import Selection
from pipeline.session import Session
from pipeline.workspace import Workspace

HELD_OUT_SHARE = 0.1
"""Of the training images with masks, where no other split is there to choose by."""
_CUSTOMARY = "val"
"""The split that is there to choose by, unless it is reported; nobody chooses by a test split."""


def choose_selection(config: RunConfig, session: Session, labelled: tuple[str, ...] | None) -> Selection | None:
    """Return the images by which weights are chosen; None where no choice is asked for.

    They are those of val, where another split is reported; else a tenth of the training images with masks, the same
    ones for every row and seed, without the last image that shows a class.

    Args:
        labelled: ids of the training images whose masks are used; None is all.

    Raises:
        UserError: no image can be spared.
    """
    if not config.training.chooses:
        return None
    workspace, reported = session.workspace, config.evaluation.split
    root = choose_root(config.data.dataset, config.data.root, workspace.root)
    if reported != _CUSTOMARY and _CUSTOMARY in find_dataset(config.data.dataset).find_splits(
        root, config.data.options
    ):
        with contextlib.suppress(EmptySplit):
            val = open_split(config, workspace, _CUSTOMARY)
            if val.has_masks:
                return Selection(_CUSTOMARY, _identify(val, workspace), None, len(val))
    split = open_split(config, workspace, "train")
    used = set(split.image_ids if labelled is None else labelled)
    places = [place for place in range(len(split)) if split.image_ids[place] in used]
    (looked,) = look_at(config, session, [View([Part(split, places, labels=True)])])
    shown = {
        split.image_ids[place]: set(look.pixels) - {IGNORE_INDEX}
        for place, look in zip(places, looked.looks, strict=True)
        if look.pixels is not None
    }
    held_out = () if reported == "train" else _hold_out(shown)
    if not held_out:
        raise UserError(
            f"training.keep and training.patience choose weights on images that are neither trained on nor reported "
            f"({reported}), but none of the {len(shown)} training images with masks can be spared"
            + ("" if reported == "train" else ": each shows a class that no other shows")
            + "; add images, report another split (evaluation.split) beside a val split, or keep the last weights"
        )
    return Selection("train", _identify(_view(split, held_out), workspace), held_out, len(held_out))


def open_validation(config: RunConfig, workspace: Workspace, selection: Selection | None) -> SegmentationDataset:
    """Open the images that a training is scored on while it runs: those of the selection, else the reported ones."""
    if selection is None:
        return open_split(config, workspace, config.evaluation.split)
    dataset = open_split(config, workspace, selection.split)
    return dataset if selection.held_out is None else _view(dataset, selection.held_out)


def _hold_out(shown: Mapping[str, set[int]]) -> tuple[str, ...]:
    """Return a share of the images in an order that depends on their ids alone.

    Args:
        shown: the classes that each image shows.
    """
    wanted, left = (
        max(1, round(HELD_OUT_SHARE * len(shown))),
        Counter(name for found in shown.values() for name in found),
    )
    chosen: list[str] = []
    for image_id in sorted(shown, key=lambda name: hashlib.blake2b(name.encode()).digest()):
        if len(chosen) < wanted and shown[image_id] and all(left[number] > 1 for number in shown[image_id]):
            chosen.append(image_id)
            left.subtract(shown[image_id])
    return tuple(sorted(chosen))


def _view(split: SegmentationDataset, image_ids: tuple[str, ...]) -> SegmentationDataset:
    wanted = set(image_ids)
    return View([Part(split, [p for p in range(len(split)) if split.image_ids[p] in wanted], labels=True)])


def _identify(dataset: SegmentationDataset, workspace: Workspace) -> str:
    return dataset_fingerprint(dataset, workspace.content_hashes())

"""From a recipe to its images and their depth: open splits, find their labels. Imports no torch."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from data_cache.datasets import EmptySplit, choose_root, find_dataset, open_dataset
from data_cache.errors import UserError
from data_cache.files import wait_for_folder
from data_cache.outputs import Inputs
from data_cache.sample import DepthKind
from data_cache.store_folder import dataset_folder
from pipeline.experiment.config import RunConfig
from pipeline.session import Session
from pipeline.workspace import Workspace
from stages.pseudo_depth.aliases import GROUND_TRUTH

if TYPE_CHECKING:
    from data_cache.datasets.interface import SegmentationDataset
    from data_cache.split_depth import SplitDepth


def open_split(config: RunConfig, workspace: Workspace, split: str) -> SegmentationDataset:
    """Open one split of the recipe's dataset."""
    data = config.data
    return open_dataset(data.dataset, choose_root(data.dataset, data.root, workspace.root), split, **data.options)


def find_data_files(config: RunConfig, workspace: Workspace) -> Inputs:
    """Return the files of the recipe's dataset, of every split that can be opened; drawn images lie in none."""
    data = config.data
    kind, found = find_dataset(data.dataset), list[Path]()
    root = choose_root(data.dataset, data.root, workspace.root) if kind.needs_root else None
    own_pool = [kind.pool_split] if kind.pool_split else []
    for split in dict.fromkeys((*kind.splits, *kind.find_splits(root, data.options), *own_pool)) if root else ():
        with contextlib.suppress(UserError):
            dataset = open_split(config, workspace, split)
            for index in range(len(dataset)):
                found += [path for paths in dataset.sources(index) for path in paths if isinstance(path, Path)]
    return Inputs(found)


def open_own_pool(config: RunConfig, workspace: Workspace) -> SegmentationDataset | None:
    """Open the images that the recipe's dataset brings without masks; None where there are none, or none is wanted."""
    split = find_dataset(config.data.dataset).pool_split
    if split is None or config.data.unlabelled == "ignore":
        return None
    try:
        return open_split(config, workspace, split)
    except EmptySplit:
        return None


def splits_to_label(config: RunConfig, workspace: Workspace) -> tuple[str, ...]:
    """Return the splits a recipe needs depth of: those it trains on, and the reported one for depth metrics."""
    pool = open_own_pool(config, workspace)
    return tuple(dict.fromkeys(("train", *([pool.split] if pool else []), config.evaluation.split)))


def wait_for_stores(config: RunConfig, session: Session) -> None:
    """Wait until no process writes to a depth store of the recipe's dataset."""
    stores = dataset_folder(session.workspace.depth, find_dataset(config.data.dataset).name)
    for folder in sorted(stores.glob("*/")):
        wait_for_folder(folder, session.console.info)


def find_labels(config: RunConfig, workspace: Workspace, dataset: SegmentationDataset) -> SplitDepth:
    """Return the depth of a split, or of images of several: a map of every image as it is now.

    Raises:
        NoDepthStore: none was made by this estimator yet; the message has the command that makes it.
        UserError: those that were made are by other weights or settings, lack images or have other states of them.
    """
    from data_cache.datasets.views import View
    from data_cache.depth_store import DepthStore, find_store
    from data_cache.split_depth import JoinedDepth, match_depth
    from stages.pseudo_depth.identity import identify_estimator

    if isinstance(dataset, View) and len(dataset.parts) > 1:
        parts = [find_labels(config, workspace, View([part])) for part in dataset.parts]
        return JoinedDepth(dataset.image_ids, parts)
    depth, command = config.depth, _label_command(config, dataset.split)
    estimator = identify_estimator(
        depth.estimator,
        kind=DepthKind(depth.kind) if depth.kind else None,
        input_size=depth.input_size,
        precision=depth.precision,
        depth_rule=dataset.depth_rule,
    )
    folder = find_store(
        workspace.depth, dataset.name, dataset.split, estimator.name, made_by=estimator.made, command=command
    )
    return match_depth(dataset, DepthStore(folder), workspace.content_hashes(), command=command)


def find_targets(config: RunConfig, workspace: Workspace, dataset: SegmentationDataset) -> SplitDepth:
    """Return what a depth decoder learns of images: the estimator's maps, or what ``depth.source`` puts there.

    Raises:
        UserError: as ``find_labels``, where there must be a store; or the target needs metres, which no control has.
    """
    from data_cache.depth_controls import MADE_UP

    source = config.depth.source
    if source == "teacher":
        return find_labels(config, workspace, dataset)
    if source == "shuffled":
        return _shuffle_labels(config, workspace, dataset)
    if source == "dataset":
        own = {"depth.estimator": GROUND_TRUTH, "depth.kind": None, "depth.input_size": None, "depth.precision": "auto"}
        return find_labels(config.changed(own), workspace, dataset)
    if config.depth.target == "metric":
        raise UserError(
            f"depth.target 'metric' asks for metres, which depth.source {source!r} has not; choose another target"
        )
    return MADE_UP[source](dataset, workspace.content_hashes())


def _shuffle_labels(config: RunConfig, workspace: Workspace, dataset: SegmentationDataset) -> SplitDepth:
    """Return maps shuffled within each split, so that an image has the same one whatever else is read beside it."""
    from data_cache.datasets.views import View
    from data_cache.depth_controls import MADE_UP, ShuffledDepth
    from data_cache.depth_store import NoDepthStore
    from data_cache.split_depth import JoinedDepth

    if isinstance(dataset, View) and len(dataset.parts) > 1:
        parts = [_shuffle_labels(config, workspace, View([part])) for part in dataset.parts]
        return JoinedDepth(dataset.image_ids, parts)
    whole, chosen = (dataset.parts[0][:2]) if isinstance(dataset, View) else (dataset, range(len(dataset)))
    try:
        return ShuffledDepth(dataset, chosen, find_labels(config, workspace, whole))
    except NoDepthStore as problem:
        raise NoDepthStore(
            f"depth.source 'shuffled' gives each image another one's map: {problem} (controls without a store: "
            f"{', '.join(MADE_UP)})"
        ) from problem


def find_labels_if_any(
    config: RunConfig, workspace: Workspace, dataset: SegmentationDataset, say: Callable[[str], object] | None = None
) -> SplitDepth | None:
    """Return the depth of a split; None where none was made, and ``say`` is then told that depth metrics are left out.

    Raises:
        UserError: as ``find_labels``, where there is a store.
    """
    from data_cache.depth_store import NoDepthStore

    try:
        return find_labels(config, workspace, dataset)
    except NoDepthStore as problem:
        if say is not None:
            say(f"no depth metrics on split {dataset.split!r}: {problem}")
        return None


def _label_command(config: RunConfig, split: str) -> str:
    """Return the command line that labels a split of a recipe; only settings of the estimator are in it besides."""
    words = ["pipeline", "pseudo-depth", "--recipe", config.recipe, "--dataset", config.data.dataset]
    if config.data.root:
        words += ["--data-root", config.data.root]
    if config.depth.input_size is not None:
        words += ["--set", f"depth.input_size={config.depth.input_size}"]
    if config.depth.precision != "auto":
        words += ["--set", f"depth.precision={config.depth.precision}"]
    return shlex.join([*words, "--estimator", config.depth.estimator, "--split", split])

"""From a recipe to its images and their depth: open splits, label them, find the labels, teach and fetch labellers."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_cache.datasets import choose_root, open_dataset
from data_cache.fingerprint import dataset_fingerprint
from data_cache.sample import DepthKind
from pipeline.experiment.config import RunConfig
from pipeline.experiment.plan import DataFacts
from pipeline.session import Result, Session
from pipeline.workspace import Workspace

if TYPE_CHECKING:
    from data_cache.datasets.interface import SegmentationDataset
    from data_cache.split_depth import SplitDepth
    from stages.pseudo_depth.estimators import DepthEstimator
    from stages.pseudo_depth.labelling import GroundTruthDepth, LabelReport
    from stages.pseudo_depth.teach import TeachOptions

SHOWN_SUSPICIOUS = 5


def open_split(config: RunConfig, workspace: Workspace, split: str) -> SegmentationDataset:
    """Open one split of the recipe's dataset."""
    data = config.data
    return open_dataset(data.dataset, choose_root(data.dataset, data.root, workspace.root), split, **data.options)


def splits_to_label(config: RunConfig) -> tuple[str, ...]:
    """Return the splits a recipe needs depth of: the trained one, and the reported one for depth metrics."""
    return tuple(dict.fromkeys(("train", config.evaluation.split)))


def find_labels(config: RunConfig, workspace: Workspace, dataset: SegmentationDataset) -> SplitDepth:
    """Return the depth of a split: a map of every image as it is now.

    Raises:
        NoDepthStore: none was made by this estimator yet; the message has the command that makes it.
        UserError: those that were made are by other weights or settings, lack images or have other states of them.
    """
    from data_cache.depth_store import DepthStore, find_store
    from data_cache.split_depth import match_depth
    from stages.pseudo_depth.identity import identify_estimator

    depth, command = config.depth, _label_command(config, dataset.split)
    estimator = identify_estimator(
        depth.estimator,
        kind=DepthKind(depth.kind) if depth.kind else None,
        input_size=depth.input_size,
        precision=depth.precision,
        depth_rule=dataset.depth_rule,
    )
    folder = find_store(
        workspace.depth,
        dataset.name,
        dataset.split,
        estimator.name,
        made_by=estimator.made,
        command=command,
    )
    return match_depth(dataset, DepthStore(folder), workspace.content_hashes(), command=command)


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


def gather_facts(config: RunConfig, workspace: Workspace, *, needs_depth: bool) -> DataFacts:
    """Look up what a plan must know about the training split."""
    dataset = open_split(config, workspace, "train")
    store_key = find_labels(config, workspace, dataset).fingerprint() if needs_depth else None
    return DataFacts(
        len(dataset), len(dataset.classes), dataset_fingerprint(dataset, workspace.content_hashes()), store_key
    )


def label_splits(
    config: RunConfig, session: Session, splits: Sequence[str], device: str, *, compile_model: bool = False
) -> Result:
    """Label splits into depth stores; what is labelled already is skipped.

    Args:
        splits: none means those the recipe needs.

    Returns:
        ``stores``, ``images``, ``labelled``, ``skipped``, ``failed``, ``suspicious``, ``seconds``,
        ``images_per_second``.
    """
    datasets = [open_split(config, session.workspace, split) for split in splits or splits_to_label(config)]
    estimator = _open_estimator(config, device, compile_model=compile_model)
    reports = [_label_split(config, session, dataset, estimator) for dataset in datasets]
    failed = [failure._asdict() for report in reports for failure in report.failed]
    suspicious = [found._asdict() for report in reports for found in report.suspicious]
    labelled, seconds = sum(report.labelled for report in reports), sum(report.seconds for report in reports)
    facts = {
        "stores": [str(report.store) for report in reports],
        "images": sum(report.images for report in reports),
        "labelled": labelled,
        "skipped": sum(report.skipped for report in reports),
        "failed": failed,
        "suspicious": suspicious,
        "seconds": round(seconds, 3),
        "images_per_second": round(labelled / seconds, 2) if labelled else 0.0,
    }
    return Result(facts, _describe_labels(facts))


def _open_estimator(config: RunConfig, device: str, *, compile_model: bool) -> DepthEstimator | GroundTruthDepth:
    from pipeline.experiment.devices import choose_device
    from stages.pseudo_depth.aliases import GROUND_TRUTH
    from stages.pseudo_depth.estimators import load_estimator
    from stages.pseudo_depth.labelling import GroundTruthDepth

    depth = config.depth
    if depth.estimator == GROUND_TRUTH:
        return GroundTruthDepth()
    return load_estimator(
        depth.estimator,
        kind=DepthKind(depth.kind) if depth.kind else None,
        device=choose_device(device),
        precision=depth.precision,
        input_size=depth.input_size,
        compiled=compile_model,
        accept_noncommercial=depth.accept_noncommercial,
    )


def _label_split(
    config: RunConfig, session: Session, dataset: SegmentationDataset, estimator: DepthEstimator | GroundTruthDepth
) -> LabelReport:
    from stages.pseudo_depth.labelling import LabelProgress, label_split

    with session.console.progress(f"labelling {dataset.name} {dataset.split}", len(dataset)) as advance:

        def show(progress: LabelProgress) -> None:
            done = len(dataset) - progress.total + progress.done
            advance(done, f"{progress.images_per_second:.1f} images/s, {progress.eta_s:.0f} s left")

        return label_split(
            dataset,
            estimator,
            session.workspace.depth,
            batch_size=config.depth.batch_size,
            workers=max(2, config.data.workers),
            codec=config.depth.codec,
            hashes=session.workspace.content_hashes(),
            progress=show,
        )


def _describe_labels(facts: dict[str, Any]) -> str:
    lines = [f"not labelled: {failure['image']}: {failure['reason']}" for failure in facts["failed"]]
    lines += describe_suspicious(facts["suspicious"])
    lines.append(
        f"{facts['images']} images: {facts['labelled']} labelled, {facts['skipped']} were labelled already, "
        f"{len(facts['failed'])} failed; {facts['seconds']:.1f} s, {facts['images_per_second']:.1f} images/s"
    )
    return "\n".join([*lines, *(f"depth store  {store}" for store in facts["stores"])])


def describe_suspicious(suspicious: Sequence[dict[str, Any]]) -> list[str]:
    """Return lines about maps that hardly look like depth: a few examples, and what is odd about all together."""
    single = [found for found in suspicious if found["image"]]
    lines = [f"suspicious: {found['image']}: {found['reason']}" for found in single[:SHOWN_SUSPICIOUS]]
    if len(single) > SHOWN_SUSPICIOUS:
        lines.append(f"suspicious: {len(single) - SHOWN_SUSPICIOUS} more images; --json lists them all")
    return lines + [f"suspicious: {found['reason']}" for found in suspicious if not found["image"]]


def teach_estimator(
    config: RunConfig, session: Session, init: str, out: Path, *, device: str, options: TeachOptions
) -> Result:
    """Train a depth estimator on the recipe's dataset, which must bring ground-truth depth.

    Args:
        init: name of a size (from nothing), or an estimator to adapt.
        options: how long and how.

    Returns:
        ``estimator`` (the folder), ``steps``, ``resumed_at``, ``final_loss``, ``seconds``.
    """
    from pipeline.experiment.devices import choose_device
    from stages.pseudo_depth.teach import TeachProgress, teach
    from stages.training.interruption import stop_on_signals

    dataset = open_split(config, session.workspace, "train")
    with stop_on_signals() as stop, session.console.progress(f"teaching {init}", options.steps) as advance:

        def show(progress: TeachProgress) -> None:
            advance(progress.step, f"loss {progress.loss:.4f}, {progress.images_per_second:.1f} images/s")

        report = teach(
            dataset,
            init,
            out,
            options=options,
            kind=DepthKind(config.depth.kind) if config.depth.kind else None,
            device=choose_device(device),
            accept_noncommercial=config.depth.accept_noncommercial,
            progress=show,
            stop=stop.is_set,
        )
    facts = {
        "estimator": str(report.folder),
        "steps": report.steps,
        "resumed_at": report.resumed_at,
        "final_loss": report.final_loss,
        "seconds": round(report.seconds, 1),
    }
    return Result(facts, f"estimator: {report.folder}; label with: pipeline pseudo-depth --estimator {report.folder}")

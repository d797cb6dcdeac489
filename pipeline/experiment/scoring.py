"""Scores of finished weights: computed once, and again when the split, its depth or the metrics have changed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from data_cache.datasets.interface import SegmentationDataset
from data_cache.errors import UserError
from data_cache.files import hold_folder, read_json, write_json
from data_cache.image_scores import write_image_scores
from data_cache.loaders import build_evaluation_loader
from data_cache.metrics import IMAGES_FILE
from data_cache.ranks import is_speaker
from data_cache.samples import Source
from data_cache.split_depth import SplitDepth
from pipeline.experiment.artifacts import find_labels_if_any, open_split
from pipeline.experiment.config import RunConfig
from pipeline.experiment.devices import choose_device, choose_workers
from pipeline.experiment.facts import inspect_reported
from pipeline.experiment.keys import evaluation_key
from pipeline.experiment.models import check_classes, find_size_rule, open_run
from pipeline.experiment.reading import Reported
from pipeline.session import Session
from stages.comparison.record import RUN_FILE
from stages.evaluation.evaluate import Evaluation, OnPredictions, evaluate
from stages.evaluation.panels import PanelCollector, spread_over, write_panels
from stages.evaluation.settings import EVALUATION_VERSION
from stages.evaluation.tiling import TiledNetwork
from stages.networks import count_parameters
from stages.networks.interface import Normalisation


def score_run(
    config: RunConfig,
    network: Any,
    weights: Path,
    session: Session,
    folder: Path,
    device: torch.device,
    *,
    together: bool = False,
) -> dict[str, Any]:
    """Evaluate a run's network; write what each image scored, and panels, into its folder; return run.json's part.

    Args:
        network: with the weights of the run's last phase.
        weights: where they were read from, for people.
        together: see ``evaluate_split``; each rank draws the panels of its images.
    """
    dataset = open_split(config, session.workspace, config.evaluation.split)
    network.to(device=device, memory_format=torch.channels_last)
    session.console.info(f"evaluating {folder.name} on {config.evaluation.split} ({weights})")
    needs_depth, say = config.build_schedule().needs_depth, session.console.info
    store = find_labels_if_any(config, session.workspace, dataset, say) if needs_depth else None
    shown = spread_over(len(dataset), config.evaluation.panels)
    panels = PanelCollector([dataset.image_ids[place] for place in shown])
    evaluation = evaluate_split(
        network, network.normalisation, dataset, store, config, device, panels, together=together
    )
    if is_speaker():
        write_image_scores(evaluation.image_scores, folder / IMAGES_FILE)
    write_panels(panels.items, folder / "panels", class_names=dataset.classes, palette=dataset.palette)
    return {
        "split": config.evaluation.split,
        "classes": list(dataset.classes),
        "palette": [list(colour) for colour in dataset.palette],
        "parameters": count_parameters(network),
        "image_size": list(dataset.read_image(0).shape[:2]),
        **evaluation.to_json(),
    }


def describe_evaluation(content: str, config: RunConfig, reported: Reported) -> dict[str, Any]:
    """Return what run.json says about how its scores were made; ``key`` changes when they have to be made anew.

    Args:
        content: hash of the run's last weights: a phase trained again on another device has the same key and other
            weights.
    """
    needs_depth = config.build_schedule().needs_depth
    key = evaluation_key(content, config, reported.split, reported.depth, needs_depth=needs_depth)
    return {"version": EVALUATION_VERSION, "key": key, "weights": content}


def refresh_scores(folder: Path, session: Session, device: torch.device) -> None:
    """Score a finished run anew from its weights, for metrics that were added or repaired since; nothing is trained.

    Raises:
        UserError: the weights or the reported split are gone.
    """
    model = open_run(folder, device)
    config = model.config
    dataset = open_split(config, session.workspace, config.evaluation.split)
    reported = inspect_reported(dataset, config, session, needs_depth=config.build_schedule().needs_depth)
    check_classes(model, dataset)
    with hold_folder(folder, "evaluating a run"):
        record = read_json(folder / RUN_FILE)
        record |= score_run(config, model.network, model.weights, session, folder, device)
        record["evaluation"] = describe_evaluation(model.content, config, reported)
        record["identity"] |= {"split": reported.split, "evaluation": EVALUATION_VERSION}
        write_json(folder / RUN_FILE, record)


def refresh_outdated(folders: Sequence[Path], session: Session) -> None:
    """Score runs anew; say which could not be, and why."""
    for folder in folders:
        try:
            refresh_scores(folder, session, choose_device("auto"))
        except (UserError, OSError) as problem:  # OSError: a folder that may only be read
            session.console.info(f"{folder.name} keeps the scores of an older version: {problem}")


def evaluate_split(
    network: Any,
    normalisation: Normalisation,
    dataset: SegmentationDataset,
    store: SplitDepth | None,
    config: RunConfig,
    device: torch.device,
    on_predictions: OnPredictions | None,
    *,
    only: Sequence[int] | None = None,
    together: bool = False,
) -> Evaluation:
    """Evaluate a network on a split as the recipe says.

    Args:
        network: a ``Network``, or a module from images to logits.
        store: depth of the split; None leaves the depth metrics out.
        on_predictions: called with every batch's label maps.
        only: indices of the images wanted; None takes all.
        together: whether all ranks of the job call this, and share the batches; each returns the scores of the split.
    """
    batches = build_evaluation_loader(
        Source(dataset, store, config.depth.target),
        rule=None if isinstance(network, TiledNetwork) else find_size_rule(config),  # tiles are cut at any size
        batch_size=config.evaluation.batch_size,
        workers=choose_workers(config.data.workers, device),
        device=device,
        with_depth=store is not None,
        only=only,
        together=together,
    )
    return evaluate(
        network,
        batches,
        normalisation=normalisation,
        num_classes=len(dataset.classes),
        class_names=dataset.classes,
        device=device,
        with_depth=store is not None,
        depth_target=config.depth.target,
        on_predictions=on_predictions,
        together=together,
    )

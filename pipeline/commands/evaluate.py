"""Put a model in front of images: score it on a split, or label files with it."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Group
from rich.text import Text

from data_cache.datasets.interface import SegmentationDataset
from data_cache.depth_store import NoDepthStore
from data_cache.errors import UserError
from data_cache.fingerprint import dataset_fingerprint
from data_cache.loaders import Source, build_evaluation_loader
from data_cache.metrics import METRICS
from data_cache.split_depth import SplitDepth
from pipeline.console import plain_table
from pipeline.experiment.artifacts import find_labels, open_split
from pipeline.experiment.config import RunConfig
from pipeline.experiment.models import build_untrained, open_model
from pipeline.experiment.plan import PlannedRun
from pipeline.session import Result, Session
from stages.evaluation.evaluate import Evaluation, OnPredictions, evaluate
from stages.evaluation.panels import PanelCollector, write_panels
from stages.evaluation.predict import PredictionWriter, Segmenter, predict_files
from stages.evaluation.tiling import DEFAULT_MARGIN_PX, TiledNetwork
from stages.networks import count_parameters
from stages.networks.interface import Normalisation
from stages.training.checkpoint import load_weights


def score_run(run: PlannedRun, session: Session, folder: Path, device: torch.device) -> dict[str, Any]:
    """Evaluate the last weights of a run's last phase and draw its panels; return what run.json says about it."""
    config, weights = run.config, session.workspace.node(run.nodes[-1].folder).weights
    dataset = open_split(config, session.workspace, config.evaluation.split)
    network = build_untrained(config, len(dataset.classes))
    load_weights(network, weights)
    network.to(device=device, memory_format=torch.channels_last)
    session.console.say(f"evaluating {run.name} on {config.evaluation.split} ({weights})")
    store = _labels_if_any(config, session, dataset) if run.schedule.needs_depth else None
    panels = PanelCollector(
        network.normalisation,
        limit=config.evaluation.panels,
        image_ids=_spread(dataset.image_ids, config.evaluation.panels),
    )
    evaluation = _evaluate(network, network.normalisation, dataset, store, config, device, panels)
    write_panels(panels.items, folder / "panels", class_names=dataset.classes, palette=dataset.palette)
    return {
        "split": config.evaluation.split,
        "classes": list(dataset.classes),
        "palette": [list(colour) for colour in dataset.palette],
        "parameters": count_parameters(network),
        "image_size": list(dataset.read_image(0).shape[:2]),
        **evaluation.to_json(),
    }


def _spread(image_ids: Sequence[str], count: int) -> Sequence[str]:
    """Return so many ids from all over a split; neighbours are often frames of one film."""
    return [image_ids[place * len(image_ids) // count] for place in range(min(count, len(image_ids)))]


def inspect_evaluation(run: PlannedRun, session: Session) -> dict[str, str | None]:
    """Return fingerprints of what a run's scores depend on besides its weights: the reported split and its depth.

    Raises:
        UserError: there is no such split, or its depth store is unfit; having none at all is no fault.
    """
    config = run.config
    dataset = open_split(config, session.workspace, config.evaluation.split)
    store = None
    if run.schedule.needs_depth:
        with contextlib.suppress(NoDepthStore):
            store = find_labels(config, session.workspace, dataset)
    split = dataset_fingerprint(dataset, session.workspace.content_hashes())
    return {"split": split, "depth": store.fingerprint() if store else None}


def _labels_if_any(config: RunConfig, session: Session, dataset: SegmentationDataset) -> SplitDepth | None:
    """Return the split's depth store; without one the depth metrics are left out, and that is said."""
    try:
        return find_labels(config, session.workspace, dataset)
    except NoDepthStore as problem:
        session.console.say(f"no depth metrics on split {dataset.split!r}: {problem}")
        return None


def _evaluate(
    network: Any,
    normalisation: Normalisation,
    dataset: SegmentationDataset,
    store: SplitDepth | None,
    config: RunConfig,
    device: torch.device,
    on_predictions: OnPredictions | None,
) -> Evaluation:
    batches = build_evaluation_loader(
        Source(dataset, store, config.depth.target),
        normalisation=normalisation,
        size=config.data.crop if config.evaluation.size == "recipe" else None,
        batch_size=config.evaluation.batch_size,
        workers=config.data.workers,
        with_depth=store is not None,
    )
    return evaluate(
        network,
        batches,
        num_classes=len(dataset.classes),
        class_names=dataset.classes,
        device=device,
        with_depth=store is not None,
        depth_target=config.depth.target,
        on_predictions=on_predictions,
    )


def score_model(
    session: Session,
    reference: str,
    changes: Mapping[str, Any],
    save_predictions: Path | None,
    device: torch.device,
    *,
    tile: int | None,
    margin: int | None,
) -> Result:
    """Score a run or an export on a split.

    Args:
        changes: to the recipe it was trained with, under dotted keys; None leaves a key as it is.

    Returns:
        ``model``, ``weights``, ``split``, ``metrics``, ``metrics_paper``, ``per_class``, ``confusion``, ``images``.
    """
    margin = _choose_margin(tile, margin)
    model = open_model(session, reference, device)
    config = model.config.changed({key: value for key, value in changes.items() if value is not None})
    if tile is not None:
        if changes.get("evaluation.size") == "recipe":
            raise UserError("--tile cuts images at their own size, which --size recipe gives up; drop one of them")
        config = config.changed({"evaluation.size": "original"})
    dataset = open_split(config, session.workspace, config.evaluation.split)
    learnt_depth = model.has_depth and config.build_schedule().needs_depth
    store = _labels_if_any(config, session, dataset) if learnt_depth else None
    writer = _prediction_writer(save_predictions, dataset) if save_predictions else None
    session.console.say(f"evaluating {model.weights} on {dataset.name} {dataset.split}")
    network = TiledNetwork(model.network, tile=tile, margin=margin) if tile is not None else model.network
    evaluation = _evaluate(network, model.normalisation, dataset, store, config, device, writer)
    facts = {
        "model": str(model.folder),
        "weights": str(model.weights),
        "split": dataset.split,
        **evaluation.to_json(),
        "predictions": str(save_predictions) if save_predictions else None,
    }
    return Result(facts, _render(evaluation))


def _choose_margin(tile: int | None, margin: int | None) -> int:
    """Return the margin asked for, or the usual one; UserError where there are no tiles that it could be around."""
    if tile is None and margin is not None:
        raise UserError(f"--margin {margin} is what a tile sees around itself, but no --tile is given; add --tile 512")
    return DEFAULT_MARGIN_PX if margin is None else margin


def _prediction_writer(folder: Path, dataset: SegmentationDataset) -> PredictionWriter:
    """Return a writer of the ids that the dataset wants in saved predictions."""
    return PredictionWriter(folder, palette=dataset.palette, official_ids=dataset.prediction_ids)


def _render(evaluation: Evaluation) -> Group:
    """Show the metrics above the classes."""
    metrics = [[name, f"{value:.4f}", METRICS[name].explain()] for name, value in evaluation.metrics.items()]
    classes = [[row.name, _share(row.iou), _share(row.acc), row.pixels] for row in evaluation.per_class]
    return Group(
        plain_table(f"{evaluation.images} images", ["metric", "value", "what it is"], metrics),
        Text(),
        plain_table("Classes", ["class", "IoU", "recall", "pixels"], classes),
    )


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def predict_images(
    session: Session,
    reference: str,
    images: Sequence[Path],
    out: Path,
    device: torch.device,
    *,
    tile: int | None,
    margin: int | None,
) -> Result:
    """Write label maps and overlays of image files.

    Returns:
        ``files``, ``model``, ``notes``.
    """
    margin = _choose_margin(tile, margin)
    model = open_model(session, reference, device)
    size = model.config.data.crop if model.config.evaluation.size == "recipe" and tile is None else None
    segmenter = Segmenter(model.network, model.normalisation, device, size=size, tile=tile, margin=margin)
    written = predict_files(segmenter, images, out, class_names=model.class_names, palette=model.palette)
    files = [str(file) for file in written.files]
    facts = {"files": files, "model": str(model.folder), "notes": written.notes}
    return Result(facts, "\n".join([*files, *(f"note: {note}" for note in written.notes)]))

"""`pipeline evaluate`: score a run, an export or one file of an export on a split."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from data_cache.errors import UserError
from pipeline.options import (
    GivenPath,
    choices_of,
    choose_margin,
    device_option,
    format_option,
    overwrite_option,
    tile_options,
)

if TYPE_CHECKING:
    import torch
    from rich.console import Group

    from data_cache.datasets.interface import SegmentationDataset
    from data_cache.size_rule import SizeRule
    from pipeline.experiment.config import RunConfig
    from pipeline.session import Session
    from stages.evaluation.conventions import ConventionScore
    from stages.evaluation.evaluate import Evaluation
    from stages.evaluation.predict import PredictionWriter


@click.command()
@click.argument("model", metavar="RUN|EXPORT|FILE")
@click.option(
    "--recipe", help="Whose data a file is scored on that lies outside of its export folder: name or TOML file."
)
@format_option
@click.option("--split", help="Split to score; default the run's reported split.")
@click.option(
    "--size",
    type=choices_of("evaluation.size"),
    help="Size at which images enter a run's network; exports have theirs.",
)
@click.option("--data-root", help="Folder of the dataset, if it moved.")
@click.option(
    "--save-predictions", type=GivenPath(), help="Write label-id PNGs here, and images.npz: what each image scored."
)
@click.option(
    "--conventions",
    metavar="all|NAME,…",
    help="Also score the same predictions by these conventions, with void left out and as false positive.",
)
@overwrite_option
@tile_options
@device_option
@click.pass_obj
def evaluate(
    session: Session,
    model: str,
    recipe: str | None,
    format_name: str | None,
    split: str | None,
    size: str | None,
    data_root: str | None,
    save_predictions: Path | None,
    conventions: str | None,
    overwrite: bool,
    tile: int | None,
    margin: int | None,
    device: str,
) -> None:
    """Score a run, an export folder or one of its files on a split; an export as it runs where it ships."""
    from pipeline.experiment.devices import choose_device
    from pipeline.session import Result

    changes = {"evaluation.split": split, "evaluation.size": size, "data.root": data_root}
    scored = score_model(
        session,
        model,
        changes,
        save_predictions,
        choose_device(device),
        recipe=recipe,
        format=format_name,
        tile=tile,
        margin=margin,
        conventions=conventions,
        overwrite=overwrite,
    )
    session.show(Result(scored.to_json(), _render(scored)))


class Scored(NamedTuple):
    """What a model scores on a split."""

    evaluation: Evaluation
    """``metrics``, ``per_class``, ``confusion`` and ``image_scores``, see there; shares are in [0, 1]."""
    model: Path
    """Folder of the run or export."""
    weights: Path
    format: str | None
    """Of an export; None of a run."""
    size_rule: SizeRule
    """At what size images entered."""
    split: str
    predictions: Path | None
    """Folder of the label-id PNGs, where they were asked for."""
    conventions: list[ConventionScore]
    notes: list[str]

    @property
    def metrics(self) -> dict[str, float]:
        """By name, in the order of ``METRICS``."""
        return self.evaluation.metrics

    def to_json(self) -> dict[str, Any]:
        """Return the same as JSON values."""
        return {
            "model": str(self.model),
            "weights": str(self.weights),
            "format": self.format,
            "size_rule": self.size_rule.model_dump(mode="json"),
            "split": self.split,
            **self.evaluation.to_json(),
            "predictions": str(self.predictions) if self.predictions else None,
            "conventions": [each._asdict() for each in self.conventions],
            "notes": self.notes,
        }


def score_model(
    session: Session,
    reference: str,
    changes: Mapping[str, Any],
    save_predictions: Path | None,
    device: torch.device,
    *,
    recipe: str | None = None,
    format: str | None = None,
    tile: int | None,
    margin: int | None,
    conventions: str | None = None,
    overwrite: bool = False,
) -> Scored:
    """Score a run, an export or one of its files on a split.

    Args:
        changes: to the recipe it was trained with, under dotted keys; None leaves a key as it is.
        recipe: of a file outside of its folder: name or path of the one whose data it is scored on.
        format: of an export folder; None is its weights.
        conventions: "all", or names with commas between; None shows none.

    Raises:
        UserError: the model cannot be opened, or not be scored on these data or in that way.
    """
    from data_cache.metrics import find_background
    from data_cache.plugins import named_by_a_file
    from data_cache.ranks import is_speaker, speaker_first
    from pipeline.experiment.artifacts import find_labels_if_any
    from pipeline.experiment.config import load_config
    from pipeline.experiment.looking import look_at_splits
    from pipeline.experiment.models import check_classes, find_size_rule, open_model
    from pipeline.experiment.scoring import evaluate_split
    from pipeline.experiment.tabulate import freshen
    from stages.comparison.record import RunRecord
    from stages.evaluation.conventions import PAPER_NOTE, choose_conventions, score_by_conventions
    from stages.evaluation.tiling import TiledNetwork

    wanted = choose_conventions(conventions) if conventions is not None else []
    margin = choose_margin(tile, margin)
    model = open_model(session, reference, device, format, load_config(recipe) if recipe else None)
    if (recipe is None) == (model.record is None):
        if recipe is None:
            raise UserError(f"{reference} lies alone and does not say which data it is scored on; give --recipe")
        raise UserError(f"{reference} comes with the recipe of its run; drop --recipe {recipe}")
    with speaker_first():
        if model.has_depth and is_speaker():  # a run: what is printed here and what `compare` shows are of one version
            freshen([RunRecord.from_json(model.folder)], session)
    config = model.config.changed({key: value for key, value in changes.items() if value is not None})
    if tile is not None:
        if changes.get("evaluation.size") == "recipe":
            raise UserError("--tile cuts images at their own size, which --size recipe gives up; drop one of them")
        config = config.changed({"evaluation.size": "original"})
    rule = find_size_rule(config)
    if model.format is not None and rule != model.size_rule:
        what = "--tile has" if tile is not None else f"--size {changes['evaluation.size']} has"
        raise UserError(f"{reference} takes {model.size_rule}, wherever it runs, but {what} {rule}; drop that option")
    of_an_export = model.format is not None and recipe is None  # which names its dataset, too, whoever has written it
    with named_by_a_file() if of_an_export else contextlib.nullcontext():
        (looked,) = look_at_splits(config, session, (config.evaluation.split,))
    dataset = looked.dataset
    check_classes(model, dataset)
    learnt_depth = model.has_depth and config.build_schedule().needs_depth
    store = find_labels_if_any(config, session.workspace, dataset, session.console.info) if learnt_depth else None
    network = TiledNetwork(model.network, tile=tile, margin=margin) if tile is not None else model.network
    with open_writer(session, save_predictions, dataset, config, overwrite=overwrite) as writer:
        session.console.info(f"evaluating {model.weights} on {dataset.name} {dataset.split}")
        evaluation = evaluate_split(network, model.normalisation, dataset, store, config, device, writer, together=True)
        if writer is not None and is_speaker():
            writer.write_scores(evaluation.image_scores)
    background = find_background(dataset.classes)
    by_convention = score_by_conventions(evaluation.image_scores, wanted, background=background)
    notes = [*looked.list_notes(), *([PAPER_NOTE] if by_convention else [])]
    return Scored(
        evaluation,
        model.folder,
        model.weights,
        model.format,
        rule,
        dataset.split,
        save_predictions,
        by_convention,
        notes,
    )


@contextlib.contextmanager
def open_writer(
    session: Session, folder: Path | None, dataset: SegmentationDataset, config: RunConfig, *, overwrite: bool
) -> Iterator[PredictionWriter | None]:
    """Yield a writer of the ids that the dataset wants in saved predictions, None without a folder for them.

    The speaker holds the folder for all ranks; each writes what it predicted, once all have looked at what lies there.
    """
    from data_cache.outputs import OutputFolder, open_output
    from data_cache.ranks import is_speaker, wait_for_all
    from pipeline.experiment.artifacts import find_data_files
    from stages.evaluation.predict import PredictionWriter

    if folder is None:
        yield None
        return
    session.workspace.check_output(folder, "--save-predictions")
    inputs = find_data_files(config, session.workspace)
    inputs.check_outside(folder, "--save-predictions")
    with contextlib.ExitStack() as held:
        if is_speaker():
            opened = open_output(folder, inputs, overwrite=overwrite, on_wait=session.console.info)
            output = held.enter_context(opened)
        wait_for_all()
        if not is_speaker():
            output = OutputFolder(folder, inputs, overwrite=overwrite)
        ids = dataset.prediction_ids
        writer = PredictionWriter(output, dataset.image_ids, palette=dataset.palette, official_ids=ids)
        wait_for_all()
        yield writer


def _render(scored: Scored) -> Group:
    """Show the metrics above the classes, the images to look at, and the conventions."""
    from rich.console import Group
    from rich.text import Text

    from data_cache.metrics import METRICS
    from pipeline.console import plain_table

    evaluation, by_convention = scored.evaluation, scored.conventions
    metrics = [[name, f"{value:.4f}", METRICS[name].explain()] for name, value in evaluation.metrics.items()]
    classes = [[row.name, _share(row.iou), _share(row.acc), row.pixels] for row in evaluation.per_class]
    examples = [
        [place, ", ".join(f"{each['image']} {each['miou_imagewise']:.4f}" for each in images)]
        for place, images in evaluation.image_scores.find_examples().items()
    ]
    tables = [
        plain_table(f"{evaluation.images} images", ["metric", "value", "what it is"], metrics),
        plain_table("Classes", ["class", "IoU", "recall", "pixels"], classes),
        plain_table("Images, by the mean IoU over the classes of each", ["", "image and mIoU"], examples),
    ]
    if by_convention:
        shown = [[each.name, f"{each.void_ignored:.4f}", f"{each.void_as_fp:.4f}", each.what] for each in by_convention]
        heads = ["convention", "void ignored", "void as FP", "what it is"]
        tables.append(plain_table("The same predictions by other conventions", heads, shown))
    return Group(
        *(part for table in tables for part in (table, Text())),
        *(Text(f"note: {note}") for note in scored.notes),
    )


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"

"""A trained model by reference: the last weights of a run, an export folder, or one file of an export."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from data_cache.errors import Notice, UserError, is_out_of_memory, say_reason
from data_cache.images import read_image
from data_cache.plugins import CODE, named_by_a_file
from data_cache.size_rule import ORIGINAL, SizeRule, fixed_size
from pipeline.experiment.config import RunConfig
from pipeline.experiment.nodes import check_inside, load_node
from pipeline.session import Session
from pipeline.workspace import Workspace
from stages.comparison.record import RUN_FILE, RunFile, TrainedRun, read_run
from stages.evaluation.forward import evaluation_mode
from stages.evaluation.predict import Prediction, Segmenter
from stages.evaluation.tiling import DEFAULT_MARGIN_PX
from stages.export.formats import (
    CONFIG_FILE,
    EXPORT_FORMATS,
    ORIGIN_FILE,
    SINGLE_FILE_SUFFIXES,
    WEIGHTS_FILE,
    check_formats,
    find_format,
)
from stages.networks import build_without_weights, identify_code
from stages.networks.interface import Network, Normalisation

if TYPE_CHECKING:
    from data_cache.datasets.interface import SegmentationDataset
    from stages.evaluation.views import View
    from stages.export.job import SegmentationFunction


@dataclass(frozen=True)
class Model:
    """A network with what is needed to feed it and to read its answers."""

    network: Any
    """A ``Network``, or a function from images to logits; in eval mode on its device."""
    normalisation: Normalisation
    size_rule: SizeRule
    """At what size images enter."""
    class_names: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    """One colour per class."""
    config: RunConfig
    """Recipe of its run, or the one named beside a file that stands alone; its evaluation obeys the size rule."""
    has_depth: bool
    folder: Path
    weights: Path
    """File the weights were read from."""
    record: TrainedRun | None = None
    """Of the run it came from; None of a file that stands alone."""
    format: str | None = None
    """Of an export; None of a run."""
    content: str = ""
    """Hash of that file; not told of an export."""
    device: torch.device | str = "cpu"
    """Where ``network`` takes its images."""

    def predict(
        self,
        image: str | os.PathLike[str] | NDArray[np.uint8],
        *,
        probabilities: bool = True,
        depth: bool | None = None,
        tile: int | None = None,
        margin: int = DEFAULT_MARGIN_PX,
        tta: str | None = None,
    ) -> Prediction:
        """Return what the model says of one image.

        Args:
            image: a file, read as training reads it, or (H, W, 3) uint8 RGB.
            probabilities: whether to return those of all classes, which take C bytes a pixel.
            depth: whether to run the depth branch; None does where there is one that has learnt.
            tile: side of the tiles that a larger image is cut into, px; None takes it whole.
            margin: what the network sees around a tile, px.
            tta: ``flip``, ``scales`` or both with a comma: the mean over these views.

        Returns:
            ``labels`` (H, W) uint8 class indices, places in ``class_names``; ``probabilities`` (C, H, W) uint8, 255 is
            certain; ``depth`` (H, W) float32 in the units of ``config.depth.target``; all at the image's own size.

        Raises:
            UserError: the image cannot be read, or the model cannot do what is asked for.
        """
        from stages.evaluation.views import choose_views

        learnt = self.has_depth and self.config.build_schedule().needs_depth
        if depth and not learnt:
            raise UserError(f"{self.folder} has no depth branch that has learnt anything; ask for none")
        pixels = read_image(Path(image)).pixels if isinstance(image, str | os.PathLike) else np.asarray(image)
        if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8:
            raise UserError(f"an image is (H, W, 3) uint8 RGB; found {pixels.shape} {pixels.dtype}")
        segmenter = build_segmenter(
            self,
            tile=tile,
            margin=margin,
            views=choose_views(tta),
            depth=learnt if depth is None else depth,
            probabilities=probabilities,
        )
        with evaluation_mode(self.network):
            return segmenter.segment(pixels)


def build_segmenter(
    model: Model, *, tile: int | None, margin: int, views: Sequence[View], depth: bool, probabilities: bool
) -> Segmenter:
    """Return what labels images with a model; arguments as of ``Segmenter``.

    Raises:
        UserError: it cannot be run in tiles or views.
    """
    check_views(model, views)
    rule = ORIGINAL if tile is not None and model.format is None else model.size_rule
    return Segmenter(
        model.network, model.normalisation, model.device, size_rule=rule, tile=tile, margin=margin, views=views,
        depth=depth, probabilities=probabilities,
    )  # fmt: skip


def check_views(model: Model, views: Sequence[View]) -> None:
    """Refuse to show a file of one size images of another.

    Raises:
        UserError: naming what can be shown them.
    """
    one_size = model.format not in (None, "safetensors") and model.size_rule.kind == "fixed"
    if one_size and any(view.scale != 1 for view in views):
        raise UserError(
            f"--tta scales: {model.weights} takes {model.size_rule} and no others; drop it, or predict with "
            "--format safetensors"
        )


def open_model(
    session: Session, reference: str, device: torch.device, format: str | None = None, recipe: RunConfig | None = None
) -> Model:
    """Open a run (folder, name or beginning of its name), an export folder, or a file of an export.

    Args:
        format: of an export folder; its weights (``safetensors``) unless told.
        recipe: for a file that stands alone; its own data says how images enter and what the classes are called.

    Raises:
        UserError: there is none of these, or not in that format.
    """
    path = Path(reference)
    check_formats([format] if format else [])
    found = find_format(path) if path.is_file() else format
    if found and EXPORT_FORMATS[found].labels_bytes:
        raise UserError(
            f"format {found} does all of predicting itself, from the bytes of an image to labels, so its file is run "
            f"by itself, as {path.parent if path.is_file() else path}/README.md shows; here name another format"
        )
    if path.is_file():
        if found is None or format not in (None, found):
            raise UserError(
                f"{path} is no file of {'an export' if format is None else f'format {format}'}; a file alone is opened "
                f"by its name, ending in {', '.join(SINGLE_FILE_SUFFIXES)}"
            )
        if path.name in EXPORT_FORMATS[found].files and (path.parent / ORIGIN_FILE).is_file():
            return _open_export(path.parent, device, found)
        return _open_file(path, found, recipe)
    if (path / ORIGIN_FILE).is_file():
        return _open_export(path, device, format or "safetensors")
    if format is not None:
        raise UserError(
            f"{reference} is no export folder, and a run has no formats; export it, or drop --format {format}"
        )
    return open_run(session.workspace.find_run(reference), device)


def open_run(folder: Path, device: torch.device) -> Model:
    """Open the last weights of a finished run.

    Raises:
        UserError: its record or its weights are missing, damaged, or not those that were scored.
    """
    record = read_trained(folder)
    config = restore_config(record)
    check_plugin(record, config)
    network = build_untrained(config, len(record.classes))
    node = Workspace(folder.resolve().parent.parent).node(record.nodes[-1])  # beside it, wherever it lies
    check_inside(node, folder / RUN_FILE)
    content = load_node(network, node)
    if record.evaluation.weights not in (None, content):
        raise UserError(
            f"{folder / RUN_FILE} has the scores of other weights than {node.weights} holds now (trained anew, or "
            f"exchanged); to score these, repeat the run: {record.command or 'pipeline run'}"
        )
    return Model(
        network=_place(network, device),
        normalisation=network.normalisation,
        size_rule=find_size_rule(config),
        class_names=record.classes,
        palette=record.palette,
        config=config,
        device=device,
        has_depth=True,
        folder=folder,
        weights=node.weights,
        record=record,
        content=content,
    )


def read_trained(folder: Path, name: str = RUN_FILE) -> TrainedRun:
    """Return the record of a run whose model can be opened.

    Args:
        name: of the file.

    Raises:
        UserError: it is missing, damaged, or of another version, whose settings had other meanings.
    """
    record = read_run(folder / name)
    if isinstance(record, TrainedRun):
        return record
    raise UserError(
        f"run {folder.name} was made by an older version of this program; repeat it with: "
        f"{record.command or 'pipeline run'}"
    )


def _open_export(folder: Path, device: torch.device, format: str) -> Model:
    from stages.export.preprocess import PREPROCESS_FILE, read_preprocess
    from stages.export.proof_file import EXPORT_AGAIN, check_files, read_proof
    from stages.export.safetensors_file import load_exported

    proven = read_proof(folder)
    if format not in proven.formats:
        raise UserError(
            f"{folder} holds no {format}; it holds {', '.join(proven.formats)}; choose one of them, or export the run "
            f"with: --formats {','.join((*proven.formats, format))}"
        )
    names = EXPORT_FORMATS[format].files
    beside = [name for name in proven.files or () if name.removesuffix(".data") in names]
    check_files(folder, (ORIGIN_FILE, PREPROCESS_FILE, *dict.fromkeys((*names, *beside))))
    record, preprocess = read_trained(folder, ORIGIN_FILE), read_preprocess(folder)
    if preprocess.class_names != record.classes:
        raise UserError(
            f"{folder / PREPROCESS_FILE} and {folder / ORIGIN_FILE} name other classes; export the run again"
        )
    config = restore_config(record)
    if format == "safetensors":
        with named_by_a_file():
            check_plugin(record, config)
    rule = preprocess.rule
    if rule is None:
        if format != "safetensors":
            raise UserError(f"{folder} is of an older version, whose {format} obeys no one size rule; {EXPORT_AGAIN}")
        rule = find_size_rule(config)
    network: Any
    if format == "safetensors":
        network = load_exported(folder)
        if network.num_classes != len(record.classes):
            raise UserError(
                f"{folder / CONFIG_FILE} is of {network.num_classes} classes, but {folder / ORIGIN_FILE} of "
                f"{len(record.classes)}; export the run again"
            )
        network = _place(network, device)
    else:
        network = _guard(EXPORT_FORMATS[format].load().open_folder(folder), folder / names[0], len(record.classes))
    return Model(
        network=network,
        normalisation=preprocess.normalisation,
        size_rule=rule,
        class_names=record.classes,
        palette=record.palette,
        config=obey_rule(config, rule),
        device=device,
        has_depth=False,
        folder=folder,
        weights=folder / (WEIGHTS_FILE if format == "safetensors" else names[0]),
        record=record,
        format=format,
    )


def _open_file(path: Path, format: str, recipe: RunConfig | None) -> Model:
    """Open a file that stands alone: what its folder would tell, its own metadata tell."""
    from stages.export.preprocess import parse_preprocess

    check_formats([format])
    module: Any = EXPORT_FORMATS[format].load()
    metadata = module.read_metadata(path) if hasattr(module, "read_metadata") else {}
    if not metadata:
        raise UserError(
            f"{path} does not say what its classes are and how images enter; give a file that 'pipeline export' has "
            "written, in its folder where its format carries no such words"
        )
    preprocess = parse_preprocess(metadata, path)
    rule, names = preprocess.rule, preprocess.class_names
    if rule is None:
        raise UserError(f"{path} is of an older version, which obeys no one size rule; export the run again")
    return Model(
        network=_guard(module.open_file(path), path, len(names)),
        normalisation=preprocess.normalisation,
        size_rule=rule,
        class_names=names,
        palette=preprocess.palette,
        config=obey_rule(recipe or RunConfig(), rule),
        has_depth=False,
        folder=path.parent,
        weights=path,
        format=format,
    )


def _guard(segment: SegmentationFunction, file: Path, num_classes: int) -> SegmentationFunction:
    """Return a file's function for images of any device and layout, which says in words what a runtime finds wrong."""

    def answer(images: Tensor) -> Tensor:
        shape = "x".join(map(str, images.shape))
        try:
            logits = segment(images.to("cpu", torch.float32).contiguous())
        except UserError:  # what an image must be to be taken
            raise
        except Exception as error:  # foreign runtimes raise anything
            if is_out_of_memory(error):
                raise
            reason = say_reason(error)
            raise UserError(f"{file} fails on images of shape {shape}: {reason}; export the run again") from error
        if logits.shape[:2] != (len(images), num_classes):
            raise UserError(
                f"{file} answers images of shape {shape} with {'x'.join(map(str, logits.shape))} numbers, which are no "
                f"logits of {num_classes} classes; export the run again"
            )
        return logits.to(images.device)

    return answer


def find_size_rule(config: RunConfig) -> SizeRule:
    """Return how images enter in a recipe's evaluation."""
    return fixed_size(config.data.crop) if config.evaluation.size == "recipe" else ORIGINAL


def obey_rule(config: RunConfig, rule: SizeRule) -> RunConfig:
    """Return a recipe whose evaluation has images enter by a rule."""
    if rule.input_size is None:
        return config.changed({"evaluation.size": "original"}, "the export's size rule")
    return config.changed({"evaluation.size": "recipe", "data.crop": rule.input_size}, "the export's size rule")


def check_classes(model: Model, dataset: SegmentationDataset) -> None:
    """Refuse to score a network on other classes than those it was trained for, or on these in another order.

    Raises:
        UserError: naming the classes.
    """
    trained, found = model.class_names, tuple(dataset.classes)
    if trained == found:
        return
    where = f"{dataset.name} {dataset.split} ({dataset.describe(0)})"
    if sorted(trained) == sorted(found):
        raise UserError(
            f"{model.folder} was trained with the classes in the order {', '.join(trained)}, but {where} has "
            f"{', '.join(found)}, so its scores would stand under wrong names; put the order back, or train anew"
        )
    raise UserError(
        f"{model.folder} was trained for the classes {', '.join(trained)}, but {where} has {', '.join(found)}; score "
        "it on data with the classes it was trained for, or train anew"
    )


def restore_config(record: RunFile) -> RunConfig:
    """Return the resolved recipe of a run's record.

    Raises:
        UserError: it is no recipe.
    """
    return RunConfig().changed(record.config, f"run.json of {record.name}")


def check_plugin(record: TrainedRun, config: RunConfig) -> None:
    """Say where a run's network is somebody's code that has changed since; its weights are then read by other code.

    Raises:
        UserError: that code cannot be imported here.
    """
    trained = record.identity.settings.get(f"network.{CODE}")
    if trained is None:
        return
    try:
        now = identify_code(config.network.name)
    except UserError as problem:
        raise UserError(f"run {record.run} was trained with code that is not part of this program: {problem}") from None
    if now != trained:
        warnings.warn(
            f"the code of network {config.network.name!r} has changed since run {record.run} was trained, so that its "
            "weights may answer otherwise than they were scored; train anew, or put the code back",
            Notice,
            stacklevel=2,
        )


def build_untrained(config: RunConfig, num_classes: int) -> Any:
    """Build the recipe's network without loading pretrained weights: its own follow."""
    network: Network = build_without_weights(config.network.name, num_classes, **config.network.options)
    return network


def _place(network: Any, device: torch.device) -> Any:
    assert isinstance(network, nn.Module)
    return network.to(device=device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]

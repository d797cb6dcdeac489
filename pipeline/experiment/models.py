"""A trained model by reference: the last weights of a run, or an export folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from data_cache.errors import UserError
from pipeline.experiment.config import RunConfig
from pipeline.experiment.nodes import check_inside, load_node
from pipeline.session import Session
from pipeline.workspace import Workspace
from stages.comparison.record import RUN_FILE, RunFile, TrainedRun, read_run
from stages.export.formats import CONFIG_FILE, ORIGIN_FILE, WEIGHTS_FILE
from stages.networks import build_without_weights
from stages.networks.interface import Network, Normalisation

if TYPE_CHECKING:
    from data_cache.datasets.interface import SegmentationDataset


@dataclass(frozen=True)
class Model:
    """A network with what is needed to feed it and to read its answers."""

    network: Any
    """A ``Network``, or for exports a module from images to logits; in eval mode on its device."""
    normalisation: Normalisation
    record: TrainedRun
    """Of the run it came from."""
    config: RunConfig
    """Recipe of that run."""
    has_depth: bool
    folder: Path
    weights: Path
    """File the weights were read from."""
    content: str = ""
    """Hash of that file; not told of an export."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """One per class."""
        return self.record.classes

    @property
    def palette(self) -> tuple[tuple[int, int, int], ...]:
        """One colour per class."""
        return self.record.palette


def open_model(session: Session, reference: str, device: torch.device) -> Model:
    """Open a run (folder, name or beginning of its name) or an export folder.

    Raises:
        UserError: there is neither.
    """
    if (Path(reference) / ORIGIN_FILE).is_file():
        return _open_export(Path(reference), device)
    return open_run(session.workspace.find_run(reference), device)


def open_run(folder: Path, device: torch.device) -> Model:
    """Open the last weights of a finished run.

    Raises:
        UserError: its record or its weights are missing, damaged, or not those that were scored.
    """
    record = read_trained(folder)
    config = restore_config(record)
    network = build_untrained(config, len(record.classes))
    node = Workspace(folder.resolve().parent.parent).node(record.nodes[-1])  # beside it, wherever it lies
    check_inside(node, folder / RUN_FILE)
    content = load_node(network, node)
    if record.evaluation.weights not in (None, content):
        raise UserError(
            f"{folder / RUN_FILE} has the scores of other weights than {node.weights} holds now (trained anew, or "
            f"exchanged); to score these, repeat the run: {record.command or 'pipeline run'}"
        )
    placed = _place(network, device)
    return Model(placed, network.normalisation, record, config, True, folder, node.weights, content)


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


def _open_export(folder: Path, device: torch.device) -> Model:
    from stages.export.preprocess import PREPROCESS_FILE, read_preprocess
    from stages.export.proof_file import check_files
    from stages.export.safetensors_file import load_exported

    check_files(folder, (ORIGIN_FILE, PREPROCESS_FILE, CONFIG_FILE, WEIGHTS_FILE))
    record, preprocess = read_trained(folder, ORIGIN_FILE), read_preprocess(folder)
    if preprocess.class_names != record.classes:
        raise UserError(
            f"{folder / PREPROCESS_FILE} and {folder / ORIGIN_FILE} name other classes; export the run again"
        )
    network = load_exported(folder)
    if network.num_classes != len(record.classes):
        raise UserError(
            f"{folder / CONFIG_FILE} is of {network.num_classes} classes, but {folder / ORIGIN_FILE} of "
            f"{len(record.classes)}; export the run again"
        )
    weights = folder / WEIGHTS_FILE
    normalisation = Normalisation(preprocess.mean, preprocess.std)
    return Model(_place(network, device), normalisation, record, restore_config(record), False, folder, weights)


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


def build_untrained(config: RunConfig, num_classes: int) -> Any:
    """Build the recipe's network without loading pretrained weights: its own follow."""
    network: Network = build_without_weights(config.network.name, num_classes, **config.network.options)
    return network


def _place(network: Any, device: torch.device) -> Any:
    assert isinstance(network, nn.Module)
    return network.to(device=device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]

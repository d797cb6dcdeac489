"""A trained model by reference: the last weights of a run, or an export folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from data_cache.errors import UserError
from data_cache.files import read_json
from pipeline.experiment.config import RunConfig
from pipeline.session import Session
from pipeline.workspace import Workspace
from stages.networks import build_without_weights
from stages.networks.interface import Network, Normalisation
from stages.training.checkpoint import load_weights

if TYPE_CHECKING:
    from data_cache.datasets.interface import SegmentationDataset

RUN_FORMAT = 2
"""Of run.json; raised when its keys change their meaning, so that older ones get a message and never a wrong answer."""
ORIGIN_FILE = "origin.json"
"""In an export folder: the record of the run it came from."""


@dataclass(frozen=True)
class Model:
    """A network with what is needed to feed it and to read its answers."""

    network: Any
    """A ``Network``, or for exports a module from images to logits; in eval mode on its device."""
    normalisation: Normalisation
    class_names: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    config: RunConfig
    """Recipe of the run it came from."""
    has_depth: bool
    folder: Path
    weights: Path
    """File the weights were read from."""


def open_model(session: Session, reference: str, device: torch.device) -> Model:
    """Open a run (folder, name or beginning of its name) or an export folder.

    Raises:
        UserError: there is neither.
    """
    if (Path(reference) / ORIGIN_FILE).is_file():
        return _open_export(Path(reference), device)
    return open_run(session.workspace.find_run(reference), device)


def open_run(folder: Path, device: torch.device) -> Model:
    """Open the last weights of a finished run."""
    record = read_json(folder / "run.json")
    config = restore_config(record)
    network = build_untrained(config, len(record["classes"]))
    weights = Workspace(folder.resolve().parent.parent).node(record["nodes"][-1]).weights  # beside it, wherever it lies
    load_weights(network, weights)
    return Model(
        _place(network, device),
        network.normalisation,
        tuple(record["classes"]),
        tuple((r, g, b) for r, g, b in record["palette"]),
        config,
        True,
        folder,
        weights,
    )


def _open_export(folder: Path, device: torch.device) -> Model:
    from stages.export.safetensors_file import load_exported

    record = read_json(folder / ORIGIN_FILE)
    preprocess = read_json(folder / "preprocess.json")
    normalisation = Normalisation(tuple(preprocess["mean"]), tuple(preprocess["std"]))
    return Model(
        _place(load_exported(folder), device),
        normalisation,
        tuple(record["classes"]),
        tuple((r, g, b) for r, g, b in record["palette"]),
        restore_config(record),
        False,
        folder,
        folder / "model.safetensors",
    )


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


def restore_config(record: dict[str, Any]) -> RunConfig:
    """Return the resolved recipe of a run's record.

    Raises:
        UserError: the record was written by an older version, whose settings had other meanings.
    """
    if record.get("format") != RUN_FORMAT:
        raise UserError(
            f"run {record.get('run')} was made by an older version of this program; repeat it with: "
            f"{record.get('command') or 'pipeline run'}"
        )
    return RunConfig().changed(record["config"], f"run.json of {record['run']}")


def build_untrained(config: RunConfig, num_classes: int) -> Any:
    """Build the recipe's network without loading pretrained weights: its own follow."""
    network: Network = build_without_weights(config.network.name, num_classes, **config.network.options)
    return network


def _place(network: Any, device: torch.device) -> Any:
    assert isinstance(network, nn.Module)
    return network.to(device=device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]

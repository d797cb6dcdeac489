"""What is known of a trained node, and its weights: believed only where they are what training wrote."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator
from torch import nn

from data_cache.content import ContentHashes
from data_cache.errors import Notice, UserError
from data_cache.records import Record, read_record
from pipeline.workspace import NodeFolder
from stages.comparison.record import DepthOrigin, Environment
from stages.networks.tensor_files import check_content
from stages.training.checkpoint import load_weights


class NodeRecord(Record):
    """node.json: the facts of a finished phase, as far as programs read them."""

    VERSION = 2

    format: int = 1
    key: str
    """What was trained."""
    weights: str | None = None
    """Hash of the weights' file, see ``ContentHashes``; None in what version 1 wrote."""
    seconds: float = Field(ge=0)
    steps: int | None = Field(None, ge=0)
    """Those that were done: patience may have ended the phase before the plan does."""
    best_step: int | None = Field(None, ge=0)
    """After which it scored most, of a phase whose weights were chosen."""
    losses: dict[str, float]
    copied: int = Field(ge=0)
    depth_store: DepthOrigin | None
    numerics: dict[str, str | bool | int]
    environment: Environment

    @model_validator(mode="after")
    def _check_weights(self) -> NodeRecord:
        if self.format >= 2 and self.weights is None:
            raise ValueError("weights is missing")
        return self

    def describe(self) -> dict[str, Any]:
        """Return what run.json says of the phase."""
        told = {"seconds", "losses", "copied", "depth_store"}
        return self.model_dump(include=told | ({"best_step"} if self.best_step is not None else set()))


def read_node(folder: NodeFolder, *, key: str | None = None, remembered: ContentHashes | None = None) -> NodeRecord:
    """Return the record of a finished node whose weights are those it was written with.

    What is damaged is neither used nor trained anew by itself: whoever altered it may want it back, and a disk that
    alters files is to be known of before hours are spent on it.

    Args:
        key: what the node must be; None takes any.
        remembered: hashes of files that need not be read again.

    Raises:
        UserError: the record or the weights are missing, damaged, or of another training.
    """
    remedy = _repair(folder)
    record = read_record(folder.record, NodeRecord, remedy)
    if key is not None and record.key != key:
        raise UserError(f"{folder.record} is of another training (its key is {record.key}, not {key}); {remedy}")
    if not folder.weights.is_file():
        raise UserError(f"cannot read {folder.weights}: there is no such file; {remedy}")
    if content := _find_content(folder, record):
        check_content(folder.weights, content, remedy, remembered)
    return record


def load_node(network: nn.Module, folder: NodeFolder) -> str:
    """Fill a network with a finished node's weights, read and checked as a whole; return the hash of their file.

    Raises:
        UserError: as in ``read_node``, or they are of another network.
    """
    remedy = _repair(folder)
    content = _find_content(folder, read_record(folder.record, NodeRecord, remedy))
    load_weights(network, folder.weights, remedy, content)
    return content or ContentHashes().hash((folder.weights,))


def _find_content(folder: NodeFolder, record: NodeRecord) -> str | None:
    """Return the hash that the weights must have; where an older version did not write it, that is said."""
    if record.weights is None:
        warnings.warn(
            f"{folder.weights} is believed unchecked: the older version that wrote it did not note its content; to be "
            f"sure of it, {_repair(folder)}",
            Notice,
            stacklevel=3,
        )
    return record.weights


def check_inside(folder: NodeFolder, record: Path) -> None:
    """Refuse a node that a record names and that does not lie among the others.

    Raises:
        UserError: it is a link to somewhere else.
    """
    if folder.path.resolve().parent != folder.path.parent.resolve():
        raise UserError(f"{record} names node {folder.path.name}, but {folder.path} leads elsewhere; {_repair(folder)}")


def _repair(folder: NodeFolder) -> str:
    return f"remove the folder {folder.path} if it is there, and repeat the run: this phase is then trained anew"

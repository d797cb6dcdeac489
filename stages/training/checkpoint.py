"""Weights and training states on disk: safetensors and JSON, never unpickled, and either absent or complete.

A checkpoint folder holds ``step-<n>/state.safetensors`` and ``state.json``; a new one is written beside the old and
renamed into place before the old is removed. Random state needs no bytes of its own: the loop seeds every step from
(seed, step), and data order and augmentation are functions of the step, so the step cursor is the random state.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from data_cache.content import ContentHashes
from data_cache.errors import UserError
from data_cache.files import atomic_file, atomic_folder
from data_cache.leftovers import remove
from data_cache.records import Record, read_record
from stages.networks.tensor_files import fill_tensors, read_tensors, save_tensors

_TENSORS, _FACTS = "state.safetensors", "state.json"
_STEP_FOLDER = re.compile(r"step-(\d{8,12})")
RETRAIN = "remove it if it is there, and train again with: pipeline run"


class CheckpointFacts(Record):
    """state.json: what the tensors beside it are."""

    VERSION = 2

    format: int = 1
    step: int = Field(ge=0)
    """Finished steps."""
    key: str
    """What the training is."""
    content: str | None = None
    """Hash of the tensors' file; None in what version 1 wrote."""


class Checkpoint(NamedTuple):
    """A training state as of ``step`` finished steps."""

    step: int
    tensors: dict[str, Tensor]
    """On the CPU, contiguous, by ``<group>/<name>``."""
    folder: Path
    """Where it lies."""
    remedy: str
    """What to do where the tensors turn out not to fit."""


def save_weights(network: nn.Module, path: Path) -> None:
    """Write the whole state dict as one safetensors file, atomically.

    Raises:
        UserError: no space left or no permission; nothing is left behind and a former file stays.
    """
    with atomic_file(path) as temporary:
        save_tensors(temporary, network.state_dict())


def load_weights(network: nn.Module, path: Path, remedy: str = RETRAIN, content: str | None = None) -> None:
    """Fill the network with a weights file; names, shapes and types must agree exactly.

    Args:
        remedy: what to do about a file that is unfit.
        content: hash of what was written, see ``read_tensors``.

    Raises:
        UserError: no readable file, not the one that was written, of another network, or not finite.
    """
    stored = read_tensors(path, remedy, content)
    fill_tensors(network.state_dict(), stored, f"weights {path}", remedy)
    if broken := [name for name, value in stored.items() if not bool(torch.isfinite(value).all())]:
        raise UserError(
            f"weights {path} are not finite (in {', '.join(broken[:3])}; {len(broken)} tensors): they are damaged, or "
            f"the training diverged (lower the learning rate with --lr); {remedy}"
        )


def write_checkpoint(folder: Path, step: int, tensors: Mapping[str, Tensor], key: str) -> None:
    """Publish a training state; the former one stays until this one is complete.

    Args:
        folder: made when missing; nothing else may live in it.
        step: finished steps.
        tensors: by ``<group>/<name>``, on any device and in any layout.
        key: what the training is; only a training of an equal key takes the state up again.

    Raises:
        UserError: no space left or no permission; the former checkpoint is intact.
    """
    final = folder / f"step-{step:08d}"
    if final.exists():  # the same state, written before an interruption that came at once after resuming
        return
    with atomic_folder(final) as temporary:
        save_tensors(temporary / _TENSORS, tensors)
        facts = CheckpointFacts(
            format=CheckpointFacts.VERSION, step=step, key=key, content=ContentHashes().hash((temporary / _TENSORS,))
        )
        (temporary / _FACTS).write_text(facts.model_dump_json(indent=1), encoding="utf8")
    for former in _steps(folder).values():
        if former != final:
            remove(former)


def read_checkpoint(folder: Path, key: str, total_steps: int) -> Checkpoint | None:
    """Return the newest complete state, or None when there is none.

    A damaged state is neither believed nor passed over: what it holds may be hours of training, so the person decides.

    Args:
        key: what the training is.
        total_steps: its length; a state at its end is none of its own.

    Raises:
        UserError: it belongs to a training of another key, or is damaged.
    """
    found = _steps(folder)
    if not found:
        return None
    step = max(found)
    newest = found[step]
    remedy = f"delete {newest} and repeat the command, which then starts this phase from its beginning"
    facts = read_record(newest / _FACTS, CheckpointFacts, remedy)
    if facts.key != key:
        raise UserError(
            f"checkpoint {newest} belongs to another training, or was written by an earlier version (its key is "
            f"{facts.key}, this training's is {key}); {remedy}"
        )
    if facts.step != step or step >= total_steps:
        raise UserError(
            f"checkpoint {newest} says it is of step {facts.step}, but that must be the {step} of its name, and less "
            f"than the phase's {total_steps}; {remedy}"
        )
    return Checkpoint(step, read_tensors(newest / _TENSORS, remedy, facts.content), newest, remedy)


def _steps(folder: Path) -> dict[int, Path]:
    """Return the states in a folder by their steps."""
    named = {path: _STEP_FOLDER.fullmatch(path.name) for path in folder.glob("step-*")}
    return {int(match[1]): path for path, match in named.items() if match}

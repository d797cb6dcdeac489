"""Weights and training states on disk: safetensors and JSON, never unpickled, and either absent or complete.

A checkpoint folder holds ``step-<n>/state.safetensors`` and ``state.json``; a new one is written beside the old and
renamed into place before the old is removed. Random state needs no bytes of its own: the loop seeds every step from
(seed, step), and data order and augmentation are functions of the step, so the step cursor is the random state.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from data_cache.errors import UserError
from data_cache.files import atomic_file, atomic_folder, read_json
from stages.networks.tensor_files import read_tensors, save_tensors

_TENSORS, _FACTS = "state.safetensors", "state.json"
_RETRAIN = "delete it if it is there, and train again with: pipeline run"


class Checkpoint(NamedTuple):
    """A training state as of ``step`` finished steps."""

    step: int
    tensors: dict[str, Tensor]
    """On the CPU, contiguous, by ``<group>/<name>``."""


def save_weights(network: nn.Module, path: Path) -> None:
    """Write the whole state dict as one safetensors file, atomically.

    Raises:
        UserError: no space left or no permission; nothing is left behind and a former file stays.
    """
    with atomic_file(path) as temporary:
        save_tensors(temporary, network.state_dict())


def load_weights(network: nn.Module, path: Path) -> None:
    """Fill the network with a weights file; names and shapes must agree exactly.

    Raises:
        UserError: no readable file, or names or shapes differ (all differences are listed).
    """
    load_tensors(network.state_dict(), read_tensors(path, _RETRAIN), f"weights {path}")


@torch.no_grad()
def load_tensors(live: Mapping[str, Tensor], stored: Mapping[str, Tensor], what: str) -> None:
    """Copy stored values into live tensors, keeping their memory layout; UserError when names or shapes differ."""
    problems = [f"{name} is missing in the file" for name in live.keys() - stored.keys()]
    problems += [f"{name} is unknown to the network" for name in stored.keys() - live.keys()]
    problems += [
        f"{name} is {tuple(stored[name].shape)} in the file and {tuple(live[name].shape)} in the network"
        for name in live.keys() & stored.keys()
        if stored[name].shape != live[name].shape
    ]
    if problems:
        shown = "; ".join(sorted(problems)[:8]) + (f"; and {len(problems) - 8} more" if len(problems) > 8 else "")
        raise UserError(f"{what} belongs to another network: {shown}. Build the network it was trained with")
    for name, value in live.items():
        value.copy_(stored[name])


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
        (temporary / _FACTS).write_text(json.dumps({"step": step, "key": key}, indent=1), encoding="utf8")
    for former in _steps(folder):
        if former != final:
            shutil.rmtree(former, ignore_errors=True)


def read_checkpoint(folder: Path, key: str) -> Checkpoint | None:
    """Return the newest complete state, or None when there is none.

    Raises:
        UserError: it belongs to a training of another key, or is damaged.
    """
    found = _steps(folder)
    if not found:
        return None
    newest = found[-1]
    remedy = f"delete {folder} to train anew"
    facts = read_json(newest / _FACTS, remedy)
    if facts.get("key") != key:
        raise UserError(
            f"checkpoint {newest} belongs to another training, or was written by an earlier version (its key is "
            f"{facts.get('key')}, this training's is {key}); {remedy}"
        )
    return Checkpoint(int(facts["step"]), read_tensors(newest / _TENSORS, remedy))


def remove_checkpoints(folder: Path) -> None:
    """Delete a checkpoint folder once the phase's weights are safe elsewhere."""
    shutil.rmtree(folder, ignore_errors=True)


def _steps(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*"))

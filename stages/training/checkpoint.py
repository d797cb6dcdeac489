"""Weights and training states on disk: safetensors and JSON, never unpickled, and either absent or complete.

A checkpoint folder holds ``step-<n>/state.safetensors`` and ``state.json``; a new one is written beside the old and
renamed into place before the old is removed. Random state needs no bytes of its own: the loop seeds every step from
(seed, step), and data order and augmentation are functions of the step, so the step cursor is the random state.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from data_cache.errors import UserError

_TENSORS, _FACTS = "state.safetensors", "state.json"


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
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with _explained(f"weights {path}"):
        try:
            _write_tensors(unfinished, network.state_dict())
            unfinished.replace(path)
            _sync(path.parent)
        finally:
            unfinished.unlink(missing_ok=True)


def load_weights(network: nn.Module, path: Path) -> None:
    """Fill the network with a weights file; names and shapes must agree exactly.

    Raises:
        UserError: no readable file, or names or shapes differ (all differences are listed).
    """
    load_tensors(network.state_dict(), _read_tensors(path), f"weights {path}")


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
    unfinished = folder / f".{final.name}.{os.getpid()}.tmp"
    with _explained(f"checkpoint {final}"):
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.glob(".*.tmp"):
            shutil.rmtree(leftover, ignore_errors=True)
        if final.exists():  # the same state, written before an interruption that came at once after resuming
            return
        try:
            unfinished.mkdir()
            _write_tensors(unfinished / _TENSORS, tensors)
            with (unfinished / _FACTS).open("w", encoding="utf8") as file:
                json.dump({"step": step, "key": key}, file, indent=1)
                file.flush()
                os.fsync(file.fileno())
            _sync(unfinished)
            unfinished.replace(final)
            _sync(folder)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
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
    try:
        facts = json.loads((newest / _FACTS).read_text(encoding="utf8"))
        step, written_under = int(facts["step"]), facts.get("key")
    except (OSError, ValueError, KeyError) as problem:
        raise UserError(f"checkpoint {newest} is damaged ({problem}); delete {folder} to train anew") from problem
    if written_under != key:
        raise UserError(
            f"checkpoint {newest} belongs to another training, or was written by an earlier version (its key is "
            f"{written_under}, this training's is {key}); delete {folder} to train anew"
        )
    return Checkpoint(step, _read_tensors(newest / _TENSORS))


def remove_checkpoints(folder: Path) -> None:
    """Delete a checkpoint folder once the phase's weights are safe elsewhere."""
    shutil.rmtree(folder, ignore_errors=True)


def _steps(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*"))


def _write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, path)
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except FileNotFoundError as problem:
        raise UserError(f"there is no weights file {path}; train it first with: pipeline run") from problem
    except (OSError, SafetensorError) as problem:
        raise UserError(f"{path} is no readable safetensors file ({problem}); delete it and train again") from problem


def _sync(folder: Path) -> None:
    """Make a rename in this folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _explained(what: str) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError) as problem:
        raise UserError(
            f"cannot write {what}: {problem}. Free some space or choose another --workdir, then repeat the command; "
            "everything finished before is kept"
        ) from problem

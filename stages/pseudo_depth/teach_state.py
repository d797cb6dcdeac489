"""What a teaching keeps in its folder: the state of one that was stopped, and the record of one that is finished."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from data_cache.errors import UserError
from stages.pseudo_depth.model_folder import WEIGHTS_FILE

UNFINISHED = "unfinished"
"""Sub-folder of the result that holds the state of a teaching that was stopped."""
RECORD = "teaching.json"
"""What was taught by what, so that repeating the command is known to be done."""


def find_finished(folder: Path, task: Mapping[str, Any]) -> float | None:
    """Return the final loss of the same teaching, None when the folder holds no finished one.

    Raises:
        UserError: it holds another.
    """
    if not (folder / WEIGHTS_FILE).exists():
        return None
    record = _read_json(folder / RECORD)
    changed = _compare_tasks(record, task)
    if changed:
        otherwise = f", taught otherwise ({changed})" if record else ""
        raise UserError(f"{folder} already holds a finished estimator{otherwise}; choose another --out or delete it")
    return float(record["final_loss"])


def check_out_folder(folder: Path, task: Mapping[str, Any]) -> None:
    """Make the folder, and refuse one that holds anything but this very teaching.

    Now, not after hours, is the time to find out that it cannot be written to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    state = folder / UNFINISHED / "state.json"
    begun = [_read_json(state).get("task", {})] if state.is_file() else []
    begun += [_read_json(folder / RECORD)] if (folder / RECORD).is_file() else []  # stopped while it was published
    if not begun and any(path.name != UNFINISHED for path in folder.iterdir()):
        raise UserError(f"{folder} is not empty and no stopped teaching; choose another --out")
    for former in begun:
        if changed := _compare_tasks(former, task):
            raise UserError(
                f"{folder} holds a teaching that was begun with other options ({changed}); "
                "repeat them to continue, or choose another --out"
            )


def _compare_tasks(begun: Mapping[str, Any], task: Mapping[str, Any]) -> str:
    """Return what differs in words, "" when nothing does."""
    return ", ".join(f"{name} was {begun.get(name)!r}" for name, value in task.items() if begun.get(name) != value)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value: dict[str, Any] = json.loads(path.read_text(encoding="utf8")) if path.is_file() else {}
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}); delete {path.parent} and teach again") from error
    return value


def save_state(
    folder: Path, network: nn.Module, optimizer: torch.optim.AdamW, task: Mapping[str, Any], step: int
) -> None:
    """Write network and optimiser; the cursor is written last and by rename, so a half-written state is never read."""
    unfinished = folder / UNFINISHED
    unfinished.mkdir(parents=True, exist_ok=True)
    tensors = {f"network.{name}": tensor.contiguous() for name, tensor in network.state_dict().items()}
    for index, parameter_state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{key}": value.contiguous() for key, value in parameter_state.items()}
    name = f"step-{step}.safetensors"
    save_file(tensors, unfinished / name)
    partial = unfinished / "state.json.partial"
    partial.write_text(json.dumps({"step": step, "tensors": name, "task": task}, indent=2) + "\n")
    partial.replace(unfinished / "state.json")
    for old in unfinished.glob("step-*.safetensors"):
        if old.name != name:
            old.unlink()


def load_state(folder: Path, network: nn.Module, optimizer: torch.optim.AdamW) -> int:
    """Restore a stopped teaching and return the step to go on with, 0 when there is none."""
    cursor_file = folder / UNFINISHED / "state.json"
    if not cursor_file.is_file():
        return 0
    cursor = _read_json(cursor_file)
    try:
        tensors = load_file(folder / UNFINISHED / cursor["tensors"])
    except (OSError, SafetensorError) as error:
        raise UserError(f"{cursor_file.parent} is damaged ({error}); delete {folder} and teach again") from error
    network.load_state_dict(
        {name.removeprefix("network."): tensor for name, tensor in tensors.items() if name.startswith("network.")}
    )
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".")
            like = parameters[int(index)]
            # the fused update walks memory, not indices: moments must have their parameter's memory layout
            value = torch.empty_like(like).copy_(tensor) if tensor.shape == like.shape else tensor
            state.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return int(cursor["step"])

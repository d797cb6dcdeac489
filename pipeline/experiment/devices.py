"""Where to compute."""

from __future__ import annotations

import re
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from data_cache.errors import Notice, UserError
from data_cache.ranks import local_rank, local_world_size, world_size
from stages.networks.precision import set_tf32

if TYPE_CHECKING:
    import torch

_SUPPORTED = re.compile(r"auto|cpu|cuda(:\d{1,3})?", re.ASCII)
_GPU_FILES = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")
"""Where Linux shows the drivers of Nvidia, AMD, and of Windows beneath it."""
_FEWEST_WORKERS, _MOST_WORKERS = 2, 12
"""Of a GPU's training: fewer are idle while one waits for its disk, and more take memory that the cache could have."""


def choose_device(name: str) -> torch.device:
    """Return the device of that name; ``auto`` is the first GPU if there is one, else the CPU.

    Of several processes that share their work each takes the GPU of its number on its machine. From then on float32
    means float32 on it, other than torch has it; ``training.tf32`` says otherwise while training.

    Raises:
        UserError: the program does not support it, or this machine does not have it.
    """
    _check_supported(name)
    import torch

    set_tf32(False)
    if name == "cpu":
        return torch.device("cpu")
    with warnings.catch_warnings(record=True) as said:  # torch's reason why a GPU that is there cannot be used
        warnings.simplefilter("always")
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    reason = f" ({str(said[0].message).splitlines()[0]})" if said else ""
    if name == "auto":
        if reason:
            warnings.warn(f"computing on the CPU: no GPU can be used{reason}", Notice, stacklevel=2)
        name = "cuda" if count else "cpu"
        if name == "cpu" or world_size() == 1:
            return torch.device(name)
    device = torch.device(name)
    if world_size() > 1:
        return _choose_of_ranks(device, count, reason)
    if (device.index or 0) >= count:
        have = ", ".join(f"cuda:{index}" for index in range(count)) or "none"
        raise UserError(f"device {name!r} is not there: GPUs of this machine: {have}{reason}; use --device auto or cpu")
    if device.index is not None:
        torch.cuda.set_device(device)  # else page-locked memory, for one, would open the first GPU as well
    return device


def _choose_of_ranks(device: torch.device, count: int, reason: str) -> torch.device:
    """Return this rank's own GPU, which from now on is its current one."""
    import torch

    if device.index is not None:
        raise UserError(
            f"--device {device} is one GPU, but each of the {world_size()} processes takes its own; use --device cuda"
        )
    if count < local_world_size():
        raise UserError(
            f"{local_world_size()} processes were started on this machine, which has {count} GPUs{reason}; "
            f"{f'start one for each (torchrun --nproc-per-node {count}), or ' if count else ''}use --device cpu"
        )
    torch.cuda.set_device(local_rank())
    return torch.device("cuda", local_rank())


def find_device(name: str) -> str:
    """Return the name of what ``choose_device`` would choose, at once where no GPU driver is there."""
    _check_supported(name)
    if name == "auto" and sys.platform == "linux" and not any(Path(file).exists() for file in _GPU_FILES):
        return "cpu"
    return str(choose_device(name))


def choose_workers(wanted: int | Literal["auto"], device: torch.device) -> int:
    """Return how many processes load the data of a training or evaluation on a device.

    On a CPU all cores compute already, and a loader's process takes from them what it gives. A GPU leaves this
    process's share of the cores idle but one.
    """
    if wanted != "auto":
        return wanted
    if device.type == "cpu":
        return 0
    import torch

    return min(_MOST_WORKERS, max(_FEWEST_WORKERS, torch.get_num_threads() - 1))


def _check_supported(name: str) -> None:
    if not _SUPPORTED.fullmatch(name):
        raise UserError(
            f"device {name!r} is not supported; possible: auto (a GPU where there is one), cpu, cuda, cuda:1 and so on"
        )

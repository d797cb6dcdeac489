"""Where to compute."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from data_cache.errors import UserError

if TYPE_CHECKING:
    import torch

_GPU_FILES = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")
"""Where Linux shows the drivers of Nvidia, AMD, and of Windows beneath it."""


def choose_device(name: str) -> torch.device:
    """Return the device of that name; ``auto`` is the first GPU if there is one, else the CPU.

    Raises:
        UserError: no such device on this machine.
    """
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as problem:
        reason = str(problem).splitlines()[0]
        raise UserError(f"cannot use device {name!r}: {reason}; use --device auto, cpu or cuda") from problem
    return device


def find_device_type(name: str) -> str:
    """Return what ``choose_device`` would choose, as a type such as ``cuda``, at once where no GPU driver is there."""
    if name == "auto" and sys.platform == "linux" and not any(Path(file).exists() for file in _GPU_FILES):
        return "cpu"
    return choose_device(name).type

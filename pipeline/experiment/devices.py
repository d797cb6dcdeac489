"""Where to compute."""

from __future__ import annotations

import torch

from data_cache.errors import UserError


def choose_device(name: str) -> torch.device:
    """Return the device of that name; ``auto`` is the first GPU if there is one, else the CPU.

    Raises:
        UserError: no such device on this machine.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as problem:
        reason = str(problem).splitlines()[0]
        raise UserError(f"cannot use device {name!r}: {reason}; use --device auto, cpu or cuda") from problem
    return device

"""From the device back to the host, without waiting until somebody looks."""

from __future__ import annotations

import torch
from torch import Tensor


class Arrival:
    """A tensor on its way to the host; it travels behind what its device was given before, and ahead of what comes.

    Whoever copies later, or in another thread, would wait for what the device was given in the meantime as well.
    """

    def __init__(self, tensor: Tensor) -> None:
        on_gpu = tensor.device.type == "cuda"
        self._arriving = tensor.to("cpu", non_blocking=on_gpu)  # into page-locked memory
        self._end = torch.cuda.Event(blocking=True) if on_gpu else None  # waiting for it takes no core
        if self._end is not None:
            self._end.record(torch.cuda.current_stream(tensor.device))

    def wait(self) -> Tensor:
        """Return it when it is there."""
        if self._end is not None:
            self._end.synchronize()
        return self._arriving

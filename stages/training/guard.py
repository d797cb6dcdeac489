"""Whether a step may change anything: decided where the numbers are, so that the host never waits for the device."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from stages.networks.precision import Dtype

_FIRST_SCALE = 2.0**16
_LARGEST_SCALE = 2.0**24
_GROWTH_STEPS = 2000
"""Steps without overflow after which the scale doubles; all three as torch's GradScaler has them."""


class Verdict(NamedTuple):
    """What became of a step; scalar bool tensors on the device."""

    broken: Tensor
    """A loss or gradient of this or an earlier step was not finite: from that step on nothing changes any more."""
    holds: Tensor
    """The step changes nothing: it is broken, or its gradients overflowed float16 and the scale was lowered."""


class StepGuard:
    """Keeps a step that came out bad from leaving a trace: remembers, judges, and takes back.

    The first bad step sticks: all later ones change nothing either, so that it may be noticed late. In float16 the loss
    is multiplied before the backward pass, for small gradients to survive it; a step whose gradients overflow by that
    is left out, and the factor is halved.

    Args:
        network: inside ``training_parts``; the buffers of its modules in training mode are those a forward pass moves.
        device: where it computes.
        dtype: of the forward pass.
    """

    def __init__(self, network: nn.Module, device: torch.device, dtype: Dtype) -> None:
        self._broken = torch.zeros((), dtype=torch.bool, device=device)
        self._statistics = _BufferSnapshot(network)
        self._scaling: dict[str, Tensor] = {}
        if dtype == "float16":
            self._scaling = {
                "scale": torch.full((), _FIRST_SCALE, device=device),
                "steps_since_change": torch.zeros((), dtype=torch.int64, device=device),
            }

    @property
    def scale(self) -> Tensor | None:
        """What the loss is multiplied with before the backward pass; None where it is not."""
        return self._scaling.get("scale")

    def remember(self) -> None:
        """Take note of what the coming forward pass will move."""
        self._statistics.take()

    def take_back(self) -> None:
        """Put back what a forward pass has moved since ``remember``."""
        self._statistics.restore_where(torch.ones_like(self._broken))

    def judge(self, sound: Tensor, norm: Tensor) -> Verdict:
        """Decide on a step.

        Args:
            sound: whether all is well before the backward pass: losses finite, labels of the network's classes.
            norm: of all gradients, the scale taken out.
        """
        steep = ~torch.isfinite(norm)
        overflows = torch.zeros_like(self._broken)
        if self.scale is not None:
            overflows = sound & steep & (self.scale > 1)  # with nothing left to lower, it is the gradient itself
        self._broken |= ~sound | (steep & ~overflows)
        return Verdict(self._broken.clone(), self._broken | overflows)

    def finish(self, verdict: Verdict) -> None:
        """Take back what the forward pass of a step has moved if it is to change nothing, and adapt the scale."""
        self._statistics.restore_where(verdict.holds)
        if self._scaling:
            self._adapt_scale(verdict)

    def state(self) -> dict[str, Tensor]:
        """Return scale and its age by name, for float16 alone; filling them in restores the state."""
        return dict(self._scaling)

    def _adapt_scale(self, verdict: Verdict) -> None:
        scale, age = self._scaling["scale"], self._scaling["steps_since_change"]
        age += ~verdict.broken
        overflows = verdict.holds & ~verdict.broken
        grows = ~verdict.holds & (age >= _GROWTH_STEPS)
        scale.mul_(torch.where(overflows, 0.5, torch.where(grows, 2.0, 1.0))).clamp_(1.0, _LARGEST_SCALE)
        age *= ~(overflows | grows)


class _BufferSnapshot:
    """The buffers that a forward pass moves, as they were before it: those of the modules in training mode."""

    def __init__(self, module: nn.Module) -> None:
        moving = [buffer for child in module.modules() if child.training for buffer in child.buffers(recurse=False)]
        by_type: dict[torch.dtype, list[Tensor]] = {}
        for buffer in moving:
            by_type.setdefault(buffer.dtype, []).append(buffer)
        self._groups = [_BufferGroup(buffers) for buffers in by_type.values()]

    def take(self) -> None:
        for group in self._groups:
            group.join(group.kept)

    def restore_where(self, wanted: Tensor) -> None:
        """Put the buffers back if the scalar is true."""
        for group in self._groups:
            group.join(group.now)
            torch.where(wanted, group.kept, group.now, out=group.kept)
            torch._foreach_copy_(group.live, group.parts_of_kept)


class _BufferGroup:
    """Buffers of one type and their values side by side in one tensor: a handful of kernels instead of hundreds."""

    def __init__(self, live: list[Tensor]) -> None:
        self.live = live
        self.kept = torch.cat([buffer.flatten() for buffer in live])
        self.now = torch.empty_like(self.kept)
        parts = self.kept.split([buffer.numel() for buffer in live])
        self.parts_of_kept = [part.view(buffer.shape) for part, buffer in zip(parts, live, strict=True)]

    def join(self, into: Tensor) -> None:
        torch.cat([buffer.flatten() for buffer in self.live], out=into)

"""What one optimiser step changes, and therefore what a checkpoint holds."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping
from math import isfinite
from typing import cast

import torch
from torch import Tensor, nn

from data_cache.errors import UserError
from data_cache.sample import IGNORE_INDEX, Batch, PackedBatch
from data_cache.unpacking import unpack
from stages.networks.interface import Network
from stages.networks.precision import Dtype
from stages.networks.tensor_files import fill_tensors
from stages.training.losses import DepthLossFunction, compute_terms
from stages.training.metrics_log import StepReport
from stages.training.optimisation import MovingAverage, PhaseOptimiser, modules_of_phase
from stages.training.schedule import Phase
from stages.training.settings import LossSettings, TrainingSettings
from stages.training.weighting import build_weighting


class PhaseTrainer:
    """Network, fresh optimiser, loss weighting and moving average of one phase.

    Args:
        network: already on ``device`` and inside ``training_parts``.
        phase: what is trained, by which losses.
        total_steps: length of the phase.
        seed: of dropout and the like; step t is seeded from (seed, t).
        settings: how gradients become weights.
        losses: which losses, and how two are weighted.
        depth_loss: in place of the one that ``losses`` names.
        device: where to compute.
        dtype: of the forward pass; losses are always float32.
    """

    def __init__(
        self,
        network: Network,
        phase: Phase,
        *,
        total_steps: int,
        seed: int,
        settings: TrainingSettings,
        losses: LossSettings,
        depth_loss: DepthLossFunction | None = None,
        device: torch.device,
        dtype: Dtype,
    ) -> None:
        self._network, self._phase, self._total_steps, self._seed = network, phase, total_steps, seed
        self._losses, self._depth_loss, self._device, self._dtype = losses, depth_loss, device, dtype
        self._forward = _compiled(network, device) if settings.compile else network
        self._weighting = build_weighting(phase, losses, network.aux_weight, device)
        self._optimiser = PhaseOptimiser(network, phase, settings, total_steps, self._weighting)
        modules = modules_of_phase(network, phase, settings)
        self._average = None if settings.ema_decay is None else MovingAverage(modules, settings.ema_decay)
        self._statistics = _BufferSnapshot(network)

    def train_step(self, step: int, packed: PackedBatch) -> StepReport:
        """Do the step that follows ``step`` finished ones.

        Raises:
            UserError: a loss or gradient is not finite; this step changed nothing, batch-norm statistics included.
        """
        phase = self._phase
        lr = self._optimiser.prepare(step)
        self._optimiser.zero_grad()
        # A function of the step alone: neither a resumed run nor an evaluation in between can shift the stream.
        torch.manual_seed(_seed_of_step(self._seed, step))
        batch = self._place(packed)
        self._statistics.take()
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._dtype == "bfloat16"):
            outputs = self._forward(batch.images, seg=phase.needs_seg, depth=phase.needs_depth)
        terms = compute_terms(outputs, batch, phase, self._losses, self._depth_loss)
        total, weighted = self._weighting(terms)
        total.backward()
        gradients = self._optimiser.gradients()
        norm = torch.nn.utils.get_total_norm(list(gradients.values()))
        # One transfer for everything the host must know before it may update.
        scalars = [*terms.present().values(), *weighted.values(), total, norm.to(self._device)]
        report = self._describe(step + 1, tuple(weighted), torch.stack(scalars).tolist(), lr, batch)
        self._check_finite(report, batch, gradients)
        self._optimiser.update(report.grad_norm)
        self._weighting.observe(report.raw)
        if self._average:
            self._average.update(step + 1)
        return report

    def finish(self) -> None:
        """Leave the network with what the phase hands on: the last weights, or their moving average if one is kept."""
        if self._average:
            self._average.hand_over()

    def state(self) -> dict[str, Tensor]:
        """Return all of it as ``<group>/<name>``."""
        groups = {
            "network": self._network.state_dict(),
            "optimiser": self._optimiser.state(),
            "weighting": self._weighting.state_dict(),
            "average": self._average.state() if self._average else {},
        }
        return {f"{group}/{name}": value for group, state in groups.items() for name, value in state.items()}

    def load_state(self, tensors: Mapping[str, Tensor], what: str, remedy: str) -> None:
        """Take over what ``state`` returned.

        Args:
            what: where the tensors come from, for people.
            remedy: what to do where they do not fit.

        Raises:
            UserError: it belongs to a network or an optimiser of other names or shapes.
        """
        groups: dict[str, dict[str, Tensor]] = {"network": {}, "optimiser": {}, "weighting": {}, "average": {}}
        for key, value in tensors.items():
            group, _, name = key.partition("/")
            if group not in groups:
                raise UserError(f"{what} holds {key!r}, which is no part of a training state; {remedy}")
            groups[group][name] = value
        fill_tensors(self._network.state_dict(), groups["network"], what, remedy)
        fill_tensors(self._weighting.state_dict(), groups["weighting"], f"the loss weighting in {what}", remedy)
        self._optimiser.load_state(groups["optimiser"], what, remedy)
        averages = self._average.state() if self._average else {}
        fill_tensors(averages, groups["average"], f"the moving average in {what}", remedy)

    def check_labels(self, batch: PackedBatch) -> None:
        """Raise a UserError when a batch holds a class that the network has no output for."""
        labels = batch.seg_labels[batch.seg_labels != IGNORE_INDEX]
        if not self._phase.needs_seg or not len(labels):
            return
        lowest, highest = int(labels.min()), int(labels.max())
        if lowest < 0 or highest >= self._network.num_classes:
            raise UserError(
                f"a batch with image {batch.image_ids[0]!r} has labels from {lowest} to {highest}, but the network has "
                f"classes 0 to {self._network.num_classes - 1} (void is {IGNORE_INDEX}); "
                "check the dataset with: pipeline datasets NAME --data-root DIR"
            )

    def _place(self, packed: PackedBatch) -> Batch:
        needed = packed if self._phase.needs_depth else packed._replace(inverse_depth=None)
        return unpack(needed, self._network.normalisation, self._device)

    def _describe(self, step: int, names: tuple[str, ...], values: list[float], lr: float, batch: Batch) -> StepReport:
        weighted = dict(zip(names, values[len(names) :], strict=False))
        whole = sum(weighted.values())
        return StepReport(
            phase=self._phase.name,
            step=step,
            total_steps=self._total_steps,
            total=values[-2],
            raw=dict(zip(names, values, strict=False)),
            weighted=weighted,
            share={name: value / whole if whole else 0.0 for name, value in weighted.items()},
            lr=lr,
            grad_norm=values[-1],
            images=len(batch.image_ids),
        )

    def _check_finite(self, report: StepReport, batch: Batch, gradients: dict[str, Tensor]) -> None:
        if isfinite(report.total) and isfinite(report.grad_norm):
            return
        bad = [f"loss term {name!r} is {value}" for name, value in report.raw.items() if not isfinite(value)]
        if not bad:
            names = [name for name, value in gradients.items() if not bool(torch.isfinite(value).all())]
            bad = [
                f"the gradient is {report.grad_norm} (in {', '.join(names[:3]) or 'its norm'}; {len(names)} tensors)"
            ]
        self._optimiser.zero_grad()
        self._statistics.restore()
        raise UserError(
            f"{'; '.join(bad)} in phase {report.phase!r}, step {report.step} of {report.total_steps}, "
            f"images {', '.join(batch.image_ids)}. This step changed nothing. Lower the learning rate (--lr), set "
            "training.clip_norm, or try --precision float32; if it is always these images, look at them and at their "
            "depth maps"
        )


class _BufferSnapshot:
    """The buffers that a forward pass moves, as they were before it: those of the modules in training mode."""

    def __init__(self, module: nn.Module) -> None:
        moving = [buffer for child in module.modules() if child.training for buffer in child.buffers(recurse=False)]
        by_type: dict[torch.dtype, list[Tensor]] = {}  # one fused copy per type
        for buffer in moving:
            by_type.setdefault(buffer.dtype, []).append(buffer)
        self._pairs = [(live, [buffer.clone() for buffer in live]) for live in by_type.values()]

    @torch.no_grad()
    def take(self) -> None:
        for live, kept in self._pairs:
            torch._foreach_copy_(kept, live)

    @torch.no_grad()
    def restore(self) -> None:
        for live, kept in self._pairs:
            torch._foreach_copy_(live, kept)


def _seed_of_step(seed: int, step: int) -> int:
    return int.from_bytes(hashlib.blake2b(f"{seed}:{step}".encode(), digest_size=8).digest(), "big") >> 1


def _compiled(network: Network, device: torch.device) -> Network:
    if device.type == "cpu" and not any(shutil.which(name) for name in ("g++", "clang++")):
        raise UserError("--compile on a CPU needs a C++ compiler, and neither g++ nor clang++ was found; leave it out")
    return cast(Network, torch.compile(network))

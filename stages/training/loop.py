"""The one training loop: every phase of every schedule runs through ``train_phase``; the difference is data."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from data_cache.errors import Notice, UserError
from data_cache.ranks import is_speaker, wait_for_all
from data_cache.sample import PackedBatch
from stages.networks.interface import Network
from stages.networks.precision import Dtype
from stages.training.arithmetic import training_arithmetic
from stages.training.checkpointing import Checkpoints
from stages.training.distributed import copy_from_speaker
from stages.training.encoder_policy import parts_to_train, trains_fresh_only
from stages.training.freezing import TrainingScope, training_parts
from stages.training.interruption import Interrupted, StopFlag, ignoring_sigchld
from stages.training.losses import DepthLossFunction
from stages.training.memory import explaining_memory_of_step
from stages.training.metrics_log import MetricsLog, StepReport
from stages.training.schedule import Phase
from stages.training.settings import LossSettings, MixSettings, TrainingSettings
from stages.training.supply import Supply
from stages.training.trainer import PhaseTrainer

_FAIR_SHARES = (0.01, 0.6)
"""Of depth in the norms of both losses' gradients on the encoder, before a person is told."""


@dataclass(frozen=True)
class PhaseSummary:
    """How a phase ended."""

    steps: int
    """Optimiser steps of the whole phase."""
    resumed_from: int
    """Steps that an earlier process had done."""
    losses: dict[str, float]
    """Unweighted losses of the last step by term: seg, aux, depth, mixed."""
    shares: dict[str, float]
    """Weighted losses of the last step as fractions of their sum."""
    seconds: float
    """Wall-clock time of the steps done by this process, loading of data included."""
    images_per_second: float
    """Over the steps done by this process."""


def train_phase(
    network: Network,
    phase: Phase,
    batches_from: Callable[[int], Iterable[PackedBatch]],
    *,
    total_steps: int,
    seed: int,
    key: str,
    settings: TrainingSettings,
    losses: LossSettings,
    device: torch.device,
    dtype: Dtype,
    mixing: MixSettings | None = None,
    depth_loss: DepthLossFunction | None = None,
    checkpoint_folder: Path | None = None,
    log: MetricsLog | None = None,
    on_step: Callable[[StepReport], None] | None = None,
    stop: StopFlag | None = None,
) -> PhaseSummary:
    """Train one phase in place: exactly the parts it trains change, by a fresh optimiser, in ``total_steps`` steps.

    With ``ema_decay`` the network ends with the averaged weights: they are the phase's last weights, which the next
    phase starts from. On a CPU weights and log depend on the arguments alone, not on interruptions in between.

    Args:
        network: moved to ``device`` and into channels_last memory.
        phase: what is trained, by which losses; its name is for people alone.
        batches_from: the batches of steps ``first_step``, ``first_step + 1``, …; a pure function of the step.
        total_steps: length of the phase, at least 1.
        seed: of dropout and the like; step t is seeded from (seed, t).
        key: what the training is, weights at the start and data included; a checkpoint of another key is refused.
        settings: optimiser, learning rate, clipping, averaging, encoder policy, compilation, time between checkpoints.
        losses: which losses, and how two are weighted; class weights as numbers.
        device: where to train.
        dtype: type of the forward pass, which ``precision`` came to; losses are always float32.
        mixing: how a phase with ``mix`` mixes images.
        depth_loss: in place of the one that ``losses`` names; ``key`` covers it.
        checkpoint_folder: where the state is kept; one of the same key found there is continued. None keeps none.
        log: metrics.jsonl of this phase, rewound to the checkpoint when resuming.
        on_step: called for every step in order, some time after it: the device is not waited for. It may evaluate the
            network.
        stop: looked at between two steps.

    Raises:
        UserError: a loss or gradient is not finite, or labels do not fit the network (neither that step nor one after
            it changed anything); depth is missing, memory does not suffice, or a checkpoint cannot be written or
            belongs to another training.
        Interrupted: ``stop`` was set; the state was saved.
    """
    if total_steps < 1:
        raise UserError(f"phase {phase.name!r}: total_steps {total_steps} must be at least 1")
    network.to(device).to(memory_format=torch.channels_last)
    copy_from_speaker(network)
    policy = settings.encoder_policy
    with (
        training_arithmetic(settings, device),
        training_parts(network, parts_to_train(policy, phase), fresh=trains_fresh_only(policy, phase)) as scope,
    ):
        trainer = PhaseTrainer(
            network, phase, total_steps=total_steps, seed=seed, settings=settings, losses=losses,
            mixing=mixing, depth_loss=depth_loss, device=device, dtype=dtype,
        )  # fmt: skip
        checkpoints = Checkpoints(trainer, checkpoint_folder, key, settings.checkpoint_minutes, log)
        first_step = checkpoints.resume(phase, total_steps)
        started_at, num_images = time.perf_counter(), 0
        teller = _Teller(trainer, scope, log, on_step)
        supply = Supply(batches_from, first_step, stop)
        for step in range(first_step, total_steps):
            batch = supply.fetch(step)
            if batch is None:
                with ignoring_sigchld():
                    supply.end()
                    teller.tell(wait=True)
                    kept = checkpoints.save(step)
                    wait_for_all()
                raise Interrupted(f"stopped in phase {phase.name!r} after {step} of {total_steps} steps; {kept}")
            with ignoring_sigchld(), explaining_memory_of_step(phase, batch, device, dtype):
                trainer.train_step(step, batch)
                num_images += len(batch.image_ids)
                finished, due = step + 1 == total_steps, checkpoints.are_due()
                teller.tell(wait=finished or due)
                if due and not finished:
                    checkpoints.save(step + 1)
        seconds = time.perf_counter() - started_at
        trainer.finish()
    last = teller.last
    assert last is not None
    teller.warn_of_unused_mixing()
    return PhaseSummary(total_steps, first_step, last.raw, last.share, seconds, num_images / seconds)


class _Teller:
    """Tells log and listener of the steps, in order."""

    def __init__(
        self,
        trainer: PhaseTrainer,
        scope: TrainingScope,
        log: MetricsLog | None,
        on_step: Callable[[StepReport], None] | None,
    ) -> None:
        self._trainer, self._scope, self._log, self._on_step = trainer, scope, log, on_step
        self.last: StepReport | None = None
        self._warned = not is_speaker()
        self._most_mixed = 0.0

    def tell(self, *, wait: bool) -> None:
        """Pass on what is known of the steps so far; all of them only if ``wait``."""
        told = self.last
        for report in self._trainer.read_reports(wait=wait):
            self.last = report
            self._warn_of_shares(report)
            self._most_mixed = max(self._most_mixed, report.raw.get("mixed", 0.0))
            if self._log:
                self._log.write(report)
            if self._on_step:
                self._on_step(report)
        if self._on_step and self.last is not told:
            self._scope.apply()  # an evaluation in there may have changed modes

    def warn_of_unused_mixing(self) -> None:
        """Say so where nothing was learned from mixed images, because no label was certain enough."""
        if self.last and "mixed" in self.last.raw and self._most_mixed == 0:
            warnings.warn(
                f"phase {self.last.phase!r} learned nothing from mixed images: no label was as certain as "
                "mix.confidence; lower it, train longer, or use a loss that makes networks more certain "
                "(--set loss.seg=cross-entropy)",
                Notice,
                stacklevel=2,
            )

    def _warn_of_shares(self, report: StepReport) -> None:
        """Say once when depth asks so little, or so much, of the encoder that one of two tasks hardly counts."""
        seen = report.gradients
        if self._warned or seen is None or _FAIR_SHARES[0] <= seen.depth_share <= _FAIR_SHARES[1]:
            return
        self._warned = True
        warnings.warn(
            f"phase {report.phase!r}, step {report.step}: the depth loss has {seen.depth_share:.2%} of the gradients' "
            f"norms on the encoder (seg {seen.seg:.3g}, depth {seen.depth:.3g}, cosine {seen.cosine:.2f}), outside "
            f'{_FAIR_SHARES[0]:.0%} to {_FAIR_SHARES[1]:.0%}; other weights (loss.joint_depth, loss.balance = "share") '
            "or another depth.target change that",
            Notice,
            stacklevel=2,
        )

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
from stages.networks.memory_layout import choose_memory_format
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
from stages.training.selection import Validate, Validation, Watch
from stages.training.settings import LossSettings, MixSettings, TrainingSettings
from stages.training.supply import Supply
from stages.training.trainer import PhaseTrainer

_FAIR_SHARES = (0.01, 0.6)
"""Of depth in the norms of both losses' gradients on the encoder, before a person is told."""


@dataclass(frozen=True)
class PhaseSummary:
    """How a phase ended."""

    steps: int
    """Optimiser steps of the whole phase; fewer than planned where patience ended it."""
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
    best_step: int | None = None
    """Step after which the weights scored most; None where none were scored."""
    best_score: float | None = None
    """What they scored, by the headline metric."""


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
    validate: Validate | None = None,
    validate_every: int = 0,
    on_validation: Callable[[Validation], None] | None = None,
    stop: StopFlag | None = None,
) -> PhaseSummary:
    """Train one phase in place: exactly the parts it trains change, by a fresh optimiser, in ``total_steps`` steps.

    With ``ema_decay`` the network ends with the averaged weights: they are the phase's last weights, which the next
    phase starts from. On a CPU weights and log depend on the arguments alone, not on interruptions in between.

    Args:
        network: moved to ``device``, and into the memory layout of ``choose_memory_format``.
        phase: what is trained, by which losses; its name is for people alone.
        batches_from: the batches of steps ``first_step``, ``first_step + 1``, …, each in ``settings.accumulate`` parts
            one after another; a pure function of the step.
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
        validate: scores the network between two steps; of phases that learn segmentation alone.
        validate_every: steps between two scorings; 0 never scores.
        on_validation: called with every score.
        stop: looked at between two steps.

    Raises:
        UserError: a loss or gradient is not finite, or labels do not fit the network (neither that step nor one after
            it changed anything); depth is missing, memory does not suffice, or a checkpoint cannot be written or
            belongs to another training.
        Interrupted: ``stop`` was set; the state was saved.
    """
    if total_steps < 1:
        raise UserError(f"phase {phase.name!r}: total_steps {total_steps} must be at least 1")
    network.to(device).to(memory_format=choose_memory_format(network, device))
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
        watch = None
        if validate and validate_every and phase.needs_seg:
            watch = Watch(network, phase, settings, validate, validate_every, total_steps)
        assert watch or not (settings.chooses and phase.needs_seg), "nothing says what weights are chosen by"
        checkpoints = Checkpoints(trainer, checkpoint_folder, key, settings.checkpoint_minutes, log, watch)
        first_step = checkpoints.resume(phase, total_steps)
        started_at, num_images = time.perf_counter(), 0
        teller = _Teller(trainer, scope, log, on_step, on_validation)
        supply = Supply(batches_from, first_step, stop, settings.accumulate)
        for step in range(first_step, total_steps + 1):
            scored = watch is None or not watch.is_due(step) or teller.look(watch, step, supply)
            if scored and (step == total_steps or (watch is not None and watch.given_up)):
                break
            with ignoring_sigchld():
                if first_step < step < total_steps and checkpoints.are_due():
                    teller.tell(wait=True)
                    checkpoints.save(step)
            parts = supply.fetch(step) if scored else None
            if parts is None:
                with ignoring_sigchld():
                    supply.end()
                    teller.tell(wait=True)
                    kept = checkpoints.save(step) if step < total_steps else "what was saved last is kept"
                    wait_for_all()
                raise Interrupted(f"stopped in phase {phase.name!r} after {step} of {total_steps} steps; {kept}")
            with ignoring_sigchld(), explaining_memory_of_step(phase, parts[0], device, dtype):
                trainer.train_step(step, *parts)
                num_images += sum(len(part.image_ids) for part in parts)
                teller.tell(wait=step + 1 == total_steps)
        with ignoring_sigchld():
            supply.end()
        seconds = time.perf_counter() - started_at - (watch.elapsed_s if watch else 0.0)
        trainer.finish()
        if watch:
            watch.finish()
    last = teller.last  # None where the first thing to do was a scoring that ended the phase
    losses_seen, shares = (last.raw, last.share) if last else ({}, {})
    teller.warn_of_unused_mixing()
    best = (watch.best_step, watch.best_score) if watch else ()
    return PhaseSummary(step, first_step, losses_seen, shares, seconds, num_images / seconds, *best)


class _Teller:
    """Tells log and listener of the steps, in order."""

    def __init__(
        self,
        trainer: PhaseTrainer,
        scope: TrainingScope,
        log: MetricsLog | None,
        on_step: Callable[[StepReport], None] | None,
        on_validation: Callable[[Validation], None] | None,
    ) -> None:
        self._trainer, self._scope, self._log, self._on_step = trainer, scope, log, on_step
        self._on_validation = on_validation
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

    def look(self, watch: Watch, step: int, supply: Supply) -> bool:
        """Score the weights after ``step`` steps and pass it on; return whether that was not stopped by a signal."""
        self.tell(wait=True)
        try:
            found = watch.look(step, self._trainer.find_outcome())
        except (RuntimeError, UserError):
            if not supply.was_stopped():  # a signal to the process group ends the workers that read, too
                raise
            return False
        finally:
            self._scope.apply()
        if self._log:
            self._log.write_validation(found)
        if self._on_validation:
            self._on_validation(found)
        return True

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

"""The one training loop: every phase of every schedule runs through ``train_phase``; the difference is data."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from data_cache.errors import UserError
from data_cache.sample import Batch
from stages.networks.interface import Network
from stages.training.checkpoint import read_checkpoint, write_checkpoint
from stages.training.encoder_policy import parts_to_train, trains_fresh_only
from stages.training.freezing import TrainingScope, training_parts
from stages.training.interruption import Interrupted, StopFlag, stop_on_signals, worker_deaths_unheard
from stages.training.losses import LossSettings
from stages.training.metrics_log import MetricsLog, StepReport
from stages.training.optimisation import OptimSettings
from stages.training.precision import Precision, resolve_precision
from stages.training.schedule import Phase
from stages.training.trainer import Engine, PhaseTrainer

__all__ = ["Interrupted", "MetricsLog", "PhaseSummary", "StepReport", "StopFlag", "stop_on_signals", "train_phase"]


_LOG = "log/"
"""In front of the names under which a checkpoint holds what the log has summed since its last line."""


@dataclass(frozen=True)
class PhaseSummary:
    """How a phase ended."""

    steps: int
    """Optimiser steps of the whole phase."""
    resumed_from: int
    """Steps that an earlier process had done."""
    losses: dict[str, float]
    """Unweighted losses of the last step by term: seg, aux, depth."""
    shares: dict[str, float]
    """Weighted losses of the last step as fractions of their sum."""
    seconds: float
    """Wall-clock time of the steps done by this process, loading of data included."""
    images_per_second: float
    """Over the steps done by this process."""


def train_phase(
    network: Network,
    phase: Phase,
    batches_from: Callable[[int], Iterable[Batch]],
    *,
    total_steps: int,
    seed: int,
    optim: OptimSettings,
    losses: LossSettings,
    device: torch.device,
    precision: Precision = "auto",
    checkpoint_folder: Path | None = None,
    checkpoint_every: int = 200,
    log: MetricsLog | None = None,
    on_step: Callable[[StepReport], None] | None = None,
    stop: StopFlag | None = None,
    channels_last: bool = True,
    compile: bool = False,
) -> PhaseSummary:
    """Train one phase in place: exactly the parts it trains change, by a fresh optimiser, in ``total_steps`` steps.

    With ``ema_decay`` the network ends with the averaged weights: they are the phase's last weights, which the next
    phase starts from. On a CPU weights and log depend on the arguments alone, not on interruptions in between.

    Args:
        network: moved to ``device`` (and into channels_last memory).
        phase: what is trained, by which losses.
        batches_from: the batches of steps ``first_step``, ``first_step + 1``, …; a pure function of the step.
        total_steps: length of the phase, at least 1.
        seed: of dropout and the like; step t is seeded from (seed, t).
        optim: optimiser, learning rate, clipping, averaging, encoder policy.
        losses: which losses, and how two are balanced.
        device: where to train.
        precision: type of the forward pass; losses are always float32.
        checkpoint_folder: where the state is kept; one of the same training found there is continued. None keeps none.
        checkpoint_every: steps between checkpoints.
        log: metrics.jsonl, rewound to the checkpoint when resuming.
        on_step: called after every step; may evaluate the network.
        stop: looked at between two steps.
        channels_last: memory layout; faster on CPUs and tensor cores.
        compile: whether to run the network through ``torch.compile``.

    Raises:
        UserError: a loss or gradient is not finite (no weight was changed by it), labels or depth do not fit network
            and phase, or a checkpoint cannot be written or belongs to another training.
        Interrupted: ``stop`` was set; the state was saved.
    """
    if total_steps < 1 or checkpoint_every < 1:
        raise UserError(
            f"phase {phase.name!r}: total_steps {total_steps} and checkpoint_every {checkpoint_every} must be "
            "at least 1"
        )
    engine = Engine(device, resolve_precision(precision, device), channels_last, compile)
    network.to(device)
    if channels_last:
        network.to(memory_format=torch.channels_last)
    policy = optim.encoder_policy
    with training_parts(network, parts_to_train(policy, phase), fresh=trains_fresh_only(policy, phase)) as scope:
        trainer = PhaseTrainer(
            network, phase, total_steps=total_steps, seed=seed, optim=optim, losses=losses, engine=engine
        )
        keeper = _StateKeeper(trainer, checkpoint_folder, _guard(phase, total_steps, seed, optim, losses, engine), log)
        first_step = keeper.resume()
        run = _Run(phase.name, first_step, total_steps, checkpoint_every, stop)
        return _run_steps(run, trainer, keeper, scope, batches_from, log, on_step)


@dataclass(frozen=True)
class _Run:
    phase: str
    first_step: int
    total_steps: int
    checkpoint_every: int
    stop: StopFlag | None

    @property
    def stopped(self) -> bool:
        return self.stop is not None and self.stop.is_set()


@dataclass(frozen=True)
class _StateKeeper:
    """Saves and restores a trainer; does nothing without a folder."""

    trainer: PhaseTrainer
    folder: Path | None
    guard: dict[str, Any]
    log: MetricsLog | None

    def resume(self) -> int:
        """Return how many steps are done; the log is then as it was after them."""
        checkpoint = read_checkpoint(self.folder, self.guard) if self.folder else None
        tensors = checkpoint.tensors if checkpoint else {}
        summed = {name: tensors.pop(name).item() for name in list(tensors) if name.startswith(_LOG)}
        if checkpoint:
            self.trainer.load_state(tensors)
        step = checkpoint.step if checkpoint else 0
        if self.log:
            self.log.rewind(self.guard["phase"], step)
            self.log.load_state({name.removeprefix(_LOG): value for name, value in summed.items()})
        return step

    def save(self, step: int) -> None:
        if self.folder is None:
            return
        if self.log:
            self.log.sync()  # a checkpoint presumes the lines before it
        summed = self.log.state() if self.log else {}
        tensors = {f"{_LOG}{name}": torch.tensor(value, dtype=torch.float64) for name, value in summed.items()}
        write_checkpoint(self.folder, step, self.trainer.state() | tensors, self.guard)


def _run_steps(
    run: _Run,
    trainer: PhaseTrainer,
    keeper: _StateKeeper,
    scope: TrainingScope,
    batches_from: Callable[[int], Iterable[Batch]],
    log: MetricsLog | None,
    on_step: Callable[[StepReport], None] | None,
) -> PhaseSummary:
    started_at, images = time.perf_counter(), 0
    batches = iter(batches_from(run.first_step))
    for step in range(run.first_step, run.total_steps):
        batch = _fetch(batches, run, step)
        if batch is None:
            with worker_deaths_unheard():
                del batches  # ends the workers
                keeper.save(step)
            kept = (
                f"the state is in {keeper.folder}; repeat the command to go on" if keeper.folder else "nothing was kept"
            )
            raise Interrupted(f"stopped in phase {run.phase!r} after {step} of {run.total_steps} steps; {kept}")
        if step == run.first_step:
            trainer.check_labels(batch)
        with worker_deaths_unheard():
            report = trainer.train_step(step, batch)
            images += report.images
            if log:
                log.write(report)
            if on_step:
                on_step(report)
                scope.apply()  # an evaluation in there may have changed modes
            if (step + 1) % run.checkpoint_every == 0 and step + 1 < run.total_steps:
                keeper.save(step + 1)
    seconds = time.perf_counter() - started_at
    trainer.finish()
    return PhaseSummary(run.total_steps, run.first_step, report.raw, report.share, seconds, images / seconds)


def _fetch(batches: Iterator[Batch], run: _Run, step: int) -> Batch | None:
    """Return the next batch, or None when the run is to stop."""
    if run.stopped:
        return None
    try:
        return next(batches)
    except StopIteration:
        raise RuntimeError(f"batches_from ended at step {step} of {run.total_steps} of phase {run.phase!r}") from None
    except RuntimeError:
        if run.stopped:  # Ctrl-C in a terminal also reaches loader workers, whose end torch reports so
            return None
        raise


def _guard(
    phase: Phase, total_steps: int, seed: int, optim: OptimSettings, losses: LossSettings, engine: Engine
) -> dict[str, Any]:
    """Return what must be equal for a state to be continued."""
    return {
        "phase": phase.name,
        "trains": phase.trains.names(),
        "focal": phase.focal,
        "mse": phase.mse,
        "total_steps": total_steps,
        "seed": seed,
        "precision": str(engine.dtype).removeprefix("torch."),
        "channels_last": engine.channels_last,
        "compile": engine.compile,
        **asdict(losses),
        **asdict(optim),
        "lr": optim.lr if phase.lr is None else phase.lr,
    }

"""The one training loop: every phase of every schedule runs through ``train_phase``; the difference is data."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from data_cache.errors import UserError
from data_cache.ranks import broadcast_object, broadcast_tensors, is_speaker, wait_for_all, world_size
from data_cache.sample import PackedBatch
from stages.networks.interface import Network
from stages.networks.precision import Dtype
from stages.training.arithmetic import training_arithmetic
from stages.training.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from stages.training.distributed import SharedStop, copy_from_speaker
from stages.training.encoder_policy import parts_to_train, trains_fresh_only
from stages.training.freezing import training_parts
from stages.training.interruption import Interrupted, StopFlag, ignoring_sigchld
from stages.training.losses import DepthLossFunction
from stages.training.memory import explaining_memory_of_step
from stages.training.metrics_log import MetricsLog, StepReport
from stages.training.schedule import Phase
from stages.training.settings import LossSettings, TrainingSettings
from stages.training.trainer import PhaseTrainer

_GRACE_S = 0.2
"""A signal to the whole process group may reach a loader worker so much earlier than this process."""
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
    batches_from: Callable[[int], Iterable[PackedBatch]],
    *,
    total_steps: int,
    seed: int,
    key: str,
    settings: TrainingSettings,
    losses: LossSettings,
    device: torch.device,
    dtype: Dtype,
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
            depth_loss=depth_loss, device=device, dtype=dtype,
        )  # fmt: skip
        checkpoints = _CheckpointManager(trainer, checkpoint_folder, key, settings.checkpoint_minutes, log)
        first_step = checkpoints.resume(phase, total_steps)
        started_at, num_images = time.perf_counter(), 0
        last: StepReport | None = None

        def tell_reports(*, wait: bool) -> None:
            nonlocal last
            told = last
            for last in trainer.read_reports(wait=wait):
                if log:
                    log.write(last)
                if on_step:
                    on_step(last)
            if on_step and last is not told:
                scope.apply()  # an evaluation in there may have changed modes

        supply = _Supply(batches_from, first_step, stop)
        for step in range(first_step, total_steps):
            batch = supply.fetch(step)
            if batch is None:
                with ignoring_sigchld():
                    supply.end()
                    tell_reports(wait=True)
                    kept = checkpoints.save(step)
                    wait_for_all()
                raise Interrupted(f"stopped in phase {phase.name!r} after {step} of {total_steps} steps; {kept}")
            with ignoring_sigchld(), explaining_memory_of_step(phase, batch, device, dtype):
                trainer.train_step(step, batch)
                num_images += len(batch.image_ids)
                finished, due = step + 1 == total_steps, checkpoints.are_due()
                tell_reports(wait=finished or due)
                if due and not finished:
                    checkpoints.save(step + 1)
        seconds = time.perf_counter() - started_at
        trainer.finish()
    assert last is not None
    return PhaseSummary(total_steps, first_step, last.raw, last.share, seconds, num_images / seconds)


class _CheckpointManager:
    """Saves and restores trainer and log; does nothing without a folder."""

    def __init__(
        self, trainer: PhaseTrainer, folder: Path | None, key: str, minutes: float, log: MetricsLog | None
    ) -> None:
        self._trainer, self._folder, self._key, self._log = trainer, folder if is_speaker() else None, key, log
        self._interval_s = 60 * minutes
        self._saved_at = time.monotonic()

    def resume(self, phase: Phase, total_steps: int) -> int:
        """Return how many steps are done; network, optimiser and log are then as they were after them."""
        checkpoint = read_checkpoint(self._folder, self._key, total_steps) if self._folder else None
        checkpoint = _share_checkpoint(checkpoint)
        step = checkpoint.step if checkpoint else 0
        tensors = dict(checkpoint.tensors) if checkpoint else {}
        summed = {name.removeprefix(_LOG): tensors.pop(name) for name in list(tensors) if name.startswith(_LOG)}
        if checkpoint:
            what, remedy = f"checkpoint {checkpoint.folder}", checkpoint.remedy
            if not all(value.shape == () and bool(torch.isfinite(value)) for value in summed.values()):
                raise UserError(f"the losses summed in {what} are no finite numbers; {remedy}")
            self._trainer.load_state(tensors, what, remedy)
        if self._log:
            self._log.rewind(phase.name, step)
            self._log.load_state({name: value.item() for name, value in summed.items()})
        return step

    def are_due(self) -> bool:
        """Whether the state was not saved lately."""
        return self._folder is not None and time.monotonic() - self._saved_at >= self._interval_s

    def save(self, step: int) -> str:
        """Save the state after ``step`` steps, all of them reported; return for people what was kept."""
        if self._folder is None:
            return "nothing was kept"
        if self._log:
            self._log.sync()  # a checkpoint presumes the lines before it
        summed = self._log.state() if self._log else {}
        tensors = {f"{_LOG}{name}": torch.tensor(value, dtype=torch.float64) for name, value in summed.items()}
        write_checkpoint(self._folder, step, self._trainer.state() | tensors, self._key)
        self._saved_at = time.monotonic()
        return f"the state is in {self._folder}; repeat the command to go on"


def _share_checkpoint(own: Checkpoint | None) -> Checkpoint | None:
    """Return the speaker's checkpoint on all ranks."""
    facts = broadcast_object((own.step, str(own.folder), own.remedy) if own else None)
    if facts is None:
        return None
    step, folder, remedy = facts
    return Checkpoint(step, broadcast_tensors(own.tensors if own else None), Path(folder), remedy)


class _Supply:
    """The batches of a phase, until it is to stop.

    Args:
        batches_from: those from a step on.
        first_step: the first one wanted.
        stop: asked for between two steps.
    """

    def __init__(
        self, batches_from: Callable[[int], Iterable[PackedBatch]], first_step: int, stop: StopFlag | None
    ) -> None:
        self._batches_from = batches_from
        self._batches: Iterator[PackedBatch] | None = iter(batches_from(first_step))
        self._stop = SharedStop(stop)

    def fetch(self, step: int) -> PackedBatch | None:
        """Return the batch of the next step, or None when the training is to stop."""
        if self._stop.is_set():
            return None
        assert self._batches is not None
        try:
            return next(self._batches)
        except StopIteration:
            raise RuntimeError("batches_from ended before the phase") from None
        except (RuntimeError, UserError):
            if not self._stop.wait(_GRACE_S):
                raise
            if world_size() == 1:  # the group's signal ended the workers, too
                return None
            self._batches = iter(self._batches_from(step))  # the other ranks hear of it only before the next step
            return next(self._batches)

    def end(self) -> None:
        """End the workers."""
        self._batches = None

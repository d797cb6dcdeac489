"""A training of two phases in a process of its own, for being killed.

Arguments: FOLDER WORKERS OPTIMISER WEIGHTING HANG_AT.

Does what the pipeline does: finished phases are kept as weights files, unfinished ones as checkpoints. HANG_AT is
``<phase>:<step>`` after which the process says "hanging" and waits for its end, or ``never``.
"""

import sys
import time
from pathlib import Path

import torch
from torch.utils.data import DataLoader
from toy_network import build_toy, make_batch

from data_cache.sample import Batch
from stages.training.checkpoint import load_weights, remove_checkpoints, save_weights
from stages.training.interruption import Interrupted, stop_on_signals
from stages.training.loop import train_phase
from stages.training.metrics_log import MetricsLog, StepReport
from stages.training.schedules import DEPTH, JOINT
from stages.training.settings import LossSettings, TrainingSettings

STEPS = 8


class Batches:
    """Batch of each step; what a loader's worker computes."""

    def __len__(self) -> int:
        return STEPS

    def __getitem__(self, step: int) -> Batch:
        return make_batch(step)


def as_it_is(batch: Batch) -> Batch:
    """Keep the batch a batch: torch's own conversion turns the image ids into a list."""
    return batch


def train(folder: Path, workers: int, optimizer: str, weighting: str, hang_at: str) -> None:
    """Train depth, then joint, continuing what lies in the folder."""

    def batches_from(first_step: int) -> DataLoader:
        steps = range(first_step, STEPS)
        return DataLoader(Batches(), None, sampler=steps, num_workers=workers, collate_fn=as_it_is)  # type: ignore[arg-type]

    def hang(report: StepReport) -> None:
        if f"{report.phase}:{report.step}" == hang_at:
            print("hanging", flush=True)
            while not stop.is_set():
                time.sleep(0.01)

    settings = TrainingSettings(
        optimizer=optimizer, lr=0.01, lr_schedule="poly", clip_norm=0.3, ema_decay=0.9, weight_decay=1e-3,
        checkpoint_minutes=1e-9,
    )  # type: ignore[arg-type]  # fmt: skip
    losses = LossSettings(weighting=weighting, dwa_window=2)  # type: ignore[arg-type]
    network = build_toy()
    with stop_on_signals() as stop:
        for phase in (DEPTH, JOINT):
            weights, state = folder / f"{phase.name}.safetensors", folder / f"{phase.name}-state"
            if not weights.exists():
                with MetricsLog(folder / f"{phase.name}.jsonl", log_every=2) as log:
                    summary = train_phase(
                        network, phase, batches_from, total_steps=STEPS, seed=5, key=phase.name, settings=settings,
                        losses=losses, device=torch.device("cpu"), dtype="float32", checkpoint_folder=state,
                        log=log, on_step=hang, stop=stop,
                    )  # fmt: skip
                print(f"{phase.name} resumed from {summary.resumed_from}", flush=True)
                save_weights(network, weights)
                remove_checkpoints(state)
            load_weights(network, weights)


if __name__ == "__main__":
    try:
        train(Path(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
    except Interrupted as stopped:
        print(stopped)
        sys.exit(130)

"""`pipeline teach`: train a depth estimator on a dataset that brings ground-truth depth."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.options import GivenPath, RecipeCommand, device_option

if TYPE_CHECKING:
    import torch

    from data_cache.datasets.interface import SegmentationDataset
    from data_cache.sample import DepthKind
    from pipeline.experiment.config import RunConfig
    from pipeline.session import Result, Session
    from stages.pseudo_depth.teach_data import TeachOptions
    from stages.training.interruption import StopFlag
    from stages.training.metrics_log import StepReport


@click.command(cls=RecipeCommand, sections=("data", "depth"), without=("--estimator",))
@click.option("--init", default="mini", show_default=True, help="A size (from nothing), or an estimator to adapt.")
@click.option("--steps", type=int, default=2000, show_default=True)
@click.option("--lr", type=float, default=1e-3, show_default=True, help="Peak learning rate; 1e-5 for large teachers.")
@click.option("--input-size", type=int, help="Side the images are brought to, px; default the estimator's.")
@click.option("--jitter", type=float, default=0.2, show_default=True, help="Strength of colour jitter.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--out", required=True, type=GivenPath(), help="Folder that from_pretrained opens.")
@device_option
@click.pass_obj
def teach(
    session: Session,
    config: RunConfig,
    init: str,
    steps: int,
    lr: float,
    input_size: int | None,
    jitter: float,
    seed: int,
    out: Path,
    device: str,
) -> None:
    """Train a depth estimator on a dataset that brings ground-truth depth."""
    from stages.pseudo_depth.teach_data import TeachOptions

    batch_size = config.depth.batch_size or TeachOptions.batch_size
    options = TeachOptions(steps, batch_size, lr, jitter=jitter, input_size=input_size, seed=seed)
    session.show(teach_estimator(config, session, init, out, device=device, options=options))


def teach_estimator(
    config: RunConfig, session: Session, init: str, out: Path, *, device: str, options: TeachOptions
) -> Result:
    """Train a depth estimator on the recipe's dataset, which must bring ground-truth depth.

    Args:
        init: name of a size (from nothing), or an estimator to adapt.
        options: how long and how.

    Returns:
        ``estimator`` (the folder), ``steps``, ``resumed_at``, ``final_loss``, ``seconds``.
    """
    from data_cache.files import hold_place
    from data_cache.ranks import is_speaker
    from data_cache.sample import DepthKind
    from pipeline.experiment.artifacts import open_split
    from pipeline.experiment.devices import choose_device
    from pipeline.experiment.training import StepDisplay
    from pipeline.session import Result
    from stages.training.interruption import stop_on_signals

    dataset = open_split(config, session.workspace, "train")
    session.workspace.check_output(out, "--out")
    with (
        hold_place(out, f"teaching {out}", on_wait=session.console.info) if is_speaker() else nullcontext(),
        stop_on_signals() as stop,
        session.console.progress(f"teaching {init}", options.steps) as advance,
    ):
        facts = teach_dataset(
            dataset,
            init,
            out,
            options=options,
            kind=DepthKind(config.depth.kind) if config.depth.kind else None,
            device=choose_device(device),
            accept_noncommercial=config.depth.accept_noncommercial,
            on_step=StepDisplay(advance),
            stop=stop,
        )
    return Result(facts, f"estimator: {out}; label with: pipeline pseudo-depth --estimator {out}")


def teach_dataset(
    dataset: SegmentationDataset,
    init: str,
    out: Path,
    *,
    options: TeachOptions,
    device: torch.device,
    kind: DepthKind | None = None,
    accept_noncommercial: bool = False,
    on_step: Callable[[StepReport], None] | None = None,
    stop: StopFlag | None = None,
) -> dict[str, Any]:
    """Train an estimator on a dataset's ground-truth depth; called again it continues, and once finished does nothing.

    Returns:
        As ``teach_estimator``.

    Raises:
        UserError: the dataset has no depth, its depth cannot teach this kind of estimator, the folder holds something
            else, or the loss is not finite.
        Interrupted: ``stop`` was set; the state was saved.
    """
    from data_cache.fingerprint import dataset_fingerprint
    from data_cache.leftovers import remove
    from data_cache.ranks import broadcast_object, check_alike, is_speaker
    from pipeline.experiment.config import content_hash
    from pipeline.job import check_batch, check_shared_folder
    from stages.networks.precision import resolve_dtype
    from stages.pseudo_depth.teach import check_dataset, find_finished, open_start, publish, write_record
    from stages.pseudo_depth.teach_data import batches_from
    from stages.training.loop import train_phase
    from stages.training.metrics_log import MetricsLog
    from stages.training.schedule import DEPTH_BRANCH, ENCODER, Phase
    from stages.training.settings import LossSettings, TrainingSettings

    data = dataset_fingerprint(dataset, labels=False, depth=True)
    dtype = resolve_dtype(options.precision, str(device))
    task = {"init": init, "dataset": data, **asdict(options), "precision": dtype}
    check_alike({"dataset and options": content_hash(task, 12), "device": device.type})
    check_batch(min(options.batch_size, len(dataset)))
    final_loss = broadcast_object(find_finished(out, task) if is_speaker() else None)
    facts = {"estimator": str(out), "steps": options.steps}
    if final_loss is not None:
        return facts | {"resumed_at": options.steps, "final_loss": final_loss, "seconds": 0.0}
    start = open_start(init, options, kind=kind, accept_noncommercial=accept_noncommercial)
    check_dataset(dataset, start.spec)
    if is_speaker():
        write_record(out, task)
    check_shared_folder(out)
    with MetricsLog(out / "metrics.jsonl") if is_speaker() else nullcontext() as log:
        summary = train_phase(
            start.network,
            Phase("teach", trains=ENCODER | DEPTH_BRANCH, depth=1.0),
            batches_from(dataset, start.spec, start.preprocessing, options),
            total_steps=options.steps,
            seed=options.seed,
            key=content_hash(task, 64),
            settings=TrainingSettings(
                optimizer="adamw",
                lr=options.lr,
                weight_decay=options.weight_decay,
                decay_norm_and_bias=False,
                lr_schedule="cosine",
                warmup_steps=options.steps // 20,
                clip_norm=1.0,
            ),
            losses=LossSettings(),
            depth_loss=start.loss,
            device=device,
            dtype=dtype,
            checkpoint_folder=out / "unfinished",
            log=log,
            on_step=on_step,
            stop=stop,
        )
    if is_speaker():
        publish(out, start, task, summary.losses["depth"])
        remove(out / "unfinished")
    return facts | {
        "resumed_at": summary.resumed_from,
        "final_loss": summary.losses["depth"],
        "seconds": round(summary.seconds, 1),
    }

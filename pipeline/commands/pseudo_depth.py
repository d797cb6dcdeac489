"""`pipeline pseudo-depth`: label images with pseudo depth into an HDF5 store."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from data_cache.errors import UserError
from pipeline.options import RecipeCommand, device_option

if TYPE_CHECKING:
    from data_cache.datasets.interface import SegmentationDataset
    from pipeline.experiment.config import RunConfig
    from pipeline.session import Result, Session
    from stages.pseudo_depth.depth_source import DepthSource
    from stages.pseudo_depth.labelling import LabelReport


@click.command("pseudo-depth", cls=RecipeCommand, sections=("data", "depth"))
@click.option("--split", "splits", multiple=True, help="Repeatable; default train, the pool and the reported split.")
@click.option("--compile/--no-compile", "compile_model", default=False, help="Compile the estimator.")
@device_option
@click.pass_obj
def pseudo_depth(session: Session, config: RunConfig, splits: Sequence[str], compile_model: bool, device: str) -> None:
    """Label the images of a dataset with pseudo depth into an HDF5 store."""
    session.show(_show_labels(label_splits(config, session, tuple(splits), device, compile_model=compile_model)))


def label_splits(
    config: RunConfig, session: Session, splits: Sequence[str], device: str, *, compile_model: bool = False
) -> list[LabelReport]:
    """Label splits into depth stores; what is labelled already is skipped, and what fails is in the report.

    Args:
        splits: none means those the recipe needs.
    """
    from pipeline.experiment.artifacts import open_split, splits_to_label

    wanted = splits or splits_to_label(config, session.workspace)
    datasets = [open_split(config, session.workspace, split) for split in wanted]
    source = _open_source(config, device, compile_model=compile_model)
    return [_label_split(config, session, dataset, source) for dataset in datasets]


def _show_labels(reports: Sequence[LabelReport]) -> Result:
    from pipeline.session import Result

    failed = [failure._asdict() for report in reports for failure in report.failed]
    suspicious = [found._asdict() for report in reports for found in report.suspicious]
    labelled, seconds = sum(report.labelled for report in reports), sum(report.seconds for report in reports)
    facts = {
        "stores": [str(report.store) for report in reports],
        "images": sum(report.images for report in reports),
        "labelled": labelled,
        "skipped": sum(report.skipped for report in reports),
        "failed": failed,
        "suspicious": suspicious,
        "notes": [note for report in reports for note in report.notes],
        "seconds": round(seconds, 3),
        "images_per_second": round(labelled / seconds, 2) if labelled else 0.0,
        "waits": {
            what: round(sum(report.waits[what] * report.seconds for report in reports) / seconds, 4)
            for what in reports[0].waits
        },
    }
    return Result(facts, _describe_labels(facts), failed=bool(failed))


def _open_source(config: RunConfig, device: str, *, compile_model: bool) -> DepthSource:
    from data_cache.sample import DepthKind
    from pipeline.experiment.devices import choose_device
    from stages.pseudo_depth.aliases import GROUND_TRUTH
    from stages.pseudo_depth.depth_source import GroundTruthDepth
    from stages.pseudo_depth.estimators import load_estimator

    depth, chosen = config.depth, choose_device(device)
    if depth.estimator == GROUND_TRUTH:
        if compile_model:
            raise UserError(
                f"--compile is asked for, but it is of an estimator, and depth.estimator is {GROUND_TRUTH!r}; drop it, "
                "or choose another --estimator"
            )
        return GroundTruthDepth()
    return load_estimator(
        depth.estimator,
        kind=DepthKind(depth.kind) if depth.kind else None,
        device=chosen,
        precision=depth.precision,
        input_size=depth.input_size,
        compile_backend="inductor" if compile_model else None,
        accept_noncommercial=depth.accept_noncommercial,
    )


def _label_split(config: RunConfig, session: Session, dataset: SegmentationDataset, source: DepthSource) -> LabelReport:
    from pipeline.threads import count_usable_cpus
    from stages.pseudo_depth.labelling import LabelProgress, label_split

    with session.console.progress(f"labelling {dataset.name} {dataset.split}", len(dataset)) as advance:

        def show(progress: LabelProgress) -> None:
            done = len(dataset) - progress.total + progress.done
            waited = [f", {share:.0%} waiting for {what}" for what, share in progress.waits.items() if share >= 0.05]
            advance(done, f"{progress.images_per_second:.1f} images/s, {progress.eta_s:.0f} s left{''.join(waited)}")

        return label_split(
            dataset,
            source,
            session.workspace.depth,
            batch_size=config.depth.batch_size,
            workers=max(2, count_usable_cpus() if config.data.workers == "auto" else config.data.workers),
            codec=config.depth.codec,
            hashes=session.workspace.content_hashes(),
            progress=show,
        )


def _describe_labels(facts: dict[str, Any]) -> str:
    from data_cache.depth_quality import Suspicion, describe_suspicious

    lines = [f"not labelled: {failure['image']}: {failure['reason']}" for failure in facts["failed"]]
    lines += describe_suspicious([Suspicion(**found) for found in facts["suspicious"]])
    lines += [f"note: {note}" for note in facts["notes"]]
    lines.append(
        f"{facts['images']} images: {facts['labelled']} labelled, {facts['skipped']} were labelled already, "
        f"{len(facts['failed'])} failed; {facts['seconds']:.1f} s, {facts['images_per_second']:.1f} images/s"
    )
    return "\n".join([*lines, *(f"depth store  {store}" for store in facts["stores"])])

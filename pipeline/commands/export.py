"""`pipeline export`: strip the depth branch off a run, write the formats, prove them, name their origin."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.options import GivenPath
from stages.export.formats import DEFAULT_FORMATS, DEFAULT_MAX_DROP, ORIGIN_FILE, describe_formats, parse_formats

if TYPE_CHECKING:
    from rich.console import RenderableType

    from pipeline.experiment.config import RunConfig
    from pipeline.experiment.models import Model
    from pipeline.session import Result, Session
    from stages.comparison.record import TrainedRun
    from stages.export.card import CardFacts, LicenceLink
    from stages.export.export import ExportReport
    from stages.export.web_page import WebRuntime


@click.command()
@click.argument("run_name", required=False, metavar="[RUN]")
@click.option("--out", type=GivenPath(), help="Folder; default <workdir>/exports/<run>.")
@click.option(
    "--formats",
    default=",".join(DEFAULT_FORMATS),
    show_default=True,
    callback=lambda _context, _option, text: parse_formats(text),
    help=f"Comma-separated; {describe_formats()}.",
)
@click.option("--dynamic", is_flag=True, help="Images enter at their own size in every format, or there is no export.")
@click.option("--fixed", is_flag=True, help="Images are resized to one size in every format: that of the data.")
@click.option("--input-size", type=(int, int), metavar="H W", help="Images are resized to this one in every format.")
@click.option(
    "--embed-preprocess", is_flag=True, help="Also one ONNX file from an image's bytes to its labels (onnx-embedded)."
)
@click.option(
    "--max-drop",
    type=click.FloatRange(0, 1),
    default=DEFAULT_MAX_DROP,
    show_default=True,
    help="Macro mIoU that numbers of 8 bits may cost on the reported split; layers stay in float until it holds.",
)
@click.option("--force", is_flag=True, help="Publish files of few bits that cost more or answer otherwise too often.")
@click.option("--web", type=GivenPath(), metavar="DIR", help="Also a page there that runs it on photos and the camera.")
@click.option(
    "--web-runtime",
    type=GivenPath(),
    metavar="DIR",
    help="Where the npm package onnxruntime-web lies; default ./node_modules, or npm fetches it.",
)
@click.option(
    "--fold-batchnorm", "fold", is_flag=True, help="Fold batch norm into convolutions, for runtimes that do not."
)
@click.option("--overwrite", is_flag=True, help="Replace another export that lies there; what else does stays.")
@click.pass_obj
def export(
    session: Session,
    run_name: str | None,
    out: Path | None,
    formats: tuple[str, ...],
    dynamic: bool,
    fixed: bool,
    input_size: tuple[int, int] | None,
    embed_preprocess: bool,
    max_drop: float,
    force: bool,
    web: Path | None,
    web_runtime: Path | None,
    fold: bool,
    overwrite: bool,
) -> None:
    """Strip the depth branch off a run (the newest by default), write it out, and prove it equal.

    Images enter every format as they entered the run's own evaluation, unless told otherwise. A network that one of the
    formats cannot carry to any size gets images of one size, in all of them.
    """
    if dynamic and (fixed or input_size):
        raise click.UsageError("--dynamic keeps every image's own size, --fixed and --input-size give it up; choose")
    if web_runtime and not web:
        raise click.UsageError("--web-runtime is for the page, which --web DIR asks for")
    session.show(
        export_run(
            session,
            run_name,
            out,
            formats=(*formats, "onnx-embedded") if embed_preprocess or web else formats,
            input_size=input_size,
            dynamic=True if dynamic else False if fixed or input_size else None,
            max_drop=max_drop,
            force=force,
            web=web,
            web_runtime=web_runtime,
            fold=fold,
            overwrite=overwrite,
        )
    )


def export_run(
    session: Session,
    reference: str | None,
    out: Path | None,
    *,
    formats: Sequence[str] = DEFAULT_FORMATS,
    input_size: tuple[int, int] | None = None,
    dynamic: bool | None = None,
    max_drop: float = DEFAULT_MAX_DROP,
    force: bool = False,
    web: Path | None = None,
    web_runtime: Path | None = None,
    fold: bool = False,
    overwrite: bool = False,
) -> Result:
    """Export a run's last weights without the depth branch; the newest run by default.

    Args:
        input_size: (height, width) that images are resized to; None is that of the run's images.
        fold: whether batch norm is folded into convolutions.
        dynamic: whether images keep their own size; None as they entered the run's evaluation, where that can be.
        max_drop: macro mIoU that numbers of 8 bits may cost on the reported split.
        force: whether files that cost more are published all the same.
        web: folder for a page that runs the model; ``formats`` have ``onnx-embedded`` then.
        web_runtime: folder with ONNX Runtime Web; see ``read_web_runtime``.

    Returns:
        ``out``, ``files``, ``proof``, ``run``, ``reused``, ``web``.
    """
    import torch

    from data_cache.files import read_json
    from pipeline.experiment.export_data import iterate_calibration, read_proof_images, score_segmentation
    from pipeline.experiment.models import open_run
    from pipeline.experiment.tabulate import find_newest
    from pipeline.session import Result
    from stages.comparison.record import RUN_FILE
    from stages.export.export import export_network
    from stages.export.web_page import write_web_page

    folder = session.workspace.find_run(reference) if reference else find_newest(session)
    model = open_run(folder, torch.device("cpu"))
    out = out or session.workspace.exports / folder.name
    session.workspace.check_output(out, "--out")
    runtime = _prepare_page(session, web, web_runtime, out)
    assert model.record is not None
    scored_size = model.size_rule.input_size
    report = export_network(
        model.network,
        out,
        input_size=input_size or scored_size or model.record.image_size,
        class_names=model.class_names,
        palette=model.palette,
        card_facts=_describe_origin(model),
        records={ORIGIN_FILE: read_json(folder / RUN_FILE)},
        formats=formats,
        dynamic=False if dynamic is None and scored_size else dynamic,
        fold=fold,
        samples=read_proof_images(model, session),
        calibration=partial(iterate_calibration, model, session),
        score=partial(score_segmentation, model, session),
        max_drop=max_drop,
        force=force,
        overwrite=overwrite,
        progress=session.console.info,
    )
    if web is not None:
        assert runtime is not None
        write_web_page(web, out, runtime, name=folder.name, overwrite=overwrite, on_wait=session.console.info)
    facts = {
        "out": str(out),
        "files": [str(out / name) for name in report.files],
        "proof": report.proof,
        "run": folder.name,
        "reused": report.reused,
        "web": None if web is None else str(web),
    }
    return Result(facts, _render(report, folder.name, web))


def _prepare_page(session: Session, web: Path | None, given: Path | None, out: Path) -> WebRuntime | None:
    """Return what a page needs besides the model, before work is spent on that; None where no page is wanted."""
    from data_cache.errors import UserError
    from stages.export.web_page import read_web_runtime

    if web is None:
        return None
    session.workspace.check_output(web, "--web")
    if web.resolve() == out.resolve():
        raise UserError(f"--web {web} is the export's own folder; name another one for the page")
    return read_web_runtime(given, session.console.info)


def _describe_origin(model: Model) -> CardFacts:
    from stages.export.card import CardFacts

    record = model.record
    assert record is not None
    return CardFacts(
        run=record.run,
        dataset=record.dataset,
        schedule=record.schedule.name,
        steps=record.schedule.steps,
        metrics=record.metrics,
        split=record.split,
        scored_on=str(model.size_rule),
        licences=tuple(_licences(record, model.config)),
        command=record.command or "",
    )


def _licences(record: TrainedRun, config: RunConfig) -> list[LicenceLink]:
    """List what the weights were made from, the depth teacher first."""
    from data_cache.datasets import DATASETS
    from stages.export.card import LicenceLink
    from stages.pseudo_depth.aliases import ESTIMATORS

    links = []
    if store := record.depth_store:
        spec = ESTIMATORS.get(store.estimator)
        links.append(
            LicenceLink(
                "depth teacher",
                store.estimator,
                store.licence,
                revision=store.revision or store.weights_sha256[:12],
                noncommercial=bool(spec and spec.noncommercial),
            )
        )
    weights = config.network.options.get("encoder_weights", "none")
    if weights != "none":
        note = "see the encoder's publisher (timm, torchvision)" if weights == "imagenet" else "a local file"
        links.append(LicenceLink("encoder weights", str(weights), "unknown", note=note))
    data = DATASETS[config.data.dataset].licence
    links.append(
        LicenceLink("training images", record.dataset, data.name, note=data.note, noncommercial=data.noncommercial)
    )
    return links


def _render(report: ExportReport, run: str, web: Path | None) -> RenderableType:
    from pipeline.console import plain_table

    title = f"{run} exported to {report.out}" + (" (was there already)" if report.reused else "")
    rows = [*headlines(report.proof), ("files", ", ".join(report.files))]
    if web is not None:
        rows.append(("page", f"python -m http.server --directory {shlex.quote(str(web))}, then http://localhost:8000"))
    return plain_table(title, ["proof", "value"], [list(row) for row in rows])


def headlines(proof: dict[str, Any]) -> list[tuple[str, str]]:
    """Pick from a proof what a person wants to see first."""
    latency, rule = proof["latency_ms"], proof["size_rule"]
    enter = "at their own size" if rule["kind"] == "original" else "resized to {}x{}".format(*rule["input_size"])
    rows = [("images enter", f"{enter} ({rule['why']})" if rule["why"] else enter)]
    rows += [
        (name.replace("_", " "), f"max difference {value:g}")
        for name, value in proof["max_abs_difference"].items()
        if value is not None
    ]
    if batch_norm := proof.get("batch_norm"):
        rows.append(("batch norm", f"{len(batch_norm['folded'])} folded, {len(batch_norm['left'])} left"))
    for name, facts in proof["formats"].items():
        for size in facts["sizes"]:
            difference = f"max difference {size['max_abs_difference']:.2g}"
            if beyond := size.get("share_beyond_tolerance", 0.0):  # exports made before it was allowed do not say it
                difference += f" ({beyond:.2%} of logits beyond the tolerance)"
            agreement = f"same class on {size['argmax_agreement']:.4%} of pixels"
            batch = f", batch of {size['batch']}" if size["batch"] > 1 else ""
            rows.append((f"{name} at {size['height']}x{size['width']}{batch}", f"{difference}, {agreement}"))
        if images := facts["images"]:
            agreement = f"same class on at least {min(each['argmax_agreement'] for each in images):.4%} of pixels"
            if differences := [each["max_abs_difference"] for each in images if "max_abs_difference" in each]:
                agreement = f"max difference {max(differences):.2g}, {agreement}"
            rows.append((f"{name} on {len(images)} real images", agreement))
        if scores := facts.get("miou_macro"):
            left = f"{len(facts['layers_in_float'])} of {facts['layers']} layers left in float"
            limit = f"limit {scores['max_drop']:g}" + (", passed" if scores["drop"] > scores["max_drop"] else "")
            cost = f"{scores['before']:.4f} -> {scores['after']:.4f} (drop {scores['drop']:.4f}, {limit})"
            rows.append((f"{name} macro mIoU", f"{cost}, {left}"))
    if script := proof["predict_py"]:
        said = f"same class on {script['argmax_agreement']:.4%} of pixels of {script['images']} turned images"
        rows.append((f"predict.py with {script['model']}", said))
    rows += [(what, f"{proof[what]['before']:,} -> {proof[what]['after']:,}") for what in ("parameters", "flops")]
    return [*rows, ("latency", f"{latency['before']:.1f} ms -> {latency['after']:.1f} ms ({latency['device']})")]

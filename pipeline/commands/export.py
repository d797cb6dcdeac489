"""`pipeline export`: strip the depth branch off a run, write the formats, prove them, name their origin."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from pipeline.options import GivenPath
from stages.export.formats import DEFAULT_FORMATS, DEFAULT_MAX_DROP, ORIGIN_FILE, describe_formats, parse_formats

if TYPE_CHECKING:
    from rich.console import RenderableType

    from pipeline.experiment.config import RunConfig
    from pipeline.experiment.models import Model
    from pipeline.session import Session
    from stages.comparison.record import TrainedRun
    from stages.export.card import CardFacts
    from stages.export.export import ExportReport
    from stages.export.hub import LicenceLink
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
@click.option(
    "--no-benchmark",
    "benchmark",
    flag_value=False,
    default=True,
    help="Leave out the latency and memory of each file, which take half a minute.",
)
@click.option(
    "--push-to-hub", metavar="OWNER/NAME", help="Also send it to this model repository; a new one is private."
)
@click.option("--dry-run", is_flag=True, help="Print what --push-to-hub would send, and send nothing.")
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
    benchmark: bool,
    push_to_hub: str | None,
    dry_run: bool,
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
    if dry_run and not push_to_hub:
        raise click.UsageError("--dry-run shows what --push-to-hub OWNER/NAME would send; add that")
    exported = export_run(
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
        benchmark=benchmark,
        push_to=push_to_hub,
        dry_run=dry_run,
        overwrite=overwrite,
    )
    from pipeline.session import Result

    session.show(Result(exported.to_json(), _render(exported)))


class Exported(NamedTuple):
    """An export that is written and proven. It stands for its folder wherever a path is taken."""

    out: Path
    report: ExportReport
    """``files`` (names), ``proof`` (as in proof.json), ``reused`` (it was there already)."""
    run: str
    """Name of the run it was made from."""
    web: Path | None
    """Folder of the page, where one was asked for."""
    hub: dict[str, Any] | None
    """What was sent to the Hub, or would be."""

    def __fspath__(self) -> str:
        return str(self.out)

    def to_json(self) -> dict[str, Any]:
        """Return the same as JSON values."""
        return {
            "out": str(self.out),
            "files": [str(self.out / name) for name in self.report.files],
            "proof": self.report.proof,
            "run": self.run,
            "reused": self.report.reused,
            "web": None if self.web is None else str(self.web),
            "hub": self.hub,
        }


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
    benchmark: bool = True,
    push_to: str | None = None,
    dry_run: bool = False,
    overwrite: bool = False,
) -> Exported:
    """Export a run's last weights without the depth branch; the newest run by default.

    Args:
        input_size: (height, width) that images are resized to; None is that of the run's images.
        fold: whether batch norm is folded into convolutions.
        dynamic: whether images keep their own size; None as they entered the run's evaluation, where that can be.
        max_drop: macro mIoU that numbers of 8 bits may cost on the reported split.
        force: whether files that cost more are published all the same.
        benchmark: whether each file's latency and memory are measured.
        web: folder for a page that runs the model; ``formats`` have ``onnx-embedded`` then.
        web_runtime: folder with ONNX Runtime Web; see ``read_web_runtime``.
        push_to: model repository that it is sent to; with ``dry_run`` it is only told what would be.

    Raises:
        UserError: there is no such run, a format cannot carry it, or what was written is not proven equal.
    """
    import torch

    from pipeline.experiment.models import open_run
    from pipeline.experiment.tabulate import find_newest
    from stages.export.hub import check_repository
    from stages.export.web_page import write_web_page

    folder = session.workspace.find_run(reference) if reference else find_newest(session)
    model = open_run(folder, torch.device("cpu"))
    out = out or session.workspace.exports / folder.name
    session.workspace.check_output(out, "--out")
    if push_to:
        check_repository(push_to)
    runtime = _prepare_page(session, web, web_runtime, out)
    settings = {"formats": formats, "max_drop": max_drop, "force": force, "fold": fold, "benchmark": benchmark}
    report = _write(session, model, out, input_size, dynamic, settings | {"overwrite": overwrite})
    if web is not None:
        assert runtime is not None
        write_web_page(web, out, runtime, name=folder.name, overwrite=overwrite, on_wait=session.console.info)
    pushed = _push(out, push_to, dry_run) if push_to else None
    return Exported(out, report, folder.name, web, pushed)


def _write(
    session: Session,
    model: Model,
    out: Path,
    input_size: tuple[int, int] | None,
    dynamic: bool | None,
    settings: dict[str, Any],
) -> ExportReport:
    """Export a run with what its dataset has to say about it."""
    from data_cache.files import read_json
    from pipeline.experiment import export_data
    from stages.comparison.record import RUN_FILE
    from stages.export.export import export_network

    assert model.record is not None
    scored_size = model.size_rule.input_size
    samples = export_data.read_proof_images(model, session)
    return export_network(
        model.network,
        out,
        input_size=input_size or scored_size or model.record.image_size,
        class_names=model.class_names,
        palette=model.palette,
        card_facts=_describe_origin(model),
        records={ORIGIN_FILE: read_json(model.folder / RUN_FILE)},
        dynamic=False if dynamic is None and scored_size else dynamic,
        samples=samples,
        calibration=partial(export_data.iterate_calibration, model, session),
        score=partial(export_data.score_segmentation, model, session) if samples else None,
        score_labels=partial(export_data.score_labels, model, session) if samples else None,
        progress=session.console.info,
        **settings,
    )


def _push(out: Path, repository: str, dry_run: bool) -> dict[str, Any]:
    """Send an export to the Hub, or only tell what would be sent."""
    from stages.export.export import CARD_FILE
    from stages.export.hub import list_upload, push_folder, read_front_matter

    files = list_upload(out)
    sent = {
        "repository": repository,
        "files": files,
        "bytes": sum(files.values()),
        "front_matter": read_front_matter((out / CARD_FILE).read_text(encoding="utf-8")),
    }
    return sent | {"sent": None if dry_run else push_folder(out, repository, files)}


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
    from data_cache.escaping import printable_text
    from pipeline.experiment.provenance import find_command
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
        export_command=printable_text(find_command()),
    )


def _licences(record: TrainedRun, config: RunConfig) -> list[LicenceLink]:
    """List what the weights were made from, the depth teacher first."""
    from data_cache.datasets import find_dataset
    from stages.export.hub import LicenceLink
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
    data = find_dataset(config.data.dataset).licence
    links.append(
        LicenceLink("training images", record.dataset, data.name, note=data.note, noncommercial=data.noncommercial)
    )
    return links


def _render(exported: Exported) -> RenderableType:
    from rich.console import Group

    from pipeline.console import plain_table
    from stages.export.card import NOT_MEASURED, ROW_HEADINGS, describe_row

    report, run, web, hub = exported.report, exported.run, exported.web, exported.hub
    title = f"{run} exported to {report.out}" + (" (was there already)" if report.reused else "")
    rows = [*headlines(report.proof), ("files", ", ".join(report.files))]
    if web is not None:
        rows.append(("page", f"python -m http.server --directory {shlex.quote(str(web))}, then http://localhost:8000"))
    shown: list[RenderableType] = [plain_table(title, ["proof", "value"], [list(row) for row in rows])]
    formats = report.proof["table"]
    columns = zip(ROW_HEADINGS, *map(describe_row, formats), strict=True)
    measured = [cells for cells in columns if set(cells[1:]) != {NOT_MEASURED}]
    table = [[row["format"], *cells] for row, *cells in zip(formats, *(cells[1:] for cells in measured), strict=True)]
    shown.append(plain_table("\nFormats", ["format", *(cells[0] for cells in measured)], table))
    return Group(*shown, *([_render_push(hub)] if hub else []))


def _render_push(hub: dict[str, Any]) -> str:
    from data_cache.files import format_bytes

    head = f"sent to {hub['sent']}" if hub["sent"] else f"would be sent to {hub['repository']}; nothing was"
    files = "\n".join(f"{size:>15,} bytes  {name}" for name, size in hub["files"].items())
    return f"{head} ({len(hub['files'])} files, {format_bytes(hub['bytes'])}):\n{files}\n{hub['front_matter']}"


def headlines(proof: dict[str, Any]) -> list[tuple[str, str]]:
    """Pick from a proof what a person wants to see first."""
    rule = proof["size_rule"]
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
        for what, cases in (("drawn inputs", facts["sizes"]), ("views of images", facts["images"])):
            if cases:
                rows.append((f"{len(cases)} {what}, {name}", _describe_cases(cases)))
        if scores := facts.get("miou_macro"):
            left = f"{len(facts['layers_in_float'])} of {facts['layers']} layers left in float"
            limit = f"limit {scores['max_drop']:g}" + (", passed" if scores["drop"] > scores["max_drop"] else "")
            cost = f"{scores['before']:.4f} -> {scores['after']:.4f} (drop {scores['drop']:.4f}, {limit})"
            rows.append((f"{name} macro mIoU", f"{cost}, {left}"))
    if script := proof["predict_py"]:
        said = f"same class on {script['argmax_agreement']:.4%} of pixels of {script['images']} turned images"
        rows.append((f"predict.py with {script['model']}", said))
    costs = {"parameters": "parameters", "macs": "MACs"}
    rows += [
        (shown, " -> ".join(f"{proof['networks'][name][key]:,}" for name in _SHOWN)) for key, shown in costs.items()
    ]
    latencies = " -> ".join(f"{proof['networks'][name]['latency_ms']['median']:g} ms" for name in _SHOWN)
    return [*rows, ("latency in PyTorch", f"{latencies} (cpu)")]


_SHOWN = ("full", "stripped")


def _describe_cases(cases: list[dict[str, Any]]) -> str:
    """Return the worst of what a file answered."""
    said = f"same class on at least {min(each['argmax_agreement'] for each in cases):.4%} of pixels"
    if differences := [each["max_abs_difference"] for each in cases if "max_abs_difference" in each]:
        said = f"max difference {max(differences):.2g}, {said}"
    beyond = max(each.get("share_beyond_tolerance", 0.0) for each in cases)
    return f"{said} ({beyond:.2%} of logits beyond the tolerance)" if beyond else said

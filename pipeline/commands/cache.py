"""`pipeline cache`: look after depth stores: what is in them, are they whole, repair them, hand maps to other tools."""

from __future__ import annotations

import contextlib
import os
from dataclasses import asdict
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import click

from data_cache.errors import UserError
from pipeline.options import GivenPath, RecipeCommand, overwrite_option

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from data_cache.depth_store import DepthStore
    from data_cache.outputs import OutputFolder
    from pipeline.experiment.config import RunConfig
    from pipeline.session import Result, Session

PREVIEW_IMAGES = 24

store_argument = click.argument("store", required=False, type=GivenPath())


@click.group()
def cache() -> None:
    """Look after depth stores: info, verify, repair, preview, export."""


@cache.command("info")
@store_argument
@click.pass_obj
def cache_info(session: Session, store: Path | None) -> None:
    """Show images, size and provenance of STORE, or of all stores."""
    session.show(show_stores(session, find_stores(session, store)))


@cache.command("verify")
@store_argument
@click.pass_obj
def cache_verify(session: Session, store: Path | None) -> None:
    """Read every map of STORE, or of all stores, and compare checksums."""
    session.show(check_stores(find_stores(session, store)))


@cache.command("repair")
@store_argument
@click.pass_obj
def cache_repair(session: Session, store: Path | None) -> None:
    """Drop damaged maps of STORE, or of all stores; label again to make them anew."""
    session.show(repair_stores(find_stores(session, store)))


@cache.command("preview", cls=RecipeCommand, sections=("data", "depth"))
@click.option("--out", type=GivenPath(), help="Folder; default <workdir>/previews.")
@overwrite_option
@click.pass_obj
def cache_preview(session: Session, config: RunConfig, out: Path | None, overwrite: bool) -> None:
    """Draw contact sheets of a recipe's images beside their depth."""
    session.show(preview_labels(config, session, out, overwrite=overwrite))


@cache.command("export")
@store_argument
@click.option("--out", type=GivenPath(), help="Folder; default <workdir>/depth-maps.")
@click.option("--form", type=click.Choice(["png16", "npy"]), default="png16", show_default=True)
@overwrite_option
@click.pass_obj
def cache_export(session: Session, store: Path | None, out: Path | None, form: str, overwrite: bool) -> None:
    """Write the maps of STORE, or of all stores, as 16-bit PNG or NPY files."""
    session.show(export_maps(session, find_stores(session, store), out, form, overwrite=overwrite))


def find_stores(session: Session, store: Path | None) -> list[Path]:
    """Return the named store, or all of the work directory that this version can read; what is left out is said.

    Raises:
        UserError: there is none.
    """
    from data_cache.depth_file import OtherSchema
    from data_cache.depth_store import DepthStore

    if store is not None:
        return [store]
    root = session.workspace.depth
    found = []
    for folder in sorted(folder for folder in root.glob("*/*") if any(folder.glob("*.h5"))):
        with contextlib.suppress(UserError):  # a damaged one stays: the command that follows says what is wrong
            try:
                DepthStore(folder)
            except OtherSchema as problem:
                session.console.info(f"left out: {problem}")
                continue
        found.append(folder)
    if not found:
        raise UserError(f"no depth store in {root}; make one with: pipeline pseudo-depth")
    return found


def show_stores(session: Session, folders: list[Path]) -> Result:
    """Describe stores: images, bytes, provenance; ``bad`` are those that cannot be opened."""
    from data_cache.depth_store import DepthStore
    from data_cache.leftovers import measure
    from pipeline.console import plain_table
    from pipeline.session import Result

    named = ("dataset", "split", "estimator", "kind")
    facts: list[dict[str, Any]] = []
    bad: list[dict[str, Any]] = []
    for folder in folders:
        try:
            store = DepthStore(folder)
            images = len(store.image_ids)
        except UserError as problem:
            if len(folders) == 1:
                raise
            session.console.info(str(problem))
            bad.append({"store": str(folder), "reason": str(problem)})
            continue
        described = {"images": images, "bytes": measure(folder), "provenance": asdict(store.provenance)}
        facts.append({"store": str(folder)} | described)
    provenance = [fact["provenance"] for fact in facts]
    rows = [
        [*(str(made[key]) for key in named), fact["images"], f"{fact['bytes'] / 1e6:.1f} MB", fact["store"]]
        for fact, made in zip(facts, provenance, strict=True)
    ]
    total = {"stores": facts, "images": sum(fact["images"] for fact in facts), "bad": bad}
    columns = [*named, "images", "size", "folder"]
    return Result(total | {"provenance": provenance}, plain_table("Depth stores", columns, rows), failed=bool(bad))


def check_stores(folders: list[Path]) -> Result:
    """Read every map and compare checksums; ``bad`` is damaged, ``suspicious`` hardly looks like depth."""
    from data_cache.depth_quality import Suspicion, describe_suspicious, find_suspicious
    from data_cache.depth_repair import verify_store
    from data_cache.depth_store import DepthStore
    from pipeline.console import count
    from pipeline.session import Result

    bad, suspicious = [], []
    for folder in folders:
        damaged = verify_store(folder)
        bad += [{"store": str(folder), **found._asdict()} for found in damaged]
        if not damaged:
            newest = {image_id: maps[-1][1] for image_id, maps in DepthStore(folder).records().items()}
            suspicious += [{"store": str(folder), **found._asdict()} for found in find_suspicious(newest)]
    lines = [f"{found['store']}/{found['file']} {found['image_id']}: {found['reason']}" for found in bad]
    lines += describe_suspicious([Suspicion(found["image"], found["reason"]) for found in suspicious])
    lines.append(
        f"{count(len(bad), 'problem')}; drop what is damaged with: pipeline cache repair, then label again"
        if bad
        else f"{count(len(folders), 'store')} verified; every map is as it was written"
    )
    remedy = {"remedy": "pipeline cache repair, then pipeline pseudo-depth"} if bad else {}
    facts = {**_describe_readable(folders), "bad": bad, "suspicious": suspicious} | remedy
    return Result(facts, "\n".join(lines), failed=bool(bad))


def _describe_readable(folders: list[Path]) -> dict[str, Any]:
    """Return maps and provenance of the stores that can be opened."""
    from data_cache.depth_store import DepthStore

    images, provenance = 0, []
    for folder in folders:
        with contextlib.suppress(UserError):  # `bad` says what is wrong with it
            store = DepthStore(folder)
            images += len(store)
            provenance.append(asdict(store.provenance))
    return {"images": images, "provenance": provenance}


def repair_stores(folders: list[Path]) -> Result:
    """Drop damaged maps, so that labelling again makes just these anew."""
    from data_cache.depth_repair import repair_store
    from pipeline.console import count
    from pipeline.session import Result

    bad: list[dict[str, Any]] = []
    kept = 0
    for folder in folders:
        report = repair_store(folder)
        kept += report.kept
        bad += [{"store": str(folder), **found._asdict()} for found in report.dropped]
    text = f"{count(kept, 'map')} kept, {count(len(bad), 'problem')} dropped"
    advice = "; label what is missing with: pipeline pseudo-depth" if bad else ""
    return Result({**_describe_readable(folders), "images": kept, "bad": bad}, text + advice)


def preview_labels(config: RunConfig, session: Session, out: Path | None, *, overwrite: bool = False) -> Result:
    """Draw a contact sheet per labelled split of a recipe: each image beside its depth, near is bright."""
    from data_cache.datasets import find_dataset
    from data_cache.outputs import open_output
    from data_cache.store_folder import dataset_folder
    from pipeline.experiment.artifacts import find_data_files, find_labels, open_split, splits_to_label
    from pipeline.session import Result
    from stages.evaluation.panels import contact_sheet, read_sheet_item, spread_over

    folder = out or session.workspace.root / "previews"
    session.workspace.check_output(folder, "--out")
    inputs = find_data_files(config, session.workspace)
    inputs.check_outside(folder, "--out")
    files, drawn, provenance = [], 0, []
    of_recipe = dataset_folder(session.workspace.depth, find_dataset(config.data.dataset).name)
    if not any(of_recipe.glob("*/*.h5")):  # before images are drawn that nobody wants to see
        others = sorted({store.parent.parent.name for store in session.workspace.depth.glob("*/*/*.h5")})
        raise UserError(
            f"no depth store of dataset {config.data.dataset!r} (recipe {config.recipe}) in {session.workspace.depth}; "
            + (
                f"there are stores of: {', '.join(others)}; name the recipe they were made with: --recipe"
                if others
                else "there are none; make them with: pipeline pseudo-depth --recipe RECIPE"
            )
        )
    for split in splits_to_label(config, session.workspace):
        dataset = open_split(config, session.workspace, split)
        store = find_labels(config, session.workspace, dataset)
        items = [read_sheet_item(dataset, index, store) for index in spread_over(len(dataset), PREVIEW_IMAGES)]
        sheet = folder / f"{dataset.name}-{store.folder.name}.png"
        with open_output(folder, inputs, overwrite=overwrite, on_wait=session.console.info) as output:
            files.append(str(contact_sheet(items, sheet, write_file=output.write)))
        drawn += len(items)
        provenance.append(asdict(store.provenance))
    facts = {"images": drawn, "bad": [], "provenance": provenance, "files": files}
    return Result(facts, "\n".join(files))


def export_maps(
    session: Session, folders: list[Path], out: Path | None, form: str, *, overwrite: bool = False
) -> Result:
    """Write every map as NPY (raw float32) or 16-bit PNG (its own minimum to maximum, see the scales file).

    ``scales.csv`` beside them has what the numbers mean, and each image's min and max, so that the raw numbers can be
    had back from a PNG; so the folder of a store can be ``depth/<split>`` of a ``folder`` dataset.
    """
    from data_cache.depth_store import DepthStore
    from data_cache.outputs import Inputs, open_output
    from pipeline.console import count
    from pipeline.session import Result

    target = out or session.workspace.root / "depth-maps"
    session.workspace.check_output(target, "--out")
    written = 0
    bad: list[dict[str, Any]] = []
    with open_output(target, Inputs(), overwrite=overwrite, on_wait=session.console.info) as output:
        for folder in folders:
            try:
                written += _export_store(DepthStore(folder), output, form, bad)
            except UserError as problem:
                if len(folders) == 1:
                    raise
                bad.append({"store": str(folder), "image": "", "reason": str(problem)})
    facts = {**_describe_readable(folders), "images": written, "bad": bad, "out": str(target)}
    lines = [f"not written: {found['image'] or found['store']}: {found['reason']}" for found in bad]
    return Result(facts, "\n".join([*lines, f"{count(written, 'map')} written to {target}"]), failed=bool(bad))


def _export_store(store: DepthStore, output: OutputFolder, form: str, bad: list[dict[str, Any]]) -> int:
    """Write the maps of a store and return how many; those that cannot be read go to ``bad``."""
    import numpy as np
    from PIL import Image

    from data_cache.datasets.depth_scales import SCALES_FILE, format_scales, to_steps
    from data_cache.depth_map import stored_name
    from data_cache.outputs import shorten_name

    place = output.folder / store.provenance.dataset / store.folder.name
    names = [PurePosixPath(stored_name(image_id)) for image_id in store.image_ids]
    paths = [place / name.parent / f"{shorten_name(name.name)}.{form.removesuffix('16')}" for name in names]
    output.check([*paths, place / SCALES_FILE])
    ranges: list[tuple[str, float, float]] = []
    for image_id, path in zip(store.image_ids, paths, strict=True):
        try:
            raw = store.read(image_id).raw
        except UserError as problem:
            bad.append({"store": str(store.folder), "image": image_id, "reason": str(problem)})
            continue
        low, high = _find_range(raw)
        with output.write(path) as temporary, temporary.open("wb") as file:
            if form == "npy":
                np.save(file, raw)
            else:
                Image.fromarray(to_steps(raw, low, high)).save(file, format="PNG")
        ranges.append((image_id, low, high))
    with output.write(place / SCALES_FILE) as temporary:
        temporary.write_bytes(os.fsencode(format_scales(store.provenance.kind, ranges)))
    return len(ranges)


def _find_range(raw: NDArray[np.float32]) -> tuple[float, float]:
    """Return least and largest finite number, that of the sky included; 0 and 0 when there is none."""
    import numpy as np

    finite = raw[np.isfinite(raw)]
    return (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)

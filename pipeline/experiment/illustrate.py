"""What a page shows of runs beside their numbers: images through their networks, the depth they learned, exports."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from data_cache.errors import UserError
from data_cache.image_scores import DamagedScores, read_image_scores
from data_cache.metrics import IMAGES_FILE
from pipeline.session import Session
from stages.comparison.pictures import Illustrations, Picture, Strip

if TYPE_CHECKING:
    from data_cache.datasets.interface import SegmentationDataset
    from pipeline.experiment.models import Model
    from stages.comparison.answer import Answer
    from stages.comparison.record import RunRecord
    from stages.comparison.rows import Row
    from stages.evaluation.panels import PanelItem
    from stages.export.proof_file import Proof

IMAGES_OF_A_KIND = 2
"""Shown of the worst, of the median and of the best images."""
SHEET_IMAGES = 6


def illustrate(answer: Answer, rows: Sequence[Row], session: Session) -> Illustrations:
    """Return images, depth and proofs for the rows that an answer names; what cannot be had is said in words.

    Raises:
        DamagedScores: what the images of a run scored is there, but damaged.
    """
    pairs = [(label, row.first) for label, row in answer.rows[:2] if row.first.folder is not None]
    shown = Illustrations(proofs=_find_proofs(rows, session))
    if not pairs:
        return shown
    try:
        shown = _show_images(pairs[-1], pairs[0], session, shown)
    except DamagedScores:
        raise
    except UserError as problem:
        shown = shown._replace(about_strips=f"No images: {problem}.")
    try:
        return _show_store(pairs[-1][1], session, shown)
    except UserError as problem:
        return shown._replace(about_maps=f"No depth maps: {problem}.")


def _show_images(
    best: tuple[str, RunRecord], base: tuple[str, RunRecord], session: Session, shown: Illustrations
) -> Illustrations:
    """Return the worst, median and best images of a run, as it and its baseline label them."""
    from pipeline.experiment.artifacts import open_split
    from pipeline.experiment.devices import choose_device
    from pipeline.experiment.models import open_run
    from stages.evaluation.colour import NEITHER_RIGHT, ONE_RIGHT, OTHER_RIGHT, lift_dark
    from stages.evaluation.panels import draw_tiles

    device = choose_device("auto")
    (label, run), (base_label, base_run) = best, base
    assert run.folder is not None and base_run.folder is not None
    model = open_run(run.folder, device)
    dataset = open_split(model.config, session.workspace, run.split)
    titles = _choose_images(run.folder, dataset, {} if run is base_run else {base_label: base_run.folder})
    items = _predict(model, dataset, list(titles), session)
    of_base = items if run is base_run else _predict(open_run(base_run.folder, device), dataset, list(titles), session)
    strips = tuple(
        Strip(
            titles[index],
            tuple(
                Picture(*tile)
                for tile in draw_tiles(item, dataset.palette, name=label, base=other, base_name=base_label)
            ),
        )
        for index, item, other in zip(titles, items, of_base, strict=True)
    )
    seen = {int(number) for item in items for number in (*set(item.truth.flat), *set(item.prediction.flat))}
    seen |= {int(number) for item in of_base for number in set(item.prediction.flat)}
    colours = list(zip(dataset.classes, lift_dark(dataset.palette), strict=True))
    legend = [colours[number] for number in sorted(seen) if number < len(colours)]
    rows = label if run is base_run else f"{base_label} and {label}"
    about = (
        f"Images of {run.split} as {rows} label them (seed {run.seed}; other rows are left out); depth is bright where "
        "it is near, pseudo depth and predicted depth on one scale."
    )
    differing = (
        (f"only {label} is right", ONE_RIGHT),
        (f"only {base_label} is right", OTHER_RIGHT),
        ("both are wrong, differently", NEITHER_RIGHT),
    )
    legends = (tuple(legend), () if run is base_run else differing)
    return shown._replace(strips=strips, about_strips=about, legends=legends)


def _choose_images(folder: Path, dataset: SegmentationDataset, others: Mapping[str, Path]) -> dict[int, str]:
    """Return the places of images in a split, and what they are called on the page.

    Args:
        folder: of the run whose best, median and worst images they are.
        others: runs whose scores stand beside, behind their labels.
    """
    from stages.evaluation.panels import spread_over

    if not (folder / IMAGES_FILE).exists():  # a run that could not be scored anew
        return {place: dataset.image_ids[place] for place in spread_over(len(dataset), 3 * IMAGES_OF_A_KIND)}
    places = {image_id: place for place, image_id in enumerate(dataset.image_ids)}
    beside = {label: _read_scores(other) for label, other in others.items() if (other / IMAGES_FILE).exists()}
    found = read_image_scores(folder / IMAGES_FILE).find_examples(IMAGES_OF_A_KIND)
    titles: dict[int, str] = {}
    for kind in ("best", "median", "worst"):
        for example in found[kind]:
            name = example["image"]
            scores = [f"mIoU of this image {example['miou_imagewise']:.3f}"]
            scores += [f"{label} {values[name]:.3f}" for label, values in beside.items() if name in values]
            if name in places:
                titles.setdefault(places[name], f"{kind.capitalize()}: {name} · {', '.join(scores)}")
    return titles


def _read_scores(folder: Path) -> dict[str, float]:
    scores = read_image_scores(folder / IMAGES_FILE)
    return dict(zip(map(str, scores.image_ids), map(float, scores.miou_imagewise), strict=True))


def _predict(model: Model, dataset: SegmentationDataset, places: Sequence[int], session: Session) -> list[PanelItem]:
    """Return some images of a split with everything that a model makes of them."""
    from pipeline.experiment.artifacts import find_labels_if_any
    from pipeline.experiment.models import check_classes
    from pipeline.experiment.scoring import evaluate_split
    from stages.evaluation.panels import PanelCollector

    check_classes(model, dataset)
    config = model.config.changed({"evaluation.batch_size": 1, "data.workers": 0})
    learns_depth = model.has_depth and config.build_schedule().needs_depth
    store = find_labels_if_any(config, session.workspace, dataset) if learns_depth else None
    device = next(model.network.parameters()).device
    panels = PanelCollector([dataset.image_ids[place] for place in places])
    evaluate_split(model.network, model.normalisation, dataset, store, config, device, panels, only=places)
    return [panels.items[place] for place in range(len(places))]


def _show_store(run: RunRecord, session: Session, shown: Illustrations) -> Illustrations:
    """Return some training images of a run beside the depth that it learned."""
    from pipeline.experiment.artifacts import find_labels_if_any, open_split
    from pipeline.experiment.models import read_trained, restore_config
    from stages.evaluation.panels import draw_map, read_sheet_item, spread_over

    assert run.folder is not None
    config = restore_config(read_trained(run.folder))
    if not config.build_schedule().needs_depth:
        return shown
    dataset = open_split(config, session.workspace, "train")
    store = find_labels_if_any(config, session.workspace, dataset)
    if store is None:
        return shown
    made = store.provenance
    items = (read_sheet_item(dataset, index, store) for index in spread_over(len(dataset), SHEET_IMAGES))
    maps = tuple(Picture(*draw_map(item)) for item in items)
    about = (
        f"Training images beside their depth by {made.estimator}, each on a scale of its own; licence: {made.licence}."
    )
    return shown._replace(maps=maps, about_maps=about)


def _find_proofs(rows: Sequence[Row], session: Session) -> dict[str, list[tuple[str, str]]]:
    """Return what was proven of the exports that lie at the usual place of these runs."""
    from stages.export.proof_file import PROOF_FILE, read_proof

    proofs = {}
    for run in (run for row in rows for run in row.runs if run.folder):
        assert run.folder is not None
        folder = session.workspace.exports / run.folder.name
        if not (folder / PROOF_FILE).exists():
            continue
        try:
            proof = read_proof(folder)
        except UserError as problem:
            proofs[folder.name] = [("not shown", str(problem))]
            continue
        proofs[folder.name] = list(_describe_proof(proof))
    return proofs


def _describe_proof(proof: Proof) -> Iterator[tuple[str, str]]:
    for name, value in proof.max_abs_difference.items():
        if value is not None:
            yield f"largest difference, {name.replace('_', ' ')}", f"{value:g}"
    for name, made in proof.formats.items():
        if made.sizes:
            yield f"largest difference of {name}", f"{max(size.max_abs_difference for size in made.sizes):.2g}"
    cost, latency = proof.flops, proof.latency_ms
    yield "parameters", f"{proof.parameters.before:,} before, {proof.parameters.after:,} after"
    yield "operations", f"{cost.before / 1e9:.2f} before, {cost.after / 1e9:.2f} GFLOP after"
    yield "latency", f"{latency.before:.1f} before, {latency.after:.1f} ms after, on {latency.device}"

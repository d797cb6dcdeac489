"""`pipeline select`: which images to label next."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from data_cache.errors import UserError
from pipeline.options import GivenPath, RecipeCommand, choices_of, device_option, overwrite_option

if TYPE_CHECKING:
    from data_cache.outputs import WriteFile
    from data_cache.settings import LabelledBy
    from data_cache.split_depth import SplitDepth
    from pipeline.experiment.config import RunConfig
    from pipeline.experiment.selecting import Place, Selection
    from pipeline.session import Result, Session

LIST_FILE, SHEET_FILE = "selected.txt", "selected.png"
LARGEST_BUDGET = 1_000_000
SHOWN_IMAGES = 60
"""On the contact sheet."""


@click.command(cls=RecipeCommand, sections=("data", "depth", "seed"), without=("--labelled-fraction",))
@click.option("--budget", type=click.IntRange(1, LARGEST_BUDGET), required=True, help="Images to choose.")
@click.option("--given", type=GivenPath(), help="List of images, one id a line, that are labelled already.")
@click.option(
    "--by",
    type=choices_of("data.labelled_by"),
    default="depth-features",
    show_default=True,
    help="Far from each other by what the depth teacher's encoder makes of them, or by their stored depth; far and "
    "hard to learn the depth of; or at random by --seed.",
)
@click.option("--out", type=GivenPath(), help="Folder; default <workdir>/selection.")
@overwrite_option
@device_option
@click.pass_obj
def select(
    session: Session,
    config: RunConfig,
    budget: int,
    given: Path | None,
    by: LabelledBy,
    out: Path | None,
    overwrite: bool,
    device: str,
) -> None:
    """Choose the images whose masks are worth most; no mask is opened."""
    session.show(select_images(config, session, budget, by, given, out, device=device, overwrite=overwrite))


def select_images(
    config: RunConfig,
    session: Session,
    budget: int,
    by: LabelledBy,
    given: Path | None = None,
    out: Path | None = None,
    *,
    device: str = "auto",
    overwrite: bool = False,
) -> Result:
    """Order the images without masks, and write the first ones as a list and a contact sheet.

    Args:
        given: list of images that are labelled already; they count as chosen.
        out: folder for both; None is the usual one.

    Returns:
        ``selected`` (ids in order), ``paths``, ``by``, ``pool`` and ``covered`` (numbers of images), ``out`` (the
        list), ``sheet``.
    """
    from data_cache.outputs import open_output
    from pipeline.experiment.artifacts import find_data_files
    from pipeline.session import Result

    folder = out or session.workspace.root / "selection"
    session.workspace.check_output(folder, "--out")
    inputs = find_data_files(config, session.workspace)
    inputs.check_outside(folder, "--out")
    asked = gather_candidates(config.changed({"data.labelled_fraction": 1.0}), session, given, device)
    listed, sheet = folder / LIST_FILE, folder / SHEET_FILE
    with open_output(folder, inputs, overwrite=overwrite, on_wait=session.console.info) as output:
        output.check([listed, sheet])
        chosen = asked.order(by, budget)
        with output.write(listed) as temporary:
            temporary.write_bytes("".join(f"{place.image_id}\n" for place in chosen).encode(errors="surrogateescape"))
        draw_sheet(asked, chosen, sheet, output.write)
    paths = [place.dataset.describe(place.at) for place in chosen]
    facts = {
        "selected": [place.image_id for place in chosen],
        "paths": paths,
        "by": by,
        "pool": len(asked.images) - len(asked.covered),
        "covered": len(asked.covered),
        "out": str(listed),
        "sheet": str(sheet),
    }
    return Result(facts, "\n".join([*paths, f"\nlist   {listed}", f"sheet  {sheet}"]))


def gather_candidates(config: RunConfig, session: Session, given: Path | None, device: str) -> Selection:
    """Return the images to choose from, those without masks, and those that are covered: with masks, or listed.

    Where no image lacks a mask the whole training split is chosen from, as if nobody had labelled it.

    Raises:
        UserError: as ``read_image_list``.
    """
    from data_cache.label_choice import read_image_list
    from pipeline.experiment.selecting import Selection, find_parts, gather_places

    parts = find_parts(config, session.workspace)
    images = gather_places(parts)
    names: Sequence[str] = ()
    if given is not None:
        every = [place.image_id for place in images]
        names = read_image_list(given, every, config.data.dataset, option="--given", lacking="no file with ids")
    listed, train = set(names), parts[0].dataset
    bare = {row for row, place in enumerate(images) if place.dataset is not train or not _has_mask(place)}
    covered = {row for row, place in enumerate(images) if place.image_id in listed or (bare and row not in bare)}
    return Selection(config, session, images, frozenset(covered), device)


def _has_mask(place: Place) -> bool:
    """Return whether the files of an image's mask are there; they are not opened."""
    return all(path.exists() for path in place.dataset.sources(place.at).labels if isinstance(path, Path))


def draw_sheet(asked: Selection, chosen: Sequence[Place], out: Path, write_file: WriteFile) -> None:
    """Draw the first images in order, with their depth where there is some."""
    from stages.evaluation.panels import contact_sheet, read_sheet_item

    stores = {name: _find_depth(asked, place) for name, place in {p.dataset.split: p for p in chosen}.items()}
    items = [
        read_sheet_item(place.dataset, place.at, stores[place.dataset.split], f"{number}  {place.image_id}")
        for number, place in enumerate(chosen[:SHOWN_IMAGES], 1)
    ]
    contact_sheet(items, out, columns=3 if any(stores.values()) else 5, write_file=write_file)


def _find_depth(asked: Selection, place: Place) -> SplitDepth | None:
    """Return the depth of an image's split, None where there is none that fits; the sheet shows less without it."""
    from pipeline.experiment.artifacts import find_labels

    try:
        return find_labels(asked.config, asked.session.workspace, place.dataset)
    except UserError as problem:
        asked.session.console.info(f"no depth on the sheet: {problem}")
        return None

"""`pipeline import`: annotations of other tools to a `folder` dataset."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from pipeline.options import GivenPath, LazyChoice

if TYPE_CHECKING:
    from data_cache.annotations.interface import Empty, Order
    from data_cache.annotations.writing import Imported
    from data_cache.datasets.interface import SegmentationDataset
    from pipeline.session import Result, Session

SHOWN_IMAGES = 30
"""On the contact sheet."""


def _list_formats() -> Sequence[str]:
    from data_cache.annotations import FORMATS

    return tuple(FORMATS)


def _list_choices(name: str) -> LazyChoice:
    def find() -> Sequence[str]:
        from data_cache.annotations import interface

        found: tuple[str, ...] = get_args(getattr(interface, name))
        return found

    return LazyChoice(find)


@click.command("import")
@click.argument("format_name", metavar="coco|yolo|labelme|cvat", type=LazyChoice(_list_formats))
@click.argument("source", metavar="FILE_OR_DIR", type=GivenPath())
@click.option("--images", type=GivenPath(), help="Folder of the images; default where the annotations are.")
@click.option("--out", type=GivenPath(), required=True, help="Folder for the data set; new, or empty.")
@click.option(
    "--order",
    type=_list_choices("Order"),
    help="Draw overlapping objects as they stand in the file, or larger ones first; later ones lie on top. Layers of "
    "CVAT (z_order) come before that.  [default: file for labelme and cvat, area for coco and yolo]",
)
@click.option(
    "--uncovered",
    type=click.Choice(["background", "void"]),
    default="background",
    show_default=True,
    help="What pixels are that no object covers: a class, or left out of training and scores.",
)
@click.option(
    "--empty",
    type=_list_choices("Empty"),
    help="What images without objects are that the annotations list: all background, or not annotated.  "
    "[default: unlabelled for cvat, else background]",
)
@click.option(
    "--val-share",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=0.2,
    show_default=True,
    help="Share of the training images that becomes val where the data has none: drawn by their names, with "
    "images that nearly equal each other, as frames of a film do, on one side.",
)
@click.option("--link", is_flag=True, help="Link to the images where they lie, in place of copies.")
@click.pass_context
def import_(
    ctx: click.Context, format_name: str, source: Path, images: Path | None, out: Path, uncovered: str, **options: Any
) -> None:
    """Make a `folder` data set of the outlines of another tool.

    \b
    coco     instances as JSON: polygons, RLE; a file, or a folder with one a split
    yolo     YOLO segmentation: data.yaml, or the folder that has it
    labelme  a folder of LabelMe's JSON: polygons, rectangles, circles, masks
    cvat     CVAT for images 1.1: annotations.xml, or the folder that has it

    Images that are not annotated go to images/unlabelled.
    """
    background = uncovered == "background"
    workdir = ctx.find_root().params.get("workdir")
    found = import_annotations(
        ctx.obj, format_name, source, images, out, background=background, workdir=workdir, **options
    )
    ctx.obj.show(found)


def import_annotations(
    session: Session,
    format_name: str,
    source: Path,
    images: Path | None,
    out: Path,
    *,
    order: Order | None = None,
    background: bool = True,
    empty: Empty | None = None,
    val_share: float = 0.2,
    link: bool = False,
    workdir: Path | None = None,
) -> Result:
    """Write a `folder` data set with a contact sheet; it is there as a whole, or not at all.

    Args:
        format_name: key of ``FORMATS``.
        source: file or folder of annotations.
        images: where the images lie; None is where the annotations are.
        out: new or empty folder.
        order, empty: None is the usual one of the format.
        background: whether pixels without an object are a class, rather than void.
        val_share: of the images to train on, where the data has no val.
        link: whether images are links rather than copies.
        workdir: as it was given on the command line, for the commands that follow.

    Returns:
        ``images`` (by split), ``classes`` (by split the share of each), ``void``, ``notes``, ``out``, ``sheet``,
        ``next`` (commands).
    """
    from data_cache.annotations import FORMATS
    from data_cache.annotations.choices import Choices
    from data_cache.annotations.interface import SHEET_FILE
    from data_cache.annotations.writing import write_folder
    from data_cache.errors import UserError
    from data_cache.outputs import Inputs, hold_result, replace_folder
    from pipeline.session import Result

    session.workspace.check_output(out, "--out")
    roots = [path for path in (source, images) if path is not None and path.is_dir()]
    Inputs(root / "any" for root in roots).check_outside(out, "--out")
    if os.path.lexists(out) and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"--out {out} is {'not empty' if out.is_dir() else 'no folder'}; name a new folder")
    kind = FORMATS[format_name]
    session.console.info(f"reading {source}")
    annotations = kind.read(source, images)
    choices = Choices(order or kind.order, empty or kind.empty, background, val_share, link)
    with (
        hold_result(out, _own_nothing, session.console.info) as place,
        replace_folder(place, (), _own_nothing) as folder,
        session.console.progress("masks", len(annotations.images)) as advance,
    ):
        found = write_folder(annotations, folder, choices, source=source, progress=advance)
        draw_sheet(folder, found)
    begin = ["pipeline", *(["--workdir", str(workdir)] if workdir else [])]
    commands = [shlex.join([*begin, "init", str(out), "--out", f"{out}.toml"])]
    facts = {
        "images": found.images,
        "classes": found.classes,
        "void": found.void,
        "notes": found.notes,
        "out": str(out),
        "sheet": str(out / SHEET_FILE),
        "next": commands,
    }
    return Result(facts, "\n".join(_render(found, out, commands)))


def _own_nothing(_folder: Path) -> Sequence[str]:
    """Return no names: whatever lies in the place of the data set, this program has not written it."""
    return ()


def draw_sheet(folder: Path, found: Imported) -> None:
    """Draw images from all over the data set, tinted by their masks."""
    from data_cache.annotations.interface import SHEET_FILE
    from data_cache.datasets import open_dataset
    from stages.evaluation.colour import VOID, lift_dark
    from stages.evaluation.panels import contact_sheet, read_tinted_item, spread_over

    splits: list[SegmentationDataset] = [open_dataset("folder", folder, split) for split in found.classes]
    every = [(dataset, index) for dataset in splits for index in range(len(dataset))]
    chosen = [every[place] for place in spread_over(len(every), SHOWN_IMAGES)]
    plain = 0 if found.background else None
    legend = list(zip(splits[0].classes, lift_dark(splits[0].palette), strict=True))[1 if found.background else 0 :]
    contact_sheet(
        [read_tinted_item(dataset, index, plain_id=plain) for dataset, index in chosen],
        folder / SHEET_FILE,
        columns=5,
        legend=[*legend, ("void", VOID)] if any(found.void.values()) else legend,
    )


def _render(found: Imported, out: Path, commands: Sequence[str]) -> Iterator[str]:
    """Yield what a person reads."""
    from data_cache.annotations.interface import SHEET_FILE
    from data_cache.escaping import width_of
    from pipeline.console import count

    yield ", ".join(f"{split}: {count(number, 'image')}" for split, number in found.images.items())
    totals = {name: [shares[name] for shares in found.classes.values()] for name in next(iter(found.classes.values()))}
    heading = "share of labelled pixels"
    width = max(map(width_of, (heading, *totals)))
    yield f"\n{heading:{width}}  " + "  ".join(f"{split:>7}" for split in found.classes)
    for name, shares in totals.items():
        yield f"{name}{' ' * (width - width_of(name))}  " + "  ".join(f"{share:7.2%}" for share in shares)
    yield ""
    yield from (f"note: {note}" for note in found.notes)
    yield f"\nlook at  {out / SHEET_FILE}"
    yield "\nnext; it prints what comes then\n" + "\n".join(f"  {command}" for command in commands)

"""`pipeline predict`: label maps and overlays of image files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipeline.options import GivenPath, choose_margin, device_option, format_option, overwrite_option, tile_options

if TYPE_CHECKING:
    import torch

    from pipeline.session import Result, Session


@click.command()
@click.argument("model", metavar="RUN|EXPORT|FILE")
@click.argument("images", nargs=-1, required=True, type=GivenPath())
@click.option("--out", required=True, type=GivenPath(), help="Folder for label maps and overlays.")
@overwrite_option
@format_option
@tile_options
@device_option
@click.pass_obj
def predict(
    session: Session,
    model: str,
    images: Sequence[Path],
    out: Path,
    overwrite: bool,
    format_name: str | None,
    tile: int | None,
    margin: int | None,
    device: str,
) -> None:
    """Write label maps and overlays of image files."""
    from pipeline.experiment.devices import choose_device

    session.show(
        predict_images(
            session,
            model,
            images,
            out,
            choose_device(device),
            format=format_name,
            tile=tile,
            margin=margin,
            overwrite=overwrite,
        )
    )


def predict_images(
    session: Session,
    reference: str,
    images: Sequence[Path],
    out: Path,
    device: torch.device,
    *,
    format: str | None = None,
    tile: int | None,
    margin: int | None,
    overwrite: bool = False,
) -> Result:
    """Write label maps and overlays of image files.

    Returns:
        ``files``, ``failed`` [{``image``, ``reason``}], ``model``, ``notes``.

    Raises:
        UserError: something else lies where a result belongs.
    """
    from data_cache.outputs import Inputs, open_output
    from data_cache.size_rule import ORIGINAL
    from pipeline.experiment.models import open_model
    from pipeline.session import Result
    from stages.evaluation.predict import Segmenter, list_images, predict_files

    margin = choose_margin(tile, margin)
    session.workspace.check_output(out, "--out")
    model = open_model(session, reference, device, format)
    rule = ORIGINAL if tile is not None and model.format is None else model.size_rule
    segmenter = Segmenter(model.network, model.normalisation, device, size_rule=rule, tile=tile, margin=margin)
    found = list_images(images)
    with open_output(out, Inputs(found), overwrite=overwrite, on_wait=session.console.info) as output:
        written = predict_files(segmenter, found, output, class_names=model.class_names, palette=model.palette)
    files = [str(file) for file in written.files]
    facts = {
        "files": files,
        "failed": [failure._asdict() for failure in written.failed],
        "model": str(model.folder),
        "notes": written.notes,
    }
    lines = [*files, *(f"note: {note}" for note in written.notes)]
    lines += [f"not predicted: {failure.reason}" for failure in written.failed]
    if written.failed:
        lines.append(f"{len(written.failed)} of {len(found)} images could not be predicted; the others are in {out}")
    return Result(facts, "\n".join(lines), failed=bool(written.failed))

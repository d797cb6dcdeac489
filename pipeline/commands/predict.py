"""`pipeline predict`: label maps and overlays of image files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipeline.options import choose_margin, device_option, tile_options

if TYPE_CHECKING:
    import torch

    from pipeline.session import Result, Session


@click.command()
@click.argument("model", metavar="RUN|EXPORT")
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder for label maps and overlays.")
@tile_options
@device_option
@click.pass_obj
def predict(
    session: Session, model: str, images: Sequence[Path], out: Path, tile: int | None, margin: int | None, device: str
) -> None:
    """Write label maps and overlays of image files."""
    from pipeline.experiment.devices import choose_device

    session.show(predict_images(session, model, images, out, choose_device(device), tile=tile, margin=margin))


def predict_images(
    session: Session,
    reference: str,
    images: Sequence[Path],
    out: Path,
    device: torch.device,
    *,
    tile: int | None,
    margin: int | None,
) -> Result:
    """Write label maps and overlays of image files.

    Returns:
        ``files``, ``model``, ``notes``.
    """
    from pipeline.experiment.models import open_model
    from pipeline.session import Result
    from stages.evaluation.predict import Segmenter, predict_files

    margin = choose_margin(tile, margin)
    model = open_model(session, reference, device)
    size = model.config.data.crop if model.config.evaluation.size == "recipe" and tile is None else None
    segmenter = Segmenter(model.network, model.normalisation, device, size=size, tile=tile, margin=margin)
    written = predict_files(segmenter, images, out, class_names=model.class_names, palette=model.palette)
    files = [str(file) for file in written.files]
    facts = {"files": files, "model": str(model.folder), "notes": written.notes}
    return Result(facts, "\n".join([*files, *(f"note: {note}" for note in written.notes)]))

"""`pipeline fetch`: bring weights, so that this machine, or another one without network, can work from files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from data_cache.errors import UserError
from pipeline.options import GivenPath, choices_of

if TYPE_CHECKING:
    from pipeline.session import Result, Session

ENCODER_PREFIX = "encoder:"
WHOLE_VGG = {"vgg16": False, "vgg16_bn": True}
"""Name → batch norm; the whole classification network, whose fc6 and fc7 the FCN family starts from."""


@click.command()
@click.argument("names", nargs=-1, metavar="[ESTIMATOR|encoder:NAME]…")
@click.option("--out", type=GivenPath(), help="Folder; default <workdir>/estimators.")
@click.option("--kind", type=choices_of("depth.kind"), help="Meaning of an estimator without an alias.")
@click.option("--accept-noncommercial", is_flag=True, help="Fetch weights with such a licence.")
@click.pass_obj
def fetch(
    session: Session, names: Sequence[str], out: Path | None, kind: str | None, accept_noncommercial: bool
) -> None:
    """Bring estimator and encoder weights, for use on a machine without network."""
    session.show(fetch_weights(session, names, out, kind=kind, accept_noncommercial=accept_noncommercial))


def fetch_weights(
    session: Session, names: Sequence[str], out: Path | None, *, kind: str | None, accept_noncommercial: bool
) -> Result:
    """Fetch estimators by alias, Hub id or folder, encoders as ``encoder:NAME``, whole VGG16 as ``vgg16``.

    Returns:
        ``files`` and per name the ``use`` of it.
    """
    from data_cache.sample import DepthKind
    from pipeline.session import Result
    from stages.networks.encoder_weights import fetch_encoder_weights
    from stages.networks.vgg import fetch_vgg16_weights
    from stages.pseudo_depth.fetch import fetch_estimator

    if not names:
        raise UserError(
            "name what to fetch: estimators (see: pipeline estimators) or encoders, "
            "for example: pipeline fetch depth-anything-v2-small encoder:resnet50"
        )
    if out is not None:
        session.workspace.check_output(out, "--out")
    folder = out or session.workspace.estimators
    _check_apart(names)
    files: list[Path] = []
    uses: list[str] = []
    for name in names:
        if name.startswith(ENCODER_PREFIX):
            encoder = name.removeprefix(ENCODER_PREFIX)
            files.append(fetch_encoder_weights(encoder, folder / f"{encoder.replace('/', '--')}.safetensors"))
            uses.append(f"--set network.encoder_weights={files[-1]}")
            continue
        if name in WHOLE_VGG:
            files.append(fetch_vgg16_weights(folder / f"{name}.safetensors", batch_norm=WHOLE_VGG[name]))
            uses.append(f"--set network.encoder_weights={files[-1]}")
            continue
        target = folder / _name_folder(name)
        files += fetch_estimator(
            name,
            target,
            kind=DepthKind(kind) if kind else None,
            accept_noncommercial=accept_noncommercial,
            progress=session.console.info,
        )
        uses.append(f"--estimator {target}")
    facts = {"files": [str(file) for file in files], "use": uses}
    return Result(facts, "\n".join([*map(str, files), *(f"use it with: {use}" for use in uses)]))


def _name_folder(name: str) -> str:
    """Return what the copy of an estimator's folder, or of a Hub id, is called."""
    if not Path(name).is_dir():
        return name.replace("/", "--")
    last = Path(name).name
    return Path(name).resolve().name if last in ("", "..") else last


def _check_apart(names: Sequence[str]) -> None:
    """Refuse two folders whose copies would be one."""
    folders: dict[str, str] = {}
    for name in names:
        copy = _name_folder(name)
        if Path(name).is_dir() and not Path(folders.setdefault(copy, name)).samefile(name):
            raise UserError(
                f"{folders[copy]} and {name} would both be copied to {copy!r}; fetch them one by one, each with an "
                "--out of its own"
            )

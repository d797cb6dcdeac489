"""`pipeline doctor`: is this machine fit for the work, and how to repair what is missing."""

from __future__ import annotations

import fcntl
import os
import platform
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    import torch

    from pipeline.gpu_checks import Effort
    from pipeline.session import Result, Session

LOWEST_VERSIONS = {
    "torch": (2, 11),
    "torchvision": (0, 26),
    "transformers": (5, 17),
    "segmentation-models-pytorch": (0, 5),
    "h5py": (3, 11),
}
FREE_DISK_BYTES = 3_000_000_000
"""What the demo may need at most."""


@click.command()
@click.option("--clean", is_flag=True, help="Remove what killed processes left in the work directory.")
@click.option(
    "--gpu", is_flag=True, help="Also compare the GPU with the CPU and measure what limits the work; takes a minute."
)
@click.pass_obj
def doctor(session: Session, clean: bool, gpu: bool) -> None:
    """Check machine, versions, GPU, locking, disk; say what is missing and how to repair it."""
    session.show(examine_machine(session, clean=clean, gpu=_find_gpu() if gpu else None))


def examine_machine(
    session: Session, *, clean: bool = False, gpu: torch.device | None = None, effort: Effort | None = None
) -> Result:
    """Run all checks, after removing what killed processes left behind if that is wanted.

    Args:
        clean: whether that is wanted.
        gpu: device that is compared with the CPU and measured; None leaves that out.
        effort: how much is computed on it; None is what takes a minute on a GPU.

    Returns:
        ``checks``: list of ``name``, ``ok``, ``found``, ``remedy`` (empty when ok); ``leftovers`` and ``removed``:
        lists of ``path`` and ``bytes``; ``freed_bytes``.
    """
    from rich.console import Group
    from rich.text import Text

    from data_cache.escaping import printable_text
    from data_cache.files import format_bytes
    from pipeline.console import plain_table
    from pipeline.leftovers import find_leftovers, remove_leftovers
    from pipeline.session import Result

    removed = remove_leftovers(session.workspace) if clean else []
    leftovers = find_leftovers(session.workspace)
    checks = [
        _check_python(),
        *map(_check_version, LOWEST_VERSIONS),
        _check_gpu(),
        *_check_workdir(session),
        _check_leftovers(len(leftovers), sum(one.bytes for one in leftovers)),
        _check_extra(),
    ]
    if gpu is not None:
        from pipeline.gpu_checks import Effort, examine_gpu

        session.console.info(f"comparing {gpu} with the CPU; this takes about a minute")
        checks += [_check(*finding) for finding in examine_gpu(gpu, session.workspace.root, effort or Effort())]
    rows = [["ok" if check["ok"] else "FAILED", check["name"], check["found"], check["remedy"]] for check in checks]
    facts = {
        "checks": checks,
        "leftovers": [one.to_json() for one in leftovers],
        "removed": [one.to_json() for one in removed],
        "freed_bytes": sum(one.bytes for one in removed),
    }
    lines = [Text(f"removed {printable_text(str(one.path))} ({format_bytes(one.bytes)})") for one in removed]
    table = plain_table("Machine", ["state", "what", "found", "remedy"], rows)
    return Result(facts, Group(table, *lines), failed=not all(check["ok"] for check in checks))


def _check(name: str, ok: bool, found: str, remedy: str = "") -> dict[str, Any]:
    return {"name": name, "ok": ok, "found": found, "remedy": "" if ok else remedy}


def _find_gpu() -> torch.device:
    from data_cache.errors import UserError
    from pipeline.experiment.devices import choose_device

    device = choose_device("auto")
    if device.type == "cpu":
        raise UserError(
            "--gpu examines a GPU, and there is none here that torch can use; without it the doctor looks at the rest"
        )
    return device


def _check_python() -> dict[str, Any]:
    return _check("python", sys.version_info >= (3, 11), platform.python_version(), "install Python 3.11 or newer")


def _check_version(name: str) -> dict[str, Any]:
    from importlib import metadata

    lowest = ".".join(map(str, LOWEST_VERSIONS[name]))
    try:
        found = metadata.version(name)
    except metadata.PackageNotFoundError:
        return _check(name, False, "missing", f"pip install '{name}>={lowest}'")
    numbers = tuple(int(part) for part in found.split("+")[0].split(".")[:2])
    return _check(name, numbers >= LOWEST_VERSIONS[name], found, f"pip install '{name}>={lowest}'")


def _check_gpu() -> dict[str, Any]:
    """A missing GPU is no fault: everything runs on the CPU, only slower."""
    import torch

    if torch.cuda.is_available():
        memory = torch.cuda.get_device_properties(0).total_memory / 1e9
        return _check("gpu", True, f"{torch.cuda.get_device_name(0)}, {memory:.0f} GB")
    return _check("gpu", True, f"none; {os.cpu_count()} CPU cores, {torch.get_num_threads()} threads")


def _check_workdir(session: Session) -> list[dict[str, Any]]:
    import tempfile

    root = session.workspace.root
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=root) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as problem:
        remedy = "choose a writable folder on a local disk with --workdir"
        return [_check("work directory", False, f"{root}: {problem.strerror}", remedy)]
    free = shutil.disk_usage(root).free
    remedy = "free some space or choose another disk with --workdir"
    return [
        _check("work directory", True, f"{Path(root).resolve()} (writable, locks work)"),
        _check("free disk", free >= FREE_DISK_BYTES, f"{free / 1e9:.1f} GB", remedy),
    ]


def _check_leftovers(number: int, size: int) -> dict[str, Any]:
    """What killed processes left does no harm but take space."""
    from data_cache.files import format_bytes
    from pipeline.console import count

    name = "left by killed processes"
    if not number:
        return _check(name, True, "nothing")
    return _check(name, True, f"{count(number, 'thing')}, {format_bytes(size)}; remove with: pipeline doctor --clean")


def _check_extra() -> dict[str, Any]:
    import importlib.util

    present = importlib.util.find_spec("tensorboard") is not None
    return _check("tensorboard (optional)", True, "present" if present else "absent; pip install tensorboard")

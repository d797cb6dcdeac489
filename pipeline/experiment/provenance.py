"""What software made a result: versions, commit, command line."""

from __future__ import annotations

import platform
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_cache.ranks import world_size

if TYPE_CHECKING:
    import torch

    from stages.training.settings import TrainingSettings

_equivalent: ContextVar[list[str] | None] = ContextVar("command line", default=None)
PACKAGES = ("torch", "torchvision", "transformers", "segmentation-models-pytorch", "timm", "numpy", "h5py")


def describe_numerics(device: torch.device, training: TrainingSettings) -> dict[str, Any]:
    """Return what rounding depends on beside thread count and versions; runs of one table row agree in it.

    Args:
        device: where it is trained.
        training: with its precision resolved.
    """
    numerics: dict[str, str | bool | int] = {
        "device": device.type,
        "dtype": training.precision,
        "tf32": device.type == "cuda" and training.tf32,
        "compile": training.compile,
    }
    if training.compile and training.compile_mode != "default":
        numerics["compile"] = training.compile_mode
    if training.deterministic:
        numerics["deterministic"] = True
    if world_size() > 1:
        numerics["processes"] = world_size()
    return numerics


def describe_environment() -> dict[str, Any]:
    """Return what else rounding depends on: threads and package versions."""
    import torch

    versions = {name: metadata.version(name) for name in ("pseudo-depth-pipeline", *PACKAGES)}
    versions |= {"python": platform.python_version(), "platform": platform.platform()}
    return {"threads": torch.get_num_threads(), "versions": versions}


def describe_software() -> dict[str, Any]:
    """Return package versions, the project's commit if it runs from a checkout, and the command line."""
    return {
        "versions": describe_environment()["versions"],
        "git_commit": _find_commit(),
        "command": find_command(),
    }


def find_command() -> str:
    """Return the command line that does what is done here: this process's own, or the one a call from Python is."""
    return shlex.join(_equivalent.get() or ["pipeline", *sys.argv[1:]])


@contextmanager
def as_command(words: list[str]) -> Iterator[None]:
    """Have what is done in the block recorded as done by this command line."""
    former = _equivalent.set(words)
    try:
        yield
    finally:
        _equivalent.reset(former)


def _find_commit() -> str | None:
    """Return the commit of this checkout, marked when files differ from it; None for an installed package."""
    folder = Path(__file__).parent.parent
    if not (folder / ".git").exists():
        return None
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return described.stdout.strip()

"""What software made a result: versions, commit, command line."""

from __future__ import annotations

import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "torchvision", "transformers", "segmentation-models-pytorch", "timm", "numpy", "h5py")


def describe_software() -> dict[str, Any]:
    """Return package versions, Python, platform, the project's commit if it runs from a checkout, and the command."""
    versions = {name: metadata.version(name) for name in ("pseudo-depth-pipeline", *PACKAGES)}
    return {
        "versions": versions | {"python": platform.python_version(), "platform": platform.platform()},
        "git_commit": _find_commit(),
        "command": " ".join(["pipeline", *sys.argv[1:]]),
    }


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

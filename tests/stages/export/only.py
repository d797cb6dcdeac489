"""An environment in which nothing but named packages, and what they say they need, can be imported."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from packaging.requirements import Requirement

_FORBIDDEN = ("pipeline", "stages", "data_cache", "transformers", "onnx", "onnxruntime", "openvino", "torch")
_CHECK = """\
import importlib.util, sys
sys.path.append(sys.argv[1])
found = [name for name in sys.argv[2].split(",") if importlib.util.find_spec(name)]
assert not found, f"can be imported: {found}"
"""


def link_packages(folder: Path, names: Sequence[str]) -> Path:
    """Make a folder of links to the files of installed packages and of all that they require."""
    folder.mkdir()
    for name in _find_required(names):
        package = importlib.metadata.distribution(name)
        for first in {file.parts[0] for file in package.files or ()} - {"..", "bin", "__pycache__"}:
            place = Path(str(package.locate_file(first)))
            if place.exists() and not (folder / first).exists():
                (folder / first).symlink_to(place)
    return folder


def run_only(site: Path, script: str, *words: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run Python code that finds its standard library and ``site``, and see that it finds nothing else.

    -I leaves out the current folder and PYTHONPATH, -S the installed packages and what editable installs add.
    """
    absent = ",".join(name for name in _FORBIDDEN if not (site / name).exists())
    command = [sys.executable, "-I", "-S", "-c", _CHECK + script, str(site), absent, *map(str, words)]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300, check=False)


def _find_required(names: Sequence[str]) -> Iterator[str]:
    waiting, seen = list(names), set[str]()
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        yield name
        for line in importlib.metadata.requires(name) or ():
            wanted = Requirement(line)
            if wanted.marker is None or wanted.marker.evaluate({"extra": ""}):
                waiting.append(wanted.name)

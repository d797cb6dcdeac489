"""What is installed is what lies here: the wheel, its version, and how it is cited."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf8"))["project"]
PACKAGES = ("pipeline", "stages", "data_cache")


@pytest.mark.slow
def test_the_wheel_has_every_file_of_the_packages(tmp_path: Path) -> None:
    """Recipes, skeletons, the bundled teacher, web files and py.typed among them; and nothing else."""
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, tmp_path)
    here = {path.relative_to(tmp_path).as_posix() for name in PACKAGES for path in (tmp_path / name).rglob("*.*")}
    build = [sys.executable, "-c", "import setuptools.build_meta as backend; backend.build_wheel('dist')"]
    done = subprocess.run(build, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as content:
        facts = {name.rpartition("/")[2]: name for name in content.namelist() if ".dist-info/" in name}
        packed = set(content.namelist()) - set(facts.values())
        entries = content.read(facts["entry_points.txt"]).decode()
        metadata = content.read(facts["METADATA"]).decode()
    assert packed == {name for name in here if (tmp_path / name).is_file()}
    assert {"pipeline/recipes/demo.toml", "pipeline/skeletons/recipe.toml", "stages/export/web/index.html"} <= packed
    assert {"stages/pseudo_depth/bundled/model.safetensors", *(f"{name}/py.typed" for name in PACKAGES)} <= packed
    assert "pipeline = pipeline.cli:main" in entries and f"\nVersion: {PROJECT['version']}\n" in metadata
    assert "LICENSE" in facts


def test_the_version_is_one_and_can_be_cited() -> None:
    """Of CITATION.cff the keys that format 1.2.0 asks for; the newest heading of the changes."""
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf8"))
    assert citation["cff-version"] == "1.2.0" and {"message", "title", "authors"} <= citation.keys()
    assert (citation["version"], citation["license"]) == (PROJECT["version"], PROJECT["license"])
    for reference in citation["references"]:
        assert {"type", "title", "authors"} <= reference.keys()
        assert all({"name", "family-names"} & person.keys() for person in reference["authors"])
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf8")
    assert changes.splitlines()[2] == f"## {PROJECT['version']}"

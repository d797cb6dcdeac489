"""Other people's code: found by its name, identified by its content, and never another than what was looked at."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from data_cache import plugins
from data_cache.errors import UserError
from data_cache.plugins import Plugin, find_plugin, is_known, list_installed

SOURCES = {
    "__init__.py": "",
    "nets.py": "from somebodys.parts import head\nfrom . import blocks\nimport os, beside.it\nclass Net: ...\n",
    "blocks.py": "from .deep.layers import x\n",
    "parts.py": "head = 1\n",
    "deep/__init__.py": "",
    "deep/layers.py": "x = 1\n",
    "data.py": "not imported\n",
    "../beside/it.py": "",
}


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package in the working directory, which is forgotten afterwards."""
    for name, source in SOURCES.items():
        path = tmp_path / "somebodys" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(source)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setattr(plugins, "_imported", {})
    yield tmp_path / "somebodys"
    for name in [name for name in sys.modules if name.partition(".")[0] in ("somebodys", "beside")]:
        del sys.modules[name]


NET = Plugin("network", "somebodys.nets:Net", "somebodys.nets", "Net")


@pytest.mark.parametrize("name", SOURCES)
def test_code_is_the_module_and_what_it_imports_of_its_own_package(package: Path, name: str) -> None:
    before = NET.identify()
    assert "somebodys.nets" not in sys.modules, "looking is not importing"
    (package / name).write_text(SOURCES[name] + "# edited\n")
    assert (NET.identify() == before) == (name == "data.py")
    (package / name).write_text(SOURCES[name])
    assert NET.identify() == before


def test_code_that_was_edited_after_its_import_is_refused_until_the_process_starts_anew(package: Path) -> None:
    assert NET.load().__name__ == "Net" and sys.path[-1] == str(package.parent)
    before = NET.identify()
    assert NET.identify_imported() == before
    (package / "parts.py").write_text("head = 2\n")
    with pytest.raises(UserError, match=r"has changed since this process imported it.*start the program"):
        NET.identify()
    assert NET.identify_imported() == before, "what is imported is what it was"


def test_what_a_file_names_is_not_looked_for_in_the_working_directory(package: Path) -> None:
    sys.path[:] = [place for place in sys.path if place]
    with plugins.named_by_a_file(), pytest.raises(UserError, match="not searched for what an exported file names"):
        NET.load()
    assert "somebodys" not in sys.modules and NET.load()


def test_installed_packages_offer_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "somebodys-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: somebodys\nVersion: 1.0\n")
    lines = (
        "[pipeline.networks]\nnet = somebodys.nets:Net\nunet = somebodys.nets:Net\n[pipeline.datasets]\nflat = a.b:C\n"
    )
    (folder / "entry_points.txt").write_text(lines)
    with monkeypatch.context() as installed:
        installed.syspath_prepend(tmp_path)
        list_installed.cache_clear()
        assert find_plugin("network", "net", ["unet"]) == NET._replace(name="net")
        assert find_plugin("dataset", "flat", ["folder"]) == Plugin("dataset", "flat", "a.b", "C")
        assert is_known("network", "net", []) and not is_known("dataset", "net", [])
        with pytest.raises(
            UserError, match=r"'unet' is built in, and an installed package has another.*somebodys.nets:Net"
        ):
            find_plugin("network", "unet", ["unet"])
        with pytest.raises(UserError, match=r"unknown network 'nett' .did you mean 'net'.*package.module:Class"):
            find_plugin("network", "nett", ["unet"])
        assert find_plugin("network", "segnet", ["segnet"]) is None
    list_installed.cache_clear()


def test_a_script_that_ends_the_program_when_it_is_imported_is_refused(package: Path) -> None:
    (package / "parts.py").write_text("import argparse\nargparse.ArgumentParser().parse_args(['--what'])\n")
    with pytest.raises(UserError, match=r"importing somebodys.nets ends the program, .*__main__"):
        NET.load()

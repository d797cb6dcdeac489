"""`pipeline new`: a network, a dataset or a recipe of one's own to begin with, which works as it is."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import click

from data_cache.errors import UserError
from data_cache.escaping import quoted

if TYPE_CHECKING:
    from pipeline.session import Result, Session

SUFFIXES = {"network": ".py", "dataset": ".py", "recipe": ".toml"}
"""Kind → suffix of its skeleton, and of what is written."""
_WORD = r"[^\W\d]\w*"


@click.command()
@click.argument("kind", type=click.Choice(list(SUFFIXES)))
@click.argument("name")
@click.pass_obj
def new(session: Session, kind: str, name: str) -> None:
    """Write a commented network, dataset or recipe to begin with, which works as it is.

    NAME is a word, tiny for tiny.py with the class Tiny or tiny.toml, or of classes also package.module:Class.
    """
    session.show(write_skeleton(kind, name))


def write_skeleton(kind: str, name: str) -> Result:
    """Write a skeleton into the working directory.

    Args:
        kind: key of ``SUFFIXES``.
        name: a word, or of classes ``package.module:Class``.

    Returns:
        ``kind``, ``files``, ``reference`` (what options call it), ``command`` (to try it).

    Raises:
        UserError: the name is none, the file is there already, or the module would hide one that is installed.
    """
    from importlib import resources

    from data_cache.files import atomic_file
    from pipeline.session import Result

    suffix = SUFFIXES[kind]
    if suffix == ".py":
        module, _, attribute = name.partition(":") if ":" in name else (name, "", _to_class_name(name))
        if not re.fullmatch(rf"{_WORD}(\.{_WORD})*:{_WORD}", f"{module}:{attribute}"):
            raise UserError(f"{quoted(name)} is no name of a class; write a word such as tiny, or my_pkg.nets:Tiny")
        _check_free(module)
        file, reference = Path(*module.split(".")).with_suffix(suffix), f"{module}:{attribute}"
    else:
        if not re.fullmatch(r"[\w-]+", name):
            raise UserError(f"{quoted(name)} is no name of a recipe; write a word such as mine, for mine.toml")
        attribute, file = name, Path(name).with_suffix(suffix)
        reference = str(file)
    if file.exists():
        raise UserError(f"{file} is there already; choose another name, or move it away")
    text = (resources.files("pipeline") / "skeletons" / f"{kind}{suffix}").read_text(encoding="utf8")
    file.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(file) as temporary:
        temporary.write_text(text.replace("Skeleton", attribute).replace("REFERENCE", reference), encoding="utf8")
    command = {
        "network": f"pipeline check-network {reference}",
        "dataset": f"pipeline datasets {reference} --data-root DIR",
        "recipe": f"pipeline plan --recipe {reference}",
    }[kind]
    facts = {"kind": kind, "files": [str(file)], "reference": reference, "command": command}
    return Result(facts, f"{file}\ntry it with: {command}")


def _to_class_name(word: str) -> str:
    return "".join(part[:1].upper() + part[1:] for part in word.rpartition(".")[2].split("_"))


def _check_free(module: str) -> None:
    """Refuse a module that would hide an installed one, or be hidden by it."""
    from importlib.machinery import PathFinder
    from sys import builtin_module_names, path

    top = module.partition(".")[0]
    elsewhere = [place for place in path if place and Path(place).resolve() != Path.cwd()]
    if top in builtin_module_names or PathFinder.find_spec(top, elsewhere) is not None:
        raise UserError(f"a module {top!r} is installed already, so that one would hide the other; choose another name")

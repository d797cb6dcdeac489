"""Networks and datasets of others, by the name a person gives: ``package.module:Class``, or an entry point.

Nothing is imported but what is asked for by such a name. The working directory is searched last, after everything that
is installed, and not for names in files of an export: else a stranger could have them run code. Code decides
what is trained, so it counts by the content of its source files.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import re
import sys
import traceback
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from data_cache.errors import UserError, is_out_of_memory, say_reason, unknown_name
from data_cache.escaping import quoted

CODE = "plug-in code"
"""Where descriptions of what was trained have the hash of a plug-in's files; no option can be called so."""
_OURS = ("data_cache", "pipeline", "stages")
"""Beside which a plug-in may lie in a checkout; they have versions of their own."""
_REFERENCE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")
_searches_here: ContextVar[bool] = ContextVar("whether modules are looked for in the working directory", default=True)
_imported: dict[str, tuple[ModuleType, str]] = {}
"""Name of a module → it, and the hash of its files when it was first seen imported: this process has no other code."""


class Plugin(NamedTuple):
    """A class in somebody else's module."""

    kind: str
    """``network`` or ``dataset``."""
    name: str
    """By which it was asked for."""
    module: str
    attribute: str

    @property
    def what(self) -> str:
        """What messages call it."""
        return f"{self.kind} {quoted(self.name)}"

    def load(self) -> Any:
        """Import the module, and return what the name stands for.

        Raises:
            UserError: it cannot be imported, or has no such attribute.
        """
        with self._explaining_import():
            module = importlib.import_module(self.module)
        self.identify_imported()
        if not hasattr(module, self.attribute):
            public = [key for key, value in vars(module).items() if getattr(value, "__module__", "") == self.module]
            raise UserError(f"{self.what}: {unknown_name(f'class of {module.__file__}', self.attribute, public)}")
        return getattr(module, self.attribute)

    def identify(self) -> str:
        """Return the hash of its source file and of those of its package, or beside it, that it imports.

        Raises:
            UserError: there is no such module, or its code was edited after this process had imported it.
        """
        now = self._hash_files()
        if self.identify_imported() not in (None, now):
            raise UserError(
                f"{self.what}: its code in {self.find_file()} has changed since this process imported it, so what "
                "would be trained is not what the file says; start the program (the notebook's kernel) anew"
            )
        return now

    def identify_imported(self) -> str | None:
        """Return the hash of the files that this process has imported; None before it has."""
        module = sys.modules.get(self.module)
        if module is None:
            return None
        if self.module not in _imported or _imported[self.module][0] is not module:
            _imported[self.module] = module, self._hash_files()
        return _imported[self.module][1]

    @contextmanager
    def blaming(self, doing: str) -> Iterator[None]:
        """Raise what its code raises in the block as a UserError that names the place.

        Args:
            doing: what is done there, as in "cannot be built".
        """
        try:
            yield
        except UserError:
            raise
        except Exception as problem:  # whatever somebody's code raises
            if is_out_of_memory(problem):
                raise
            raise UserError(f"{self.what} {doing}: {self.describe_failure(problem)}") from problem

    def describe_failure(self, problem: BaseException) -> str:
        """Return what an exception says, and where in the plug-in it was raised."""
        file = str(self.find_file())
        frames = traceback.extract_tb(problem.__traceback__)
        own = [frame for frame in frames if frame.filename == file] or frames[-1:]
        place = f" ({own[-1].filename}, line {own[-1].lineno})" if own else ""
        return f"{type(problem).__name__}: {say_reason(problem)}{place}"

    def _hash_files(self) -> str:
        digest = hashlib.sha256()
        file = self.find_file()
        for found in sorted(_follow_imports(file, self.module)) if file.suffix == ".py" else [file]:
            content = found.read_bytes()
            digest.update(b"%d\n" % len(content) + content)
        return f"sha256 {digest.hexdigest()[:16]}"

    def find_file(self) -> Path:
        """Return the module's file; the packages around it are imported for that, it is not."""
        with self._explaining_import():
            spec = importlib.util.find_spec(self.module)
            if spec is None:
                raise ModuleNotFoundError(name=self.module)
        if spec.origin is None or not Path(spec.origin).is_file():
            raise UserError(f"{self.what}: {self.module} has no file of its own; name the module that holds the class")
        return Path(spec.origin)

    @contextmanager
    def _explaining_import(self) -> Iterator[None]:
        here, searched = str(Path.cwd()), _searches_here.get()
        if searched and here not in sys.path and "" not in sys.path:
            sys.path.append(here)  # last: what is installed is not hidden by what lies there
        try:
            yield
        except UserError:
            raise
        except ModuleNotFoundError as problem:
            missing = problem.name or ""
            if f"{self.module}.".startswith(f"{missing}."):
                raise UserError(
                    f"{self.what}: there is no module {missing!r}, neither installed nor in "
                    + (
                        f"{here}; start from its folder, "
                        if searched
                        else "PYTHONPATH (the working "
                        "directory is not searched for what an exported file names, which may be anybody's); "
                    )
                    + "name the folder that it lies in in PYTHONPATH, or install its package"
                ) from problem
            raise UserError(f"{self.what}: {self.module} imports {missing!r}, which is not installed") from problem
        except SystemExit as problem:  # a script that reads its command line, which is ours
            raise UserError(
                f"{self.what}: importing {self.module} ends the program, as scripts do; put what it does beside its "
                'classes under: if __name__ == "__main__":'
            ) from problem
        except Exception as problem:  # importing runs somebody's code
            place = traceback.extract_tb(problem.__traceback__)[-1]
            where = "" if isinstance(problem, SyntaxError) else f" ({place.filename}, line {place.lineno})"
            reason = f"{type(problem).__name__}: {say_reason(problem)}{where}"
            raise UserError(f"{self.what}: {self.module} cannot be imported: {reason}") from problem


@contextmanager
def named_by_a_file() -> Iterator[None]:
    """Look for modules that a file names, and no person, only where this process looks anyway."""
    former = _searches_here.set(False)
    try:
        yield
    finally:
        _searches_here.reset(former)


def find_plugin(kind: str, name: str, built_in: Collection[str]) -> Plugin | None:
    """Return what a name stands for; None where it is one of our own.

    Args:
        kind: ``network`` or ``dataset``.
        built_in: names of our own.

    Raises:
        UserError: nobody knows the name, or two do.
    """
    installed = list_installed(kind)
    if name in installed:
        if name in built_in:
            plugin = installed[name]
            raise UserError(
                f"{kind} {name!r} is built in, and an installed package has another of that name; write that one as "
                f"{plugin.module}:{plugin.attribute}, or uninstall the package"
            )
        return installed[name]
    if name in built_in:
        return None
    if _REFERENCE.fullmatch(name):
        module, _, attribute = name.partition(":")
        return Plugin(kind, name, module, attribute)
    raise UserError(f"{unknown_name(kind, name, {*built_in, *installed})}; your own is named package.module:Class")


def is_known(kind: str, name: str, built_in: Collection[str]) -> bool:
    """Whether a name is one of our own, an installed one, or written as a plug-in's; nothing is imported."""
    return name in built_in or bool(_REFERENCE.fullmatch(name)) or name in list_installed(kind)


def describe_wrong_base(found: Any, base: type) -> str:
    """Return why what a plug-in names is not derived from a class; "" where it is."""
    if isinstance(found, type) and issubclass(found, base):
        return ""
    kind = "class" if isinstance(found, type) else type(found).__name__
    return f"it is a {kind} that is not derived from {base.__module__}.{base.__qualname__}"


@lru_cache
def list_installed(kind: str) -> dict[str, Plugin]:
    """Return what installed packages offer as entry points ``pipeline.networks`` or ``pipeline.datasets``, by name."""
    points = metadata.entry_points(group=f"pipeline.{kind}s")
    return {point.name: Plugin(kind, point.name, point.module, point.attr) for point in points}


def _follow_imports(file: Path, module: str) -> set[Path]:
    """Return a module's source file and those that it imports of its own package, and, unless that is installed among
    others, of what lies beside it."""
    parts = module.split(".")
    if file.name == "__init__.py":
        parts.append("__init__")
    root = file.parents[len(parts) - 1]
    installed = root.name in ("site-packages", "dist-packages")
    found, waiting = {file}, [(file, tuple(parts[:-1]))]
    while waiting:
        path, package = waiting.pop()
        for names in _read_imports(path, package):
            if names[0] != parts[0] and (installed or names[0] in _OURS):
                continue
            for end in range(1, len(names) + 1):
                place = root.joinpath(*names[:end])
                for candidate, inside in ((place.with_name(f"{place.name}.py"), end - 1), (place / "__init__.py", end)):
                    if candidate.is_file() and candidate not in found:
                        found.add(candidate)
                        waiting.append((candidate, tuple(names[:inside])))
    return found


def _read_imports(path: Path, package: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Yield the dotted names that a file imports, relative ones resolved; of a name in a module it may be either."""
    try:
        tree = ast.parse(path.read_bytes())
    except SyntaxError:  # importing it says so
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (tuple(alias.name.split(".")) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else ()
            base = (*start, *(node.module.split(".") if node.module else ()))
            yield from ((*base, alias.name) for alias in node.names)

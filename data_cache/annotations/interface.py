"""What every annotation format is read into, how its images are found, and how all that is wrong is said at once."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple

from data_cache.annotations.shapes import Shape
from data_cache.datasets.interface import RGB
from data_cache.errors import UserError
from data_cache.images import IMAGE_SUFFIXES, NoteTally

Order = Literal["file", "area"]
"""In what order objects are drawn, later ones over earlier ones: as they stand in the file, or larger ones first."""
Empty = Literal["background", "unlabelled"]
"""What an image without objects is that the annotations list."""

SPLITS = ("train", "val", "test")
SHEET_FILE = "contact-sheet.png"
"""In an imported folder, to look at."""
_SPLIT = re.compile(r"(train|val|test)(?:ing|id|idation)?\d*")


class AnnotatedObject(NamedTuple):
    """One object: the union of its shapes."""

    label: str | None
    """Its class; None is void."""
    shapes: tuple[Shape, ...]
    layer: int = 0
    """Objects of higher layers are drawn later, whatever the order within a layer."""


@dataclass
class AnnotatedImage:
    """One image that the annotations know."""

    name: str
    """As the annotations call it."""
    file: Path
    """The image; for messages what it is embedded in."""
    objects: list[AnnotatedObject] = field(default_factory=list)
    size: tuple[int, int] | None = None
    """(height, width) that coordinates refer to; None where the annotations do not say."""
    split: str = ""
    """train, val or test; "" where the annotations do not say."""
    read_embedded: Callable[[], bytes] | None = None
    """Returns the content of an image that is no file of its own."""
    skipped: int = 0
    """Objects that have no area, such as points."""


@dataclass
class Annotations:
    """Everything that a person's annotations say."""

    classes: list[str]
    """In the order of their ids, whether or not there are objects of them."""
    images: list[AnnotatedImage]
    unlisted: list[AnnotatedImage]
    """Images beside them that the annotations do not mention."""
    colours: dict[str, RGB] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    """What had to be decided; sentences for the person."""


class Findings:
    """Everything that is wrong with annotations, so that it is said in one message.

    Args:
        source: what is imported.
    """

    def __init__(self, source: Path) -> None:
        self._source = source
        self._problems = NoteTally()

    def add(self, problem: str, where: str) -> None:
        """Count a problem.

        Args:
            problem: what the message says of all that have it, the remedy included, as "images that …".
            where: names one of them.
        """
        self._problems.add(where, [problem])

    def check(self) -> None:
        """Raise a UserError if anything was found."""
        if self._problems.counts:
            lines = [f"{problem}: {self._problems.describe(problem)}" for problem in self._problems.counts]
            raise UserError(f"{self._source} cannot be imported: " + "; ".join(lines))


class ImageFinder:
    """Finds images by the names that annotations give them, anywhere below a folder.

    Args:
        root: the folder.

    Raises:
        UserError: it is no folder.
    """

    def __init__(self, root: Path) -> None:
        if not root.is_dir():
            raise UserError(f"the images are looked for in {root}, which is no folder; name theirs with --images")
        self._root = root
        found = (path for path in root.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
        self._paths = sorted(path for path in found if not path.name.startswith("."))
        self._by_name: dict[str, list[Path]] = {}
        for path in self._paths:
            self._by_name.setdefault(path.name, []).append(path)
        self._used: dict[Path, str] = {}

    def find(
        self, name: str, findings: Findings, *, split: str = "", beside: Path | None = None, by: str = ""
    ) -> Path | None:
        """Return an image; None, and a finding, where there is none, where several could be meant, or for the second
        time.

        Args:
            name: a path as the annotations have it, of any system; the end of it is what counts.
            findings: takes what is wrong.
            split: of the image, which may be the name of a folder.
            beside: the folder that the name is relative to, looked at first.
            by: the annotation, where the image's name does not tell which one it is.
        """
        parts = _split_path(name)
        in_place = _lies_beside(parts, beside)
        fitting = self._choose(parts, split) if in_place is None else [in_place]
        if len(fitting) != 1:
            several = f"of which {self._root} has several, of one name in different folders; name that of those meant"
            lacking = f"that are not below {self._root}; name their folder"
            findings.add(f"images {several if fitting else lacking} with --images", name)
            return None
        (found,) = fitting
        known = found.resolve()
        if known in self._used:
            findings.add("images that are annotated twice; remove one", f"{self._used[known]} and {by or name}")
            return None
        self._used[known] = by or name
        return found

    def has(self, name: str, beside: Path | None) -> bool:
        """Whether there is an image of that name, in its place or anywhere below the folder."""
        parts = _split_path(name)
        return bool(parts) and (_lies_beside(parts, beside) is not None or parts[-1] in self._by_name)

    def list_unused(self) -> list[AnnotatedImage]:
        """Return the images that nobody has asked for."""
        return [
            AnnotatedImage(
                str(path.relative_to(self._root)), path, split=find_split(path.relative_to(self._root).parts)
            )
            for path in self._paths
            if path.resolve() not in self._used
        ]

    def _choose(self, parts: Sequence[str], split: str) -> list[Path]:
        """Return the images that share most of their path's end with a name: one, if it is clear."""

        def fit(path: Path) -> tuple[int, bool]:
            theirs = path.relative_to(self._root).parts
            pairs = zip(reversed(parts), reversed(theirs), strict=False)
            common = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
            return common, bool(split) and find_split(theirs[:-1]) == split

        known = self._by_name.get(parts[-1], []) if parts else []
        best = max(map(fit, known), default=None)
        return [path for path in known if fit(path) == best]


def _split_path(name: str) -> tuple[str, ...]:
    """Return the parts of a path of any system."""
    return PurePosixPath(name.replace("\\", "/")).parts


def _lies_beside(parts: Sequence[str], folder: Path | None) -> Path | None:
    """Return the file at a path that is relative to a folder, if there is one."""
    path = folder / Path(*parts) if folder is not None and parts else None
    return path if path is not None and path.is_file() else None


def find_split(names: Iterable[str]) -> str:
    """Return train, val or test if a name means it, as "valid" and "train2017" do, or ""; the last such name counts."""
    matches = [match[1] for name in names if (match := _SPLIT.fullmatch(name.lower()))]
    return matches[-1] if matches else ""


def find_files(source: Path, pattern: str, what: str) -> list[Path]:
    """Return the file that is named, or all files below the folder that is named.

    Raises:
        UserError: there is none.
    """
    if source.is_dir():
        found = sorted(path for path in source.rglob(pattern) if not path.name.startswith(".") and path.is_file())
        if not found:
            raise UserError(f"there is no {what} below {source}; name the file, or another folder")
        return found
    if not source.is_file():
        raise UserError(f"there is no {source}; name a {what}, or the folder that has it")
    return [source]

"""YOLO segmentation as Ultralytics defines it: a text file per image, and a data.yaml.

Source: docs.ultralytics.com, "Instance segmentation datasets": a line per object, ``class x1 y1 x2 y2 …`` with at least
three points in shares of the image's width and height; ``labels`` in the place of ``images`` in an image's path.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import yaml

from data_cache.annotations.interface import SPLITS, AnnotatedImage, AnnotatedObject, Annotations, Findings, find_files
from data_cache.annotations.shapes import ShapeProblem, build_polygon
from data_cache.content import read_text
from data_cache.errors import UserError
from data_cache.images import IMAGE_SUFFIXES, read_image_size

_LARGEST_BYTES = 1 << 26
_BOX_NUMBERS = 4
_FARTHEST = 2.0
"""A share beyond is a number of pixels."""


def read_yolo(source: Path, images: Path | None) -> Annotations:
    """Read what a data.yaml describes.

    Args:
        source: the file, or the folder that has it.
        images: in the place of the file's ``path``.

    Raises:
        UserError: naming all that is wrong.
    """
    path = _find_yaml(source)
    content = _read_yaml(path)
    names = _read_names(content, path)
    roots = _list_roots(content, path, images)
    findings = Findings(path)
    found: list[AnnotatedImage] = []
    unlisted: list[AnnotatedImage] = []
    seen: dict[Path, str] = {}
    notes = []
    for split in SPLITS:
        if split == "test" and _is_missing(content.get(split), roots):
            notes.append(f"{path.name} names {content[split]} for test, which is not there, so there is no test split")
            continue
        for file in _list_images(content.get(split), roots, split, findings):
            if (other := seen.setdefault(file.resolve(), split)) != split:
                findings.add("images of two splits; leave each to one", f"{file.name} in {other} and {split}")
                continue
            text = _find_labels(file)
            if text is None:
                unlisted.append(AnnotatedImage(file.name, file, split=split))
            else:
                found.append(AnnotatedImage(file.name, file, _read_objects(text, file, names, findings), split=split))
    findings.check()
    if not found:
        raise UserError(
            f"{path} leads to {len(unlisted)} images and to no label file: each belongs where its image is, with "
            "labels in the place of images in the path, and .txt at the end"
        )
    if unlisted:
        notes.append(f"images without a .txt: {len(unlisted)}; not annotated (one without objects has an empty .txt)")
    return Annotations(names, found, unlisted, notes=notes)


def _find_yaml(source: Path) -> Path:
    files = find_files(source, "*.y*ml", "data.yaml")
    if source / "data.yaml" in files:
        return source / "data.yaml"
    if len(files) > 1:
        listed = ", ".join(str(path.relative_to(source)) for path in files[:6])
        raise UserError(f"{source} has {len(files)} YAML files ({listed}); name the one that describes the data")
    return files[0]


def _read_yaml(path: Path) -> dict[str, Any]:
    text = read_text(path, largest_bytes=_LARGEST_BYTES, remedy="export the data again")
    try:
        content = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError) as problem:  # ValueError: a date that is none
        reason = " ".join(str(problem).split())[:200]
        raise UserError(f"{path} is no YAML ({reason}); repair it, or export the data again") from problem
    entries = [content.get(split) for split in SPLITS] if isinstance(content, dict) else []
    places = [place for entry in entries if entry for place in (entry if isinstance(entry, list) else [entry])]
    if not places or not all(isinstance(place, str) for place in places):
        raise UserError(f"{path} names no images; it needs names, and train with a folder of images (val, test)")
    return content


def _read_names(content: dict[str, Any], path: Path) -> list[str]:
    """Return the classes by index."""
    names = content.get("names")
    listed = dict(enumerate(names)) if isinstance(names, list) else names
    if not isinstance(listed, dict) or sorted(listed, key=str) != sorted(range(len(listed)), key=str) or not listed:
        raise UserError(f"{path} names no classes; it needs names: [first, second, …], or names by index from 0 on")
    if content.get("nc", len(listed)) != len(listed):
        raise UserError(f"{path} says nc: {content['nc']!r:.20} and has {len(listed)} names; make them agree")
    if odd := [name for name in listed.values() if isinstance(name, bool) or not isinstance(name, str | int)]:
        raise UserError(f"{path} has a name that YAML reads as {odd[0]!r:.40}; put it in quotes")
    return [str(listed[index]) for index in range(len(listed))]


def _list_roots(content: dict[str, Any], path: Path, images: Path | None) -> list[Path]:
    """Return where relative folders are looked for; a ``path`` is often that of another machine."""
    roots = [path.parent / str(content.get("path") or ""), path.parent]
    return roots if images is None else [images]


def _list_images(entry: Any, roots: list[Path], split: str, findings: Findings) -> list[Path]:
    """Return the images of a folder, of a list of images in a text file, or of several of them."""
    found = []
    for each in entry if isinstance(entry, list) else [entry] if entry else []:
        place = _find_place(each, roots)
        if place is None:
            looked = f"{split}: {each} in {' or '.join(map(str, dict.fromkeys(roots)))}"
            findings.add(
                "splits that are not there; set path in the file, name the folder with --images, or take out the line",
                looked,
            )
        elif place.suffix == ".txt":
            text = read_text(place, largest_bytes=_LARGEST_BYTES, remedy="write an image's path a line")
            for line in filter(None, map(str.strip, text.splitlines())):
                file = _find_place(line, [place.parent, *roots])
                if file is None:
                    findings.add(f"images of {place.name} that are not there; name their folder with --images", line)
                else:
                    found.append(file)
        else:
            suffixes = (path for path in place.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
            found += sorted(path for path in suffixes if not path.name.startswith("."))
    return found


def _is_missing(entry: Any, roots: list[Path]) -> bool:
    """Whether a split is named as one folder that is not there."""
    return isinstance(entry, str) and _find_place(entry, roots) is None


def _find_place(name: str, roots: list[Path]) -> Path | None:
    """Return the file or folder of a name; exports that say ../train mean their own folder."""
    candidates = (root / form for root in roots for form in (name, name.removeprefix("../")))
    return next((path for path in candidates if path.exists()), None)


def _find_labels(image: Path) -> Path | None:
    """Return the text file of an image: the last ``images`` in its path replaced, else beside it."""
    places = [image.with_suffix(".txt")]
    for at in range(len(image.parts) - 2, -1, -1):
        if image.parts[at] == "images":
            places.insert(0, Path(*image.parts[:at], "labels", *image.parts[at + 1 :]).with_suffix(".txt"))
            break
    return next((path for path in places if path.is_file()), None)


def _read_objects(text: Path, image: Path, names: list[str], findings: Findings) -> list[AnnotatedObject]:
    """Return the objects of one label file."""
    content = read_text(text, largest_bytes=_LARGEST_BYTES, remedy="export the data again")
    lines = [(number, line.split()) for number, line in enumerate(content.splitlines(), 1) if line.strip()]
    if not lines:
        return []
    height, width = read_image_size(image)
    objects = []
    for number, words in lines:
        try:
            index, points = _read_line(words)
            if not 0 <= index < len(names):
                raise ShapeProblem(f"of a class that data.yaml does not name (it has 0 to {len(names) - 1})")
            shape = build_polygon(points * (width, height))
        except ShapeProblem as problem:
            findings.add(f"objects {problem}", f"{text.name} line {number}")
        else:
            objects.append(AnnotatedObject(names[index], (shape,)))
    return objects


def _read_line(words: list[str]) -> tuple[int, np.ndarray]:
    """Return class and points (N, 2) in shares of the image.

    Raises:
        ShapeProblem: it covers nothing that is certain.
    """
    try:
        index, shares = float(words[0]), np.array(words[1:], dtype=np.float64)
    except ValueError:
        raise ShapeProblem("that are no line of numbers") from None
    if len(shares) == _BOX_NUMBERS:
        raise ShapeProblem(
            "that are boxes (class x y width height): this is a data set for detection, whose boxes are no masks; "
            "export outlines (YOLO segmentation)"
        )
    if len(shares) % 2 or index != index // 1:
        raise ShapeProblem("that are not a class and pairs of coordinates")
    if len(shares) and not np.abs(shares).max() <= _FARTHEST:
        raise ShapeProblem("with coordinates that are no shares of the image's width and height; divide them by these")
    return int(index), shares.reshape(-1, 2)

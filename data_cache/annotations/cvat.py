"""CVAT for images 1.1: polygons, boxes, ellipses and masks in one XML file.

Source: docs.cvat.ai, "XML annotation format", version 1.1: labels with their colours in ``meta``; an ``image`` with its
name, size and, in projects, ``subset``; shapes with ``label`` and ``z_order``. The runs of a mask go along the rows of
its box. CVAT shows images turned upright by EXIF.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from xml.etree import ElementTree

from data_cache.annotations.interface import (
    AnnotatedImage,
    AnnotatedObject,
    Annotations,
    Findings,
    ImageFinder,
    find_files,
    find_split,
)
from data_cache.annotations.shapes import Shape, ShapeProblem, build_box, build_ellipse, build_polygon, build_run_mask
from data_cache.content import check_regular
from data_cache.datasets.interface import RGB
from data_cache.errors import UserError

_REMEDY = 'export it again as "CVAT for images 1.1"'
_WITH_AREA = {"polygon", "box", "ellipse", "mask"}
_WITHOUT_AREA = {"polyline", "points", "cuboid", "skeleton"}
_COLOUR = re.compile(r"#([0-9a-fA-F]{2})([0-9a-fA-F]{2})([0-9a-fA-F]{2})")


def read_cvat(source: Path, images: Path | None) -> Annotations:
    """Read an export of a task or of a project.

    Args:
        source: ``annotations.xml``, or the folder that has it.
        images: where the images lie; by default the folder.

    Raises:
        UserError: naming all that is wrong.
    """
    (path, *others) = find_files(source, "*.xml", "CVAT file (annotations.xml)")
    if others:
        raise UserError(f"{source} has {len(others) + 1} XML files ({path.name}, {others[0].name}, …); name one")
    root = _parse(path)
    labels = _read_labels(root)
    findings, finder = Findings(path), ImageFinder(images or path.parent)
    found = [image for element in root.iter("image") if (image := _read_image(element, labels, finder, findings))]
    if not found:
        findings.check()
        raise UserError(f"{path} lists no images; {_REMEDY}")
    findings.check()
    colours = {name: colour for name, colour in labels.items() if colour is not None}
    return Annotations(list(labels), found, finder.list_unused(), colours)


def _parse(path: Path) -> ElementTree.Element:
    try:
        check_regular(path, "file")
        content = path.read_bytes()
        if b"<!DOCTYPE" in content:  # where entities are made that grow when they are read
            raise UserError(f"{path} has a document type, which no file of CVAT's has; {_REMEDY}")
        root = ElementTree.fromstring(content)
    except (ElementTree.ParseError, ValueError, LookupError) as problem:  # the last two for what encoding it says
        raise UserError(f"{path} is no XML ({problem}); {_REMEDY}") from problem
    except OSError as problem:
        raise UserError(f"cannot read {path}: {problem.strerror}; {_REMEDY}") from problem
    if root.tag != "annotations" or root.find("track") is not None:
        kind = "of CVAT for video" if root.tag == "annotations" else "no file of CVAT's"
        raise UserError(f"{path} is {kind}; {_REMEDY}")
    return root


def _read_labels(root: ElementTree.Element) -> dict[str, RGB | None]:
    """Return the classes in their order, with their colours."""
    labels: dict[str, RGB | None] = {}
    for label in root.iterfind("meta//labels/label"):
        if label.find("parent") is None:  # else it is a joint of a skeleton
            match = _COLOUR.fullmatch(label.findtext("color", "").strip())
            colour = (int(match[1], 16), int(match[2], 16), int(match[3], 16)) if match else None
            labels[label.findtext("name", "").strip()] = colour
    return labels


def _read_image(
    element: ElementTree.Element, labels: dict[str, RGB | None], finder: ImageFinder, findings: Findings
) -> AnnotatedImage | None:
    name, split = element.get("name", ""), find_split([element.get("subset", "")])
    file = finder.find(name, findings, split=split)
    if file is None:
        return None
    found = AnnotatedImage(name, file, split=split)
    height, width = (element.get(side, "") for side in ("height", "width"))
    if height.isdecimal() and width.isdecimal():
        found.size = int(height), int(width)
    for number, shape in enumerate(element, 1):
        if shape.tag in _WITHOUT_AREA:
            found.skipped += 1
        if shape.tag not in _WITH_AREA:
            continue
        label = shape.get("label", "").strip()
        where = f"{name} {shape.tag} {number}"
        if label not in labels:
            findings.add("objects of a label that meta does not define; add it there", f"{where}: {label}")
            continue
        try:
            layer = int(_read_number(shape, "z_order", "0"))
            found.objects.append(AnnotatedObject(label, (_build_shape(shape),), layer))
        except ShapeProblem as problem:
            findings.add(f"objects {problem}", where)
    return found


def _build_shape(shape: ElementTree.Element) -> Shape:
    """Return what a shape covers.

    Raises:
        ShapeProblem: it covers nothing that is certain.
    """
    if shape.tag == "polygon":
        pairs = [pair.split(",") for pair in shape.get("points", "").split(";") if pair.strip()]
        return build_polygon([[_to_number(word) for word in pair] for pair in pairs])
    turn = _read_number(shape, "rotation", "0")
    if shape.tag == "box":
        return build_box(*(_read_number(shape, key) for key in ("xtl", "ytl", "xbr", "ybr")), degrees=turn)
    if shape.tag == "ellipse":
        return build_ellipse(*(_read_number(shape, key) for key in ("cx", "cy", "rx", "ry")), degrees=turn)
    left, top, width, height = (int(_read_number(shape, key)) for key in ("left", "top", "width", "height"))
    runs = [int(_to_number(word)) for word in shape.get("rle", "").split(",") if word.strip()]
    return build_run_mask(runs, height, width, left=left, top=top)


def _read_number(shape: ElementTree.Element, key: str, default: str = "") -> float:
    return _to_number(shape.get(key, default))


def _to_number(word: str) -> float:
    try:
        number = float(word)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ShapeProblem("with an attribute that is missing or no number")
    return number

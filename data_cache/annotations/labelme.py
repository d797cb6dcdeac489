"""LabelMe's JSON, a file per image: polygons, rectangles, circles and masks.

Source: github.com/wkentaro/labelme, its examples and ``label_file.py``: ``shapes`` with ``label``, ``points`` and
``shape_type``; ``imagePath`` relative to the file, or the image itself in ``imageData`` (base64); the size that points
refer to in ``imageHeight`` and ``imageWidth``. LabelMe shows images turned upright by EXIF.
"""

from __future__ import annotations

import base64
import binascii
import math
from functools import partial
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from data_cache.annotations.interface import (
    AnnotatedImage,
    AnnotatedObject,
    Annotations,
    Findings,
    ImageFinder,
    find_files,
    find_split,
)
from data_cache.annotations.shapes import Shape, ShapeProblem, build_box, build_ellipse, build_polygon, encode_runs
from data_cache.errors import UserError
from data_cache.files import read_json
from data_cache.images import decode_mask
from data_cache.records import explain_invalid

_REMEDY = "save it again in LabelMe, or name a folder of LabelMe files alone"
_WITHOUT_AREA = {"line", "linestrip", "point", "points"}


class _Shape(BaseModel):
    label: str
    points: list[list[float]]
    shape_type: str | None = None
    mask: str | None = None


class _File(BaseModel):
    model_config = ConfigDict(allow_inf_nan=False)

    shapes: list[_Shape]
    imagePath: str
    imageData: str | None = None
    imageHeight: int | None = None
    imageWidth: int | None = None


def read_labelme(source: Path, images: Path | None) -> Annotations:
    """Read all JSON files of a folder, or one.

    Args:
        source: the folder, with folders in it or not; those called train, val and test are splits.
        images: where images lie that are not where ``imagePath`` says; by default the folder.

    Raises:
        UserError: naming all that is wrong.
    """
    files = find_files(source, "*.json", "LabelMe file (.json)")
    folder = source if source.is_dir() else source.parent
    findings, finder = Findings(source), ImageFinder(images or folder)
    found = [_read_file(path, folder, None if images else path.parent, finder, findings) for path in files]
    findings.check()
    read = [image for image in found if image is not None]
    classes = {" ".join(each.label.split()) for image in read for each in image.objects if each.label is not None}
    return Annotations(sorted(classes), read, finder.list_unused())


def _read_file(
    path: Path, folder: Path, beside: Path | None, finder: ImageFinder, findings: Findings
) -> AnnotatedImage | None:
    try:
        content = _File.model_validate(read_json(path, _REMEDY))
    except ValidationError as problem:
        raise UserError(f"{path} is no LabelMe file ({explain_invalid(problem)}); {_REMEDY}") from problem
    name = str(path.relative_to(folder))
    found = AnnotatedImage(name, path, split=find_split(path.relative_to(folder).parts[:-1]))
    if content.imageHeight and content.imageWidth:
        found.size = content.imageHeight, content.imageWidth
    if content.imageData and not finder.has(content.imagePath, beside):
        found.read_embedded = partial(_decode_image, path)
    elif (file := finder.find(content.imagePath, findings, split=found.split, beside=beside, by=name)) is not None:
        found.file = file
    else:
        return None
    for number, shape in enumerate(content.shapes, 1):
        if shape.shape_type in _WITHOUT_AREA:
            found.skipped += 1
            continue
        try:
            found.objects.append(AnnotatedObject(shape.label, (_build_shape(shape),)))
        except ShapeProblem as problem:
            findings.add(f"objects {problem}", f"{name} shape {number} ({shape.label})")
    return found


def _build_shape(shape: _Shape) -> Shape:
    """Return what a shape covers.

    Raises:
        ShapeProblem: it covers nothing that is certain.
    """
    kind, points = shape.shape_type or "polygon", shape.points
    if kind == "polygon" or (kind in ("rectangle", "oriented_rectangle", "rotation") and len(points) == 4):
        return build_polygon(points)
    if kind not in ("rectangle", "circle", "mask"):
        raise ShapeProblem(f"of the shape {kind[:40]!r}, which is not known; outline them as polygons")
    corners = np.array(points, dtype=np.float64) if all(len(point) == 2 for point in points) else np.empty(0)
    if corners.shape != (2, 2):
        raise ShapeProblem(f"of the shape {kind!r} without two points")
    (x, y), (other_x, other_y) = corners.tolist()
    if kind == "rectangle":
        return build_box(x, y, other_x, other_y)
    if kind == "circle":
        radius = math.hypot(other_x - x, other_y - y)
        return build_ellipse(x, y, radius, radius)
    try:
        mask = decode_mask(base64.b64decode(shape.mask or ""))
    except ValueError as problem:
        raise ShapeProblem("whose mask is no PNG, or one larger than any image") from problem
    return encode_runs(mask, left=int(x), top=int(y))


def _decode_image(path: Path) -> bytes:
    try:
        return base64.b64decode(read_json(path, _REMEDY)["imageData"])
    except binascii.Error as problem:
        raise UserError(f"{path} holds an image that is no base64 ({problem}); {_REMEDY}") from problem

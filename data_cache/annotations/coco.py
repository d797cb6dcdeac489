"""COCO's instances as JSON: polygons, run lengths as numbers or as text, crowds.

Source: cocodataset.org, "Data format": ``images``, ``annotations`` and ``categories``; a segmentation is a list of
polygons [x1, y1, x2, y2, …], or ``{"counts": …, "size": [height, width]}`` whose runs go down the columns.
"""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from data_cache.annotations.interface import (
    AnnotatedImage,
    AnnotatedObject,
    Annotations,
    Findings,
    ImageFinder,
    find_files,
    find_split,
)
from data_cache.annotations.shapes import Shape, ShapeProblem, build_polygon, build_run_mask
from data_cache.errors import UserError
from data_cache.files import read_json
from data_cache.records import explain_invalid

_REMEDY = "export it again as COCO instances"
_BENEATH = -1
"""Layer of crowds: what is outlined inside of one keeps its class."""


class _Image(BaseModel):
    id: int | str
    file_name: str
    width: int | None = None
    height: int | None = None


class _Runs(BaseModel):
    counts: str | list[int]
    size: Annotated[list[int], Field(min_length=2, max_length=2)]


class _Annotation(BaseModel):
    id: int | str = "without id"
    image_id: int | str
    category_id: int | str
    segmentation: _Runs | list[list[float]] | None = None
    iscrowd: int = 0


class _Category(BaseModel):
    id: int | str
    name: str


class _File(BaseModel):
    model_config = ConfigDict(allow_inf_nan=False)

    images: list[_Image]
    annotations: list[_Annotation]
    categories: list[_Category]


def read_coco(source: Path, images: Path | None) -> Annotations:
    """Read a file, or the files of a folder, one a split.

    Args:
        source: ``instances_….json``, ``_annotations.coco.json`` or any other name; or a folder that has them.
        images: where the images lie; by default the folder, or that of the file.

    Raises:
        UserError: naming all that is wrong.
    """
    files = _choose_files(source)
    findings, finder = Findings(source), ImageFinder(images or _find_root(source))
    names: dict[int | str, str] = {}
    found: list[AnnotatedImage] = []
    for path in files:
        content = _read_file(path)
        split = _find_file_split(path) if len(files) > 1 else ""
        own: dict[int | str, str] = {}
        for category in content.categories:
            if category.id in own or names.get(category.id, category.name) != category.name:
                findings.add("category ids that stand for two names; give each its own", str(category.id))
            own[category.id] = category.name
        names |= own
        found += _read_images(content, own, split, finder, findings, path)
    findings.check()
    return Annotations(list(names.values()), found, finder.list_unused())


def _choose_files(source: Path) -> list[Path]:
    files = find_files(source, "*.json", "COCO file (.json)")
    # COCO's own archive has captions and key points of the same images beside the instances.
    files = [path for path in files if path.name.startswith("instances")] or files
    splits = [_find_file_split(path) for path in files]
    if len(files) > 1 and (not all(splits) or len(set(splits)) < len(splits)):
        listed = ", ".join(str(path.relative_to(source)) for path in files[:6])
        raise UserError(
            f"{source} has {len(files)} JSON files ({listed}), of which each must be of another split: call the files, "
            "or their folders, train, val and test; or name one file"
        )
    return files


def _find_root(source: Path) -> Path:
    if source.is_dir():
        return source
    return source.parent.parent if source.parent.name == "annotations" else source.parent


def _find_file_split(path: Path) -> str:
    return find_split([path.parent.name, *re.split(r"[\W_]+", path.stem)])


def _read_file(path: Path) -> _File:
    content = read_json(path, _REMEDY)
    if any("segments_info" in each for each in _peek(content)):
        raise UserError(f"{path} is of COCO's panoptic format, whose masks are PNGs; {_REMEDY}")
    try:
        return _File.model_validate(content)
    except ValidationError as problem:
        raise UserError(f"{path} is no COCO file of instances ({explain_invalid(problem)}); {_REMEDY}") from problem


def _peek(content: dict[str, Any]) -> list[Any]:
    """Return the first annotation, if there is one that is an object."""
    annotations = content.get("annotations")
    first = annotations[:1] if isinstance(annotations, list) else []
    return [each for each in first if isinstance(each, dict)]


def _read_images(
    content: _File, names: dict[int | str, str], split: str, finder: ImageFinder, findings: Findings, path: Path
) -> list[AnnotatedImage]:
    """Return the images of one file with their objects."""
    by_image: dict[int | str, list[_Annotation]] = defaultdict(list)
    for annotation in content.annotations:
        by_image[annotation.image_id].append(annotation)
    found = []
    for image in content.images:
        objects = []
        for annotation in by_image.pop(image.id, ()):
            where = f"{annotation.id} of {image.file_name}"
            if annotation.category_id not in names:
                problem = "objects of a category that the file does not define; add it to its categories"
                findings.add(problem, f"{where}: {annotation.category_id}")
                continue
            try:
                shapes = tuple(_read_shapes(annotation, image))
            except ShapeProblem as problem:
                findings.add(f"objects {problem}", where)
                continue
            crowd = bool(annotation.iscrowd)
            label = None if crowd else names[annotation.category_id]
            objects.append(AnnotatedObject(label, shapes, _BENEATH if crowd else 0))
        file = finder.find(image.file_name, findings, split=split)
        if file is not None:
            size = (image.height, image.width) if image.height and image.width else None
            found.append(AnnotatedImage(image.file_name, file, objects, size, split))
    for image_id in by_image:
        findings.add(f"objects of an image that {path.name} does not list; add it to its images", f"image {image_id}")
    return found


def _read_shapes(annotation: _Annotation, image: _Image) -> list[Shape]:
    """Return the parts of one object.

    Raises:
        ShapeProblem: it covers nothing that is certain.
    """
    outline = annotation.segmentation
    if not outline:
        raise ShapeProblem("with a box and no outline, which is no mask; outline them, or remove them")
    if isinstance(outline, _Runs):
        height, width = outline.size
        if (image.height, image.width) not in ((height, width), (None, None)):
            raise ShapeProblem("whose run lengths are of another size than their image")
        return [build_run_mask(outline.counts, height, width, by_columns=True)]
    if any(len(ring) % 2 for ring in outline):
        raise ShapeProblem("with an odd number of coordinates")
    return [build_polygon(list(zip(ring[::2], ring[1::2], strict=True))) for ring in outline]

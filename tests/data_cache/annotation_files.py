"""The same masks as each annotation tool would save them, so that importing has a known answer."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data_cache.annotations.shapes import encode_runs

NAMES = ("leaf", "stone")
"""Ids 1 and 2 of the masks; 0 is what nobody outlined."""


def draw_photo(number: int, size: tuple[int, int] = (48, 64)) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return a picture (H, W, 3) and its mask (H, W): a leaf that has a hole, and a stone in front of it."""
    rng = np.random.default_rng(number)
    height, width = size
    y, x = np.mgrid[:height, :width]
    centre_y, centre_x = rng.uniform(0.3, 0.7, 2) * size
    distance = np.hypot(y - centre_y, x - centre_x)
    mask = np.where((distance < height * 0.4) & (distance > height * 0.12), 1, 0).astype(np.uint8)
    top, left = rng.integers(2, height // 2), rng.integers(2, width // 2)
    mask[top : top + height // 4, left : left + width // 4] = 2
    colours = np.array([(90, 120, 160), (60, 150, 60), (150, 140, 130)])[mask]
    return np.clip(colours + rng.normal(0, 12, (*size, 3)), 0, 255).astype(np.uint8), mask


def trace(mask: NDArray[np.bool_]) -> list[list[tuple[int, int]]]:
    """Return one ring that goes along the edges of all pieces and holes, if there is anything to go round."""
    padded = np.pad(mask, 1).astype(np.int8)
    steps: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for y, x in np.argwhere(padded):
        for dy, dx, start, end in (
            (-1, 0, (0, 0), (1, 0)), (0, 1, (1, 0), (1, 1)), (1, 0, (1, 1), (0, 1)), (0, -1, (0, 1), (0, 0)),
        ):  # fmt: skip
            if not padded[y + dy, x + dx]:
                corner = (int(x) - 1, int(y) - 1)
                begin = (corner[0] + start[0], corner[1] + start[1])
                steps.setdefault(begin, []).append((corner[0] + end[0], corner[1] + end[1]))
    loops = []
    while steps:
        at = first = min(steps)
        loop = [first]
        while True:
            after = steps[at].pop()
            if not steps[at]:
                del steps[at]
            at = after
            if at == first:
                break
            loop.append(at)
        loops.append(loop)
    # There and back on one line encloses nothing.
    return [[corner for loop in loops for corner in (loops[0][0], *loop, loop[0])]] if loops else []


def write_photos(folder: Path, count: int, names: Sequence[str] = (), **options: Any) -> dict[str, NDArray[np.uint8]]:
    """Write pictures and return their masks by stem."""
    folder.mkdir(parents=True, exist_ok=True)
    masks = {}
    for number in range(count):
        stem = names[number] if names else f"photo{number:02d}"
        pixels, masks[stem] = draw_photo(number, **options)
        Image.fromarray(pixels).save(folder / f"{stem}.png")
    return masks


def outline(mask: NDArray[np.uint8]) -> list[tuple[str, list[tuple[int, int]]]]:
    """Return class and ring of each object in a mask."""
    return [(name, ring) for value, name in enumerate(NAMES, 1) for ring in trace(mask == value)]


def write_labelme(folder: Path, masks: Mapping[str, NDArray[np.uint8]]) -> None:
    """Write a JSON beside each picture."""
    for stem, mask in masks.items():
        shapes = [
            {"label": name, "points": ring, "group_id": None, "shape_type": "polygon", "flags": {}}
            for name, ring in outline(mask)
        ]
        content = {"version": "5.5.0", "flags": {}, "shapes": shapes, "imagePath": f"{stem}.png", "imageData": None}
        content |= {"imageHeight": mask.shape[0], "imageWidth": mask.shape[1]}
        (folder / f"{stem}.json").write_text(json.dumps(content))


def write_yolo(root: Path, splits: Mapping[str, Mapping[str, NDArray[np.uint8]]]) -> None:
    """Write data.yaml and the label files of pictures in ``images/<split>``."""
    for split, masks in splits.items():
        (root / "labels" / split).mkdir(parents=True, exist_ok=True)
        for stem, mask in masks.items():
            lines = [
                " ".join(
                    [
                        str(NAMES.index(name)),
                        *(f"{share:.6f}" for x, y in ring for share in (x / mask.shape[1], y / mask.shape[0])),
                    ]
                )
                for name, ring in outline(mask)
            ]
            (root / "labels" / split / f"{stem}.txt").write_text("\n".join(lines))
    entries = "".join(f"{split}: images/{split}\n" for split in splits)
    names = "".join(f"  {index}: {name}\n" for index, name in enumerate(NAMES))
    (root / "data.yaml").write_text(f"path: .\n{entries}names:\n{names}")


def build_coco(masks: Mapping[str, NDArray[np.uint8]], *, runs: bool = False) -> dict[str, Any]:
    """Return a COCO file; with run lengths in the place of polygons."""
    annotations = []
    for image_id, mask in enumerate(masks.values(), 1):
        for name, ring in outline(mask):
            category = NAMES.index(name) + 1
            outlined: Any = [[c for point in ring for c in point]]
            if runs:
                counts = encode_runs((mask == category).T, left=0, top=0).counts.tolist()
                outlined = {"counts": counts, "size": list(mask.shape)}
            annotations.append(
                {"id": len(annotations) + 1, "image_id": image_id, "category_id": category, "iscrowd": 0,
                 "segmentation": outlined, "bbox": [0, 0, 1, 1], "area": 1.0}
            )  # fmt: skip
    return {
        "info": {},
        "licenses": [],
        "images": [
            {"id": number, "file_name": f"{stem}.png", "height": mask.shape[0], "width": mask.shape[1]}
            for number, (stem, mask) in enumerate(masks.items(), 1)
        ],
        "annotations": annotations,
        "categories": [{"id": index, "name": name, "supercategory": ""} for index, name in enumerate(NAMES, 1)],
    }


def build_cvat(masks: Mapping[str, NDArray[np.uint8]], *, runs: bool = False) -> ElementTree.Element:
    """Return the root of annotations.xml; with masks in the place of polygons."""
    root = ElementTree.Element("annotations")
    ElementTree.SubElement(root, "version").text = "1.1"
    labels = ElementTree.SubElement(ElementTree.SubElement(ElementTree.SubElement(root, "meta"), "task"), "labels")
    for name, colour in zip(NAMES, ("#33aa33", "#996633"), strict=True):
        label = ElementTree.SubElement(labels, "label")
        ElementTree.SubElement(label, "name").text = name
        ElementTree.SubElement(label, "color").text = colour
    for number, (stem, mask) in enumerate(masks.items()):
        facts = {"id": str(number), "name": f"{stem}.png", "width": str(mask.shape[1]), "height": str(mask.shape[0])}
        image = ElementTree.SubElement(root, "image", facts)
        for name, ring in outline(mask):
            common = {"label": name, "source": "manual", "occluded": "0", "z_order": "0"}
            if runs:
                rows, columns = np.nonzero(mask == NAMES.index(name) + 1)
                top, left, bottom, right = rows.min(), columns.min(), rows.max() + 1, columns.max() + 1
                part = mask[top:bottom, left:right] == NAMES.index(name) + 1
                facts = {"left": left, "top": top, "width": right - left, "height": bottom - top}
                counts = ", ".join(map(str, encode_runs(part, left=0, top=0).counts))
                ElementTree.SubElement(image, "mask", common | {k: str(v) for k, v in facts.items()} | {"rle": counts})
            else:
                points = ";".join(f"{x:.2f},{y:.2f}" for x, y in ring)
                ElementTree.SubElement(image, "polygon", common | {"points": points})
    return root

"""Photos as people have them, outlined in the ways that people's tools save: drawn, so that what is there is known."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

CLASSES = ("background", "leaf", "stone")
SIZES = ((80, 64), (64, 80), (96, 72), (88, 64))
"""(width, height) of the photos in turn, px."""
_COLOURS = ((60, 170, 50), (170, 150, 190))
_ORIENTATION = 0x0112
"""EXIF's tag."""
_ROTATED = 6
"""Stored lying on its left side: viewers turn it a quarter clockwise."""
_TURNED = 3
"""Which of the photos is stored lying on its side."""

Outline = list[tuple[float, float]]


class Photo(NamedTuple):
    """What a camera saw."""

    name: str
    picture: Image.Image
    """Upright."""
    objects: list[tuple[str, Outline]]
    """Class, and corners in px of the upright picture; later ones lie on top."""

    @property
    def mask(self) -> NDArray[np.uint8]:
        """Ids by CLASSES, (H, W)."""
        canvas = Image.new("L", self.picture.size)
        for name, ring in self.objects:
            ImageDraw.Draw(canvas).polygon(ring, fill=CLASSES.index(name))
        return np.asarray(canvas)


def take_photos(number: int, zoom: int = 1) -> Iterator[Photo]:
    """Yield photos of leaves and stones on sand, of several sizes; each shows both, but every fifth no leaf."""
    for place in range(number):
        rng = np.random.default_rng(place)
        width, height = (side * zoom for side in SIZES[place % len(SIZES)])
        sand = rng.normal((120, 95, 60), 14, (height // 4, width // 4, 3)).clip(0, 255).astype(np.uint8)
        picture = Image.fromarray(sand).resize((width, height), Image.Resampling.BICUBIC)
        objects = [("stone", _outline(rng, width, height))]
        objects += [] if place % 5 == 4 else [("leaf", _outline(rng, width, height))]
        for name, ring in objects:
            shade = tuple(int(part) for part in np.array(_COLOURS[CLASSES.index(name) - 1]) * rng.uniform(0.85, 1.1))
            ImageDraw.Draw(picture).polygon(ring, fill=shade)
        yield Photo(f"IMG {place:04d}", picture.filter(ImageFilter.GaussianBlur(0.6 * zoom)), objects)


def _outline(rng: np.random.Generator, width: int, height: int) -> Outline:
    """Return the corners of something round."""
    middle, radius = rng.uniform(0.3, 0.7, 2) * (width, height), rng.uniform(0.18, 0.28) * min(width, height)
    angles = np.linspace(0, 2 * np.pi, 14, endpoint=False)
    corners = middle + radius * rng.uniform(0.8, 1.2, (14, 1)) * np.stack([np.cos(angles), np.sin(angles)], 1)
    return [(round(float(x), 3), round(float(y), 3)) for x, y in corners]


def save_photo(photo: Photo, folder: Path, place: int, suffix: str = ".jpg") -> None:
    """Write a photo as a camera does: one of them lies on its side, and its EXIF says so."""
    folder.mkdir(parents=True, exist_ok=True)
    picture, exif = photo.picture, Image.Exif()
    if place == _TURNED:
        picture, exif[_ORIENTATION] = picture.transpose(Image.Transpose.ROTATE_90), _ROTATED
    picture.save(folder / f"{photo.name}{suffix}", quality=92, exif=exif)


def write_labelme(root: Path, number: int = 20, **options: Any) -> None:
    """Write photos with LabelMe's JSON beside all but the last."""
    for place, photo in enumerate(take_photos(number, **options)):
        save_photo(photo, root, place)
        if place == number - 1:
            continue
        shapes = [
            {"label": name, "points": ring, "group_id": None, "description": "", "shape_type": "polygon",
             "flags": {}, "mask": None}
            for name, ring in photo.objects
        ]  # fmt: skip
        facts = {
            "version": "5.5.0", "flags": {}, "shapes": shapes, "imagePath": f"{photo.name}.jpg", "imageData": None,
            "imageHeight": photo.picture.height, "imageWidth": photo.picture.width,
        }  # fmt: skip
        (root / f"{photo.name}.json").write_text(json.dumps(facts, indent=2))


def write_binary(root: Path, number: int = 30, **options: Any) -> None:
    """Write photos and masks that are white where a leaf is; one photo has no mask."""
    for place, photo in enumerate(take_photos(number, **options)):
        save_photo(photo, root / "images", place, ".JPG")
        if place == number - 1:
            continue
        (root / "masks").mkdir(exist_ok=True)
        leaf = (photo.mask == CLASSES.index("leaf")) * np.uint8(255)
        Image.fromarray(leaf).save(root / "masks" / f"{photo.name}.png")


def write_yolo(root: Path, number: int = 19, **options: Any) -> None:
    """Write train and valid, each with images and labels, and a data.yaml, as an export has them."""
    for place, photo in enumerate(take_photos(number, **options)):
        split = "valid" if place % 5 == 2 else "train"
        save_photo(photo, root / split / "images", place)
        if place == number - 1:
            continue
        lines = []
        for name, ring in photo.objects:
            shares = (np.array(ring) / photo.picture.size).ravel()
            lines.append(" ".join([str(CLASSES.index(name) - 1), *(f"{share:.7f}" for share in shares)]))
        (root / split / "labels").mkdir(exist_ok=True)
        (root / split / "labels" / f"{photo.name}.txt").write_text("\n".join(lines))
    (root / "data.yaml").write_text(
        "train: ../train/images\nval: ../valid/images\ntest: ../test/images\n\nnc: 2\nnames: ['leaf', 'stone']\n"
    )


def write_voc(root: Path, number: int = 18, **options: Any) -> None:
    """Write a root like VOC's: palette masks with a border of void, and lists; one photo has no mask."""
    lists: dict[str, list[str]] = {"train": [], "val": []}
    for kind in ("Class", "Object"):
        (root / f"Segmentation{kind}").mkdir(parents=True)
    for place, photo in enumerate(take_photos(number, **options)):
        save_photo(photo, root / "JPEGImages", place)
        if place == number - 1:
            continue
        lists["val" if place % 5 == 2 else "train"].append(photo.name)
        labels = photo.mask.copy()
        labels[:, :2] = 255
        for kind, ids in (("Class", labels), ("Object", labels // 2)):
            mask = Image.frombytes("P", photo.picture.size, ids.tobytes())
            mask.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0] + [224] * 759)
            mask.save(root / f"Segmentation{kind}" / f"{photo.name}.png")
    folder = root / "ImageSets" / "Segmentation"
    folder.mkdir(parents=True)
    for split, names in (*lists.items(), ("trainval", [*lists["train"], *lists["val"]])):
        (folder / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))
    (root / "labelmap.txt").write_text(
        "# label:color_rgb:parts:actions\nbackground:0,0,0::\nleaf:128,0,0::\nstone:0,128,0::\n"
    )

#!/usr/bin/env python3
"""Label images with the model in this folder, as `pipeline predict` would.

    pip install numpy pillow onnxruntime      (or openvino, where the folder holds model.xml)
    python predict.py IMAGE… --out FOLDER

Needs nothing else: preprocess.json beside it says how images enter, and what the classes are. Writes labels/NAME.png
(class ids with a palette), overlays/NAME.png and classes.csv.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

MODELS = ("model.onnx", "model.xml", "model-fp16.onnx", "model-int8.onnx", "model-int8.xml")
"""Files that this script runs; of those that lie beside it, the first whose runtime is installed."""
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".gif")
BAND_ROWS = 256
"""Rows of the answer that are made at once: logits at the image's size would be the largest thing in memory."""

Run = Callable[[np.ndarray], np.ndarray]


def open_onnx(file: Path) -> Run:
    """Return a function from images to logits that runs in onnxruntime."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda images: session.run(None, {name: images})[0]


def open_openvino(file: Path) -> Run:
    """Return a function from images to logits that runs in OpenVINO."""
    import openvino

    compiled = openvino.Core().compile_model(str(file), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda images: compiled(images)[0]


def open_model(folder: Path, name: str | None = None) -> tuple[str, Run]:
    """Open the model of that name, or the first that can run here; return its name, too."""
    found = [model for model in MODELS if (folder / model).is_file() and name in (None, model)]
    if not found:
        raise SystemExit(f"{folder} holds no {name or ' and no '.join(MODELS)}")
    missing = []
    for model in found:
        try:
            return model, (open_onnx if model.endswith(".onnx") else open_openvino)(folder / model)
        except ModuleNotFoundError as problem:
            missing.append(f"{model} needs {problem.name}")
    raise SystemExit(f"{'; '.join(missing)}; install one with pip")


def read_image(file: Path) -> np.ndarray:
    """Return (H, W, 3) uint8 RGB: upright by EXIF, transparent pixels over white, of 16 bits the upper 8."""
    with Image.open(file) as opened:
        ImageOps.exif_transpose(opened, in_place=True)
        image: Image.Image = opened
        if opened.mode.startswith("I;16") or (opened.mode == "I" and opened.format in ("PNG", "PPM")):
            image = Image.fromarray((np.asarray(opened).astype(np.int64) >> 8).astype(np.uint8))
        elif opened.mode in ("I", "F"):
            raise ValueError("it holds 32-bit numbers, and nothing in it says which is white")
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return np.array(image.convert("RGB"))


def fit(image: np.ndarray, rule: dict[str, Any]) -> np.ndarray:
    """Return the image at the size at which it enters."""
    height, width = image.shape[:2]
    enlarge = max(1.0, rule["smallest_side_px"] / min(height, width))
    size = rule["input_size"] or (round(height * enlarge), round(width * enlarge))
    if tuple(size) == (height, width):
        return image
    channels = [Image.fromarray(image[..., channel].astype(np.float32)) for channel in range(3)]  # not rounded to bytes
    resized = [each.resize((size[1], size[0]), Image.Resampling.BILINEAR) for each in channels]
    return np.stack([np.asarray(each) for each in resized], axis=2)


def label(run: Run, image: np.ndarray, preprocess: dict[str, Any]) -> np.ndarray:
    """Return (H, W) uint8 class ids of an (H, W, 3) image."""
    mean, std = (np.array(preprocess[key], np.float32) for key in ("mean", "std"))
    pixels = (fit(image, preprocess["size_rule"]).astype(np.float32) / 255 - mean) / std
    logits = run(np.ascontiguousarray(pixels.transpose(2, 0, 1)[None]))[0]
    height, width = image.shape[:2]
    if logits.shape[1:] == (height, width):
        return logits.argmax(0).astype(np.uint8)
    first, second, weight = interpolate(logits.shape[2], width)
    wide = logits[:, :, first] + (logits[:, :, second] - logits[:, :, first]) * weight
    first, second, weight = interpolate(logits.shape[1], height)
    labels = np.empty((height, width), np.uint8)
    for top in range(0, height, BAND_ROWS):
        rows = slice(top, top + BAND_ROWS)
        upper, lower = wide[:, first[rows]], wide[:, second[rows]]
        labels[rows] = (upper + (lower - upper) * weight[rows, None]).argmax(0)
    return labels


def interpolate(size: int, wanted: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return for each wanted pixel the two between which it lies, and the second's weight: bilinear, half-pixel."""
    places = np.clip((np.arange(wanted) + 0.5) * (size / wanted) - 0.5, 0, size - 1)
    first = places.astype(int)
    return first, np.minimum(first + 1, size - 1), (places - first).astype(np.float32)


def draw_overlay(image: np.ndarray, labels: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """Return the image tinted by class, with lines where classes meet."""
    tinted = image * 0.5 + palette[labels] * 0.5
    edges = np.zeros(labels.shape, bool)
    edges[1:] |= labels[1:] != labels[:-1]
    edges[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    tinted[edges] = 255
    return tinted.round().astype(np.uint8)


def list_images(paths: Iterable[Path]) -> Iterator[Path]:
    """Yield images, folders replaced by the images in them."""
    for path in paths:
        inside = sorted(path.iterdir()) if path.is_dir() else [path]
        yield from (file for file in inside if file == path or file.suffix.lower() in SUFFIXES)


def main(arguments: list[str] | None = None) -> int:
    """Label the images that are named; return the exit status, 2 where one could not be read."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="image files, or folders of them")
    parser.add_argument("--out", required=True, type=Path, help="folder for label maps and overlays")
    parser.add_argument("--model", help=f"file in this folder: {', '.join(MODELS)}; default the first that can run")
    parser.add_argument("--overwrite", action="store_true", help="replace results that lie there")
    given = parser.parse_args(arguments)
    folder = Path(__file__).resolve().parent
    preprocess = json.loads((folder / "preprocess.json").read_text(encoding="utf-8"))
    names, palette = preprocess["class_names"], np.array(preprocess["palette"], np.uint8)
    _, run = open_model(folder, given.model)
    places: dict[str, Path] = {}
    for file in list_images(given.images):
        numbered = (f"{file.stem}-{number}" for number in itertools.count(2))
        places[next(name for name in (file.stem, *itertools.islice(numbered, len(places))) if name not in places)] = (
            file
        )
    outputs = {name: [given.out / kind / f"{name}.png" for kind in ("labels", "overlays")] for name in places}
    if taken := [str(path) for paths in outputs.values() for path in paths if path.exists() and not given.overwrite]:
        raise SystemExit(f"{taken[0]} exists; give another --out, or --overwrite")
    for kind in ("labels", "overlays"):
        (given.out / kind).mkdir(parents=True, exist_ok=True)
    with (given.out / "classes.csv").open("w", encoding="utf-8", newline="") as stream:
        rows = csv.writer(stream)
        rows.writerow(("id", "name", "red", "green", "blue"))
        rows.writerows((index, name, *palette[index]) for index, name in enumerate(names))
    failed = 0
    for name, file in places.items():
        try:
            image = read_image(file)
        except (OSError, SyntaxError, ValueError) as problem:
            failed += 1
            sys.stderr.write(f"not predicted: {file}: {problem}\n")
            continue
        labels = label(run, image, preprocess)
        shown = Image.fromarray(labels)
        shown.putpalette(palette.tobytes())
        shown.save(outputs[name][0])
        Image.fromarray(draw_overlay(image, labels, palette)).save(outputs[name][1])
        sys.stdout.write(f"{outputs[name][0]}\n{outputs[name][1]}\n")
    return 2 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

"""Label maps and overlays of image files, and label-id predictions of a split."""

from __future__ import annotations

import csv
import itertools
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from data_cache.errors import UserError, is_out_of_memory
from data_cache.escaping import csv_text
from data_cache.files import atomic_file
from data_cache.image_scores import ImageScores, write_image_scores
from data_cache.images import IMAGE_SUFFIXES, NoteTally, list_files, read_image
from data_cache.metrics import IMAGES_FILE
from data_cache.outputs import OutputFolder, WriteFile, shorten_name
from data_cache.sample import PackedBatch
from data_cache.size_rule import ORIGINAL, SizeRule
from stages.evaluation.colour import PAPER, RGB, colour_labels
from stages.evaluation.forward import Precision, evaluation_mode
from stages.evaluation.panels import write_png
from stages.evaluation.tiling import DEFAULT_MARGIN_PX, TiledNetwork, check_tiling, predict
from stages.networks.interface import Normalisation


@dataclass(frozen=True)
class Segmenter:
    """A network with everything needed to label one image."""

    network: Callable[..., Any]
    normalisation: Normalisation
    device: torch.device | str = "cpu"
    precision: Precision = "float32"
    size_rule: SizeRule = ORIGINAL
    """At what size images enter."""
    tile: int | None = None
    """Side of the tiles a larger image is cut into; None labels it whole."""
    margin: int = DEFAULT_MARGIN_PX
    """Pixels around each tile that the network sees too."""

    def __post_init__(self) -> None:
        if self.tile is not None:
            check_tiling(self.tile, self.margin, self.network)
            if self.size_rule != ORIGINAL:
                raise UserError(
                    f"tiles are cut at the image's own size, but this model takes {self.size_rule}; drop --tile"
                )

    def label(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return (H, W) class indices of an (H, W, 3) image, at its size."""
        height, width = image.shape[:2]
        network = self.network
        if self.tile is not None and max(height, width) > self.tile:
            network = TiledNetwork(network, tile=self.tile, margin=self.margin)
        else:
            image = self.size_rule.fit(image)
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in self.normalisation)
        pixels = torch.from_numpy(image).permute(2, 0, 1).float() / 255
        with torch.inference_mode():
            images = ((pixels - mean) / std).unsqueeze(0).to(self.device)
            predicted = predict(network, images, (height, width), precision=self.precision)
            return predicted.seg_labels[0].cpu().numpy()


class FailedImage(NamedTuple):
    """An image that could not be labelled, and why."""

    image: str
    reason: str


class Predictions(NamedTuple):
    """What was written, what could not be, and how the images were read where that was not a matter of course."""

    files: list[Path]
    failed: list[FailedImage]
    notes: list[str]


def predict_files(
    segmenter: Segmenter,
    files: Sequence[Path],
    output: OutputFolder,
    *,
    class_names: Sequence[str],
    palette: Sequence[RGB],
) -> Predictions:
    """Write ``labels/NAME.png`` (class ids with a palette) and ``overlays/NAME.png`` for each image.

    ``classes.csv`` beside them says what the ids mean. Images of one name in several folders get names with their
    folders in front, so none overwrites another. One that cannot be read or labelled costs the others nothing.

    Args:
        files: images, as ``list_images`` gives them.

    Raises:
        UserError: something else lies where a result belongs, or it cannot be written.
    """
    places = {
        file: (output.folder / "labels" / f"{name}.png", output.folder / "overlays" / f"{name}.png")
        for file, name in name_outputs(files).items()
    }
    legend = output.folder / "classes.csv"
    output.check([legend, *(path for pair in places.values() for path in pair)])
    with output.write(legend) as temporary:
        _write_classes(temporary, class_names, palette)
    found = Predictions([legend], [], [])
    tally = NoteTally()
    with evaluation_mode(segmenter.network):
        for file, pair in places.items():
            try:
                image, notes = read_image(file)
                labels = _label(segmenter, image, file)
            except UserError as problem:
                found.failed.append(FailedImage(str(file), str(problem)))
                continue
            tally.add(file.name, notes)
            write_labels(labels, pair[0], palette, output.write)
            write_png(Image.fromarray(draw_overlay(image, labels, palette)), pair[1], output.write)
            found.files.extend(pair)
    found.notes.extend(tally.lines())
    return found


def _label(segmenter: Segmenter, image: NDArray[np.uint8], file: Path) -> NDArray[np.uint8]:
    try:
        return segmenter.label(image)
    except (RuntimeError, MemoryError) as problem:
        if not is_out_of_memory(problem):
            raise
        height, width = image.shape[:2]
        smaller = f"a smaller --tile or --margin (now {segmenter.tile} and {segmenter.margin})"
        remedy = f"use {'--tile 512' if segmenter.tile is None else smaller}"
        raise UserError(f"{file} ({width} x {height}) does not fit into memory; {remedy}") from problem


def list_images(files: Iterable[Path]) -> list[Path]:
    """Return images in order, folders replaced by the images in them, each once.

    Raises:
        UserError: nothing is left.
    """
    found: dict[str, Path] = {}
    for file in files:
        for path in list_files(file) if os.path.isdir(file) else [file]:  # noqa: PTH112 - is_dir() raises for long names
            found.setdefault(os.path.realpath(path), path)  # resolve() raises for a link to itself
    if not found:
        suffixes = ", ".join(IMAGE_SUFFIXES)
        raise UserError(f"no image to predict; name image files, or folders with files ending in {suffixes}")
    return list(found.values())


def name_outputs(files: Sequence[Path]) -> dict[Path, str]:
    """Return a name without suffix for each file; unlike files get unlike names, the shortest that tell them apart."""
    parts = {file: (*file.parent.resolve().parts[1:], file.stem) for file in files}
    depth = dict.fromkeys(files, 1)
    while True:
        names = {file: "__".join(parts[file][-depth[file] :]) for file in files}
        seen: dict[str, list[Path]] = {}
        for file, name in names.items():
            seen.setdefault(name.lower(), []).append(file)  # some file systems do not tell A from a
        alike = [file for group in seen.values() if len(group) > 1 for file in group]
        deeper = [file for file in alike if depth[file] < len(parts[file])]
        if not deeper:
            break
        for file in deeper:
            depth[file] += 1
    # What is alike with all its folders differs in its suffix (a.jpg, a.png) or in case only.
    taken = {name.lower() for file, name in names.items() if file not in alike}
    numbers = itertools.count(1)
    for file in alike:
        free = (f"{file.stem}-{file.suffix.lstrip('.').lower()}-{number}" for number in numbers)
        names[file] = next(name for name in free if name.lower() not in taken)
    return {file: shorten_name(name) for file, name in names.items()}


def draw_overlay(image: NDArray[np.uint8], labels: NDArray[np.uint8], palette: Sequence[RGB]) -> NDArray[np.uint8]:
    """Return the (H, W, 3) image tinted by class, with lines where classes meet."""
    tinted = image * 0.5 + colour_labels(labels, palette) * 0.5
    edges = np.zeros(labels.shape, dtype=bool)
    edges[1:] |= labels[1:] != labels[:-1]
    edges[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    tinted[edges] = PAPER
    return tinted.round().astype(np.uint8)


def write_labels(
    labels: NDArray[np.uint8], out: Path, palette: Sequence[RGB] | None, write_file: WriteFile = atomic_file
) -> None:
    """Write an (H, W) label map as PNG: ids as they are, shown in the palette's colours where there is one."""
    label_map = Image.fromarray(labels)
    if palette is not None:
        label_map.putpalette([channel for colour in palette for channel in colour])
    write_png(label_map, out, write_file)


class PredictionWriter:
    """Writes each prediction of an evaluation as a label-id PNG, and their scores; pass it as ``on_predictions``.

    Args:
        output: an image id with slashes becomes folders below it.
        image_ids: of all images that will come, to look at their places before work is spent on them.
        palette: colours of the class ids.
        official_ids: class index → id to write, where a benchmark wants its own; the palette is then left out.

    Raises:
        UserError: an id leads out of the folder, or something else lies where a prediction belongs.
    """

    def __init__(
        self,
        output: OutputFolder,
        image_ids: Iterable[str],
        *,
        palette: Sequence[RGB] | None = None,
        official_ids: Mapping[int, int] | None = None,
    ) -> None:
        self.files: list[Path] = []
        self._output = output
        self._palette = palette if official_ids is None else None
        self._table = np.arange(256, dtype=np.uint8)
        for index, official in (official_ids or {}).items():
            self._table[index] = official
        output.check((*map(self._place, image_ids), output.folder / IMAGES_FILE))

    def __call__(self, batch: PackedBatch, predictions: Tensor, depth: Tensor | None) -> None:  # noqa: ARG002
        """Write one batch."""
        for image_id, labels in zip(batch.image_ids, predictions.cpu().numpy(), strict=True):
            out = self._place(image_id)
            write_labels(self._table[labels], out, self._palette, self._output.write)
            self.files.append(out)

    def write_scores(self, scores: ImageScores) -> None:
        """Write what each image scored beside the predictions."""
        write_image_scores(scores, self._output.folder / IMAGES_FILE, self._output.write)

    def _place(self, image_id: str) -> Path:
        relative = PurePosixPath(image_id)
        return self._output.folder / relative.parent / f"{shorten_name(relative.name)}.png"


def _write_classes(file: Path, class_names: Sequence[str], palette: Sequence[RGB]) -> None:
    with file.open("w", encoding="utf8", newline="") as stream:
        rows = csv.writer(stream)
        rows.writerow(("id", "name", "red", "green", "blue"))
        rows.writerows((index, csv_text(name), *palette[index]) for index, name in enumerate(class_names))

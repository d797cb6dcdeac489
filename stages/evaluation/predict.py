"""Label maps, overlays and what else is asked for of image files, and label-id predictions of a split.

What lies in a folder of predictions, beside ``classes.csv`` (what the ids mean) and ``predictions.json`` (a record per
image: its files, its size, the share of each class):

| file                     | holds                                                                               |
|--------------------------|-------------------------------------------------------------------------------------|
| labels/NAME.png          | class ids as they are, shown in the palette's colours                               |
| overlays/NAME.png        | the image tinted by class                                                           |
| probabilities/NAME.npz   | ``probabilities`` uint8 (C, H, W), 255 is certain; ``classes`` their names          |
| depth/NAME.png           | 16 bits, even steps from the image's lowest value to its highest; both values, and  |
|                          | what they mean, in predictions.json and in the PNG's text                           |
"""

from __future__ import annotations

import csv
import itertools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin
from torch import Tensor

from data_cache.errors import UserError, is_out_of_memory
from data_cache.escaping import csv_text, json_text
from data_cache.files import atomic_file
from data_cache.image_scores import ImageScores, write_image_scores
from data_cache.images import NoteTally, read_image
from data_cache.metrics import IMAGES_FILE
from data_cache.outputs import OutputFolder, WriteFile, shorten_name
from data_cache.sample import PackedBatch
from data_cache.size_rule import ORIGINAL, SizeRule
from stages.evaluation.colour import RGB
from stages.evaluation.forward import Precision, evaluation_mode
from stages.evaluation.panels import draw_overlay, write_png
from stages.evaluation.tiling import DEFAULT_MARGIN_PX, TiledNetwork, check_tiling, predict
from stages.evaluation.views import ONE_VIEW, View
from stages.networks.interface import Normalisation, Outputs

RECORDS_FILE = "predictions.json"
LEGEND_FILE = "classes.csv"
_LARGEST_DEPTH = 65535
_PLACES = {
    "labels": ("labels", ".png"),
    "overlay": ("overlays", ".png"),
    "probabilities": ("probabilities", ".npz"),
    "depth": ("depth", ".png"),
}
"""Kind of result → folder and suffix of its files."""
DEPTH_MEANINGS = {
    "robust": "inverse depth, large is near; 0 and 1 are the 2nd and 98th percentile of the image's own depth",
    "minmax": "inverse depth, large is near; 0 and 1 are the farthest and the nearest of the image's own depth",
    "zscore": "inverse depth, large is near; in standard deviations from the mean of the image's own depth",
    "log": "logarithm of inverse depth, large is near; 0 and 1 are the 2nd and 98th percentile of the image's own",
    "metric": "inverse depth in 1/m, large is near",
}
"""Depth target → what the depth branch estimates."""


class Prediction(NamedTuple):
    """What a network says of one image, at its size."""

    labels: NDArray[np.uint8]
    """(H, W) class indices."""
    probabilities: NDArray[np.uint8] | None = None
    """(C, H, W), 255 is certain; None where they were not asked for."""
    depth: NDArray[np.float32] | None = None
    """(H, W) in the units of the depth target, see ``DEPTH_MEANINGS``; None where it was not asked for."""


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
    views: Sequence[View] = ONE_VIEW
    """In which it sees an image, or each tile; the mean of what it says then counts."""
    depth: bool = False
    """Whether to run the depth branch."""
    probabilities: bool = False
    """Whether to keep the probabilities of all classes."""

    def __post_init__(self) -> None:
        if self.tile is not None:
            check_tiling(self.tile, self.margin, self.network)
            if self.size_rule != ORIGINAL:
                raise UserError(
                    f"tiles are cut at the image's own size, but this model takes {self.size_rule}; drop --tile"
                )

    def segment(self, image: NDArray[np.uint8]) -> Prediction:
        """Return what the network says of an (H, W, 3) image."""
        height, width = image.shape[:2]
        network = self.network
        entering: NDArray[Any] = image
        if self.tile is not None and max(height, width) > self.tile:
            network = TiledNetwork(network, tile=self.tile, margin=self.margin)
        else:
            entering = self.size_rule.fit(image)
        pixels = torch.from_numpy(entering).permute(2, 0, 1).unsqueeze(0).to(self.device)
        with torch.inference_mode():
            predicted = predict(
                network, pixels, (height, width), precision=self.precision, depth=self.depth,
                probabilities=self.probabilities, views=self.views, prepare=self._normalise,
                on_outputs=_check_finite,
            )  # fmt: skip
        maps = (predicted.seg_labels, predicted.probabilities, predicted.depth)
        return Prediction(*(None if found is None else found[0].cpu().numpy() for found in maps))  # type: ignore[arg-type]

    def _normalise(self, pixels: Tensor) -> Tensor:
        mean, std = (torch.tensor(values, device=pixels.device).view(3, 1, 1) for values in self.normalisation)
        return (pixels.float() / 255 - mean) / std


def _check_finite(outputs: Outputs) -> None:
    """Refuse what an argmax would silently turn into a class."""
    for what, maps in (("segmentation logits", outputs.seg_logits), ("depth", outputs.depth)):
        if maps is not None and not torch.isfinite(torch.stack(torch.aminmax(maps))).all():
            raise UserError(f"the network's {what} are not finite; its weights are broken: train it again")


class FailedImage(NamedTuple):
    """An image that could not be labelled, and why."""

    image: str
    reason: str


class Predictions(NamedTuple):
    """What was written, what could not be, and how the images were read where that was not a matter of course."""

    files: list[Path]
    failed: list[FailedImage]
    notes: list[str]
    records: list[dict[str, Any]]
    """Of each image, as in predictions.json."""


OnImage = Callable[[Path, NDArray[np.uint8] | None, Prediction | None], None]
"""Called per image with the file, and its pixels and what was found, or twice None where it failed."""


def predict_files(
    segmenter: Segmenter,
    files: Sequence[Path],
    output: OutputFolder,
    *,
    class_names: Sequence[str],
    palette: Sequence[RGB],
    depth_meaning: str = "",
    on_image: OnImage | None = None,
) -> Predictions:
    """Write what was found in each image, as the table above says, but ``predictions.json``.

    Images of one name in several folders get names with their folders in front, so none overwrites another. One that
    cannot be read or labelled costs the others nothing.

    Args:
        files: images, each once.
        depth_meaning: what the numbers of the depth branch are, in words.

    Raises:
        UserError: something else lies where a result belongs, or it cannot be written.
    """
    kinds = ["labels", "overlay"]
    kinds += [kind for kind in ("probabilities", "depth") if getattr(segmenter, kind)]
    places = {
        file: {kind: output.folder / _PLACES[kind][0] / f"{name}{_PLACES[kind][1]}" for kind in kinds}
        for file, name in name_outputs(files).items()
    }
    legend = output.folder / LEGEND_FILE
    output.check(
        [legend, output.folder / RECORDS_FILE, *(path for of_file in places.values() for path in of_file.values())]
    )
    with output.write(legend) as temporary:
        _write_classes(temporary, class_names, palette)
    found = Predictions([legend], [], [], [])
    tally = NoteTally()
    with evaluation_mode(segmenter.network):
        for file, of_file in places.items():
            try:
                image, notes = read_image(file)
                segmented = _segment(segmenter, image, file)
            except UserError as problem:
                found.failed.append(FailedImage(str(file), str(problem)))
                if on_image is not None:
                    on_image(file, None, None)
                continue
            tally.add(file.name, notes)
            write_labels(segmented.labels, of_file["labels"], palette, output.write)
            overlay = draw_overlay(image, segmented.labels, palette)
            write_png(Image.fromarray(overlay), of_file["overlay"], output.write)
            record: dict[str, Any] = {"image": str(file), "height": image.shape[0], "width": image.shape[1]}
            record |= {kind: path.relative_to(output.folder).as_posix() for kind, path in of_file.items()}
            record["shares"] = dict(zip(class_names, count_shares(segmented.labels, len(class_names)), strict=True))
            if segmented.probabilities is not None:
                with output.write(of_file["probabilities"]) as temporary, temporary.open("wb") as stream:
                    np.savez_compressed(stream, probabilities=segmented.probabilities, classes=np.array(class_names))
            if segmented.depth is not None:
                record["depth"] = {"file": record["depth"], "meaning": depth_meaning}
                record["depth"] |= write_depth(segmented.depth, of_file["depth"], depth_meaning, output.write)
            found.files.extend(of_file.values())
            found.records.append(record)
            if on_image is not None:
                on_image(file, image, segmented)
    found.notes.extend(tally.lines())
    return found


def _segment(segmenter: Segmenter, image: NDArray[np.uint8], file: Path) -> Prediction:
    try:
        return segmenter.segment(image)
    except (RuntimeError, MemoryError) as problem:
        if not is_out_of_memory(problem):
            raise
        height, width = image.shape[:2]
        smaller = f"a smaller --tile or --margin (now {segmenter.tile} and {segmenter.margin})"
        remedy = f"use {'--tile 512' if segmenter.tile is None else smaller}"
        raise UserError(f"{file} ({width} x {height}) does not fit into memory; {remedy}") from problem


def count_shares(labels: NDArray[np.uint8], num_classes: int) -> list[float]:
    """Return each class's share of the pixels, to six places."""
    counts = Image.fromarray(labels).histogram()[:num_classes]
    return [round(count / labels.size, 6) for count in counts]


def write_depth(
    depth: NDArray[np.float32], out: Path, meaning: str, write_file: WriteFile = atomic_file
) -> dict[str, float]:
    """Write an (H, W) depth map as a 16-bit PNG; return the values ``low`` and ``high`` that 0 and 65535 stand for."""
    low, high = float(depth.min()), float(depth.max())
    steps = ((depth - low) * (_LARGEST_DEPTH / max(high - low, 1e-12))).round().astype(np.uint16)
    ends = {"low": low, "high": high}
    about = PngImagePlugin.PngInfo()
    for key, value in (*ends.items(), ("meaning", meaning)):
        about.add_text(key, str(value))
    with write_file(out) as temporary:
        Image.fromarray(steps).save(temporary, format="PNG", pnginfo=about)
    return ends


def write_records(
    found: Predictions, output: OutputFolder, *, model: str, class_names: Sequence[str], videos: Sequence[Any] = ()
) -> Path:
    """Write ``predictions.json``: what was found in each image and video, and what failed."""
    out = output.folder / RECORDS_FILE
    facts = {
        "model": model,
        "classes": list(class_names),
        "images": found.records,
        "videos": list(videos),
        "failed": [failure._asdict() for failure in found.failed],
    }
    with output.write(out) as temporary:
        temporary.write_text(json_text(facts, indent=1) + "\n", encoding="utf8")
    return out


def check_legend(folder: Path, class_names: Sequence[str]) -> None:
    """Raise UserError where predictions of other classes lie: their ids would be read as those of these classes."""
    try:
        found = json.loads((folder / RECORDS_FILE).read_text(encoding="utf8"))
        model, classes = found["model"], found["classes"]
    except (OSError, ValueError, KeyError, TypeError):
        return  # there are none
    if classes != list(class_names):
        raise UserError(
            f"{folder} holds predictions of other classes, by {model}, and one id would mean two of them; give another "
            "--out, or remove that folder first"
        )


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

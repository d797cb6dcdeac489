"""Cityscapes: fine annotations, 34 label ids mapped to 19 train ids, disparity as ground-truth depth.

Layout: ``leftImg8bit/<split>/<city>/…_leftImg8bit.png``, ``gtFine/…_gtFine_labelIds.png``, optional
``disparity/…_disparity.png`` and ``camera/…_camera.json``.
Source: Cordts et al. 2016; the id table is the one of the official cityscapesScripts.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from data_cache.datasets.interface import DataLicence, Sources
from data_cache.datasets.mask_files import read_png16
from data_cache.datasets.paired_files import Entry, PairedFiles, check_not_empty
from data_cache.errors import UserError, unknown_name
from data_cache.files import read_json
from data_cache.sample import IGNORE_INDEX, DepthKind

_CLASSES = (
    (7, "road", (128, 64, 128)),
    (8, "sidewalk", (244, 35, 232)),
    (11, "building", (70, 70, 70)),
    (12, "wall", (102, 102, 156)),
    (13, "fence", (190, 153, 153)),
    (17, "pole", (153, 153, 153)),
    (19, "traffic light", (250, 170, 30)),
    (20, "traffic sign", (220, 220, 0)),
    (21, "vegetation", (107, 142, 35)),
    (22, "terrain", (152, 251, 152)),
    (23, "sky", (70, 130, 180)),
    (24, "person", (220, 20, 60)),
    (25, "rider", (255, 0, 0)),
    (26, "car", (0, 0, 142)),
    (27, "truck", (0, 0, 70)),
    (28, "bus", (0, 60, 100)),
    (31, "train", (0, 80, 100)),
    (32, "motorcycle", (0, 0, 230)),
    (33, "bicycle", (119, 11, 32)),
)
"""(label id, name, colour) by train id."""

LABEL_IDS: dict[int, int] = {
    **dict.fromkeys(range(34), IGNORE_INDEX),
    **{label_id: train_id for train_id, (label_id, _, _) in enumerate(_CLASSES)},
}
"""Label id 0–33 -> train id; -1 (license plate) is never written to the PNGs."""


class Cityscapes(PairedFiles):
    """Street scenes of 50 cities, 2048 × 1024, 19 scored classes."""

    name: ClassVar[str] = "cityscapes"
    summary: ClassVar[str] = "Cityscapes, leftImg8bit + gtFine (+ disparity); 34 ids read as 19 classes"

    pool_split: ClassVar[str] = "train_extra"
    """20,000 images, annotated coarsely; that is not read."""
    licence: ClassVar[DataLicence] = DataLicence(
        "Cityscapes terms of use", "free for non-commercial purposes, see cityscapes-dataset.com/license", True
    )
    prediction_ids: ClassVar[Mapping[int, int]] = {train_id: label for train_id, (label, _, _) in enumerate(_CLASSES)}
    """The evaluation server expects label ids."""

    @classmethod
    def recognises(cls, root: Path) -> bool:
        """Whether a folder has the layout."""
        return (root / "leftImg8bit" / "train").is_dir() and (root / "gtFine" / "train").is_dir()

    def __init__(self, root: Path, split: str, *, metric_depth: bool = False) -> None:
        """Open ``leftImg8bit/<split>``.

        Args:
            root: folder that holds leftImg8bit and gtFine.
            split: train, val or test; train_extra without masks.
            metric_depth: turn disparity into metres with the files of ``camera``; otherwise depth is disparity.

        Raises:
            UserError: for an unknown or empty split, or missing camera files.
        """
        if split not in (*self.splits, self.pool_split):
            raise unknown_name("split of cityscapes", split, (*self.splits, self.pool_split))
        root = Path(root)
        image_folder = root / "leftImg8bit" / split
        has_disparity = (root / "disparity" / split).is_dir()
        self._camera_folder = root / "camera" / split
        self._metric = metric_depth
        if metric_depth and not (has_disparity and self._camera_folder.is_dir()):
            raise UserError(
                f"metric depth of cityscapes needs {root / 'disparity' / split} and {self._camera_folder}; "
                "unpack disparity_trainvaltest and camera_trainvaltest there, or leave out metric_depth"
            )
        entries = [
            _entry(root, split, image, has_disparity) for image in sorted(image_folder.glob("*/*_leftImg8bit.png"))
        ]
        check_not_empty(self.name, split, entries, image_folder)
        ground_truth_depth_kind = (DepthKind.METRIC if metric_depth else DepthKind.RELATIVE) if has_disparity else None
        known = {entry.mask for entry in entries}
        super().__init__(
            split,
            entries,
            classes=tuple(name for _, name, _ in _CLASSES),
            palette=tuple(colour for _, _, colour in _CLASSES),
            raw_ids=LABEL_IDS,
            ground_truth_depth_kind=ground_truth_depth_kind,
            depth_rule=("metres by disparity and camera" if metric_depth else "disparity") if has_disparity else "",
            orphans=[
                path for path in sorted((root / "gtFine" / split).glob("*/*_gtFine_labelIds.png")) if path not in known
            ],
        )

    def read_depth(self, index: int) -> NDArray[np.float32]:
        """Return (H, W): disparity in px, or metres with ``metric_depth``; nan where the matcher found nothing.

        Stored p > 0 means a disparity of (p - 1) / 256; 0 is invalid.

        Raises:
            UserError: when the split has no disparity, or the file is missing or unreadable.
        """
        entry = self.entries[index]
        if entry.depth is None:
            return super().read_depth(index)
        disparity = (read_png16(entry.depth) - np.float32(1.0)) / np.float32(256.0)
        if not self._metric:
            return disparity
        camera = self._camera_file(entry)
        with np.errstate(divide="ignore"):
            return (_read_baseline_times_focal(camera) / disparity).astype(np.float32)

    def sources(self, index: int) -> Sources:
        """Return the image's files, with that of the camera where metres follow from it."""
        sources = super().sources(index)
        camera = (self._camera_file(self.entries[index]),) if self._metric else ()
        return sources._replace(depth=sources.depth + camera)

    def _camera_file(self, entry: Entry) -> Path:
        return self._camera_folder / entry.image.parent.name / f"{entry.image_id}_camera.json"


def _entry(root: Path, split: str, image: Path, has_disparity: bool) -> Entry:
    city, stem = image.parent.name, image.name.removesuffix("_leftImg8bit.png")
    mask = root / "gtFine" / split / city / f"{stem}_gtFine_labelIds.png"
    return Entry(
        stem, image, mask, root / "disparity" / split / city / f"{stem}_disparity.png" if has_disparity else None
    )


def _read_baseline_times_focal(path: Path) -> float:
    """Return baseline (m) times focal length (px), the numerator of depth = b · f / disparity."""
    camera = read_json(path, "restore it")
    try:
        baseline_m, focal_px = camera["extrinsic"]["baseline"], camera["intrinsic"]["fx"]
    except (KeyError, TypeError) as error:
        raise UserError(f"{path} lacks extrinsic.baseline or intrinsic.fx; restore the file") from error
    for name, value in (("baseline", baseline_m), ("fx", focal_px)):
        if type(value) not in (int, float) or not 1e-6 < value < 1e6:
            raise UserError(f"{path} holds {name} = {str(value)[:40]}, no positive length; restore the file")
    return float(baseline_m) * float(focal_px)

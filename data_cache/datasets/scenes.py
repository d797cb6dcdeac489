"""The drawn dataset: ray-cast scenes with exact labels, depth and instances; no download.

Pictures of balls and boxes, painted flat on the ground or a wall, carry the class ``picture``: by colour and outline
they are what they show, by depth they are the surface they lie on.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from data_cache.content import check_regular
from data_cache.datasets import scene_layout
from data_cache.datasets.interface import POOL, DataLicence, EmptySplit, SegmentationDataset, Sources
from data_cache.datasets.scene_layout import Scene, draw_scene
from data_cache.datasets.scene_rendering import Rendering, render_scene
from data_cache.errors import UserError, unknown_name
from data_cache.files import atomic_folder, check_space
from data_cache.images import NotedImage
from data_cache.sample import IGNORE_INDEX, DepthKind

DRAWING_VERSION = 2
"""Raised by hand when the same (seed, split, index) draws another image, so that old caches are not read."""
LARGEST_COUNT = 10_000_000

_SPLIT_STREAMS = {"train": 0, "val": 1, "test": 2, POOL: 3}
_FIELDS: dict[str, np.dtype[Any]] = {
    "image": np.dtype(np.uint8),
    "labels": np.dtype(np.uint8),
    "depth": np.dtype("<f4"),
    "instances": np.dtype(np.uint8),
}


class Scenes(SegmentationDataset):
    """A split of drawn scenes, rendered once into memory-mapped arrays.

    A scene depends on (seed, split, index) alone: neither how many there are nor their size moves what stands where.
    """

    name: ClassVar[str] = "scenes"
    summary: ClassVar[str] = "drawn by ray casting: boxes, balls, pillars, cones and flat pictures of them; exact depth"
    pool_split: ClassVar[str] = POOL
    needs_root: ClassVar[bool] = False
    work_folder: ClassVar[str] = "scenes"
    is_mapped: ClassVar[bool] = True
    licence: ClassVar[DataLicence] = DataLicence("Apache-2.0", "drawn by this program")
    classes = scene_layout.CLASSES
    palette = scene_layout.PALETTE
    raw_ids = MappingProxyType(
        {**{index: index for index in range(len(scene_layout.CLASSES))}, IGNORE_INDEX: IGNORE_INDEX}
    )
    ground_truth_depth_kind = DepthKind.METRIC
    depth_rule = "drawn"

    def __init__(
        self,
        root: Path | None,
        split: str,
        *,
        size: Sequence[int] = (96, 128),
        counts: Mapping[str, int] = MappingProxyType({"train": 400, "val": 100, "test": 200}),
        seed: int = 0,
    ) -> None:
        """Open a split, rendering it first if ``root`` does not hold it yet.

        Args:
            root: cache folder, made when missing; None renders each scene anew when it is read.
            split: train, val, test or unlabelled; the splits draw from different random streams.
            size: (height, width) in px, at least 8 each.
            counts: scenes per split; there are none in those that are not named.
            seed: at least 0.

        Raises:
            EmptySplit: its count is 0.
            UserError: for options that make no sense, or a cache folder that cannot be written.
        """
        if split not in _SPLIT_STREAMS:
            raise unknown_name("split of scenes", split, _SPLIT_STREAMS)
        self.split = split
        self.has_masks = split != POOL
        self.size = _check_size(size)
        self.seed = _check_seed(seed)
        self._count = _check_counts(counts, split)
        self._folder = None if root is None else Path(root) / self._folder_name()
        self._arrays: dict[str, NDArray[Any]] = {}
        if self._folder is not None and not self._folder.is_dir():
            self._render_into(self._folder)
        self.image_ids = tuple(f"{split}-{index:05d}" for index in range(self._count))

    def __getstate__(self) -> dict[str, Any]:
        """Leave the memory maps behind: pickled, they would travel as whole arrays."""
        return {**self.__dict__, "_arrays": {}}

    def read_noted_image(self, index: int) -> NotedImage:
        """Return (H, W, 3) RGB; a drawing leaves nothing to decide."""
        return NotedImage(self._read("image", index))

    def read_labels(self, index: int) -> NDArray[np.uint8]:
        """Return (H, W) train ids; nothing in a drawing is void."""
        labels = self._read("labels", index)
        if labels.max() >= len(self.classes):
            raise self._describe_damage("labels", f"{self.describe(index)} has class {labels.max()}, which none is")
        return labels

    def read_depth(self, index: int) -> NDArray[np.float32]:
        """Return (H, W) metres along the optical axis through each pixel's centre; the sky is inf."""
        return self._read("depth", index)

    def read_instances(self, index: int) -> NDArray[np.int32]:
        """Return (H, W): 0 for sky, ground and walls, then 1, 2, … for things and after them pictures."""
        return self._read("instances", index).astype(np.int32)

    def sources(self, index: int) -> Sources:
        """Return what the drawing depends on; nothing is drawn or hashed for it."""
        drawing = (
            f"scenes drawing {DRAWING_VERSION}, {self.size[0]}x{self.size[1]} px, seed {self.seed}, "
            f"{self.split} #{index}",
        )
        return Sources(drawing, drawing, drawing)

    def describe(self, index: int) -> str:
        """Return words like "scenes test #12"."""
        return f"scenes {self.split} #{index}"

    def draw(self, index: int) -> Scene:
        """Return the layout behind an image."""
        return draw_scene(self._stream(index, 0))

    def _read(self, field: str, index: int) -> NDArray[Any]:
        if not -self._count <= index < self._count:
            raise IndexError(f"scenes {self.split} has {self._count} images, none at {index}")
        if self._folder is None:
            return getattr(self._render(index % self._count), field)
        if field not in self._arrays:
            self._arrays[field] = self._open(self._folder / f"{field}.npy", field)
        return np.array(self._arrays[field][index])

    def _open(self, path: Path, field: str) -> NDArray[Any]:
        """Map a file that begins and ends exactly as it was written; what else it says of itself is not believed."""
        header, shape = self._describe_array(field)
        size = len(header) + math.prod(shape) * _FIELDS[field].itemsize
        try:
            check_regular(path, "file")
            with path.open("rb") as file:
                if file.read(len(header)) != header or path.stat().st_size != size:
                    raise self._describe_damage(field, f"it holds no {_FIELDS[field]} array {shape}")
            return np.memmap(path, _FIELDS[field], "r", len(header), shape)
        except OSError as error:
            raise self._describe_damage(field, str(error)) from error

    def _describe_array(self, field: str) -> tuple[bytes, tuple[int, ...]]:
        """Return how the file of an array begins, and the array's shape."""
        shape = (self._count, *self.size, 3) if field == "image" else (self._count, *self.size)
        header = io.BytesIO()
        described = {"descr": np.lib.format.dtype_to_descr(_FIELDS[field]), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(header, described)
        return header.getvalue(), shape

    def _describe_damage(self, field: str, reason: str) -> UserError:
        return UserError(
            f"cannot read the drawn scenes in {self._folder}/{field}.npy: {reason}; delete the folder {self._folder} "
            "and they are drawn anew"
        )

    def _stream(self, index: int, purpose: int) -> np.random.Generator:
        """Return the random stream for a scene's layout (0) or its sensor noise (1)."""
        return np.random.default_rng([self.seed, _SPLIT_STREAMS[self.split], index, purpose])

    def _render(self, index: int) -> Rendering:
        return render_scene(self.draw(index), self.size, self._stream(index, 1))

    def _folder_name(self) -> str:
        return f"scenes-v{DRAWING_VERSION}-{self.size[0]}x{self.size[1]}-seed{self.seed}-{self.split}-{self._count}"

    def _render_into(self, folder: Path) -> None:
        """Write the four arrays image by image: bounded memory, and a full disk is an error instead of a bus fault."""
        pixels = self._count * self.size[0] * self.size[1]
        check_space(folder.parent, 9 * pixels, f"{self._count} drawn scenes")  # 9 bytes a pixel, see _FIELDS
        with atomic_folder(folder) as scratch, ExitStack() as stack:
            files = {field: stack.enter_context((scratch / f"{field}.npy").open("wb")) for field in _FIELDS}
            for field, file in files.items():
                file.write(self._describe_array(field)[0])
            for index in range(self._count):
                rendering = self._render(index)
                for field, file in files.items():
                    file.write(np.ascontiguousarray(getattr(rendering, field), dtype=_FIELDS[field]).tobytes())


def _check_size(size: Sequence[int]) -> tuple[int, int]:
    values = tuple(size) if isinstance(size, Sequence) and not isinstance(size, str) else ()
    if len(values) != 2 or not all(isinstance(side, int) and 8 <= side <= 8192 for side in values):
        raise UserError(
            f"scenes: size must be (height, width) in px, 8 to 8192 each, got {size!r}; the default is (96, 128)"
        )
    return values


def _check_seed(seed: int) -> int:
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise UserError(f"scenes: seed must be a whole number of at least 0, got {seed!r}")
    return seed


def _check_counts(counts: Mapping[str, int], split: str) -> int:
    for name, count in counts.items():
        if name not in _SPLIT_STREAMS:
            raise unknown_name("split in scenes' counts", name, _SPLIT_STREAMS)
        if isinstance(count, bool) or not isinstance(count, int) or count < 0:
            raise UserError(f"scenes: the count of {name} must be a whole number of at least 0, got {count!r}")
        if count > LARGEST_COUNT:
            raise UserError(f"scenes: the count of {name} must be at most {LARGEST_COUNT}, got {count}")
    if counts.get(split, 0) == 0:
        raise EmptySplit(f"scenes: the {split} split is empty; give it a count, as in counts = {{ {split} = 100 }}")
    return counts[split]

"""What every dataset promises: arrays by index, ids that name images for ever, and words for messages."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_cache.errors import UserError
from data_cache.images import NotedImage
from data_cache.sample import DepthKind

RGB = tuple[int, int, int]
POOL = "unlabelled"
"""What the split of images without masks is called on the command line, whatever its folder is."""
LARGEST_STRETCH = 1.1
"""By so much may the sides of ground-truth depth be stretched unlike: maps rounded to a network's multiples are."""


class Sources(NamedTuple):
    """What the arrays of an image are made from: files, whose contents tell, or words that tell everything."""

    image: tuple[Path | str, ...]
    labels: tuple[Path | str, ...]
    depth: tuple[Path | str, ...]
    """Of the ground-truth depth; empty where the dataset has none."""


class DataLicence(NamedTuple):
    """Under what a dataset's images may be used; it follows the weights trained on them."""

    name: str = "unknown"
    """SPDX name, or what its owner calls it."""
    note: str = "ask the owner of the images"
    noncommercial: bool = False


class EmptySplit(UserError):
    """A split that may be there has no image."""


class SegmentationDataset(ABC):
    """One split of one dataset; the class says what can be known without opening one.

    Instances are small and can be pickled: workers get a copy and open files themselves. Reading raises ``UserError``
    for what is wrong with a file; an index outside the split is an ``IndexError``.
    """

    name: ClassVar[str]
    """Key in ``DATASETS``; a plug-in's class that has none is called as it is asked for, ``package.module:Class``."""
    summary: ClassVar[str] = ""
    """A line for lists."""
    splits: ClassVar[tuple[str, ...]] = ("train", "val", "test")
    """What may be opened; what exists depends on the files."""
    pool_split: ClassVar[str | None] = None
    """Name of the split of images whose masks nobody has drawn, or that are not read; None where there can be none."""
    needs_root: ClassVar[bool] = True
    """Whether the dataset is read from a folder that a person names."""
    work_folder: ClassVar[str] = ""
    """Where one that needs no root keeps its files, below the work directory; "" where it keeps none."""
    licence: ClassVar[DataLicence] = DataLicence()
    prediction_ids: ClassVar[Mapping[int, int] | None] = None
    """Train id -> id in saved predictions, where a benchmark wants its own; None saves train ids."""

    is_mapped: ClassVar[bool] = False
    """Whether arrays are read as they lie on the disk, so that keeping them in memory gains nothing."""

    split: str
    classes: tuple[str, ...]
    """Class names; the position is the train id."""
    palette: tuple[RGB, ...]
    """One display colour per class."""
    image_ids: Sequence[str]
    """Unique names in a fixed order; they are also the keys of depth stores."""
    raw_ids: Mapping[int, int]
    """Id in the mask file -> train id or IGNORE_INDEX; any other id in a file is an error."""
    ground_truth_depth_kind: DepthKind | None = None
    """What the dataset's ground-truth depth means; None when it brings none."""
    depth_rule: str = ""
    """How ground-truth depth follows from its files, in words: whatever changes its numbers besides the files."""
    has_masks: bool = True
    """Whether its masks are read."""
    orphans: Sequence[Path] = ()
    """Masks without an image, for the doctor to report."""
    code: str = ""
    """Hash of a plug-in's source files; "" of our own."""

    def __init_subclass__(cls, **settings: Any) -> None:
        super().__init_subclass__(**settings)
        if "name" not in vars(cls):
            cls.name = f"{cls.__module__}:{cls.__qualname__}"

    @classmethod
    def find_splits(cls, root: Path | None, options: Mapping[str, Any] | None = None) -> tuple[str, ...]:  # noqa: ARG003 - for those that look
        """Return the splits that the doctor looks at unless told: those of every dataset, or whatever is there.

        Args:
            root: its folder.
            options: of the dataset.
        """
        return ("train", "val", "test", *([cls.pool_split] if cls.pool_split else []))

    @classmethod
    def recognises(cls, root: Path) -> bool:  # noqa: ARG003 - for those that look
        """Whether a folder surely holds this very dataset, which then needs no options."""
        return False

    def __len__(self) -> int:
        return len(self.image_ids)

    def read_image(self, index: int) -> NDArray[np.uint8]:
        """Return (H, W, 3) RGB."""
        return self.read_noted_image(index).pixels

    @abstractmethod
    def read_noted_image(self, index: int) -> NotedImage:
        """Return (H, W, 3) RGB, and what had to be decided to read it."""

    def read_size(self, index: int) -> tuple[int, int]:
        """Return (height, width) of an image, where possible without decoding it."""
        height, width, _ = self.read_image(index).shape
        return height, width

    @abstractmethod
    def read_labels(self, index: int) -> NDArray[np.uint8]:
        """Return (H, W) train ids, IGNORE_INDEX where void; always of the image's size."""

    def read_pair(self, index: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Return the image (H, W, 3) and its labels (H, W)."""
        return self.read_image(index), self.read_labels(index)

    def read_depth(self, index: int) -> NDArray[np.float32]:
        """Return (h, w) depth of ``ground_truth_depth_kind``; nan = unknown, inf = infinitely far (metric only).

        Raises:
            UserError: for datasets that bring none.
        """
        raise UserError(
            f"{self.name} brings no ground-truth depth ({self.describe(index)}); label it with an estimator, "
            "see: pipeline estimators"
        )

    def read_matching_depth(self, index: int, image_size: tuple[int, ...]) -> NDArray[np.float32]:
        """Return the same, of the image's shape if not of its size: depth has any resolution, but is not cut or turned.

        Raises:
            UserError: as above, or the map cannot be of the whole image.
        """
        depth = self.read_depth(index)
        (height, width), (image_height, image_width) = depth.shape, image_size
        stretch = height * image_width / (width * image_height)
        if max(stretch, 1 / stretch) > LARGEST_STRETCH:
            raise UserError(
                f"depth of {self.describe(index)} has {height} x {width} px (height x width), the image "
                f"{image_height} x {image_width}: of another shape, it is cut, turned or another image's; make it anew "
                "from that image"
            )
        return depth

    @abstractmethod
    def sources(self, index: int) -> Sources:
        """Return what the image, its labels and its depth are made from; a file need not be there."""

    @abstractmethod
    def describe(self, index: int) -> str:
        """Return the image's path, or what else tells a person which image is meant."""

"""Which images a recipe's trainings read, and of which the masks: opened the same way for a plan and for a training."""

from __future__ import annotations

from dataclasses import dataclass

from data_cache.datasets.interface import SegmentationDataset
from data_cache.datasets.views import Part, View
from pipeline.experiment.artifacts import open_split
from pipeline.experiment.config import RunConfig
from pipeline.experiment.plan import Reading
from pipeline.workspace import Workspace


@dataclass(frozen=True)
class TrainingImages:
    """The images of the training split, and what else can be read without masks."""

    split: SegmentationDataset
    """The training split as it lies on the disk."""
    labelled: tuple[str, ...] | None = None
    """Ids of the images whose masks are used; None is all."""

    def select(self, reading: Reading) -> SegmentationDataset:
        """Return what phases of a kind read."""
        if reading.masks and not reading.pool and self.labelled is None:
            return self.split
        chosen = self._find_labelled()
        others = sorted(set(range(len(self.split))).difference(chosen))
        if not reading.pool:
            return View([Part(self.split, chosen, reading.masks)])
        if not reading.masks:
            return View([Part(self.split, range(len(self.split)), labels=False), *self._own_pool()])
        return View([Part(self.split, chosen, labels=True), Part(self.split, others, labels=False), *self._own_pool()])

    def count_epoch(self, reading: Reading) -> int:
        """Return the images that an epoch is a pass over: of batches of both kinds the labelled ones."""
        labelled = len(self.split) if self.labelled is None else len(self.labelled)
        return labelled + (self.pool if reading.pool and not reading.masks else 0)

    @property
    def pool(self) -> int:
        """Number of images that can be read beside the labelled ones."""
        return 0

    def _find_labelled(self) -> list[int]:
        chosen = None if self.labelled is None else set(self.labelled)
        return [index for index, name in enumerate(self.split.image_ids) if chosen is None or name in chosen]

    def _own_pool(self) -> list[Part]:
        return []


def open_training_images(config: RunConfig, workspace: Workspace, labelled: tuple[str, ...] | None) -> TrainingImages:
    """Open what the trainings of a recipe may read.

    Args:
        labelled: ids of the images whose masks are used; None is all.
    """
    return TrainingImages(open_split(config, workspace, "train"), labelled)

"""Which images a recipe's trainings read, and of which the masks: opened the same way for a plan and for a training."""

from __future__ import annotations

from dataclasses import dataclass

from data_cache.datasets.interface import SegmentationDataset
from data_cache.datasets.views import Part, View
from pipeline.experiment.artifacts import open_own_pool, open_split
from pipeline.experiment.config import RunConfig
from pipeline.experiment.reading import Scope, Selection
from pipeline.workspace import Workspace


@dataclass(frozen=True)
class TrainingImages:
    """The images of the training split, and what else can be read without masks."""

    split: SegmentationDataset
    """The training split as it lies on the disk."""
    labelled: tuple[str, ...] | None
    """Ids of the images whose masks are used; None is all."""
    own_pool: SegmentationDataset | None
    """Images that the dataset brings without masks."""
    pools_others: bool
    """Whether the training images whose masks are not used belong to the pool, too."""

    held_out: frozenset[str] = frozenset()
    """Ids of those that are scored while training, and not read by it at all; their masks are among those used."""

    @property
    def num_labelled(self) -> int:
        """Images whose masks are learned from."""
        return (len(self.split) if self.labelled is None else len(self.labelled)) - len(self.held_out)

    @property
    def pool(self) -> int:
        """Images that can be read beside those."""
        others = len(self.split) - len(self.held_out) - self.num_labelled if self.pools_others else 0
        return others + (0 if self.own_pool is None else len(self.own_pool))

    @property
    def pool_parts(self) -> list[Part]:
        """These images: those of the training split, which may be none, and those that the dataset brings besides."""
        own = [] if self.own_pool is None else [Part(self.own_pool, range(len(self.own_pool)), labels=False)]
        return [Part(self.split, self._divide()[1], labels=False), *own]

    def select(self, scope: Scope) -> SegmentationDataset:
        """Return what phases of a kind read."""
        chosen, others = self._divide()
        if not scope.pool:
            whole = scope.masks and self.labelled is None and not self.held_out
            return self.split if whole else View([Part(self.split, chosen, scope.masks)])
        if not scope.masks:  # in the order of the split, whatever a fraction withholds
            return View([Part(self.split, sorted([*chosen, *others]), labels=False), *self.pool_parts[1:]])
        return View([Part(self.split, chosen, labels=True), *self.pool_parts])

    def count_epoch(self, scope: Scope) -> int:
        """Return the images that an epoch is a pass over: of batches of both kinds the labelled ones."""
        return self.num_labelled + (self.pool if scope.pool and not scope.masks else 0)

    def _divide(self) -> tuple[list[int], list[int]]:
        """Return the places of the images whose masks are learned from, and of the others that are read."""
        places = [place for place in range(len(self.split)) if self.split.image_ids[place] not in self.held_out]
        if self.labelled is None:
            return places, []
        used = set(self.labelled)
        chosen = [place for place in places if self.split.image_ids[place] in used]
        others = [place for place in places if self.split.image_ids[place] not in used]
        return chosen, others if self.pools_others else []


def open_training_images(
    config: RunConfig, workspace: Workspace, labelled: tuple[str, ...] | None, selection: Selection | None = None
) -> TrainingImages:
    """Open what the trainings of a recipe may read.

    Args:
        labelled: ids of the images whose masks are used; None is all.
        selection: on what weights are chosen; no training reads it.
    """
    split, pool = open_split(config, workspace, "train"), open_own_pool(config, workspace)
    held_out = frozenset((selection.held_out or ()) if selection else ())
    return TrainingImages(split, labelled, pool, config.data.unlabelled != "ignore", held_out)

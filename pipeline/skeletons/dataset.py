"""A dataset of your own: which files are an image and its mask, and what the ids in masks mean.

pipeline datasets REFERENCE --data-root DIR
pipeline run --dataset REFERENCE --data-root DIR --schedule seg-only
"""

from __future__ import annotations

from pathlib import Path

from data_cache.datasets.paired_files import PairedFiles, check_not_empty, pair_folders


class Skeleton(PairedFiles):
    """DIR/train beside DIR/train_masks, likewise val and test; pairs by the names without suffix."""

    splits = ("train", "val", "test")

    # Arguments after root and split are the dataset's options: `--set data.options.void=255`.
    def __init__(self, root: Path, split: str, *, void: int = 255) -> None:
        """Find the files of a split; nothing is read yet. ``void`` is the id of pixels that do not count."""
        images, masks = Path(root) / split, Path(root) / f"{split}_masks"
        entries, orphans = pair_folders(images, masks)  # or a list of Entry(image id, image, mask) of your own
        check_not_empty(self.name, split, entries, images)
        super().__init__(
            split,
            entries,
            classes=("background", "thing"),  # the place in this list is the class index
            palette=((60, 60, 60), (220, 60, 60)),  # the colours they are shown in
            raw_ids={0: 0, 1: 1, void: 255},  # id in a mask file -> class index, 255 does not count
            orphans=orphans,  # masks without an image, which `pipeline datasets` reports
        )

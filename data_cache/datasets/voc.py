"""Pascal VOC segmentation from a VOCdevkit, with the SBD extension as an optional list.

Layout: ``VOC2012/{JPEGImages,SegmentationClass,ImageSets/Segmentation}``; the root is the VOCdevkit or ``VOC2012``.
Images that its lists do not name are the split ``unlabelled``: in most of VOC only boxes were drawn.
Source: Everingham et al. 2015; Hariharan et al. 2011 (SBD, the "trainaug" list of 10,582 images).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from data_cache.datasets.id_list import read_id_list
from data_cache.datasets.interface import POOL, DataLicence, EmptySplit
from data_cache.datasets.paired_files import Entry, PairedFiles, build_colour_map, read_stem
from data_cache.errors import UserError, unknown_name
from data_cache.images import list_files
from data_cache.sample import IGNORE_INDEX

_CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip

_LISTS = ("train", "val", "trainval", "test")


class Voc(PairedFiles):
    """Objects of 20 classes on background; 255 is void. Masks are palette PNGs, read as indices."""

    name: ClassVar[str] = "voc"
    summary: ClassVar[str] = "Pascal VOC 2012, VOCdevkit layout, optional SBD list; 21 classes"
    licence: ClassVar[DataLicence] = DataLicence("Flickr terms of use", "see the Pascal VOC database rights")
    splits: ClassVar[tuple[str, ...]] = ("train", "val", "trainval", "trainaug", "test")
    pool_split: ClassVar[str] = POOL

    def __init__(
        self,
        root: Path,
        split: str,
        *,
        year: str = "VOC2012",
        sbd_list: str | Path | None = None,
        sbd_masks: str | Path | None = None,
    ) -> None:
        """Open the images a split's list names.

        Args:
            root: VOCdevkit, or the folder of the year itself.
            split: a list in ``ImageSets/Segmentation``; ``trainaug`` is ``train`` with the SBD list, ``unlabelled``
                neither its own lists nor ``sbd_list`` name.
            year: folder inside the VOCdevkit.
            sbd_list: text file of further training images, an id or path per line; joins the split ``train`` or
                ``trainaug`` without the images of ``val``, which SBD contains too. Default for ``trainaug``:
                ``trainaug.txt`` beside the other lists.
            sbd_masks: folder with the masks (PNG) of those images; default ``SegmentationClassAug``.

        Raises:
            EmptySplit: there is no image.
            UserError: for a missing folder or list, an unknown split, or SBD masks still in MATLAB form.
        """
        if split not in (*self.splits, POOL):
            raise unknown_name("split of voc", split, (*self.splits, POOL))
        base = _find_base(Path(root), year)
        lists = base / "ImageSets" / "Segmentation"
        if split == POOL:
            known = [path for name in _LISTS if (path := lists / f"{name}.txt").is_file()]
            own_ids = _find_unlisted(base, [*known, *([Path(sbd_list)] if sbd_list is not None else [])])
        else:
            own_ids = read_id_list(lists / f"{'train' if split == 'trainaug' else split}.txt")
        extra = split == "trainaug" or (split == "train" and sbd_list is not None)
        if sbd_list is not None and not extra and split != POOL:
            sbd_list = None  # One recipe names the list for all its splits; it speaks of training images only.
        entries = {image_id: _entry(base, base / "SegmentationClass", image_id) for image_id in own_ids}
        if extra:
            masks = Path(sbd_masks) if sbd_masks is not None else base / "SegmentationClassAug"
            _check_sbd_masks(masks)
            held_out = set(read_id_list(lists / "val.txt"))
            for image_id in read_id_list(Path(sbd_list) if sbd_list is not None else lists / "trainaug.txt"):
                if image_id not in held_out and image_id not in entries:
                    entries[image_id] = _entry(base, masks, image_id)
        if not entries:
            found = f"{lists / f'{split}.txt'} names no image"
            if split == POOL:
                found = f"the lists in {lists} name every image in {base / 'JPEGImages'}"
            raise EmptySplit(f"the {split} split of voc is empty: {found}")
        super().__init__(
            split,
            entries.values(),
            classes=_CLASSES,
            palette=build_colour_map(len(_CLASSES)),
            raw_ids={**{index: index for index in range(len(_CLASSES))}, IGNORE_INDEX: IGNORE_INDEX},
        )

    @classmethod
    def recognises(cls, root: Path) -> bool:
        """Whether a folder has the layout, and images that are called as those of VOC are."""
        base = root if root.name == "VOC2012" else root / "VOC2012"
        train = base / "ImageSets" / "Segmentation" / "train.txt"
        listed = read_id_list(train) if train.is_file() else []
        return bool(listed) and re.match(r"20\d\d_\d{6}$", listed[0]) is not None


def _find_unlisted(base: Path, lists: Sequence[Path]) -> list[str]:
    """Return the ids of the images that none of the lists names."""
    listed = {image_id for path in lists for image_id in read_id_list(path)}
    images = (path for path in list_files(base / "JPEGImages") if path.suffix == ".jpg")
    return [image_id for image_id in map(read_stem, images) if image_id not in listed]


def _find_base(root: Path, year: str) -> Path:
    for base in (root / year, root, root / "VOCdevkit" / year):
        if (base / "JPEGImages").is_dir():
            return base
    raise UserError(
        f"{root} is no VOCdevkit: there is neither {root / year / 'JPEGImages'} nor {root / 'JPEGImages'}; "
        "name the folder that holds them with: --data-root DIR"
    )


def _entry(base: Path, masks: Path, image_id: str) -> Entry:
    return Entry(image_id, base / "JPEGImages" / f"{image_id}.jpg", masks / f"{image_id}.png")


def _check_sbd_masks(folder: Path) -> None:
    if not folder.is_dir():
        raise UserError(
            f"there is no folder {folder} with the SBD masks; unpack SegmentationClassAug there or name it with: "
            "--set data.options.sbd_masks=DIR"
        )
    if not any(folder.glob("*.png")):
        matlab = ", MATLAB files do" if any(folder.glob("*.mat")) else ""
        raise UserError(
            f"{folder} holds no PNG masks{matlab}; SBD is read as palette or grey PNGs of class ids "
            "(the widespread SegmentationClassAug)"
        )

"""Look at a folder of somebody's files, and say as what dataset it can be read: what was found, decided, and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data_cache.datasets import DATASETS
from data_cache.datasets.depth_scales import SCALES_FILE, read_scales
from data_cache.datasets.file_layout import FileLayout
from data_cache.datasets.folder import Folder
from data_cache.datasets.interface import POOL, EmptySplit, SegmentationDataset
from data_cache.datasets.mask_files import read_npy, read_png16
from data_cache.errors import UserError
from data_cache.images import EXAMPLES, format_examples, read_image, read_image_size
from data_cache.likeness import compute_look_hash
from data_cache.own_files.search import WORDS, Naming, Search, find_file, search_folder
from data_cache.own_files.splitting import Division, divide
from data_cache.own_files.values import (
    ClassChoice,
    MaskValues,
    choose_classes,
    read_class_names,
    read_masks,
    to_options,
)
from data_cache.sample import DepthKind

_MAPS_LOOKED_AT = 8
_MOST_UNREADABLE = 0.5
"""Share of the masks of which more cannot be read than can."""

Progress = Callable[[str, int, int], object]
"""Told what is done, how many are, and of how many."""


class Decision(NamedTuple):
    """Something that could have been otherwise."""

    what: str
    value: str
    why: str


@dataclass
class Inspection:
    """As what a folder can be read."""

    root: Path
    dataset: str
    """Key of ``DATASETS``."""
    options: dict[str, Any] = field(default_factory=dict)
    images: dict[str, int] = field(default_factory=dict)
    """Number of images by split."""
    masks: int = 0
    classes: tuple[str, ...] = ()
    shares: dict[str, float] = field(default_factory=dict)
    """Of each class in the labelled pixels of all masks, in [0, 1]."""
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    """Images with masks by (height, width), px."""
    depth: DepthKind | None = None
    """What the depth maps hold that lie beside the images; None where there are none."""
    example: Path = Path()
    """One of the images for validation."""
    lists: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Names of the images of a split, where no folder or list says them."""
    decisions: list[Decision] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    """What will stop a training."""

    def decide(self, what: str, value: object, why: str) -> None:
        """Note a decision."""
        self.decisions.append(Decision(what, str(value), why))


def inspect_folder(root: Path, progress: Progress = lambda *_: None) -> Inspection:
    """Look at a folder: its names, every mask, every image's size, and the images where they have to be divided.

    Raises:
        UserError: there are no images with masks in it, or masks that cannot be read as classes.
    """
    if not root.is_dir():
        raise UserError(f"there is no folder {root}; name the one that holds your images and masks")
    root = root.resolve()
    for name, kind in DATASETS.items():
        if kind.recognises(root):
            return _describe_known(root, name, kind)
    search = search_folder(root)
    files = {
        (word, name): path
        for word, names in search.pairing.names.items()
        for name in sorted(names)
        if (path := find_file(search, search.pairing.others, word, name)) is not None
    }
    values = read_masks(files, lambda done: progress("reading masks", done, len(files)))
    if len(values.problems) > _MOST_UNREADABLE * len(files):
        raise UserError(f"{len(values.problems)} of {len(files)} masks cannot be read; the first: {values.problems[0]}")
    lists_of = [root, root / search.pairing.others.folder.partition("{split}")[0], *_parents(root, search)]
    named, named_by = read_class_names(root, lists_of)
    choice = choose_classes(values, named, named_by)
    found = Inspection(root, Folder.name, masks=len(files), classes=choice.names)
    _describe_files(found, search)
    _describe_classes(found, choice, values)
    _find_sizes(found, search, values, progress)
    _choose_splits(found, search, values, choice, progress)
    found.example = _find_example(found, search)
    if search.depth is not None:
        _choose_depth(found, search, search.depth)
    return found


def _find_example(found: Inspection, search: Search) -> Path:
    """Return an image for validation."""
    names = found.lists.get("val") or next(
        (
            names
            for words in (search.listed, search.images)
            for word, names in words.items()
            if WORDS.get(word.lower()) == "val"
        ),
        (),
    )
    paths = {name: path for (naming, _, name), path in search.files.items() if naming == search.pairing.images}
    return next(paths[name] for name in (*names, *paths) if name in paths)


def _parents(root: Path, search: Search) -> Iterable[Path]:
    """Yield the folders between the root and that of the masks."""
    folder = root / search.pairing.others.folder.partition("{split}")[0]
    while folder != root and root in folder.parents:
        folder = folder.parent
        yield folder


def _describe_known(root: Path, name: str, kind: type[SegmentationDataset]) -> Inspection:
    found = Inspection(root, name)
    build: Callable[..., SegmentationDataset] = kind
    for split in kind.find_splits(root):
        try:
            dataset = build(root, split)
        except EmptySplit:
            continue
        found.images[split], found.classes, found.example = len(dataset), dataset.classes, Path(dataset.describe(0))
        if split == "train":
            found.sizes.update(map(dataset.read_size, range(len(dataset))))
            found.masks = len(dataset)
            if dataset.ground_truth_depth_kind is not None:
                found.depth = dataset.ground_truth_depth_kind
    listed = ", ".join(f"{split} ({count})" for split, count in found.images.items())
    found.decide("splits", listed, "the dataset's own")
    found.decide("data.dataset", name, f"the folders and names are those of {kind.summary}")
    return found


def _describe_files(found: Inspection, search: Search) -> None:
    pairing = search.pairing
    usual = FileLayout(found.root)
    for option, naming, of_layout in (("images", pairing.images, usual.images), ("masks", pairing.others, usual.masks)):
        if naming.pattern != of_layout:
            found.options[option] = naming.pattern
    found.decide("images", pairing.images.pattern, f"{sum(map(len, search.images.values()))} files")
    found.decide("masks", pairing.others.pattern, f"{pairing.num_pairs} of them pair with an image by name")
    if search.rivals:
        found.notes.append(
            f"other files may be masks, too: {format_examples(search.rivals[:3], len(search.rivals))}; to take such, "
            "name them in data.options.masks"
        )
    if search.elsewhere:
        shown = [f"{folder or '.'} ({count})" for folder, count in list(search.elsewhere.items())[:EXAMPLES]]
        found.notes.append(f"images in other folders are not read: {format_examples(shown, len(search.elsewhere))}")


def _describe_classes(found: Inspection, choice: ClassChoice, values: MaskValues) -> None:
    found.options |= to_options(choice)
    labelled = sum(values.pixels[value] for value in choice.values)
    found.shares = {
        name: values.pixels[value] / labelled if labelled else 0.0
        for name, value in zip(choice.names, choice.values, strict=True)
    }
    found.decide("masks are", choice.how, choice.why)
    found.decide(
        "classes",
        ", ".join(choice.names[:12]) + (", …" if len(choice.names) > 12 else ""),
        f"names from {choice.named_by}" if choice.named_by else "nothing names them; write their names into the recipe",
    )
    found.problems += values.problems[:EXAMPLES]


def _find_sizes(found: Inspection, search: Search, values: MaskValues, progress: Progress) -> None:
    """Read the size of every image with a mask, and compare the two."""
    unlike = []
    for done, ((word, name), content) in enumerate(values.contents.items(), start=1):
        path = find_file(search, search.pairing.images, word, name)
        assert path is not None, "it was paired"
        try:
            size = read_image_size(path)
        except UserError as problem:
            found.problems.append(str(problem))
            continue
        found.sizes[size] += 1
        if size != content.size:
            unlike.append(f"{name} ({content.size[1]} x {content.size[0]}, image {size[1]} x {size[0]})")
        progress("reading sizes", done, len(values.contents))
    if unlike:
        found.problems.append(
            f"masks of another size than their image: {len(unlike)} "
            f"({format_examples(unlike[:EXAMPLES], len(unlike))}); make them anew at the image's size"
        )


def _choose_splits(
    found: Inspection, search: Search, values: MaskValues, choice: ClassChoice, progress: Progress
) -> None:
    """Find which images are for training and which for validation, or divide them."""
    by_folder = set(search.images) != {""}
    own = {} if by_folder else search.listed
    source = own or {word: names for word, names in search.images.items() if word}
    words: dict[str, str] = {}
    for word in source:
        words.setdefault(WORDS[word.lower()], word)
    if words and "train" not in words:
        raise UserError(f"there are images for {', '.join(sorted(source))} in {found.root}, but none for training")
    if {"train", "val"} <= words.keys():
        for split, word in words.items():
            found.images[split] = len(source[word])
        renamed = any(split != word for split, word in words.items())
        if by_folder:
            found.options |= {"split_names": words} if renamed else {}
        elif renamed:
            found.lists = {split: own[word] for split, word in words.items()}
        else:
            found.options["lists"] = search.lists
        where = f"folders {search.pairing.images.folder}" if by_folder else f"lists {search.lists}"
        found.decide("splits", ", ".join(f"{split} ({found.images[split]})" for split in words), f"by the {where}")
    else:
        word = words.get("train", "")
        labelled = [key for key in values.contents if (key[0] == word if by_folder else not own or key[1] in own[word])]
        division = _divide(found, search, values, choice, labelled, progress)
        found.lists = {"train": division.train, "val": division.val}
        found.lists |= {"test": tuple(source[words["test"]])} if "test" in words else {}
        found.images |= {split: len(names) for split, names in found.lists.items()}
        if by_folder:
            found.options["split_names"] = words | {"val": word}
        found.decide(
            "splits", ", ".join(f"{split} ({len(names)})" for split, names in found.lists.items()), division.why
        )
    if not by_folder:
        listed = sum(count for split, count in found.images.items() if split != POOL)
        if rest := len(search.images[""]) - listed:
            found.images[POOL] = rest
            found.decide(
                POOL, rest, "images that no list names, as without a mask; phases that learn depth read them, too"
            )
    if "test" not in found.images:
        found.decide("test", "none", "scores are of val; nothing is selected on it, unless you choose by its scores")


def _divide(
    found: Inspection,
    search: Search,
    values: MaskValues,
    choice: ClassChoice,
    keys: list[tuple[str, str]],
    progress: Progress,
) -> Division:
    if len(keys) < 2:
        elsewhere = sum(search.elsewhere.values())
        raise UserError(
            f"{found.root} has {len(keys)} image with a mask; one to train on and one to score are needed"
            + (f". {elsewhere} images in other folders are not read: bring all into one folder" if elsewhere else "")
        )
    hashes = {}
    for done, (word, name) in enumerate(keys, start=1):
        path = find_file(search, search.pairing.images, word, name)
        assert path is not None, "it was paired"
        try:
            hashes[name] = compute_look_hash(read_image(path).pixels)
        except UserError:
            continue  # told with the sizes
        progress("comparing images", done, len(keys))
    kept = set(choice.values)
    classes = {name: frozenset(kept & values.contents[word, name].pixels.keys()) for word, name in keys}
    return divide(hashes, classes)


def _choose_depth(found: Inspection, search: Search, naming: Naming) -> None:
    """Say what the depth maps beside the images hold."""
    if naming.pattern != FileLayout.depth:
        found.options["depth"] = naming.pattern
    paths = [
        path
        for word, names in search.images.items()
        for name in names[:_MAPS_LOOKED_AT]
        if (path := find_file(search, naming, word, name)) is not None
    ][:_MAPS_LOOKED_AT]
    try:
        scales = read_scales(paths[0].parent / SCALES_FILE)
        if scales is not None and scales.kind is not None:
            found.depth, why = scales.kind, f"{SCALES_FILE} beside the maps says so"
        else:
            found.depth, why = _guess_kind(paths, naming)
            found.options["depth_kind"] = str(found.depth)
    except UserError as problem:
        found.notes.append(f"there are depth maps ({naming.pattern}), which are not read: {problem}")
        found.options.pop("depth", None)
        found.depth = None
        return
    found.decide("own depth", f"{naming.pattern}, {found.depth}", why)


def _guess_kind(paths: Iterable[Path], naming: Naming) -> tuple[DepthKind, str]:
    if "disp" in naming.pattern.lower():
        return DepthKind.RELATIVE, "disparity is inverse depth"
    slopes = []
    for path in paths:
        depth = read_npy(path) if path.suffix.lower() == ".npy" else read_png16(path)
        rows = np.array([np.median(row[np.isfinite(row)]) for row in depth if np.isfinite(row).any()])
        if len(rows) > 1 and rows.std() > 0:
            slopes.append(float(np.corrcoef(rows, np.arange(len(rows)))[0, 1]))
    if slopes and float(np.mean(slopes)) > 0:
        return (
            DepthKind.RELATIVE,
            "numbers grow downwards, where things mostly are near: inverse depth; check it",
        )
    return DepthKind.METRIC, "numbers shrink downwards, where things mostly are near: distances; check it"

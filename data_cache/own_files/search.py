"""Find images, masks, depth maps and lists of splits in a folder, by their names and by a look into a few of them."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Container, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data_cache.annotations.interface import SHEET_FILE
from data_cache.datasets.file_layout import DEPTH_SUFFIXES
from data_cache.datasets.id_list import read_id_list
from data_cache.datasets.paired_files import read_stem
from data_cache.errors import UserError
from data_cache.images import IMAGE_SUFFIXES, format_examples, open_image

WORDS = {
    "train": "train", "training": "train", "trn": "train",
    "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test",
    "unlabelled": "unlabelled", "unlabeled": "unlabelled",
}  # fmt: skip
"""Word for a split, as people write it -> what it is called here."""
_KIND = r"(?:_?(?:annot|ann|images?|imgs?|masks?|labels?|gt|x|y|\d{4}))"
_SPLIT_PART = re.compile(
    rf"(?P<before>(?:.+[_\-. ])?)(?P<word>{'|'.join(sorted(WORDS, key=len, reverse=True))})"
    rf"(?P<after>(?:[_\-. ].+|{_KIND})?)",
    re.IGNORECASE,
)
_TAIL = re.compile(r"(?:[_\-. ][A-Za-z][A-Za-z0-9]*|(?<=\d)[A-Za-z]+)$")
_HEAD = re.compile(r"^[A-Za-z]+(?:[_\-. ]|(?=\d))")
_MASK_WORDS = re.compile(r"mask|label|annot|(?<![a-z])(gt|seg|ann)|segmentation|class|truth", re.IGNORECASE)
_OTHER_WORDS = re.compile(r"inst|object|colou?r|vis|overlay|edge|bound|panoptic", re.IGNORECASE)
_DEPTH_WORDS = re.compile(r"depth|disp", re.IGNORECASE)
_SKIPPED = ("__MACOSX", SHEET_FILE)
"""No images of the data: what archives of one system hold besides, and what `pipeline import` draws."""
_MOST_FILES = 1_000_000
_PATTERNS_TRIED = 8
_FEW_VALUES = 64
"""A mask has hardly more ids or colours."""
_LOOKED_AT = 3
"""Pairs of which a kind of files is judged."""
_LIST_SHARE = 0.8
"""Of a text file's lines that must name an image for it to be a list of them."""


class Naming(NamedTuple):
    """Files of one kind: ``folder/prefix + name + ending + suffix``."""

    folder: str
    """Below the root, with ``{split}`` for the word of a split."""
    prefix: str
    ending: str
    suffix: str
    """In small letters; "" is any."""

    @property
    def pattern(self) -> str:
        """As ``file_layout`` takes it."""
        name = f"{self.prefix}{{name}}{self.ending}{self.suffix}"
        return f"{self.folder}/{name}" if self.folder else name


class Pairing(NamedTuple):
    """Images, and files that belong to them by name."""

    images: Naming
    others: Naming
    names: Mapping[str, frozenset[str]]
    """Names that both have, by the word of a split; "" where the folder has none."""

    @property
    def num_pairs(self) -> int:
        """How many pairs there are."""
        return sum(map(len, self.names.values()))


class Search(NamedTuple):
    """What lies in a folder."""

    pairing: Pairing
    images: Mapping[str, tuple[str, ...]]
    """Names of all images by the word of a split."""
    rivals: tuple[str, ...]
    """Patterns of other files that might be masks."""
    elsewhere: Mapping[str, int]
    """Number of images in folders that are not taken."""
    depth: Naming | None
    lists: str | None
    """Pattern of lists of the images of splits."""
    listed: Mapping[str, tuple[str, ...]]
    """Names of images by the word of a split, as the lists have them."""
    files: Mapping[tuple[Naming, str, str], Path]
    """By naming, word of the split and name of the image."""


_Groups = dict[str, dict[str, list[Path]]]
"""Folder, with ``{split}`` -> word of a split -> files."""


def search_folder(root: Path) -> Search:
    """Look for images and their masks below a folder.

    Raises:
        UserError: there is no image, or no mask belongs to any.
    """
    groups = _group_files(root)
    image_groups = {
        folder: found
        for folder, words in groups.items()
        if (found := {word: [path for path in paths if path.suffix.lower() != ".npy"] for word, paths in words.items()})
        and any(found.values())
    }
    if not image_groups:
        raise UserError(
            f"there is no image below {root} ({', '.join(IMAGE_SUFFIXES)}); name the folder that holds the images and "
            "their masks"
        )
    candidates = sorted(_find_pairings(image_groups), key=_rank, reverse=True)
    pairing = next((found for found in candidates if _are_masks(found, image_groups)), None)
    if pairing is None:
        counted = {folder: sum(map(len, words.values())) for folder, words in image_groups.items()}
        shown = [f"{folder or '.'} ({count})" for folder, count in sorted(counted.items(), key=lambda item: -item[1])]
        raise UserError(
            f"below {root} there are images but no masks that pair with them by name; images lie in: "
            f"{format_examples(shown[:8], len(shown))}. A mask is called like its image (cat.jpg, cat.png) or "
            "with something before or behind that (cat_mask.png), in the same folder or in another one"
        )
    images = {
        word: tuple(sorted({name for _, name in _read_names(image_groups, pairing.images, word, pairing.others)}))
        for word in image_groups[pairing.images.folder]
    }
    rivals = [
        found.others.pattern
        for found in candidates
        if found.images == pairing.images
        and found.others != pairing.others
        and found.num_pairs >= pairing.num_pairs / 2
        and _are_masks(found, image_groups)
    ]
    depth = _find_depth(groups, images)
    lists, listed = _find_lists(
        root, {name for names in images.values() for name in names}, frozenset().union(*pairing.names.values())
    )
    known = [found.others for found in candidates if found.others.pattern in rivals] + ([depth] if depth else [])
    taken = {naming.folder for naming in (pairing.images, pairing.others, *known)}
    elsewhere = {folder: sum(map(len, words.values())) for folder, words in image_groups.items() if folder not in taken}
    files: dict[tuple[Naming, str, str], Path] = {}
    for naming in (pairing.images, pairing.others, *([depth] if depth else [])):
        against = pairing.others if naming == pairing.images else None
        of_naming = groups if naming == depth else image_groups
        for word in images:
            for path, name in _read_names(of_naming, naming, word, against):
                files.setdefault((naming, word, name), path)
    return Search(pairing, images, tuple(dict.fromkeys(rivals)), elsewhere, depth, lists, listed, files)


def find_file(search: Search, naming: Naming, word: str, name: str) -> Path | None:
    """Return the file of an image; None where there is none."""
    return search.files.get((naming, word, name))


def _group_files(root: Path) -> _Groups:
    groups: _Groups = {}
    seen = 0
    for place, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in _SKIPPED)
        found = [
            Path(place, name)
            for name in sorted(files)
            if not name.startswith(".") and name not in _SKIPPED and name.lower().endswith((*IMAGE_SUFFIXES, ".npy"))
        ]
        if not found:
            continue
        seen += len(found)
        if seen > _MOST_FILES:
            raise UserError(f"below {root} there are more than {_MOST_FILES:,} images; name the folder of one dataset")
        folder, word = _take_word_out(Path(place).relative_to(root))
        groups.setdefault(folder, {})[word] = found
    return groups


def _take_word_out(folder: Path) -> tuple[str, str]:
    """Return a folder's path with ``{split}`` in the place of a split's word, and the word, "" where there is none."""
    word, parts = "", []
    for part in folder.parts:
        match = _SPLIT_PART.fullmatch(part)
        if match and word in ("", match["word"]):
            word = match["word"]
            part = f"{match['before']}{{split}}{match['after']}"
        parts.append(part)
    return "/".join(parts), word


def _split_stem(stem: str) -> Iterator[tuple[str, str, str]]:
    """Yield (prefix, ending, name) that a stem may be made of, the whole stem first."""
    yield "", "", stem
    name, ending = stem, ""
    for _ in range(2):
        if (tail := _TAIL.search(name)) is None or tail.start() == 0:
            break
        name, ending = name[: tail.start()], name[tail.start() :] + ending
        yield "", ending, name
    if (head := _HEAD.match(stem)) is not None and head.end() < len(stem):
        yield head[0], "", stem[head.end() :]


_Named = dict[tuple[str, str], dict[str, Path]]
"""(Prefix, ending) -> name -> file."""


def _name_files(paths: Sequence[Path]) -> _Named:
    """Return the files under the names they may mean; a way to read names that reads two alike is none."""
    named: dict[tuple[str, str], dict[str, list[Path]]] = {}
    for path in paths:
        for prefix, ending, name in _split_stem(read_stem(path)):
            named.setdefault((prefix, ending), {}).setdefault(name, []).append(path)
    sound = {
        key: {n: p[0] for n, p in files.items()} for key, files in named.items() if max(map(len, files.values())) == 1
    }
    return dict(sorted(sound.items(), key=lambda item: -len(item[1]))[:_PATTERNS_TRIED])


def _find_pairings(groups: _Groups) -> Iterator[Pairing]:
    """Yield all ways in which files of two folders, or of one, belong together by their names."""
    named = {folder: {word: _name_files(paths) for word, paths in words.items()} for folder, words in groups.items()}
    for image_folder, image_words in named.items():
        for other_folder, other_words in named.items():
            if image_folder == other_folder:
                yield from _pair_within(image_folder, groups[image_folder])
                continue
            alone = other_words.get("") if other_words.keys() == {""} else None  # one folder of masks for all splits
            found = {word: other_words.get(word, alone) for word in image_words}
            both = {word: (image_words[word], others) for word, others in found.items() if others is not None}
            yield from _match(image_folder, other_folder, "", both)


def _pair_within(folder: str, words: Mapping[str, list[Path]]) -> Iterator[Pairing]:
    """Yield the pairings of files that lie beside each other: of masks with a suffix, ending or prefix of their own."""
    suffixes = {path.suffix.lower() for paths in words.values() for path in paths}
    for suffix in sorted(suffixes):
        named: dict[str, tuple[_Named, _Named]] = {}
        for word, paths in words.items():
            of_suffix = [path for path in paths if path.suffix.lower() == suffix]
            rest = [path for path in paths if path.suffix.lower() != suffix]
            named[word] = _name_files(rest), _name_files(of_suffix)
        yield from _match(folder, folder, suffix, named)
    endings = Counter(
        (prefix, ending)
        for paths in words.values()
        for path in paths
        for prefix, ending, _ in _split_stem(read_stem(path))
        if prefix or ending
    )
    for (prefix, ending), _ in endings.most_common(_PATTERNS_TRIED):
        named = {}
        for word, paths in words.items():
            stems = {path: read_stem(path) for path in paths}
            fitting = {p for p, stem in stems.items() if stem.startswith(prefix) and stem.endswith(ending)}
            others = {
                (prefix, ending): {stems[p][len(prefix) : len(stems[p]) - len(ending)]: p for p in sorted(fitting)}
            }
            named[word] = _name_files([path for path in paths if path not in fitting]), others
        yield from _match(folder, folder, "", named)


def _match(
    image_folder: str, other_folder: str, suffix: str, named: Mapping[str, tuple[_Named, _Named]]
) -> Iterator[Pairing]:
    """Yield the pairings of two lists of named files of each split that have names in common."""
    keys = dict.fromkeys((one, other) for images, others in named.values() for one in images for other in others)
    for one, other in keys:
        names = {
            word: frozenset(images[one].keys() & others[other].keys())
            for word, (images, others) in named.items()
            if one in images and other in others
        }
        names = {word: common for word, common in names.items() if common}
        if names:
            yield Pairing(Naming(image_folder, *one, ""), Naming(other_folder, *other, suffix), names)


def _rank(pairing: Pairing) -> tuple[float, ...]:
    """Return what makes one pairing likelier than another: the number of pairs, then words, then simple names."""
    words = f"{pairing.others.folder} {pairing.others.prefix} {pairing.others.ending}"
    taken_off = sum(len(naming.prefix) + len(naming.ending) for naming in (pairing.images, pairing.others))
    return (
        not _DEPTH_WORDS.search(pairing.images.pattern),
        pairing.num_pairs,
        -len(_OTHER_WORDS.findall(words)),
        bool(_MASK_WORDS.search(words)),
        -taken_off,
    )


def _are_masks(pairing: Pairing, groups: _Groups) -> bool:
    """Look into a few pairs: masks have few values, and fewer than their images."""
    if _DEPTH_WORDS.search(pairing.others.folder + pairing.others.ending + pairing.others.prefix):
        return False
    said = _MASK_WORDS.search(f"{pairing.others.folder} {pairing.others.prefix} {pairing.others.ending}")
    word, names = max(pairing.names.items(), key=lambda item: len(item[1]))
    ordered = sorted(names)
    votes = []
    images = {name: path for path, name in _read_names(groups, pairing.images, word, pairing.others)}
    others = {name: path for path, name in _read_names(groups, pairing.others, word, None)}
    for place in sorted({0, len(ordered) // 2, len(ordered) - 1})[:_LOOKED_AT]:
        if ordered[place] not in images or ordered[place] not in others:
            return False
        values, shown = _count_values(others[ordered[place]]), _count_values(images[ordered[place]])
        if values and shown:
            votes.append(values < shown and (values <= _FEW_VALUES or said is not None))
    return bool(votes) and sum(votes) * 2 > len(votes)


def _count_values(path: Path) -> int:
    """Return how many colours or numbers a file holds, of every n-th pixel; 0 where it cannot be read."""
    try:
        with open_image(path, "image", missing="", broken="") as image:
            pixels = np.asarray(image.convert("RGB") if image.mode not in ("1", "L", "P", "I", "I;16", "F") else image)
    except UserError:
        return 0
    step = max(1, max(pixels.shape[:2]) // 512)
    seen = pixels[::step, ::step]
    if seen.ndim == 3:
        seen = seen.astype(np.int64) @ np.array([1 << 16, 1 << 8, 1])
    return len(np.unique(seen))


def _read_names(groups: _Groups, naming: Naming, word: str, against: Naming | None) -> Iterator[tuple[Path, str]]:
    """Yield the files of a split that are called as a naming says, but for those that another one fits better."""
    words = groups[naming.folder]
    for path in words.get(word, words.get("", [])):
        stem = read_stem(path)
        other = against is not None and against.folder == naming.folder and _fits(against, path, stem)
        if _fits(naming, path, stem) and not (other and against is not None and _length(against) > _length(naming)):
            yield path, stem[len(naming.prefix) : len(stem) - len(naming.ending)]


def _fits(naming: Naming, path: Path, stem: str) -> bool:
    named = len(stem) > len(naming.prefix) + len(naming.ending)
    of_suffix = naming.suffix in ("", path.suffix.lower())
    return named and stem.startswith(naming.prefix) and stem.endswith(naming.ending) and of_suffix


def _length(naming: Naming) -> int:
    return len(naming.prefix) + len(naming.ending) + len(naming.suffix)


def _find_depth(groups: _Groups, names: Mapping[str, Sequence[str]]) -> Naming | None:
    """Return the files with a word for depth in their names that belong to most images."""
    wanted = {(word, name) for word, of_word in names.items() for name in of_word}
    best: tuple[int, Naming] | None = None
    for folder, words in groups.items():
        named = {
            word: _name_files([path for path in paths if path.suffix.lower() in DEPTH_SUFFIXES])
            for word, paths in words.items()
        }
        for prefix, ending in dict.fromkeys(key for of_word in named.values() for key in of_word):
            if not _DEPTH_WORDS.search(f"{folder} {prefix} {ending}"):
                continue
            found = {(word, name) for word, of_word in named.items() for name in of_word.get((prefix, ending), ())}
            if found & wanted and (best is None or len(found & wanted) > best[0]):
                best = len(found & wanted), Naming(folder, prefix, ending, "")
    return best[1] if best and best[0] * 2 > len(wanted) else None


def _find_lists(
    root: Path, names: Container[str], labelled: Container[str]
) -> tuple[str | None, dict[str, tuple[str, ...]]]:
    """Return the pattern of the lists that name most images with masks, and what they name by their own words."""
    found: dict[str, dict[str, tuple[str, ...]]] = {}
    for place, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        folder = Path(place).relative_to(root).as_posix()
        for file in sorted(files):
            match = _SPLIT_PART.fullmatch(file.removesuffix(".txt"))
            if not file.endswith(".txt") or match is None:
                continue
            needed = labelled if WORDS[match["word"].lower()] in ("train", "val") else names
            if listed := _read_list(Path(place, file), needed):
                pattern = f"{match['before']}{{split}}{match['after']}.txt"
                found.setdefault(pattern if folder == "." else f"{folder}/{pattern}", {})[match["word"]] = listed

    def rank(pattern: str) -> tuple[float, ...]:
        of_splits = {WORDS[word.lower()]: len(listed) for word, listed in found[pattern].items()}
        return of_splits["train"] + of_splits.get("val", 0), "segm" in pattern.lower(), -len(pattern)

    usable = [pattern for pattern, by_word in found.items() if "train" in {WORDS[word.lower()] for word in by_word}]
    best = max(usable, key=rank, default=None)
    return best, found[best] if best else {}


def _read_list(path: Path, names: Container[str]) -> tuple[str, ...]:
    try:
        listed = read_id_list(path, names)
    except UserError:
        return ()
    known = [name for name in listed if name in names]
    return tuple(known) if known and len(known) >= _LIST_SHARE * len(listed) else ()

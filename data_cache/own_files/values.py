"""What the masks of a folder say: read each once, and decide which number or colour is which class or void."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data_cache.content import read_text
from data_cache.datasets.folder import VOID_COLOURS
from data_cache.datasets.interface import RGB
from data_cache.datasets.mask_files import read_mask_ids
from data_cache.errors import UserError
from data_cache.images import format_examples, open_image
from data_cache.sample import IGNORE_INDEX

_THREADS = 8
_MOST_CLASSES = 120
"""More ids than this are objects numbered one by one, or smoothed edges, unless a list names as many classes."""
_RARE = 0.2
"""Share of the pixels up to which black is void rather than a class, among many colours, and up to which greys are
edges."""
_FEW = 8
"""Ids of which as many, spread from 0 to 255, may be the greys of smoothed edges."""
NAME_FILES = (
    "classes.txt", "labelmap.txt", "label_map.txt", "class_dict.csv", "class_dict_seg.csv", "codes.txt", "labels.txt",
    "label_colors.txt", "label_colours.txt", "class_names.txt", "_classes.csv", "classes.csv",
)  # fmt: skip
"""Lists of classes as tools call them."""
_WORDS_OF_VOID = ("void", "ignore", "unlabelled", "unlabeled", "ignored", "don't care")


class MaskContent(NamedTuple):
    """What one mask holds."""

    size: tuple[int, int]
    """(height, width), px."""
    pixels: Mapping[int, int]
    """Pixels by id, or by colour as ``red << 16 | green << 8 | blue``."""
    is_colour: bool
    palette: tuple[RGB, ...]
    """Of a palette image, () of others."""


class NamedClass(NamedTuple):
    """A class as a list of somebody's names it."""

    name: str
    colour: RGB | None


@dataclass
class MaskValues:
    """What all masks of a folder hold together."""

    pixels: Counter[int] = field(default_factory=Counter)
    """By id or colour."""
    images: Counter[int] = field(default_factory=Counter)
    """In how many masks each is."""
    contents: dict[tuple[str, str], MaskContent] = field(default_factory=dict)
    """By word of the split and name of the image; of masks that can be read."""
    problems: list[str] = field(default_factory=list)
    """Of masks that cannot, in words."""
    num_colour: int = 0
    """Masks that are RGB images."""
    palettes: set[tuple[RGB, ...]] = field(default_factory=set)


class ClassChoice(NamedTuple):
    """Which value in a mask is which class."""

    names: tuple[str, ...]
    colours: tuple[RGB, ...] | None
    """Where masks are RGB images."""
    values: tuple[int, ...]
    """Id or colour of each class."""
    void: tuple[int, ...]
    """Ids or colours that are void."""
    how: str
    """What the masks are, in words."""
    why: str
    """Why the values are read so."""
    named_by: str
    """Where the names are from."""


def read_masks(files: Mapping[tuple[str, str], Path], progress: Callable[[int], object] = lambda _: None) -> MaskValues:
    """Read every mask.

    Args:
        files: by word of the split and name of the image.
        progress: told how many are read.
    """
    found = MaskValues()
    with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1), thread_name_prefix="masks") as pool:
        for done, (key, content) in enumerate(zip(files, pool.map(_read_mask, files.values()), strict=True), start=1):
            progress(done)
            if isinstance(content, str):
                found.problems.append(content)
                continue
            found.contents[key] = content
            found.pixels.update(content.pixels)
            found.images.update(content.pixels.keys())
            found.num_colour += content.is_colour
            if content.palette:
                found.palettes.add(content.palette)
    return found


def _read_mask(path: Path) -> MaskContent | str:
    try:
        ids = read_mask_ids(path)
    except UserError as problem:
        return str(problem)
    size = ids.shape[0], ids.shape[1]
    if ids.ndim == 3:
        packed = ids.astype(np.int64) @ np.array([1 << 16, 1 << 8, 1])
        values, counts = np.unique(packed, return_counts=True)
    else:
        values, counts = np.unique(ids, return_counts=True)
    pixels = dict(zip(values.tolist(), counts.tolist(), strict=True))
    return MaskContent(size, pixels, ids.ndim == 3, _read_palette(path) if ids.ndim == 2 else ())


def _read_palette(path: Path) -> tuple[RGB, ...]:
    with open_image(path, "mask", missing="put it back", broken="replace the file") as image:
        flat = (image.getpalette() or []) if image.mode == "P" else []
    return tuple(zip(flat[::3], flat[1::3], flat[2::3], strict=True))


def read_class_names(root: Path, folders: Sequence[Path]) -> tuple[list[NamedClass], str]:
    """Return the classes that a list beside the data names, and the list; none where there is none.

    A line may have a colour: ``road 128 64 128``, ``128 64 128 road``, ``road,128,64,128``, ``road:128,64,128::``.

    Args:
        folders: where it may lie.
    """
    for folder in folders:
        for name in NAME_FILES:
            try:
                lines = read_text(folder / name, largest_bytes=1 << 20, remedy="").splitlines()
            except UserError:
                continue
            if found := [each for line in lines if (each := _parse_class(line)) is not None]:
                return found, str((folder / name).relative_to(root))
    return [], ""


def _parse_class(line: str) -> NamedClass | None:
    text = line.strip()
    if not text or text.startswith("#") or re.match(r"name\s*[,;]\s*r\b", text, re.IGNORECASE):
        return None
    match = re.match(r"(?P<name>.*?)[\s,:;]+(\d{1,3})[\s,:;]+(\d{1,3})[\s,:;]+(\d{1,3})[\s,:;]*$", text)
    if match and match["name"]:
        red, green, blue = map(int, match.groups()[1:])
        return NamedClass(match["name"].strip(), (red, green, blue))
    match = re.match(r"(\d{1,3})\s+(\d{1,3})\s+(\d{1,3})\s+(?P<name>\S.*)$", text)
    if match:
        red, green, blue = map(int, match.groups()[:3])
        return NamedClass(match["name"].strip(), (red, green, blue))
    if re.match(r"pixel value", text, re.IGNORECASE):
        return None
    numbered = re.match(r"\d+\s*[,;:]\s*(\S.*)$", text)
    return NamedClass(numbered[1].strip() if numbered else re.split("[:,;]", text)[0].strip(), None)


def choose_classes(found: MaskValues, named: Sequence[NamedClass], named_by: str) -> ClassChoice:
    """Decide which value is which class.

    Args:
        found: at least one mask.
        named: classes that a list names, in its order.
        named_by: that list.

    Raises:
        UserError: the masks are not of one kind, or hold no classes.
    """
    if 0 < found.num_colour < len(found.contents):
        raise UserError(
            f"{found.num_colour} of {len(found.contents)} masks are RGB images and the others hold ids; bring them "
            "into one form"
        )
    if found.num_colour:
        return _choose_colours(found, named, named_by)
    if len(found.palettes) > 1 and _differ(found):
        raise UserError(
            "the masks are palette images with palettes of their own, so one index is one class here and another "
            "there; save them as RGB images in the colours of the classes, or with one palette"
        )
    return _choose_ids(found, named, named_by)


def _differ(found: MaskValues) -> bool:
    """Whether an index that is used has different colours in different masks."""
    colours: dict[int, RGB] = {}
    for content in found.contents.values():
        for value in content.pixels:
            if (
                value < len(content.palette)
                and colours.setdefault(value, content.palette[value]) != content.palette[value]
            ):
                return True
    return False


def _choose_colours(found: MaskValues, named: Sequence[NamedClass], named_by: str) -> ClassChoice:
    colours = sorted(found.pixels, key=lambda value: -found.pixels[value])
    if len(colours) > _MOST_CLASSES:
        raise UserError(
            f"the masks are RGB images of {len(colours)} colours, so edges were smoothed or they are no masks; export "
            "them anew as PNG, without smoothing or compression"
        )
    how = f"RGB images of {len(colours)} colours"
    if named and all(each.colour for each in named):
        by_colour = {_pack(each.colour): each.name for each in named if each.colour}
        unknown = [value for value in colours if value not in by_colour and _unpack(value) not in VOID_COLOURS]
        if unknown:
            raise UserError(
                f"the masks hold colours that {named_by} does not name: {_list_colours(unknown)}; add a line for each, "
                "or draw them anew"
            )
        kept = [
            value
            for value, name in by_colour.items()
            if name.lower() not in _WORDS_OF_VOID or _unpack(value) not in VOID_COLOURS
        ]
        void = [value for value in colours if value not in kept]
        names = tuple(by_colour[value] for value in kept)
        why = f"{named_by} gives the colours" + (f"; void: {_list_colours(void)}" if void else "")
        return ClassChoice(names, tuple(map(_unpack, kept)), tuple(kept), tuple(void), how, why, named_by)
    void = [value for value in colours if _unpack(value) in VOID_COLOURS and value and len(colours) > 2]
    share = found.pixels[0] / sum(found.pixels.values())
    if len(colours) - len(void) > 3 and 0 < share < _RARE and 0 in found.pixels:
        void.append(0)
    kept = sorted(value for value in colours if value not in void)
    why = "each colour is a class"
    why += f"; {_list_colours(void)} taken for void, as white, borders and a little black mostly are" if void else ""
    names = _invent_names(kept, found)
    return ClassChoice(names, tuple(map(_unpack, kept)), tuple(kept), tuple(void), how, why, "")


def _choose_ids(found: MaskValues, named: Sequence[NamedClass], named_by: str) -> ClassChoice:
    ids = sorted(found.pixels)
    if len(ids) > max(_MOST_CLASSES, len(named)):
        raise UserError(
            f"the masks hold {len(ids)} different ids (from {ids[0]} to {ids[-1]}), so their edges were smoothed or "
            "they number objects; export them anew with one id per class, without smoothing"
        )
    kind = "palette images, read by index" if found.palettes else "grey images of ids"
    how = f"{kind}: {format_examples(ids[:12], len(ids))}"
    if found.palettes and named and all(each.colour for each in named):
        palette = next(iter(found.palettes))
        by_colour = {each.colour: each.name for each in named}
        known = {value: by_colour.get(palette[value]) if value < len(palette) else None for value in ids}
        if all(known[value] or value == IGNORE_INDEX for value in ids):
            places = {palette[value]: value for value in range(len(palette) - 1, -1, -1)}
            values = {places[each.colour]: each.name for each in named if each.colour in places}
            return _finish(values, ids, how, f"{named_by} gives the colours of the palette", named_by)
    _check_smooth(found, ids)
    steps = {after - before for before, after in pairwise(ids)}
    spread = len(steps) == 1 and steps != {1}  # 0, 85, 170, 255: classes made visible
    void = {IGNORE_INDEX} if IGNORE_INDEX in ids and len(ids) > 2 and not spread else set[int]()
    kept = [value for value in ids if value not in void]
    if len(kept) < 2:
        raise UserError(
            f"all masks hold nothing but {format_examples(ids, len(ids))}, so there is nothing to tell apart"
        )
    if named:
        return _match_names(kept, named, ids, how, named_by)
    if ids == [0, IGNORE_INDEX]:
        return ClassChoice(
            ("background", "object"), None, (0, IGNORE_INDEX), (), f"binary masks of 0 and {IGNORE_INDEX}",
            f"there are no other ids, so {IGNORE_INDEX} is a class and not void", "",
        )  # fmt: skip
    why = "each id is a class" + (f", and {IGNORE_INDEX} is void, as it is usually" if void else "")
    if kept[0] == 0:
        why += "; 0, too: if it means that nobody has drawn there, take it out of classes and ids"
    return ClassChoice(_invent_names(kept, found), None, tuple(kept), tuple(sorted(void)), how, why, "")


def _check_smooth(found: MaskValues, ids: Sequence[int]) -> None:
    """Refuse binary masks whose edges are grey."""
    between = [value for value in ids if value not in (0, IGNORE_INDEX)]
    share = sum(found.pixels[value] for value in between) / sum(found.pixels.values())
    if len(ids) >= _FEW and len(between) == len(ids) - 2 and between[-1] > 2 * len(ids) and share < _RARE:
        raise UserError(
            f"the masks hold 0, {IGNORE_INDEX} and {len(between)} numbers between ({share:.1%} of the pixels), so "
            "their edges were smoothed; export them anew without smoothing, or make what is below 128 into 0 and the "
            f"rest into {IGNORE_INDEX}"
        )


def _match_names(
    kept: Sequence[int], named: Sequence[NamedClass], ids: Sequence[int], how: str, named_by: str
) -> ClassChoice:
    names = [each.name for each in named]
    if ids == [0, IGNORE_INDEX] and len(names) in (1, 2):
        names = names if len(names) == 2 else ["background", *names]
        why = f"{named_by} names {len(named)} classes and there are no other ids, so {IGNORE_INDEX} is no void"
        return ClassChoice(
            tuple(names), None, (0, IGNORE_INDEX), (), f"binary masks of 0 and {IGNORE_INDEX}", why, named_by
        )
    if max(kept) < len(names):
        return _finish(
            dict(enumerate(names)), ids, how, f"the lines of {named_by} are ids 0 to {len(names) - 1}", named_by
        )
    if max(kept) == len(names):
        why = f"{named_by} names {len(names)} classes and the ids go up to {len(names)}, so line 1 is id 1"
        return _finish(dict(enumerate(names, start=1)), ids, how, why, named_by)
    if len(kept) == len(names):
        why = f"as many ids as lines in {named_by}, in order"
        return _finish(dict(zip(kept, names, strict=True)), ids, how, why, named_by)
    raise UserError(
        f"{named_by} names {len(names)} classes, but the masks hold the ids {format_examples(kept[:20], len(kept))}; "
        "write a line for every id, or draw the masks anew"
    )


def _finish(values: Mapping[int, str], ids: Iterable[int], how: str, why: str, named_by: str) -> ClassChoice:
    """Return the choice, with those classes void that are called so."""
    kept = {value: name for value, name in values.items() if name.lower() not in _WORDS_OF_VOID}
    void = sorted(set(ids) - kept.keys())
    why += f"; void: {format_examples(void, len(void))}" if void else ""
    return ClassChoice(tuple(kept.values()), None, tuple(kept), tuple(void), how, why, named_by)


def _invent_names(values: Sequence[int], found: MaskValues) -> tuple[str, ...]:
    """Return names for classes that nobody has named; what covers most, at 0 or black, is called background."""
    common = max(values, key=lambda value: found.pixels[value])
    binary = len(values) == 2 and 0 in values

    def name(place: int, value: int) -> str:
        if value == 0 and (value == common or binary):
            return "background"
        if binary:
            return "object"
        return f"colour {place}" if found.num_colour else f"class {value}"

    return tuple(name(place, value) for place, value in enumerate(values))


def _pack(colour: RGB) -> int:
    return colour[0] << 16 | colour[1] << 8 | colour[2]


def _unpack(value: int) -> RGB:
    return value >> 16, value >> 8 & 255, value & 255


def _list_colours(values: Sequence[int]) -> str:
    return format_examples([_unpack(value) for value in values[:8]], len(values))


def to_options(choice: ClassChoice) -> dict[str, Any]:
    """Return the choice as options of a ``folder`` dataset."""
    if choice.colours is not None:
        lines = [
            f"{name} {red} {green} {blue}"
            for name, (red, green, blue) in zip(choice.names, choice.colours, strict=True)
        ]
        return {"classes": lines}
    options: dict[str, Any] = {"classes": list(choice.names)}
    first = choice.values[0]
    if choice.values != tuple(range(first, first + len(choice.values))):
        options["ids"] = list(choice.values)
    elif first:
        options["first_id"] = first
    usual = {IGNORE_INDEX, *((0,) if min(choice.values) > 0 else ())}
    if set(choice.void) - usual:
        options["void_ids"] = sorted({*choice.void, *(usual - set(choice.values))})
    return options

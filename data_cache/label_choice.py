"""Which images of a split keep their masks when only a share of them is to: every class first, then by lot."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from data_cache.content import MissingText, read_text
from data_cache.errors import UserError, nearest
from data_cache.images import EXAMPLES, IMAGE_SUFFIXES, format_examples

CHOICE_STREAM = 4
"""First word of the random streams of choices, see ``samples.SAMPLE_STREAM``."""
_LARGEST_LIST = 1 << 26
"""Bytes: a million images."""


class CoveringOrder(NamedTuple):
    """An order of images; of every prefix the longer ones hold all."""

    places: list[int]
    """Of all images."""
    num_covering: int
    """So many from the beginning show every class that any image shows."""


def order_covering(classes: Sequence[Collection[int]], seed: int) -> CoveringOrder:
    """Return images in the order in which their masks are kept: for every class not seen yet, the rarest first, one
    image that shows it; then all others by lot.

    Args:
        classes: those that each image shows.
        seed: of the lot; other seeds keep other images.
    """
    lot = np.random.default_rng((CHOICE_STREAM, seed)).permutation(len(classes)).tolist()
    images = Counter(found for each in classes for found in set(each))
    chosen: dict[int, None] = {}
    seen: set[int] = set()
    for wanted in sorted(images, key=lambda found: (images[found], found)):
        if wanted not in seen:
            place = next(place for place in lot if wanted in classes[place])
            chosen[place] = None
            seen.update(classes[place])
    return CoveringOrder(list(dict.fromkeys([*chosen, *lot])), len(chosen))


def read_image_list(
    path: Path,
    image_ids: Iterable[str],
    split: str,
    *,
    option: str = "data.labelled_fraction",
    lacking: str = "neither a share, as 0.125 or 1/8, nor a file with ids",
) -> tuple[str, ...]:
    """Return the ids that a list names, one a line, in the order of the split; folder and suffix may stand with them.

    Args:
        image_ids: of the split.
        split: what it is called.
        option: where a person names the list.
        lacking: what that is if there is no list.

    Raises:
        UserError: there is no list, or it names no image, one twice, or one that the split has not.
    """
    try:
        text = read_text(path, largest_bytes=_LARGEST_LIST, remedy=f"it names an image of {split} per line")
    except MissingText as problem:
        raise UserError(f"{option} is {str(path)!r}, which is {lacking}") from problem
    known = dict.fromkeys(image_ids)
    named = Counter(_find_id(line.strip(), known) for line in text.splitlines() if line.strip())
    strange = [name for name in named if name not in known]
    twice = [name for name, times in named.items() if times > 1 and name in known]
    problems = []
    if strange:
        problems.append(
            f"{len(strange)} that {split} has not ({format_examples(strange[:EXAMPLES], len(strange))})"
            f"{nearest(strange[0], known)}"
        )
    if twice:
        problems.append(f"{len(twice)} twice ({format_examples(twice[:EXAMPLES], len(twice))})")
    if not named:
        problems.append(f"no image; write an id of {split} per line")
    if problems:
        raise UserError(f"the list {path} names {', and '.join(problems)}")
    return tuple(name for name in known if name in named)


def _find_id(line: str, known: Collection[str]) -> str:
    """Return the id of a line, which may be that of a file."""
    if line in known:
        return line
    name = PurePosixPath(line)
    return name.stem if name.suffix.lower() in IMAGE_SUFFIXES else name.name or line

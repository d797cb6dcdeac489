"""Divide images into train and val where nobody has: the same for ever, nearly equal images on one side."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from data_cache.likeness import LookHash, find_near, group_alike

VAL_SHARE = 0.2
_LARGEST_GROUP = 0.5
"""Share of the images in one group of nearly equal ones from which groups divide nothing."""


class Division(NamedTuple):
    """Names of the images of two splits."""

    train: tuple[str, ...]
    val: tuple[str, ...]
    left_out: tuple[str, ...]
    """Of neither: between the two parts of a film."""
    why: str


def divide(hashes: Mapping[str, LookHash], classes: Mapping[str, frozenset[int]], share: float = VAL_SHARE) -> Division:
    """Divide images.

    Which images go to val is drawn by their names, so that the same files are always divided alike. Of every class that
    is in three groups of images or more, one goes to val and one stays in train.

    Args:
        hashes: of all images by name, at least two.
        classes: classes that each image shows.
        share: of the images for val, about.
    """
    names = sorted(hashes)
    groups = [[names[place] for place in group] for group in group_alike([hashes[name] for name in names])]
    if max(map(len, groups)) > max(1, _LARGEST_GROUP * len(names)):
        return _divide_film(names, hashes, share)
    groups.sort(key=lambda group: _draw(group[0]))
    wanted = max(1, round(share * len(names)))
    most = min(max(1, 1.5 * wanted), len(names) - 1)
    shown = [frozenset[int]().union(*(classes.get(name, frozenset()) for name in group)) for group in groups]
    left = Counter(one for of_group in shown for one in of_group)
    rare_first = sorted(left, key=lambda one: (left[one], one))
    chosen: set[int] = set()

    def take(place: int) -> bool:
        """Move a group to val unless train would lose a class, or val become far too large."""
        size = sum(len(groups[each]) for each in (*chosen, place))
        if place in chosen or size > most or any(left[one] < 2 for one in shown[place]):
            return False
        chosen.add(place)
        left.subtract(shown[place])
        return True

    for one in rare_first:
        if left[one] >= 3 and not any(one in shown[place] for place in chosen):
            any(take(place) for place in range(len(groups)) if one in shown[place])
    for place in range(len(groups)):
        if sum(len(groups[each]) for each in chosen) >= wanted:
            break
        take(place)
    if not chosen:
        chosen.add(0)
    val = sorted(name for place in chosen for name in groups[place])
    train = sorted(set(names) - set(val))
    alike = sum(len(group) for group in groups if len(group) > 1)
    why = f"nothing says which images are for validation, so some were drawn by name: {len(val)} of {len(names)}"
    why += f"; {alike} images nearly equal another one, and such stay on one side" if alike else ""
    return Division(tuple(train), tuple(val), (), why)


def _divide_film(names: Sequence[str], hashes: Mapping[str, LookHash], share: float) -> Division:
    """Take the last ones by name, and leave out what nearly equals them just before."""
    cut = max(1, len(names) - max(1, round(share * len(names))))
    train, val = list(names[:cut]), list(names[cut:])
    near = {place for place, _ in find_near([hashes[name] for name in train], [hashes[name] for name in val])}
    why = "most images nearly equal others, as frames of a film do, so the last by name are for validation: "
    why += f"{len(val)} of {len(names)}"
    if len(near) <= len(train) / 4:
        left_out = [train[place] for place in sorted(near)]
        train = [name for place, name in enumerate(train) if place not in near]
        why += f"; {len(left_out)} images before them that nearly equal them are in neither" if left_out else ""
    else:
        left_out = []
        why += "; they nearly equal the rest (a camera that does not move?), so scores hold for this scene alone"
    return Division(tuple(train), tuple(val), tuple(left_out), why)


def _draw(name: str) -> bytes:
    return hashlib.blake2b(name.encode(), digest_size=8).digest()

"""Whether the maps of a split look like depth: what is stored without an error may still be nothing to learn from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from data_cache.depth_map import MapRecord
from data_cache.errors import UserError

LOW_VALID_SHARE = 0.2
"""A map with fewer valid pixels is worth a look; stereo leaves out about a quarter of them, lidar is that sparse."""
UPSIDE_DOWN = -0.2
"""Mean correlation of inverse depth with the row below which a split is suspicious: near 0 for views from above, well
above it for upright photographs, and of the opposite sign where near and far are exchanged."""
_SHOWN = 5
_FEW_MAPS = 8
"""Of fewer maps than these nothing is said about their orientation."""


class Suspicion(NamedTuple):
    """Something that is no error, but that a person should look at."""

    image: str
    """Empty when it is about all maps together."""
    reason: str


def find_suspicious(records: Mapping[str, MapRecord]) -> list[Suspicion]:
    """Return what is odd about the maps of a split, by image; what is odd about all together comes last."""
    found = [
        Suspicion(image_id, reason) for image_id, record in records.items() if (reason := _find_oddity(record)) != ""
    ]
    upright = [record.row_correlation for record in records.values() if math.isfinite(record.row_correlation)]
    if len(upright) >= _FEW_MAPS and (mean := math.fsum(upright) / len(upright)) < UPSIDE_DOWN:
        reason = (
            f"near is at the top and far at the bottom, on average of {len(upright)} maps (correlation of inverse "
            f"depth with the row {mean:.2f}); does the estimator give distances where inverse depth is declared, or "
            "the reverse? See --kind, or depth_kind of the dataset"
        )
        found.append(Suspicion("", reason))
    return found


def describe_suspicious(suspicious: Sequence[Suspicion]) -> list[str]:
    """Return lines about maps that hardly look like depth: a few examples, and what is odd about all together."""
    single = [found for found in suspicious if found.image]
    lines = [f"suspicious depth: {found.image}: {found.reason}" for found in single[:_SHOWN]]
    if len(single) > _SHOWN:
        lines.append(
            f"suspicious depth: {len(single) - _SHOWN} more images; pipeline --json cache verify lists them all"
        )
    return lines + [f"suspicious depth: {found.reason}" for found in suspicious if not found.image]


def check_worth(records: Mapping[str, MapRecord], folder: Path) -> None:
    """Refuse maps none of which says anything.

    Raises:
        UserError: each is constant or has no valid pixel.
    """
    if records and all(record.valid_share == 0 or record.std == 0 for record in records.values()):
        raise UserError(
            f"every map of {len(records)} images in {folder} is constant or without a valid pixel, so there is nothing "
            "to learn from them; look at the weights of the estimator (or at the dataset's depth files), remove that "
            "folder and label again"
        )


def _find_oddity(record: MapRecord) -> str:
    if record.valid_share == 0:
        return "no pixel is valid"
    if record.std == 0:
        return "every valid pixel has the same depth"
    if record.valid_share < LOW_VALID_SHARE:
        return f"only {record.valid_share:.1%} of the pixels are valid"
    return ""

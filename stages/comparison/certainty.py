"""What differences need all rows of a table for: Holm's adjustment, the noise of seeds; and intervals over images.

Imports no torch, and numpy only where there is something to compute.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from data_cache.errors import UserError
from data_cache.metrics import HEADLINE, IMAGES_FILE
from stages.comparison.notes import gather_notes
from stages.comparison.record import RunRecord
from stages.comparison.rows import Row, label_rows
from stages.comparison.statistics import POWER, Difference, Interval, Noise, adjust_holm, measure_noise

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_SAME_SCORE = 1e-6
HOW_TO_READ_DIFFERENCES = (
    "a difference's ± is half of its 95 % paired t-interval over seeds (would another training do the same?); p is "
    "that of the paired t test, Holm p the same adjusted for all differences of the table, whatever each is to"
)
HOW_TO_READ_IMAGES = (
    "over images: 95 % paired bootstrap interval (would other images give the same?); images of the reported split are "
    "drawn with replacement, the same for both rows and all seeds; it is too narrow where images depend on each other, "
    "as frames of one video do"
)


class _NoInterval(UserError):
    """There is no interval over images, and nothing is wrong with the files that are there."""


class Judged(NamedTuple):
    """Rows whose differences hold all that is known of them."""

    rows: tuple[Row, ...]
    noise: Noise | None
    notes: tuple[str, ...]


def judge_differences(rows: Sequence[Row]) -> Judged:
    """Complete the differences of the headline metric, and say what seeds alone do to it.

    One seed gives no interval, neither over seeds nor over images. Holm's adjustment is for all differences of the
    table, whatever each row is compared with.

    Raises:
        UserError: what a run's images scored is damaged, or of other scores than the run's.
    """
    tested = [row for row in rows if HEADLINE in row.differences and row.differences[HEADLINE].p is not None]
    completed: dict[int, Row] = {}
    reasons: list[tuple[str, str]] = []
    labels = {id(row): label for label, row in zip(label_rows(rows), rows, strict=True)}
    drawn: dict[int, _Drawn] = {}
    adjusted = adjust_holm([row.differences[HEADLINE].p or 0.0 for row in tested])
    for row, holm in zip(tested, adjusted, strict=True):
        assert row.base is not None, "it has a difference"
        found = row.differences[HEADLINE]._replace(holm=holm)
        try:
            found = found._replace(images=_compare_over_images(row, row.base, found.seeds, drawn))
        except _NoInterval as problem:
            reasons.append((labels[id(row)], str(problem)))
        completed[id(row)] = replace(row, differences={**row.differences, HEADLINE: found})
    final = tuple(completed.get(id(row), row) for row in rows)
    shown = [row.differences[HEADLINE] for row in final if HEADLINE in row.differences]
    one_place = len({json.dumps(row.first.measurement, sort_keys=True) for row in rows}) == 1
    scored = (row.metrics[HEADLINE] for row in rows if HEADLINE in row.metrics and one_place)
    noise = measure_noise(scored, shown)
    return Judged(final, noise, (*_describe(noise, shown), *gather_notes(reasons, "no interval over images for ")))


class _Drawn(NamedTuple):
    """What a run scored on splits that were drawn from its images."""

    images: str
    """Hash of the ids and classes."""
    scores: NDArray[np.float64]
    """(R,)"""


def _compare_over_images(row: Row, base: Row, seeds: Sequence[int], drawn: dict[int, _Drawn]) -> Interval:
    """Return the interval of a row's difference to another over the images of the reported split.

    Args:
        drawn: what is known already, by run.

    Raises:
        _NoInterval: what the images scored is missing, or of other images.
        UserError: it is damaged, or of other scores.
    """
    from stages.comparison.bootstrap import find_interval

    differences = []
    for seed in seeds:
        pair = [next(run for run in each.runs if run.seed == seed) for each in (row, base)]
        for run in pair:
            if id(run) not in drawn:
                drawn[id(run)] = _draw(run)
        own, other = (drawn[id(run)] for run in pair)
        if own.images != other.images:
            raise _NoInterval(f"the images of {IMAGES_FILE} are not those of {base.name}")
        differences.append(own.scores - other.scores)
    return find_interval(differences)


def _draw(run: RunRecord) -> _Drawn:
    from data_cache.image_scores import read_image_scores
    from stages.comparison.bootstrap import pool_miou, replicate_miou

    if run.folder is None or not (run.folder / IMAGES_FILE).exists():
        raise _NoInterval(f"a run has no {IMAGES_FILE}, and could not be scored anew")
    scores = read_image_scores(run.folder / IMAGES_FILE)
    if not abs(pool_miou(scores)[0] - run.metrics[HEADLINE]) < _SAME_SCORE:
        raise UserError(
            f"{run.folder / IMAGES_FILE} is not of the scores in the run's record; remove it and repeat the command, "
            "which scores the run's weights anew where they still are"
        )
    images = hashlib.sha256(scores.image_ids.tobytes() + b"\0" + scores.classes.tobytes()).hexdigest()
    return _Drawn(images, replicate_miou(scores))


def _describe(noise: Noise | None, differences: Sequence[Difference]) -> Iterator[str]:
    """Say first what chance does, then what the figures beside differences are."""
    if noise is None:
        return
    yield (
        f"noise of seeds: {HEADLINE} of one row moves by {noise.floor:.4f} from seed to seed (standard deviation, "
        "pooled over rows)"
    )
    yield (
        f"with {noise.seeds} seeds a difference below {noise.detectable:.3f} cannot be seen: a paired t test at 95 % "
        f"shows one of that size {100 * POWER:.0f} % of the time, a smaller one less often"
    )
    if any(found.holm is not None for found in differences):
        yield HOW_TO_READ_DIFFERENCES
    if any(found.images for found in differences):
        yield HOW_TO_READ_IMAGES

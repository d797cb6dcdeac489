"""What a reader must know to judge a table, as sentences. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from data_cache.metrics import HEADLINE
from stages.comparison.identity import differing, join_values, show_value
from stages.comparison.obstacles import describe_differences
from stages.comparison.row_name import RowName
from stages.comparison.rows import ALIKE_STEPS, Row, label_rows

CONTROLS = {"seg-seg-seg": "same budget and restarts", "seg-only-long": "same budget, one decay"}
"""Rows that train segmentation alone for as long as the longest schedules, and what they share with them."""

HOW_TO_READ_MEANS = "± is half of the 95 % t-interval of the mean over seeds"


def write_notes(rows: Sequence[Row], compared_metrics: Sequence[str]) -> list[str]:
    """Return the notes on rows: how sure their scores are, and what keeps them apart."""
    labelled = list(zip(label_rows(rows), rows, strict=True))
    return [
        *_describe_certainty(labelled, compared_metrics),
        *_describe_namesakes(rows),
        *gather_notes((label, _describe_environments(row)) for label, row in labelled),
        *_describe_budgets(labelled),
        *_describe_images(labelled),
        *_describe_controls(labelled),
        *_describe_data(rows),
    ]


def gather_notes(reasons: Iterable[tuple[str, str]], begin: str = "") -> list[str]:
    """Return one note per reason, with the names of all rows it holds for: "begin names: reason"."""
    names: dict[str, list[str]] = {}
    for name, reason in reasons:
        names.setdefault(reason, []).append(name)
    return [f"{begin}{', '.join(dict.fromkeys(found))}: {reason}" for reason, found in names.items() if reason]


def _describe_certainty(labelled: Sequence[tuple[str, Row]], compared_metrics: Sequence[str]) -> Iterator[str]:
    rows = [row for _, row in labelled]
    if any(len(row.seeds) > 1 for row in rows):
        yield HOW_TO_READ_MEANS
    single = [label for label, row in labelled if len(row.seeds) == 1]
    if single:
        which = "every row" if len(single) == len(rows) else ", ".join(single)
        yield f"one seed only ({which}): no interval can be given, and differences may be chance"
    shown = [row.differences[metric] for row in rows for metric in compared_metrics if metric in row.differences]
    shown = [found for found in shown if found.holm is None]  # which accounts for their number
    num_tested = sum(found.half_width is not None for found in shown)
    if num_tested >= 5:
        yield f"{num_tested} differences at 95 % each: about one in twenty looks clear by chance alone"


def _describe_namesakes(rows: Sequence[Row]) -> Iterator[str]:
    """Say what keeps runs of one name and network in rows of their own."""
    yield from gather_notes(
        (
            f"{row.name} (seed {row.seeds[0]})",
            "made by an older version, so neither averaged nor compared; repeat the run",
        )
        for row in rows
        if row.first.identity is None
    )
    namesakes: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if row.first.identity is not None:
            namesakes.setdefault((row.name, row.first.network), []).append(row)
    yield from gather_notes(
        (name, f"rows of their own, never averaged: {describe_differences([row.first for row in found])}")
        for (name, _), found in namesakes.items()
        if len(found) > 1
    )


def _describe_environments(row: Row) -> str:
    """Return what surrounded the seeds of one row in different ways; "" where nothing did."""
    facts = [run.environment for run in row.runs]
    words = [f"{name} {join_values(show_value(each.get(name)) for each in facts)}" for name in differing(facts)]
    return f"seeds differ in {', '.join(words)}; last digits may, too" if words else ""


def _describe_budgets(labelled: Sequence[tuple[str, Row]]) -> Iterator[str]:
    """Say where rows had unlike amounts of training, and which rows control for it."""
    if len({row.total_steps for _, row in labelled}) < 2:
        return
    (least, shortest), (most, longest) = (pick(labelled, key=lambda pair: pair[1].total_steps) for pick in (min, max))
    factor = f", {longest.total_steps / shortest.total_steps:.3g} times as many" if shortest.total_steps else ""
    as_long = {
        row.name for _, row in labelled if row.total_steps == longest.total_steps and row.is_measured_as(longest)
    }
    controls = [f"{name} ({shared})" for name, shared in CONTROLS.items() if name in as_long]
    yield (
        f"total steps differ between rows, from {shortest.total_steps} ({least}) to {longest.total_steps} ({most})"
        f"{factor}: a higher score may come from longer training"
        + (f"; hold the longest rows against {' and '.join(controls)}" if controls else "")
    )


def _describe_images(labelled: Sequence[tuple[str, Row]]) -> Iterator[str]:
    """Say where as many steps are not as many images, with masks or in all."""
    seen = {}
    for label, row in labelled:
        if row.images_seen:
            seen[label] = row.images_seen["labelled"], sum(row.images_seen.values())
    steps = [row.total_steps for label, row in labelled if label in seen]
    if len(set(seen.values())) < 2 or min(steps) < ALIKE_STEPS * max(steps):
        return
    words = [
        f"{what} from {seen[least][kind]:,} ({least}) to {seen[most][kind]:,} ({most})"
        for kind, what in enumerate(("with masks", "in all"))
        for least, most in [
            (min(seen, key=lambda each: seen[each][kind]), max(seen, key=lambda each: seen[each][kind]))
        ]
        if seen[least][kind] < seen[most][kind]
    ]
    yield f"images that steps read differ between rows of as many steps: {', '.join(words)}"


def _describe_controls(labelled: Sequence[tuple[str, Row]]) -> Iterator[str]:
    """Say how far rows are before their controls, and what a gain is not where a control comes as far."""
    for label, row in labelled:
        if not row.controls:
            continue
        shown = ", ".join(
            f"{name} {found.mean:+.3f}" + (f" ±{found.half_width:.3f}" if found.half_width is not None else "")
            for name, (_, found) in row.controls.items()
        )
        gain = row.differences.get(HEADLINE)
        level = [name for name, (_, found) in row.controls.items() if not (found.is_clear and found.mean > 0)]
        verdict, told = "", all(found.half_width is not None for _, found in row.controls.values())
        if gain is not None and gain.mean > 0 and level and told:
            kind = "the image's own depth" if any(RowName.parse(name).source for name in level) else "what it adds"
            verdict = f"; not clearly before {' and '.join(level)}, so its gain cannot be credited to {kind}"
        yield f"{label} minus its controls ({HEADLINE}): {shown}{verdict}"
    known = {label: row.control_correlation for label, row in labelled}
    if words := [f"{value:+.2f} ({label})" for label, value in known.items() if value is not None]:
        yield (
            "what controls learned in place of depth correlates with the estimator's maps, image by image, at "
            f"{', '.join(words)}; only what is near 0 is free of geometry"
        )


def _describe_data(rows: Sequence[Row]) -> Iterator[str]:
    names = {(row.first.dataset, row.first.split) for row in rows}
    contents = {
        (row.first.measurement["data"], row.first.measurement["reported split"]) for row in rows if row.first.identity
    }
    if len(names) > 1 or len(contents) > 1:
        yield "rows are of different data sets or splits; compare only within one"

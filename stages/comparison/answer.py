"""Whether pseudo depth helped: one sentence that says no more than a table holds. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from data_cache.metrics import HEADLINE, METRICS
from stages.comparison.row_name import RowName
from stages.comparison.rows import ALIKE_STEPS, Row
from stages.comparison.statistics import ERROR_RATE, Difference, adjust_holm, compare_paired
from stages.comparison.table import Table

YES, PERHAPS, NOT_SHOWN, NO, UNKNOWN = "Yes", "Perhaps", "Not shown", "No", "It cannot be told"


class Name(str):
    """A row's name within a sentence."""

    __slots__ = ()


class Answer(NamedTuple):
    """What a table says, and the rows it says it of."""

    verdict: str
    """One of YES, PERHAPS, NOT_SHOWN, NO, UNKNOWN; "" where no row learned depth."""
    words: tuple[str, ...]
    """The rest of the sentence; labels of rows are a ``Name``."""
    rows: tuple[tuple[str, Row], ...]
    """The baseline, the best row, and the controls it is held against, behind their labels."""

    @property
    def text(self) -> str:
        """The sentence."""
        return "".join((f"{self.verdict}: " if self.verdict else "", *self.words))


class _Control(NamedTuple):
    """A row that shares everything with the best one but what is credited."""

    label: str
    row: Row
    what: str
    """What it has in place of the image's depth."""
    found: Difference
    """Best row minus this one."""


def learns_depth(row: Row) -> bool:
    """Return whether a row learned depth, of whatever source."""
    if row.first.identity is not None:
        return row.first.identity.depth is not None
    return any(phase.name in ("depth", "joint") for phase in row.first.phases)


def find_answer(table: Table) -> Answer:
    """Return whether the best row with pseudo depth beats its baseline and the controls that are among the rows.

    Only a difference whose interval leaves out 0 counts, and only where no row without depth that trained as long, and
    no row with depth of another source, comes as far.
    """
    scored = [(label, row) for label, row in table.labelled if HEADLINE in row.metrics]
    compared = [(label, row) for label, row in scored if row.base is not None and HEADLINE in row.differences]
    with_depth = [pair for pair in compared if learns_depth(pair[1]) and not pair[1].depth_source]
    candidates = with_depth or compared
    if not candidates:
        return _answer_without_baseline(scored)
    label, best = max(candidates, key=lambda pair: _rank(pair[1].differences[HEADLINE]))
    base = best.base
    assert base is not None
    base_label = next(label for label, row in scored if row.runs == base.runs)
    controls = _find_controls(scored, best, base) if with_depth else []
    verdict, reason = _judge(_adjust_for_choice(best, [row for _, row in candidates]), base, controls)
    number = f"the best of {len(candidates)} rows" + (" with pseudo depth, " if with_depth else ", ")
    words = (
        number if len(candidates) > 1 else "",
        Name(label),
        f" has {best.metrics[HEADLINE].mean:.3f} {METRICS[HEADLINE].label}, "
        f"{_describe(best.differences[HEADLINE])} against ",
        Name(base_label),
        *reason,
        ".",
    )
    rows = ((base_label, base), (label, best), *((control.label, control.row) for control in controls))
    return Answer(verdict if with_depth else "", words, rows)


def _rank(found: Difference) -> tuple[bool, float]:
    """Return by what the best row is chosen: what is known of several seeds comes first."""
    return found.half_width is not None, found.mean


def _adjust_for_choice(best: Row, candidates: Sequence[Row]) -> Row:
    """Return the row with the Holm p value of a choice among all candidates, whatever each is compared with."""
    found, tested = best.differences[HEADLINE], [row for row in candidates if row.differences[HEADLINE].p is not None]
    if best not in tested:
        return best
    of_all = adjust_holm([row.differences[HEADLINE].p or 0.0 for row in tested])[tested.index(best)]
    return replace(best, differences={**best.differences, HEADLINE: found._replace(holm=max(of_all, found.holm or 0))})


def _answer_without_baseline(scored: Sequence[tuple[str, Row]]) -> Answer:
    ranked = sorted(scored, key=lambda pair: -pair[1].metrics[HEADLINE].mean)
    if not ranked:
        return Answer(UNKNOWN, (f"no row has a {METRICS[HEADLINE].label}.",), ())
    label, best = ranked[0]
    words = (Name(label), f" has {best.metrics[HEADLINE].mean:.3f} {METRICS[HEADLINE].label}")
    return Answer(UNKNOWN, (*words, ", and no row is there that it could be compared with."), tuple(ranked[:1]))


def _find_controls(scored: Sequence[tuple[str, Row]], best: Row, base: Row) -> list[_Control]:
    """Return what the best row must beat, too, to be credited to depth.

    The best of the rows without depth that trained as long, unless that is the baseline; what the table holds it
    against; and the same schedule with depth of other sources.
    """
    of_best = RowName.parse(best.name)
    alike = [
        (label, row) for label, row in scored
        if row.runs not in (best.runs, base.runs)
        and row.is_measured_as(best) and row.first.network == best.first.network
        and RowName.parse(row.name).share == of_best.share  # rows with other masks control nothing
    ]  # fmt: skip
    plain = [pair for pair in alike if not learns_depth(pair[1]) and trains_as_long(pair[1], best)]
    strongest = max(plain, key=lambda pair: _score(pair[1]), default=None)
    if strongest and trains_as_long(base, best) and _score(strongest[1]) <= _score(base):
        strongest = None  # it is the baseline
    controls = []
    for label, row in alike:
        if (label, row) == strongest:
            what = "as many steps without depth"
        elif row.depth_source and RowName.parse(row.name)._replace(source=of_best.source) == of_best:
            what = f"{row.depth_source} depth"
        elif row.name in best.controls:
            what = "control"
        else:
            continue
        found = compare_paired(best.by_seed(HEADLINE), row.by_seed(HEADLINE))
        if found is not None:
            controls.append(_Control(label, row, what, found))
    return controls


def _score(row: Row) -> float:
    return row.metrics[HEADLINE].mean


def trains_as_long(row: Row, other: Row) -> bool:
    """Return whether a row had as many steps as another."""
    return row.total_steps >= ALIKE_STEPS * other.total_steps


def _judge(best: Row, base: Row, controls: Sequence[_Control]) -> tuple[str, tuple[str, ...]]:
    """Return the verdict, and why, as the end of the sentence."""
    found = best.differences[HEADLINE]
    verdict, reason = _judge_difference(found, controls)
    steps = f"it took {best.total_steps:,} steps to the other's {base.total_steps:,}"
    if not trains_as_long(base, best) and not any(not learns_depth(control.row) for control in controls):
        verdict = NOT_SHOWN if verdict in (YES, PERHAPS) else verdict
        reason = f"{reason}; {steps}, and no row without depth as many"
    elif not trains_as_long(best, base):
        verdict, reason = (NOT_SHOWN if verdict == NO else verdict), f"{reason}; {steps}"
    return verdict, (reason, _describe_images(best, base), *_describe_controls(controls))


def _describe_images(best: Row, base: Row) -> str:
    """Return how many images both read, where equal steps are not equally many."""
    mine, theirs = best.images_seen, base.images_seen
    if not mine or not theirs or sum(mine.values()) * ALIKE_STEPS <= sum(theirs.values()):
        return ""
    return (
        f"; its steps read {mine['labelled']:,} images with masks and {mine['unlabelled']:,} without, those of the "
        f"other {theirs['labelled']:,} and {theirs['unlabelled']:,}"
    )


def _judge_difference(found: Difference, controls: Sequence[_Control]) -> tuple[str, str]:
    """Return what a difference says by itself and beside those to the controls, and why."""
    if found.half_width is None:
        return UNKNOWN, ", and one seed cannot tell an effect from chance"
    if not found.is_clear:
        return NOT_SHOWN, ", which includes 0, so chance alone could explain it"
    if found.mean < 0:
        return NO, ", which leaves out 0"
    if any(not (control.found.is_clear and control.found.mean > 0) for control in controls):
        return NOT_SHOWN, ", which leaves out 0, but not every control stays clearly behind"
    if found.holm is not None and found.holm >= ERROR_RATE:
        return NOT_SHOWN, f", but as the best of several rows it may be chance (p = {found.holm:.2f} after Holm)"
    if found.images is not None and found.images.low <= 0:
        return NOT_SHOWN, ", but other images of this kind could turn it around"
    if not any(control.row.depth_source for control in controls):
        return PERHAPS, ", which leaves out 0, but no row learned depth of another image, so any second task might do"
    return YES, ", which leaves out 0, and every control stays clearly behind"


def _describe_controls(controls: Sequence[_Control]) -> list[str]:
    words: list[str] = []
    for place, control in enumerate(controls):
        words += ["; against " if place == 0 else ", against ", Name(control.label), f" ({control.what}) "]
        words.append(_describe(control.found, short=True))
    return words


def _describe(found: Difference, *, short: bool = False) -> str:
    """Return a difference with its interval in words."""
    if found.half_width is None:
        return signed(found.mean)
    low, high = found.mean - found.half_width, found.mean + found.half_width
    over = "" if short else f" over {len(found.seeds)} seeds"
    if found.images is not None and not short:
        over += f", {signed(found.images.low)} to {signed(found.images.high)} over images"
    return f"{signed(found.mean)} (95 % interval {signed(low)} to {signed(high)}{over})"


def signed(value: float) -> str:
    """Return a difference as people print it."""
    return f"{value:+.3f}".replace("-", "−")

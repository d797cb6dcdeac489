"""Whether pseudo depth helped: one sentence that says no more than a table holds. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
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


class _Candidate(NamedTuple):
    """A row that may be the best one, beside the row that it is held against first."""

    label: str
    row: Row
    other_label: str
    other: Row
    """The best row without depth that had as many steps; the row's baseline where there is none."""
    found: Difference
    """Row minus the other one."""

    @property
    def is_fair(self) -> bool:
        """Whether the other one learned no depth, and both had as many steps."""
        return not learns_depth(self.other) and has_equal_steps(self.row, self.other)


def find_answer(table: Table) -> Answer:
    """Return whether the best row with pseudo depth beats what had as many steps without it, and its controls.

    The best row is the one farthest above its baseline, of those for which there is a row without depth with as many
    steps. Only a difference whose interval leaves out 0 counts, and only where neither another row without depth that
    trained as long, nor a row with depth of another source, comes as far.
    """
    scored = [(label, row) for label, row in table.labelled if HEADLINE in row.metrics]
    compared = [(label, row) for label, row in scored if row.base is not None and HEADLINE in row.differences]
    with_depth = [pair for pair in compared if learns_depth(pair[1]) and not pair[1].depth_source]
    candidates = [_hold_against_first(label, row, scored) for label, row in with_depth or compared]
    if not candidates:
        return _answer_without_baseline(scored)
    unfair = candidates
    if with_depth:
        candidates = [each for each in candidates if each.is_fair] or candidates
    best = max(candidates, key=lambda each: _rank(each.row.differences[HEADLINE]))
    controls = _find_controls(scored, best) if with_depth else []
    verdict, reason = _judge(best, _adjust_for_choice(best, candidates), controls)
    kind = " such rows" if with_depth and best.is_fair else " rows with pseudo depth" if with_depth else " rows"
    number = f", the best of {len(candidates)}{kind}," if len(candidates) > 1 else ""
    score, label = f"{best.row.metrics[HEADLINE].mean:.3f}", METRICS[HEADLINE].label
    words: tuple[str, ...]
    if with_depth and best.is_fair:
        words = (
            f"at equal steps ({best.row.total_steps:,}) {_say_direction(verdict, best.found)}: ", Name(best.label),
            number, f" has {score} {label}, ", Name(best.other_label),
            f" without depth {best.other.metrics[HEADLINE].mean:.3f}, a difference of {_describe(best.found)}",
        )  # fmt: skip
    else:
        words = (
            Name(best.label), number, f" has {score} {label}, ",
            f"{_describe(best.found)} against ", Name(best.other_label),
        )  # fmt: skip
    rows = ((best.other_label, best.other), (best.label, best.row), *((each.label, each.row) for each in controls))
    return Answer(verdict if with_depth else "", (*words, *reason, *_describe_left_out(best, unfair), "."), rows)


def _hold_against_first(label: str, row: Row, scored: Sequence[tuple[str, Row]]) -> _Candidate:
    """Return a row beside the best row without depth that had as many steps, or beside its baseline."""
    assert row.base is not None, "it has a difference"
    plain = [pair for pair in _find_alike(scored, row) if not learns_depth(pair[1]) and has_equal_steps(pair[1], row)]
    base_label = next(label for label, other in scored if other.runs == row.base.runs)
    other_label, other = max(plain, key=lambda pair: _score(pair[1]), default=(base_label, row.base))
    found = compare_paired(row.by_seed(HEADLINE), other.by_seed(HEADLINE))
    if other.runs == row.base.runs or found is None:
        return _Candidate(label, row, base_label, row.base, row.differences[HEADLINE])
    return _Candidate(label, row, other_label, other, found)


def _find_alike(scored: Sequence[tuple[str, Row]], row: Row) -> list[tuple[str, Row]]:
    """Return the other rows of its data, network and masks: others tell nothing of what depth is good for."""
    return [
        (label, other) for label, other in scored
        if other.runs != row.runs
        and other.is_measured_as(row) and other.first.network == row.first.network
        and RowName.parse(other.name).share == RowName.parse(row.name).share
    ]  # fmt: skip


def _rank(found: Difference) -> tuple[bool, float]:
    """Return by what the best row is chosen: what is known of several seeds comes first."""
    return found.half_width is not None, found.mean


def _adjust_for_choice(best: _Candidate, candidates: Sequence[_Candidate]) -> Difference:
    """Return its difference with Holm's p value, by the rule of the table: for all that are compared, at once."""
    tested = [each for each in candidates if each.found.p is not None]
    if best not in tested:
        return best.found
    of_all = adjust_holm([each.found.p or 0.0 for each in tested])[tested.index(best)]
    return best.found._replace(holm=max(of_all, best.found.holm or 0.0))


def _answer_without_baseline(scored: Sequence[tuple[str, Row]]) -> Answer:
    ranked = sorted(scored, key=lambda pair: -pair[1].metrics[HEADLINE].mean)
    if not ranked:
        return Answer(UNKNOWN, (f"no row has a {METRICS[HEADLINE].label}.",), ())
    label, best = ranked[0]
    words = (Name(label), f" has {best.metrics[HEADLINE].mean:.3f} {METRICS[HEADLINE].label}")
    return Answer(UNKNOWN, (*words, ", and no row is there that it could be compared with."), tuple(ranked[:1]))


def _find_controls(scored: Sequence[tuple[str, Row]], best: _Candidate) -> list[_Control]:
    """Return what the best row must beat, too, to be credited to depth.

    Its baseline, and where none had as many steps, the best of the rows without depth that had more; what the table
    holds it against; and the same schedule with depth of other sources.
    """
    row, first, own = best.row, best.other, RowName.parse(best.row.name)
    alike = [pair for pair in _find_alike(scored, row) if pair[1].runs != first.runs]
    plain = [pair for pair in alike if not learns_depth(pair[1]) and trains_as_long(pair[1], row)]
    strongest = max(plain, key=lambda pair: _score(pair[1]), default=None)
    if best.is_fair or (strongest and trains_as_long(first, row) and _score(strongest[1]) <= _score(first)):
        strongest = None  # what it is held against first is as strong
    controls = []
    for label, other in alike:
        named = next((control.found for control in row.controls.values() if control.row.runs == other.runs), None)
        if (label, other) == strongest:
            what = "at least as many steps without depth"
        elif other.depth_source and RowName.parse(other.name)._replace(source=own.source) == own:
            what = f"{other.depth_source} depth"
        elif named is not None:
            equal = not learns_depth(other) and has_equal_steps(other, row)
            what = "as many steps without depth" if equal else "control"
        elif row.base is not None and other.runs == row.base.runs:
            what = f"{other.total_steps:,} steps"
        else:
            continue
        found = named or compare_paired(row.by_seed(HEADLINE), other.by_seed(HEADLINE))
        if found is not None:
            controls.append(_Control(label, other, what, found))
    return controls


def _score(row: Row) -> float:
    return row.metrics[HEADLINE].mean


def trains_as_long(row: Row, other: Row) -> bool:
    """Return whether a row had at least as many steps as another."""
    return row.total_steps >= ALIKE_STEPS * other.total_steps


def has_equal_steps(row: Row, other: Row) -> bool:
    """Return whether two rows had as many steps."""
    return trains_as_long(row, other) and trains_as_long(other, row)


def _judge(best: _Candidate, found: Difference, controls: Sequence[_Control]) -> tuple[str, tuple[str, ...]]:
    """Return the verdict, and why, as the end of the sentence."""
    row, other = best.row, best.other
    verdict, reason = _judge_difference(found, controls)
    steps = f"it took {row.total_steps:,} steps to the other's {other.total_steps:,}"
    if not trains_as_long(other, row) and not any(not learns_depth(control.row) for control in controls):
        verdict = NOT_SHOWN if verdict in (YES, PERHAPS) else verdict
        reason = f"{reason}; {steps}, and no row without depth as many"
    elif not trains_as_long(row, other):
        verdict, reason = (NOT_SHOWN if verdict == NO else verdict), f"{reason}; {steps}"
    return verdict, (reason, _describe_images(row, other), *_describe_controls(controls))


def _say_direction(verdict: str, found: Difference) -> str:
    """Return what a difference at equal steps says, first of all, and no more than the verdict."""
    if found.half_width is None:
        return "there is one seed"
    if not found.is_clear:
        return "no difference is sure"
    if verdict == NOT_SHOWN:
        return "it is open whether pseudo depth makes training better"
    return f"training with pseudo depth is {'better' if found.mean > 0 else 'worse'}"


def _describe_left_out(best: _Candidate, candidates: Sequence[_Candidate]) -> tuple[str, ...]:
    """Return which row with depth scored higher, but cannot be judged: none without depth had as many steps."""
    higher = max(candidates, key=lambda each: _rank(each.row.differences[HEADLINE]))
    if higher.is_fair or not best.is_fair or _score(higher.row) <= _score(best.row):
        return ()
    return (
        "; ", Name(higher.label), f" has {_score(higher.row):.3f}, but no row without depth has its "
        f"{higher.row.total_steps:,} steps",
    )  # fmt: skip


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

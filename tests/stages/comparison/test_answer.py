"""The sentence on top of the page says what the table holds, and no more."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from data_cache.metrics import HEADLINE
from stages.comparison.answer import NO, NOT_SHOWN, PERHAPS, UNKNOWN, YES, find_answer
from stages.comparison.identity import Identity
from stages.comparison.record import PhaseRecord, RunRecord
from stages.comparison.statistics import Interval
from stages.comparison.table import Design, build_table

PLAIN, DEPTH = ("seg-only", "seg-seg-seg"), "depth-first+copy"


def make_runs(
    scores: dict[str, float], *, seeds: int = 3, steps: dict[str, int] | None = None, noise: float = 0.002
) -> list[RunRecord]:
    """Return runs of rows that differ by a constant, besides ``noise`` of their own on every second seed."""
    return [
        RunRecord(
            name, seed, "unet", "scenes", "demo",
            {HEADLINE: score + seed / 50 + noise * ((seed + place) % 2)},
            total_steps=(steps or {}).get(name, 100),
            identity=Identity("d", "v", None if name.startswith(PLAIN) else "store", {}, 1, {}),
        )
        for place, (name, score) in enumerate(scores.items())
        for seed in range(seeds)
    ]  # fmt: skip


def answer(scores: dict[str, float], **more):
    return find_answer(build_table(make_runs(scores, **more)))


GAIN = {"seg-only": 0.60, DEPTH: 0.64}


@pytest.mark.parametrize(
    ("scores", "more", "verdict", "reason"),
    [
        (GAIN | {f"{DEPTH}@shuffled": 0.60}, {}, YES, "every control stays clearly behind"),
        (GAIN | {f"{DEPTH}@shuffled": 0.64}, {}, NOT_SHOWN, "not every control stays clearly behind"),
        (GAIN | {f"{DEPTH}@shuffled": 0.60, f"{DEPTH}@gray": 0.65}, {}, NOT_SHOWN, "(gray depth) −0.010"),
        (GAIN, {}, PERHAPS, "no row learned depth of another image"),
        (GAIN, {"noise": 0.09}, NOT_SHOWN, "chance alone could explain it"),
        (GAIN, {"seeds": 1}, UNKNOWN, "one seed cannot tell an effect from chance"),
        (GAIN, {"steps": {DEPTH: 300}}, NOT_SHOWN, "it took 300 steps to the other's 100, and no row without depth"),
        (GAIN | {"seg-only-long": 0.65}, {"steps": {DEPTH: 300, "seg-only-long": 400}}, NOT_SHOWN, "(at least as many"),
        (GAIN | {"seg-seg-seg": 0.60}, {}, PERHAPS, "at equal steps (100) training with pseudo depth is better"),
        ({"seg-only": 0.60, DEPTH: 0.50}, {}, NO, "at equal steps (100) training with pseudo depth is worse"),
    ],
)  # fmt: skip
def test_verdict_follows_difference_controls_and_budget(scores, more, verdict, reason):
    found = answer(scores, **more)
    assert found.verdict == verdict and reason in found.text
    assert re.findall(r"\.(?!\d)", found.text) == ["."], "one sentence"
    assert [label for label, _ in found.rows[:2]] == ["seg-only", DEPTH]


def test_a_row_without_depth_and_with_as_many_steps_is_what_counts_first():
    """Against a baseline with a third of the steps any row looks good."""
    steps = {DEPTH: 300, "joint": 200, "seg-seg-seg": 300, "seg-only-long": 300}
    scores = GAIN | {"joint": 0.645, "seg-seg-seg": 0.63, "seg-only-long": 0.69}
    found = answer(scores, steps=steps)
    words = (
        f"No: at equal steps (300) training with pseudo depth is worse: {DEPTH} has 0.661 mIoU, seg-only-long without"
    )
    assert found.verdict == NO and found.text.startswith(words)
    assert "against seg-only (100 steps) +0.041" in found.text
    assert found.text.endswith("; joint has 0.666, but no row without depth has its 200 steps.")
    assert [label for label, _ in found.rows] == ["seg-only-long", DEPTH, "seg-only"]


def test_the_best_of_many_at_equal_steps_is_adjusted_for_all_that_were_tried():
    names = (DEPTH, "joint", "seg-first", "depth-first", "depth-first-direct")
    steps = dict.fromkeys((*names, "seg-seg-seg", f"{DEPTH}@noise"), 300)
    scores = {"seg-only": 0.5, **dict.fromkeys(steps, 0.60), DEPTH: 0.61}
    found = answer(scores, steps=steps, noise=0.0035)
    assert found.verdict == NOT_SHOWN and "after Holm" in found.text
    assert found.text.startswith("Not shown: at equal steps (300) it is open whether pseudo depth")


def test_numbers_are_those_of_the_table():
    found = answer(GAIN | {f"{DEPTH}@shuffled": 0.60})
    difference = found.rows[1][1].differences[HEADLINE]
    low, high = difference.mean - difference.half_width, difference.mean + difference.half_width
    assert f"{difference.mean:+.3f} (95 % interval {low:+.3f} to {high:+.3f} over 3 seeds)" in found.text


@pytest.mark.parametrize(
    ("found", "reason"),
    [({"holm": 0.07}, "p = 0.07 after Holm"), ({"images": Interval(-0.001, 0.09)}, "other images of this kind")],
    ids=str,
)
def test_a_clear_interval_over_seeds_is_not_enough(found, reason):
    """Of several rows one looks clear by chance, and other images may say otherwise."""
    table = build_table(make_runs(GAIN | {f"{DEPTH}@shuffled": 0.60}))
    rows = tuple(
        replace(row, differences={HEADLINE: row.differences[HEADLINE]._replace(**found)}) if row.differences else row
        for row in table.rows
    )
    answer = find_answer(replace(table, rows=rows))
    assert answer.verdict == NOT_SHOWN and reason in answer.text


def test_a_single_seed_gives_no_interval():
    assert "interval" not in answer(GAIN, seeds=1).text


def test_rows_that_the_table_names_as_controls_must_stay_behind():
    rows = build_table(make_runs(GAIN | {"joint": 0.64}), design=Design(controls={DEPTH: ("joint",)}))
    found = find_answer(rows)
    assert found.verdict == NOT_SHOWN and "against joint (control)" in found.text


def test_beating_other_rows_with_depth_alone_is_no_yes():
    """That a mixing by depth beats mixing by class says nothing of what depth of another image would do."""
    found = find_answer(build_table(make_runs(GAIN | {"joint": 0.60}), design=Design(controls={DEPTH: ("joint",)})))
    assert found.verdict == PERHAPS and "against joint (control)" in found.text


def test_rows_with_more_masks_are_no_controls():
    scores = {"seg-only:1/8": 0.60, f"{DEPTH}:1/8": 0.64, "seg-seg-seg:1": 0.70, "seg-seg-seg:1/8": 0.61}
    found = find_answer(build_table(make_runs(scores), baseline="seg-only:1/8"))
    assert [label for label, _ in found.rows] == ["seg-seg-seg:1/8", f"{DEPTH}:1/8", "seg-only:1/8"]


def test_rows_with_another_source_behind_their_share_are_controls():
    scores = {"seg-only:1/8": 0.60, f"{DEPTH}:1/8": 0.64, f"{DEPTH}:1/8@shuffled": 0.64}
    found = find_answer(build_table(make_runs(scores), baseline="seg-only:1/8"))
    assert found.verdict == NOT_SHOWN and f"against {DEPTH}:1/8@shuffled (shuffled depth)" in found.text


def test_a_row_is_a_control_by_its_depth_whatever_it_is_called():
    runs = make_runs(GAIN | {"my row": 0.9})
    made_up = Identity("d", "v", "noise", {}, 1, {"depth.source": "noise"})
    runs = [replace(run, identity=made_up) if run.name == "my row" else run for run in runs]
    design = Design(changes={"my row": {"depth.source"}})
    assert find_answer(build_table(runs, design=design)).rows[1][0] == DEPTH


def test_the_best_of_rows_with_several_baselines_is_adjusted_for_all_of_them():
    """Each is the only row of its baseline; what they have in common is the table."""
    shares = ("1", "1/2", "1/4", "1/8", "1/16", "1/32")
    scores = {f"{name}:{share}": 0.6 + 0.01 * (name == DEPTH) for share in shares for name in ("seg-only", DEPTH)}
    runs = make_runs(scores, noise=0.0035)
    design = Design({name: f"seg-only:{name.partition(':')[2]}" for name in scores})
    table = build_table(runs, baseline="seg-only:1", design=design)
    found = [row.differences[HEADLINE] for row in table.rows if row.differences]
    assert len(found) == 6 and all(each.is_clear and each.holm >= 6 * min(e.p for e in found) > 0.05 for each in found)
    answer = find_answer(table)
    assert answer.verdict == NOT_SHOWN and "after Holm" in answer.text


def test_a_row_with_an_interval_goes_before_one_of_a_single_seed():
    runs = [run for run in make_runs(GAIN | {"joint": 0.7}) if run.name != "joint" or run.seed == 0]
    assert find_answer(build_table(runs)).rows[1][0] == DEPTH


@pytest.mark.parametrize(
    ("scores", "steps", "verdict", "reason"),
    [
        (GAIN, {"seg-only": 99, DEPTH: 100}, PERHAPS, "no row learned depth of another image"),
        (GAIN | {DEPTH: 0.5}, {"seg-only": 300}, NOT_SHOWN, "100 steps to the other's 300"),
    ],
)
def test_other_budgets_are_said_but_not_what_division_among_phases_leaves(scores, steps, verdict, reason):
    found = answer(scores, steps=steps)
    assert found.verdict == verdict and reason in found.text


def test_more_images_in_as_many_steps_are_said():
    seen = {"seg-only": (800, 0), DEPTH: (800, 800)}
    runs = [
        replace(
            run,
            phases=(
                PhaseRecord("seg", 100, images_seen=dict(zip(("labelled", "unlabelled"), seen[run.name], strict=True))),
            ),
        )
        for run in make_runs(GAIN)
    ]
    table = build_table(runs)
    assert "read 800 images with masks and 800 without, those of the other 800 and 0" in find_answer(table).text
    assert any("images that steps read differ" in note for note in table.notes)
    assert not any("images that steps read differ" in note for note in build_table(runs[:3]).notes)


def test_controls_are_never_the_best_row():
    assert answer(GAIN | {f"{DEPTH}@gray": 0.9}).rows[1][0] == DEPTH


def test_rows_without_depth_are_compared_without_a_verdict_on_it():
    found = answer({"seg-only": 0.60, "seg-seg-seg": 0.64})
    assert found.verdict == "" and found.text.startswith("seg-seg-seg has 0.")


def test_nothing_to_compare_is_said():
    assert answer({DEPTH: 0.6}).verdict == UNKNOWN
    assert (
        find_answer(build_table([RunRecord("a", 0, "u", "s", "r", {})])).text == "It cannot be told: no row has a mIoU."
    )

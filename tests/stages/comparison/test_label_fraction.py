"""Masks that depth saves are read off the curve of the rows without it, and only for clear differences."""

from __future__ import annotations

import math
import re
import statistics
from dataclasses import replace

import pytest

from data_cache.metrics import HEADLINE
from stages.comparison.certainty import judge_differences
from stages.comparison.formats import render_markdown, render_text, summarise
from stages.comparison.identity import Identity
from stages.comparison.label_fraction import describe_savings, find_curves
from stages.comparison.record import RunRecord
from stages.comparison.statistics import compare_paired
from stages.comparison.table import Table, build_table

PLAIN = {"1": 0.70, "1/4": 0.60, "1/16": 0.50}


def make_table(depth: dict[str, float], *, seeds: int = 3, plain: dict[str, float] = PLAIN) -> Table:
    """Return rows without and with depth, each compared with the one that has as many masks."""
    runs = [
        RunRecord(
            f"{name}:{share}", seed, "unet", "scenes", "demo", {HEADLINE: score + seed / 50 + place * (seed % 2) / 500},
            identity=Identity("d", "v", "store" if place else None, {}, 1, {}),
        )
        for place, (name, scores) in enumerate((("plain", plain), ("depth", depth)))
        for share, score in scores.items()
        for seed in range(seeds)
    ]  # fmt: skip
    table = build_table(runs, baseline=None)
    by_name = {row.name: row for row in table.rows}
    rows = []
    for row in table.rows:
        base = by_name[row.name.replace("depth", "plain")]
        found = compare_paired(row.by_seed(HEADLINE), base.by_seed(HEADLINE))
        assert found is not None
        rows.append(row if base is row else replace(row, base=base, differences={HEADLINE: found}))
    return replace(table, rows=judge_differences(rows).rows)


@pytest.mark.parametrize(
    ("depth", "found"),
    [
        ({"1": 0.7, "1/4": 0.65, "1/16": 0.5}, r"With 1/4 of the masks depth .* about 0\.5: 5\d% of the masks"),
        ({"1": 0.7, "1/4": 0.75, "1/16": 0.5}, r"not even with 1: at least 75% of the masks are saved"),
        ({"1": 0.69, "1/4": 0.55, "1/16": 0.5}, "none are saved"),
    ],
)
def test_savings_are_those_of_the_curve_without_depth(depth, found):
    text = describe_savings(find_curves(make_table(depth)))
    assert re.search(found, text), text


def test_nothing_is_saved_where_fewer_masks_gave_as_much_without_depth():
    """The curve of seeds that happen to fall with more masks."""
    table = make_table({"1/16": 0.5, "1/4": 0.55, "1": 0.7}, plain={"1": 0.70, "1/4": 0.50, "1/16": 0.60})
    assert "none are saved" in describe_savings(find_curves(table))


def test_savings_hold_for_all_shares_that_were_tried():
    """Of many shares one looks clear by chance, each with a baseline of its own."""
    shares = {f"1/{2**power}": 0.7 - power / 20 for power in range(6)}
    depth = {share: score + 0.005 * (share == "1/4") for share, score in shares.items()}
    curves = find_curves(make_table(depth, plain=shares))
    (found,) = [p.row.differences[HEADLINE] for p in curves[1].points if p.text == "1/4"]
    assert found.is_clear and found.p > 0.05 / 6
    assert "none are saved" in describe_savings(curves)


@pytest.mark.parametrize("shakes", [0.0, 0.01, 0.03])
def test_the_interval_of_savings_holds_what_is_unsure_of_both_curves(shakes):
    """Its ends are where the difference between the curve, seed by seed, and the row just may be 0."""
    table = make_table({"1": 0.7, "1/4": 0.65, "1/16": 0.5})
    rows = [
        replace(row, runs=tuple(replace(run, metrics=_shake(run, shakes)) for run in row.runs))
        if row.name == "plain:1" else row
        for row in table.rows
    ]  # fmt: skip
    curves = find_curves(replace(table, rows=tuple(rows)))
    text = describe_savings(curves)
    least, most = (int(part) / 100 for part in re.findall(r"both: (\d+)% to (?:at least )?(\d+)%", text)[0])
    scores = {(curve.name, point.text): point.row.by_seed(HEADLINE) for curve in curves for point in curve.points}

    def may_be_equal(saved: float) -> bool:
        part = math.log(1 / (1 - saved)) / math.log(4)
        found = [
            (1 - part) * scores["plain", "1/4"][seed] + part * scores["plain", "1"][seed] - scores["depth", "1/4"][seed]
            for seed in range(3)
        ]
        return abs(statistics.mean(found)) <= 4.302653 * statistics.stdev(found) / math.sqrt(3)

    assert may_be_equal(least + 0.01) and not may_be_equal(least - 0.01)
    assert "at least" in text if shakes == 0.03 else (may_be_equal(most - 0.01) and not may_be_equal(most + 0.01))


def _shake(run: RunRecord, by: float) -> dict[str, float]:
    return {HEADLINE: run.metrics[HEADLINE] + by * (run.seed - 1)}


def test_rows_of_one_name_and_other_settings_have_curves_of_their_own():
    table = make_table({"1": 0.7, "1/4": 0.65, "1/16": 0.5})
    others = [
        replace(
            row,
            runs=tuple(replace(run, identity=replace(run.identity, settings={"training.lr": 0.1})) for run in row.runs),
        )
        for row in table.rows
    ]
    curves = find_curves(replace(table, rows=(*table.rows, *others)))
    assert [len(curve.points) for curve in curves] == [3] * 4 and len({curve.name for curve in curves}) == 4
    assert "depth · lr=0.1" in [curve.name for curve in curves]


def test_networks_have_curves_of_their_own():
    table = make_table({"1": 0.7, "1/4": 0.65, "1/16": 0.5})
    others = [replace(row, runs=tuple(replace(run, network="fcn") for run in row.runs)) for row in table.rows]
    curves = find_curves(replace(table, rows=(*table.rows, *others)))
    assert len(curves) == 4 and all(len({point.row.first.network for point in curve.points}) == 1 for curve in curves)


def test_the_text_and_the_json_have_the_answer():
    table = make_table({"1": 0.7, "1/4": 0.75, "1/16": 0.5})
    saved = describe_savings(find_curves(table))
    assert saved in " ".join(render_text(table).split()) and saved in render_markdown(table)
    summary = summarise(table)["label_fraction"]
    assert summary["saved"] == saved and len(summary["points"]) == 6
    assert summary["points"][0] == {
        "curve": "plain", "share": 1 / 16, "labelled_images": None, "row": "plain:1/16",
        "mean": pytest.approx(0.52), "n": 3, "half_width": table.rows[2].metrics[HEADLINE].half_width,
    }  # fmt: skip
    assert "label_fraction" not in summarise(build_table([]))


def test_one_seed_tells_nothing():
    table = make_table({"1": 0.7, "1/4": 0.75, "1/16": 0.5}, seeds=1)
    assert "cannot be told without several seeds" in describe_savings(find_curves(table))


def test_curves_are_of_rows_with_several_shares_those_without_depth_first():
    curves = find_curves(make_table({"1": 0.7, "1/16": 0.5}))
    assert [(curve.name, [point.text for point in curve.points]) for curve in curves] == [
        ("plain", ["1/16", "1/4", "1"]), ("depth", ["1/16", "1"]),
    ]  # fmt: skip
    assert find_curves(make_table({"1": 0.7}))[1:] == []

"""The printed scores of the pseudo-depth paper against each other, as they were worked out by hand beforehand."""

from __future__ import annotations

import pytest

from stages.evaluation.paper_check import check_paper
from stages.training.schedules import PAPER_ROWS, PAPER_TABLE_2

CHECK = check_paper(PAPER_ROWS, PAPER_TABLE_2)
SEMANTIC_FIRST = ("seg-first+copy", "seg-first-direct+copy", "seg-first", "seg-first-direct")

# fmt: off
BY_HAND = [
    (2, "seg-only",                .7703, .8702, .986,  .9870, .9876, (18.5, 20.0)),
    (2, "joint",                   .6412, .7814, .977,  .9781, .9792, (19.0, 19.9)),
    (2, "depth-first+copy",        .7789, .8757, .997,  .9876, .9882, (83, None)),
    (3, "seg-first+copy",          .7297, .8437, .9840, .9844, .9851, (19.53, 19.53)),
    (3, "seg-first-direct+copy",   .7481, .8559, .9852, .9856, .9863, (19.47, 19.47)),
    (3, "seg-first",               .7380, .8493, .9845, .9849, .9856, (19.45, 19.45)),
    (3, "seg-first-direct",        .7475, .8555, .9852, .9856, .9862, (19.53, 19.53)),
    (3, "depth-first+copy",        .7789, .8757, .9974, .9876, .9882, (95.6, 95.6)),
    (3, "depth-first-direct+copy", .0136, .0268, .9103, .9027, .9073, (21.70, 21.70)),
    (3, "depth-first",             .7737, .8724, .9870, .9872, .9878, (19.63, 19.63)),
    (3, "depth-first-direct",      .0085, .0169, .9094, .9017, .9064, (21.70, 21.70)),
]
# fmt: on


@pytest.mark.parametrize("by_hand", BY_HAND, ids=lambda row: f"table {row[0]} {row[1]}")
def test_every_row(by_hand):
    table, name, miou, p, acc, of_20, of_21, (low, high) = by_hand
    (row,) = [row for row in CHECK.rows if (row.table, row.name) == (table, name)]
    assert (row.miou, row.acc) == (miou, acc)
    assert (row.p, row.predicted[20], row.predicted[21]) == pytest.approx((p, of_20, of_21), abs=0.5e-4 + 1e-9)
    assert row.classes.low == pytest.approx(low, abs=0.05 if low < 80 else 0.5)
    assert high is None or row.classes.high == pytest.approx(high, abs=0.05)


def test_no_other_row():
    assert [(row.table, row.name) for row in CHECK.rows] == [(table, name) for table, name, *_ in BY_HAND]


def test_means_over_classes_are_impossible():
    background = {row.name: row.background_iou for row in CHECK.rows}
    assert background["depth-first+copy"] == pytest.approx(6.25, abs=0.005)
    assert background["joint"] == pytest.approx(10.5, abs=0.05)
    assert background["depth-first-direct"] == pytest.approx(-0.027, abs=0.0006)
    healthy = [background[name] for name in (*SEMANTIC_FIRST, "depth-first", "depth-first+copy", "seg-only")]
    assert min(healthy) > 6.2 and max(healthy) < 7.85


def test_void_share_that_explains_the_collapsed_rows():
    fp_21, fp_20, tn_20 = CHECK.void_share.values()
    middle = [(low + high) / 2 for low, high in fp_21.values()]
    assert middle == pytest.approx([0.0644, 0.0648], abs=2e-4)
    assert all(0.0625 < low < high < 0.0665 for low, high in fp_21.values())
    assert all(low < 0.157 < high for low, high in fp_20.values())
    assert all(low < 0.0783 < high for low, high in tn_20.values())


def test_spread_over_images_that_explains_the_healthy_rows():
    spread = CHECK.spread
    assert spread["depth-first"].low == pytest.approx(0.121, abs=0.0006)
    semantic_first = [spread[name].low for name in SEMANTIC_FIRST]
    assert (min(semantic_first), max(semantic_first)) == pytest.approx((0.133, 0.139), abs=0.0006)
    assert spread["seg-only"] == pytest.approx((0.11, 0.16), abs=0.005)
    assert spread["joint"] == pytest.approx((0.16, 0.19), abs=0.007)  # 0.154 before it is rounded
    assert "depth-first+copy" not in spread


def test_drawn_images_give_the_printed_scores():
    drawn = CHECK.simulation
    assert drawn.row == "depth-first"
    assert (drawn.mean, drawn.deviation) == pytest.approx((0.8885, 0.129), abs=5e-4)
    assert (drawn.miou, drawn.acc) == pytest.approx((0.771, 0.9870), abs=1e-3)


def test_the_misprint():
    fit, misprint = CHECK.fit, CHECK.misprint
    assert set(fit.rows) == {*SEMANTIC_FIRST, "depth-first"} and fit.largest_residual <= 4e-5 + 1e-6
    assert list(fit.predicted.values()) == pytest.approx([0.98734, 0.98733, 0.98727], abs=1e-5)
    assert fit.of_table_2["seg-only"].high == pytest.approx(0.98675, abs=1e-5)  # by the line over mIoU
    assert fit.of_table_2["joint"] == pytest.approx((0.9774, 0.9779), abs=1e-4)
    assert (misprint.row, misprint.printed, misprint.likely) == ("depth-first+copy", 0.9974, 0.9874)
    assert misprint.predicted == pytest.approx(0.9873, abs=2e-4)
    assert misprint.needed_miou.low >= 0.94
    assert misprint.sentence.startswith("acc 0.9974 of depth-first+copy is a misprint")

"""Rows, notes and formats of the comparison table."""

from __future__ import annotations

import csv
import io
import json
import re
import subprocess
import sys
from dataclasses import replace

import pytest

from data_cache.metrics import METRICS
from stages.comparison.formats import FORMATS, render_csv, render_json, render_latex, render_markdown, render_text
from stages.comparison.identity import Identity
from stages.comparison.record import ClassRecord, PhaseRecord, RunRecord
from stages.comparison.table import build_table

PAPER = {"seg-only": {"miou": 0.7703, "iiou": 0.48, "acc": 0.986}}
SCENES = Identity("d0", "v0", None, {"device": "cpu", "dtype": "float32"}, 1, {"training.lr": 0.001})


def make_run(
    name: str = "seg-only", seed: int = 0, score: float = 0.6, steps: int = 300, **changes: object
) -> RunRecord:
    metrics = {
        "miou_macro": score,
        "miou_micro_imagewise": score + 0.1,
        "iiou_macro_fg": score - 0.05,
        "pixel_acc": score + 0.2,
    }
    if name != "seg-only":
        metrics["depth_mse"] = 0.0123
    phases = (PhaseRecord("seg", steps, 1.0, False),)
    run = RunRecord(name, seed, "unet", "scenes", "demo", metrics, phases, steps, identity=SCENES)
    return replace(run, **changes)


@pytest.fixture
def runs() -> list[RunRecord]:
    scores = {"seg-only": (0.60, 0.62, 0.61), "depth-first+copy": (0.64, 0.65, 0.66)}
    return [make_run(name, seed, score) for name, values in scores.items() for seed, score in enumerate(values)]


def test_rows_are_schedules_over_seeds(runs):
    first, second = build_table(runs).rows
    assert (first.name, first.seeds) == ("seg-only", (0, 1, 2))
    assert first.metrics["miou_macro"].mean == pytest.approx(0.61)
    assert second.differences["miou_macro"].mean == pytest.approx(0.04)
    assert second.baseline == "seg-only" and first.baseline is None


def test_order_is_as_asked_and_otherwise_as_met(runs):
    more = [*runs, make_run("joint")]
    assert [row.name for row in build_table(more, order=("joint", "depth-first+copy")).rows] == [
        "joint",
        "depth-first+copy",
        "seg-only",
    ]


def test_the_baseline_is_that_of_the_same_network():
    bases = [make_run(network="a", score=0.5), make_run(network="b", score=0.7)]
    others = [
        make_run("joint", network="a", score=0.6),
        make_run("joint", network="b", score=0.6),
        make_run("joint", network="c"),
    ]
    table = build_table([*bases, *others])
    found = {row.first.network: row.differences for row in table.rows if row.name == "joint"}
    assert found["a"]["miou_macro"].mean == pytest.approx(0.1)
    assert found["b"]["miou_macro"].mean == pytest.approx(-0.1)
    assert found["c"] == {}
    assert "no difference to seg-only for joint · c: network c / a" in table.notes


def test_of_two_runs_of_one_row_and_seed_the_later_counts():
    early, late = (
        make_run(score=0.1, started_at="2025-01-01T00:00:00"),
        make_run(score=0.2, started_at="2025-01-02T00:00:00"),
    )
    table = build_table([late, early])
    assert table.rows[0].metrics["miou_macro"].mean == 0.2
    assert any("1 earlier runs" in note for note in table.notes)


@pytest.mark.parametrize(
    ("runs", "note"),
    [
        ([make_run(), make_run("joint")], r"one seed only \(every row\): no interval"),
        ([make_run(), make_run(seed=1), make_run("joint")], r"one seed only \(joint\)"),
        ([make_run(), make_run(seed=1)], r"95 % t-interval"),
        (
            [make_run(steps=100), *(make_run(name, steps=300) for name in ("joint", "seg-only-long", "seg-seg-seg"))],
            r"100 \(seg-only\) to 300 \(joint\), 3 times .*hold the longest rows against "
            r"seg-seg-seg \(same budget and restarts\) and seg-only-long \(same budget, one decay\)",
        ),
        ([make_run(), make_run("joint", dataset="camvid")], r"different data sets"),
    ],
)
def test_notes_say_what_a_reader_must_know(runs, note):
    assert any(re.search(note, text) for text in build_table(runs).notes)


def test_equal_budgets_need_no_note(runs):
    assert not any("steps" in note for note in build_table(runs).notes)


def test_json_parses_back_to_the_same_numbers(runs):
    table = build_table(runs, paper=PAPER)
    parsed = json.loads(render_json(table))
    assert parsed == table.to_json()
    assert [row["metrics"]["miou_macro"] for row in parsed["rows"]] == [
        row.metrics["miou_macro"].mean for row in table.rows
    ]
    assert parsed["rows"][0]["paper"] == PAPER["seg-only"]
    assert parsed["metrics"]["depth_mse"]["higher_is_better"] is False
    assert parsed["rows"][1]["by_seed"]["miou_macro"] == {"0": 0.64, "1": 0.65, "2": 0.66}


def test_csv_parses_back_to_the_same_numbers(runs):
    table = build_table(runs, paper=PAPER)
    for line, row in zip(csv.DictReader(io.StringIO(render_csv(table))), table.rows, strict=True):
        assert (line["name"], line["seeds"], int(line["total_steps"])) == (row.name, "0 1 2", 300)
        for metric in METRICS:
            found = row.metrics.get(metric)
            assert line[metric] == ("" if found is None else repr(found.mean))
            assert line[f"{metric}_ci95"] == ("" if found is None else repr(found.half_width))
        assert line["paper_miou"] == ("0.7703" if row.name == "seg-only" else "")


def test_csv_columns_do_not_depend_on_the_runs(runs):
    heads = {
        render_csv(build_table(some, paper=paper)).splitlines()[0]
        for some, paper in [(runs, PAPER), (runs[:1], None), ([], None)]
    }
    assert len(heads) == 1


@pytest.mark.parametrize("width", [120, 80, 60])
@pytest.mark.parametrize("names", [("seg-only", "joint"), ("seg-only", "depth-first-direct+copy", "seg-only-long")])
def test_text_fits_its_width(names, width):
    made = [
        make_run(name, seed, 0.5 + seed / 7, network=f"unet-resnet{seed // 2}") for name in names for seed in range(4)
    ]
    text = render_text(build_table(made, paper=dict.fromkeys(names, PAPER["seg-only"])), width=width)
    assert max(map(len, text.splitlines())) <= width
    assert "miou_macro*" in text
    assert (width == 120 and len(names) == 2) or "left out for width" in text


def test_text_of_the_papers_rows_shows_every_column_in_120(runs):
    widest = [*runs, *(make_run("depth-first-direct+copy", seed, 0.5 + seed / 7) for seed in range(3))]
    text = render_text(build_table(widest, paper=PAPER))
    assert max(map(len, text.splitlines())) <= 120 and "left out" not in text
    assert ".770 .480 .986" in text


def test_text_marks_what_one_seed_cannot_tell():
    text = render_text(build_table([make_run(), make_run("joint", score=0.65)]))
    assert "+0.050 one seed, no interval" in text and "±" not in text


def test_differences_of_every_compared_metric_are_read(runs):
    table = build_table(runs, compared_metrics=("miou_macro", "pixel_acc"))
    text, markdown = render_text(table), render_markdown(table)
    for metric in ("miou_macro", "pixel_acc"):
        assert f"{metric} minus that of seg-only, paired by seed:\n  depth-first+copy  +0.040 ±0.025" in text
        assert f"{metric} vs seg-only" in markdown and f"{metric} vs seg-only" in render_latex(table).replace(
            "\\_", "_"
        )
    assert "pixel_acc vs" not in render_markdown(build_table(runs))
    assert list(csv.DictReader(io.StringIO(render_csv(table))))[1]["pixel_acc_diff"] != ""


def test_differences_have_the_digits_of_their_metric():
    runs = [make_run("a", metrics={"depth_mse": 0.0123}), make_run("b", metrics={"depth_mse": 0.0125})]
    assert "+0.0002 one seed" in render_text(build_table(runs, baseline="a", compared_metrics=("depth_mse",)))


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_every_format_renders_any_table(name, runs):
    for some in (runs, runs[:1], [make_run(metrics={})], []):
        assert isinstance(FORMATS[name](build_table(some, paper=PAPER)), str)
    assert render_text(build_table([])) == "no runs"


def test_markdown_golden():
    table = build_table(
        [make_run(), make_run("joint", seed=0, score=0.65, steps=300)], metrics=("miou_macro", "depth_mse")
    )
    assert render_markdown(table) == (
        "scenes · val · recipe demo · unet\n"
        "\n"
        "| row | seeds | steps | **miou_macro** | miou_macro vs seg-only | depth_mse\N{NO-BREAK SPACE}↓ |\n"
        "| --- | ---: | ---: | ---: | ---: | ---: |\n"
        "| seg-only | 1 | 300 | 0.600 | – | – |\n"
        "| joint | 1 | 300 | 0.650 | +0.050 | 0.0123 |\n"
        "\n"
        "- one seed only (every row): no interval can be given, and differences may be chance\n"
        "- miou_macro ↑ mIoU: mean of TP/(TP+FP+FN) over the classes in truth or prediction, counts pooled over the "
        "split; void left out (higher is better; fraction; Long et al. 2015)\n"
        "- depth_mse ↓ depth MSE: mean squared error of the inverse-depth target over all valid pixels of the split; "
        "invalid depth left out (lower is better; squared target units; Eigen et al. 2014)"
    )


def test_comparison_imports_neither_torch_nor_numpy():
    code = "import stages.comparison.formats, sys; assert not {'torch', 'numpy'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stderr == ""


@pytest.mark.parametrize(
    ("classes", "shown"),
    [(("road", "sky"), False), (("Background", "leaf"), True), ((), True)],
    ids=["all are foreground", "one is background", "nobody knows"],
)
def test_foreground_is_a_column_of_its_own_only_beside_a_background(classes, shown):
    run = make_run(per_class=tuple(ClassRecord(name) for name in classes))
    table = build_table([run])
    assert ("iiou_macro_fg" in table.main_metrics) == shown
    assert ("_fg" in render_text(table)) == shown and "iiou_macro_fg" in render_csv(table)
    assert table.to_json()["rows"][0]["metrics"]["iiou_macro_fg"] == pytest.approx(0.55)

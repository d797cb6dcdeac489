"""Runs are averaged or compared only where nothing but the seed, or the schedule, differs; the notes say the rest."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from stages.comparison.formats import FORMATS, render_text
from stages.comparison.record import RunRecord
from stages.comparison.rows import label_rows
from stages.comparison.table import Design, build_table

IDENTITY = {
    "data": "train-a",
    "split": "val-a",
    "depth": None,
    "numerics": {"device": "cpu", "dtype": "float32", "tf32": False, "compile": False},
    "evaluation": 1,
    "settings": {"training.lr": 0.001, "training.steps": [100], "data.crop": [96, 128]},
}
MISSING = object()


def write_run(
    work: Path,
    name: str = "seg-only",
    seed: int = 0,
    score: float = 0.5,
    *,
    root: str = "/data/a",
    own: bool = False,
    threads: int = 2,
    steps: tuple[str, ...] = (),
    **identity: object,
) -> RunRecord:
    """Write a run.json as training does, with an identity changed as said, and read it."""
    facts = {
        "name": name,
        "seed": seed,
        "network": "unet",
        "dataset": "folder",
        "recipe": "mine",
        "metrics": {"miou_macro": score},
        "schedule": {"name": name, "steps": steps, "own": own},
        "phases": [{"name": "seg", "steps": 100}],
        "config": {"data": {"root": root}},
        "identity": {**IDENTITY, **identity},
        "environment": {"threads": threads, "versions": {"torch": "2.11.0"}},
    }
    if MISSING in identity.values():
        del facts["identity"], facts["environment"], facts["schedule"]
    folder = work / f"run-{len(list(work.iterdir()))}"
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps(facts))
    return RunRecord.from_json(folder)


def test_two_datasets_of_one_name_are_neither_averaged_nor_compared(tmp_path: Path) -> None:
    """A made-up network scores 0.35 and 0.71 on two folders that are both called "folder": no row says 0.53 ± 2.29."""
    there = {"root": "/data/b", "data": "train-b", "split": "val-b"}
    runs = [
        write_run(tmp_path, seed=0, score=0.35),
        write_run(tmp_path, seed=1, score=0.71, **there),
        write_run(tmp_path, "joint", seed=1, score=0.75, **there),
        write_run(tmp_path, "depth-first", seed=0, score=0.40, root="/data/c", data="train-c", split="val-c"),
    ]
    table = build_table(runs)
    assert [(row.name, row.seeds, row.metrics["miou_macro"].mean) for row in table.rows] == [
        ("seg-only", (0,), 0.35), ("seg-only", (1,), 0.71), ("joint", (1,), 0.75), ("depth-first", (0,), 0.40),
    ]  # fmt: skip
    differences = {row.name: row.differences for row in table.rows}
    assert differences["joint"]["miou_macro"].mean == pytest.approx(0.04), "to the baseline on its own data"
    assert differences["depth-first"] == {}
    assert label_rows(table.rows)[:2] == ["seg-only · /data/a", "seg-only · /data/b"]
    assert (
        "seg-only: rows of their own, never averaged: data and reported split: other images or masks "
        "(folder at /data/a, folder at /data/b)"
    ) in table.notes
    apart = "no difference to seg-only for depth-first: data and reported split: other images or masks (folder"
    assert any(note.startswith(apart) for note in table.notes)


@pytest.mark.parametrize(
    ("change", "words", "label"),
    [
        ({"data": "train-b"}, "data: other images or masks (folder at /data/a, changed in between)", "1 of 2"),
        ({"split": "val-b"}, "reported split: other images or masks (folder at /data/a, changed in between)", "1 of 2"),
        ({"depth": "bundled-1"}, "depth: other maps", "1 of 2"),
        ({"settings": {**IDENTITY["settings"], "data.pool": "0d6c"}}, "data.pool: other images without", "1 of 2"),
        (
            {"numerics": {**IDENTITY["numerics"], "dtype": "bfloat16"}},
            "numerics: dtype float32 / bfloat16",
            "dtype=float32",
        ),
        ({"evaluation": 2}, "evaluation version 1 / 2", "evaluation version=1"),
        (
            {"settings": {**IDENTITY["settings"], "training.lr": 0.0001}},
            "training.lr 0.001 / 0.0001",
            "lr=0.001",
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_seeds_of_another_identity_are_a_row_of_their_own(tmp_path: Path, change, words: str, label: str) -> None:
    table = build_table([write_run(tmp_path, seed=0), write_run(tmp_path, seed=1, **change)])
    assert [row.seeds for row in table.rows] == [(0,), (1,)]
    assert f"seg-only: rows of their own, never averaged: {words}" in "\n".join(table.notes)
    first, second = label_rows(table.rows)
    assert first == f"seg-only · {label}" and second != first


def test_a_row_is_compared_with_no_baseline_of_other_numerics_but_with_one_that_lacks_a_setting(tmp_path: Path) -> None:
    wide = {**IDENTITY["settings"], "network.width": 64}
    runs = [
        write_run(tmp_path),
        write_run(tmp_path, "joint", numerics={**IDENTITY["numerics"], "dtype": "bfloat16"}),
        write_run(tmp_path, "wide", settings=wide),
    ]
    table = build_table(runs)
    assert {row.name: row.baseline for row in table.rows} == {"seg-only": None, "joint": None, "wide": "seg-only"}
    assert "no difference to seg-only for joint: numerics: dtype bfloat16 / float32" in "\n".join(table.notes)


def test_folders_of_one_name_are_told_apart_beside_other_datasets(tmp_path: Path) -> None:
    there = {"root": "/data/b", "data": "train-b", "split": "val-b"}
    runs = [write_run(tmp_path), write_run(tmp_path, **there), write_run(tmp_path, data="scenes", split="scenes")]
    runs[2] = replace(runs[2], dataset="scenes", data_root=None)
    assert label_rows(build_table(runs).rows, shown=("dataset",)) == [
        "seg-only · /data/a", "seg-only · /data/b", "seg-only",
    ]  # fmt: skip


def test_budgets_are_of_rows_and_not_of_names_and_controls_of_the_same_data(tmp_path: Path) -> None:
    short, long = write_run(tmp_path), write_run(tmp_path, settings={**IDENTITY["settings"], "training.lr": 0.1})
    elsewhere = write_run(tmp_path, "seg-seg-seg", root="/data/b", data="train-b", split="val-b")
    table = build_table([short, replace(long, total_steps=300), replace(elsewhere, total_steps=300)])
    (note,) = (note for note in table.notes if "total steps" in note)
    assert "from 100 (seg-only · lr=0.001) to 300 (seg-only · lr=0.1), 3 times" in note
    assert "seg-seg-seg" not in note


def test_of_two_baselines_the_one_with_the_same_settings_counts(tmp_path: Path) -> None:
    """Settings with a value per phase agree where they share one; others are equal or not."""
    slow = {**IDENTITY["settings"], "training.lr": [0.1]}
    fast = {**IDENTITY["settings"], "training.lr": [0.9]}
    runs = [write_run(tmp_path, score=0.5, settings=slow), write_run(tmp_path, score=0.7, settings=fast)]
    runs += [write_run(tmp_path, "joint", score=0.8, settings=fast)]
    runs += [write_run(tmp_path, "odd", score=0.8, settings={**slow, "data.crop": [96, 64]})]
    table = build_table(runs)
    found = {row.name: row.differences for row in table.rows if row.name != "seg-only"}
    assert found["joint"]["miou_macro"].mean == pytest.approx(0.1)
    assert found["odd"] == {}
    assert "no difference to seg-only for odd: data.crop [96, 64] / [96, 128]" in "\n".join(table.notes)


def test_a_baseline_of_another_network_or_budget_is_none(tmp_path: Path) -> None:
    """A MobileNetV2 of two steps used to be subtracted from an EfficientNet, because it was the only one there is."""
    tried = write_run(tmp_path, score=0.1)
    short = replace(tried, network="unet-mobilenet_v2", budget={"training.iterations": 2}, total_steps=2)
    row = replace(write_run(tmp_path, "joint", score=0.203), network="unet-efficientnet", budget={"training.epochs": 4})
    table = build_table([short, row])
    assert table.rows[1].differences == {} and table.baseline is None
    assert "no difference to seg-only for joint: network unet-efficientnet / unet-mobilenet_v2" in table.notes
    longer = replace(short, network="unet-efficientnet", budget={"training.epochs": 8})
    assert "for joint: training.epochs 4 / 8" in "\n".join(build_table([longer, row]).notes)


def test_a_run_with_few_masks_is_no_match_for_one_with_all(tmp_path: Path) -> None:
    few = {"settings": {**IDENTITY["settings"], "data.labelled_fraction": "0.125 by random"}}
    table = build_table([write_run(tmp_path), write_run(tmp_path, "joint", **few)])
    assert table.rows[1].differences == {}
    assert "for joint: data.labelled_fraction 0.125 by random / 1" in "\n".join(table.notes)


def test_rows_differ_in_what_their_table_says_they_change_and_in_nothing_else(tmp_path: Path) -> None:
    plain, wide = write_run(tmp_path, "plain", score=0.5), write_run(tmp_path, "wide", score=0.6)
    wide = replace(wide, network="unet-wide")
    design = Design(changes={"wide": {"network.encoder"}})
    for run, difference in ((wide, 0.1), (replace(wide, budget={"training.epochs": 1}), None)):
        base = replace(plain, budget={"training.epochs": 9} if difference is None else {})
        (_, row) = build_table([base, run], baseline="plain", design=design).rows
        assert (row.differences["miou_macro"].mean if row.differences else None) == pytest.approx(difference)


def test_rows_have_baselines_and_controls_of_their_own(tmp_path: Path) -> None:
    scores = {"plain:1": 0.6, "depth:1": 0.65, "plain:1/8": 0.4, "depth:1/8": 0.5, "depth:1/8@gray": 0.52}
    runs = [write_run(tmp_path, name, seed, score + seed / 100 * (1 + (name == "depth:1/8")))
            for name, score in scores.items() for seed in (0, 1, 2)]  # fmt: skip
    design = Design(
        {name: f"plain:{name.partition(':')[2].partition('@')[0]}" for name in scores},
        {"depth:1/8": ("plain:1/8", "depth:1/8@gray", "depth:1/8@shuffled")},
    )
    table = build_table(runs, baseline="plain:1", design=design)
    found = {row.name: row for row in table.rows}
    assert {name: row.baseline for name, row in found.items()} == {
        "plain:1": None, "depth:1": "plain:1", "plain:1/8": None, "depth:1/8": "plain:1/8",
        "depth:1/8@gray": "plain:1/8",
    }  # fmt: skip
    controls = found["depth:1/8"].controls
    assert {name: round(control.found.mean, 6) for name, control in controls.items()} == {
        "plain:1/8": 0.11, "depth:1/8@gray": -0.01,
    }  # fmt: skip
    assert len(table.bases) == 2 and table.to_json()["rows"][3]["controls"]["plain:1/8"]["seeds"] == [0, 1, 2]
    (note,) = (note for note in table.notes if "controls" in note)
    assert note.endswith("not clearly before depth:1/8@gray, so its gain cannot be credited to the image's own depth")
    assert "depth:1/8 - plain:1/8" in render_text(table)


def test_what_a_control_shares_with_depth_is_said_where_seeds_that_know_it_agree(tmp_path: Path) -> None:
    for known, said in (((None, 0.79), True), ((0.79, 0.79), True), ((0.7, 0.79), False), ((None, None), False)):
        runs = [
            replace(write_run(tmp_path, "depth@shuffled", seed), control_correlation=value)
            for seed, value in enumerate(known)
        ]
        assert any("at +0.79 (depth@shuffled);" in note for note in build_table(runs).notes) == said


def test_threads_and_versions_are_a_note_and_no_reason_to_split(tmp_path: Path) -> None:
    (row,) = (table := build_table([write_run(tmp_path, seed=0), write_run(tmp_path, seed=1, threads=8)])).rows
    assert row.seeds == (0, 1)
    assert "seg-only: seeds differ in threads 2 / 8; last digits may, too" in "\n".join(table.notes)


def test_runs_of_an_older_version_stand_alone(tmp_path: Path) -> None:
    runs = [write_run(tmp_path, seed=0), *(write_run(tmp_path, seed=seed, data=MISSING) for seed in (0, 1, 1))]
    runs.append(write_run(tmp_path, "joint", data=MISSING))
    table = build_table(runs, paper={"joint": {"miou": 0.7}})
    assert [row.seeds for row in table.rows] == [(0,), (0,), (1,), (1,), (0,)]
    assert table.rows[-1].differences == {} and table.rows[-1].paper == {}
    assert (
        "seg-only (seed 0), seg-only (seed 1), joint (seed 0): made by an older version, so neither averaged nor "
        "compared; repeat the run" in table.notes
    )
    assert not any("different data sets" in note for note in table.notes), "an older run does not say which data"
    assert len(set(label_rows(table.rows))) == 5 and "seg-only · older version" in render_text(table)


def test_an_own_schedule_does_not_stand_in_the_papers_row(tmp_path: Path) -> None:
    paper = {"depth-first+copy": {"miou": 0.7789}}
    ours = {"own": True, "steps": ("seg: encoder",)}
    runs = [write_run(tmp_path, "depth-first+copy", 0), write_run(tmp_path, "depth-first+copy", 1, **ours)]
    table = build_table(runs, paper=paper)
    assert [(row.seeds, row.paper) for row in table.rows] == [((0,), {"miou": 0.7789}), ((1,), {})]
    assert "phases of the recipe's own, so no paper's scores stand beside them" in "\n".join(table.notes)
    assert label_rows(table.rows) == ["depth-first+copy", "depth-first+copy · own phases"]
    assert "phases: those of the row / seg: encoder" in "\n".join(table.notes)


def test_every_format_tells_namesakes_apart(tmp_path: Path) -> None:
    table = build_table([write_run(tmp_path), write_run(tmp_path, root="/data/b", data="train-b", split="val-b")])
    for name, render in FORMATS.items():
        assert "/data/a" in render(table) and "/data/b" in render(table), name

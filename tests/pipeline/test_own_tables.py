"""Tables as data: the ones about few masks, and those that a person writes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_cache.errors import UserError
from pipeline.experiment.config import load_config
from pipeline.experiment.expand import list_rows
from pipeline.experiment.plan import Plan, plan_runs
from pipeline.experiment.tables import TABLES, TrainingSize, find_table
from pipeline.experiment.tabulate import tabulate
from stages.comparison.record import RunRecord
from tests.pipeline.drawn_facts import build_facts

Call = Callable[..., Any]
TINY = Path(__file__).parent / "tiny.toml"
SWEEP = """
[table]
title = "Learning rates"
baseline = "slow"
seeds = [0, 1]
note = "two rates"

[[table.rows]]
name = "slow"
changes = { training.lr = 1e-3, schedule.name = "seg-only" }

[[table.rows]]
name = "fast"
changes = { "training.lr" = 1e-2, schedule.name = "seg-only" }

[[table.rows]]
name = "fast, longer"
baseline = "fast"
changes = { training = { lr = 1e-2, epochs = 1 }, schedule.name = "seg-only" }
""".replace("fast, longer", "fast longer")


def write(folder: Path, text: str = SWEEP) -> Path:
    path = folder / "my-sweep.toml"
    path.write_text(text)
    return path


def plan_table(name: str, size: TrainingSize, *seeds: int, **changes: Any) -> Plan:
    config = load_config("demo", {"training.precision": "float32", **changes})
    return plan_runs(list_rows(config, name, seeds or (0,), lambda _: size), build_facts(pool=300))


@pytest.mark.parametrize(("own_pool", "rows"), [(0, 15), (50, 16)])
def test_few_masks_is_a_table_of_equal_steps(own_pool: int, rows: int) -> None:
    """At all masks the row with the pool has only what the dataset brings without masks: none, and it is left out."""
    made = plan_table("label-fraction", TrainingSize(400, own_pool))
    assert len(made.runs) == rows and ("depth-first+copy+pool:1" in {run.row for run in made.runs}) == bool(own_pool)
    assert {run.steps for run in made.runs} == {300}, "1.5 times four epochs of fifty steps"
    assert {run.row: run.steps for run in plan_table("label-fraction", TrainingSize(0, 1), **{
        "training.iterations": 20}).runs}["joint:1/16"] == 30  # fmt: skip
    assert {run.steps for run in plan_table("label-fraction", TrainingSize(0, 1), **{
        "training.iterations": 23}).runs} == {36}, "34.5, as a multiple of three phases and of one"  # fmt: skip
    read = Counter((run.config.data.labelled_fraction, run.config.data.unlabelled) for run in made.runs)
    assert read["1/8", "ignore"] == 3 and read["1/8", "pool"] == 1


def test_what_is_said_to_pay_is_compared_with_what_shares_its_images() -> None:
    table = TABLES["depth-pays"]
    made = plan_table("depth-pays", TrainingSize(400, 0))
    assert len(made.runs) == 10 and len({run.steps for run in made.runs}) == 1
    assert {run.config.loss.seg for run in made.runs} == {"cross-entropy"}, "in which labels become certain"
    by_name = {row.name: row for row in table.rows}
    assert by_name["pool+depth:selected"].baseline == "plain:selected"
    assert by_name["pool+depth:selected"].controls == ("pool:selected", "pool+class:selected", "pool+cut:selected")
    assert by_name["pool+cut:random"].controls == ("pool:random",) and not by_name["pool:random"].controls
    assert {run.config.schedule.mix for run in made.runs} == {"none", "cut", "class", "depth"}
    assert {run.config.data.labelled_by for run in made.runs if "selected" in run.row} == {"depth-features"}


@pytest.mark.parametrize("name", TABLES)
def test_baselines_and_controls_are_rows_and_names_are_unique(name: str) -> None:
    table = TABLES[name]
    others = {other for row in table.rows for other in (row.baseline or table.baseline, *row.controls)}
    assert others <= set(table.order) and len(set(table.order)) == len(table.rows)


def test_an_own_table_is_trained_compared_and_reported(call: Call, tmp_path: Path) -> None:
    path = write(tmp_path)
    words = (path, "--recipe", TINY, "--set", "network.encoder=tu-test_resnet")
    planned = call("plan", *words).json
    assert Counter(run["row"] for run in planned["runs"]) == {"slow": 2, "fast": 2, "fast longer": 2}
    answer = call("table", *words, "--seeds", "1")
    assert answer.status == 0, answer.stderr
    rows = {row["name"]: row for row in answer.json["rows"]}
    assert {name: (row["seeds"], row["baseline"], row["total_steps"]) for name, row in rows.items()} == {
        "slow": ([1], None, 3), "fast": ([1], "slow", 3), "fast longer": ([1], "fast", 3),
    }  # fmt: skip
    assert "two rates" in answer.json["notes"]
    assert "Learning rates" in Path(call("report", "--table", path).json["report"]).read_text()
    fewer = write(tmp_path, SWEEP.rpartition("[[table.rows]]")[0])
    compared = call("compare", "--table", fewer).json
    assert [row["name"] for row in compared["rows"]] == ["slow", "fast"], "runs of other rows are left out"


def test_a_table_may_bring_its_recipe(call: Call, tmp_path: Path) -> None:
    path = write(tmp_path, SWEEP + TINY.read_text())
    assert {phase["steps"] for phase in call("plan", path).json["phases"]} == {3}
    refused = call("plan", path, "--recipe", "demo")
    assert refused.status == 2 and "is a recipe itself" in refused.json["error"]
    assert call("plan", "--recipe", path, "--schedule", "seg-only").status == 0


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("title =", "titel =", "unknown key 'table.titel'.*'title'"),
        ('name = "fast"', 'nam = "fast"', r"unknown key 'table.rows.1.nam'"),
        ('name = "fast"', 'name = "slow"', "'slow' is the name of several rows"),
        ('baseline = "slow"', 'baseline = "slwo"', "unknown baseline row 'slwo' .did you mean 'slow'"),
        ("seeds = [0, 1]", "seeds = []", "must be different numbers, at least one"),
        ("seeds = [0, 1]", "seeds = [1, 1]", "must be different numbers, at least one"),
        ("seeds = [0, 1]", "seeds = [-1]", "table.seeds"),
        ("training.lr = 1e-3", "seed = 3", "seeds are the table's"),
        ('name = "slow"', 'name = "../up"', "table.rows.0.name"),
        (SWEEP, "[data]\nflip = 0.0", "has no rows"),
        ("training.lr = 1e-3", "training.lrr = 1e-3", "table row 'slow':\n  unknown key 'training.lrr'"),
    ],
)
def test_a_table_is_read_as_strictly_as_a_recipe(tmp_path: Path, old: str, new: str, words: str) -> None:
    assert old in SWEEP
    path = write(tmp_path, SWEEP.replace(old, new, 1))
    with pytest.raises(UserError, match=words):
        list_rows(load_config("demo"), str(path), None)


def test_rows_of_another_source_of_depth_are_controls(tmp_path: Path) -> None:
    path = write(tmp_path, SWEEP.replace('"fast longer"', '"fast@gray"'))
    assert {row.name: row.controls for row in find_table(str(path)).rows if row.controls} == {"fast": ("fast@gray",)}


def test_settings_that_a_row_makes_pointless_give_way(tmp_path: Path) -> None:
    rows = list_rows(load_config(str(TINY)), str(write(tmp_path)), (0,))
    longer = rows[-1].config
    assert (longer.training.iterations, longer.training.epochs, longer.schedule.copy_weights) == (None, 1, None)
    assert find_table(str(tmp_path / "my-sweep.toml")).decided >= {"training.lr", "schedule"}


@pytest.mark.parametrize(
    ("row", "dataset", "asked", "shown"),
    [
        ("seg-only", "voc", False, True),
        ("seg-only", "scenes", False, False),
        ("seg-only", "scenes", True, True),
        ("seg-seg-seg", "voc", True, False),
        ("mff-exit", "voc", False, False),
        ("mff-exit", "cityscapes", False, True),
    ],
)
def test_a_paper_s_scores_stand_beside_scores_of_its_data_alone(
    row: str, dataset: str, asked: bool, shown: bool
) -> None:
    table = tabulate([RunRecord(row, 0, "unet", dataset, "any", {"miou_macro": 0.5})], paper=asked)
    assert bool(table.rows[0].paper) == bool(table.paper_columns) == shown
    assert ("as printed" in " ".join(table.notes)) == shown
    assert ("tells dilation from capacity" in " ".join(table.notes)) == (row == "mff-exit")

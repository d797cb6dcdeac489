"""What a depth decoder learns may be a control; what it is scored on never is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.experiment.config import load_config
from pipeline.experiment.expand import list_rows
from pipeline.experiment.plan import plan_runs
from tests.pipeline.drawn_facts import build_facts

Call = Callable[..., Any]
TINY = Path(__file__).parent / "tiny.toml"
RUN = ["run", "--recipe", TINY, "--iterations", "1", "--schedule", "depth-then-seg"]


def test_controls_are_rows_of_their_own_and_scored_on_the_maps_of_the_estimator(call: Call) -> None:
    """The same weights get the same scores, whatever they were taught."""
    call("pseudo-depth", "--recipe", TINY)
    first = {source: call(*RUN, "--depth-source", source).json for source in ("teacher", "shuffled", "gray")}
    assert len({run["phases"][0]["key"] for run in first.values()}) == 3
    rows = call("compare").json["rows"]
    assert {row["name"] for row in rows} == {f"depth-then-seg{suffix}" for suffix in ("", "@shuffled", "@gray")}
    for source in ("shuffled", "gray"):
        file = Path(first[source]["folder"]) / "run.json"
        record = json.loads(file.read_text())
        assert record["config"]["depth"]["source"] == source
        record["config"]["depth"]["source"] = "teacher"
        file.write_text(json.dumps(record))
        assert call("evaluate", first[source]["run"]).json["metrics"] == first[source]["metrics"]
        assert "depth_mse" in first[source]["metrics"]


@pytest.mark.parametrize("source", ["constant", "noise"])
def test_what_is_made_up_needs_no_store(call: Call, source: str) -> None:
    answer = call(*RUN, "--depth-source", source)
    assert answer.status == 0 and "depth_mse" not in answer.json["metrics"]
    assert answer.json["phases"][0]["depth_store"]["estimator"].startswith(source)


def test_the_datasets_own_depth_teaches_beside_another_estimator(call: Call) -> None:
    answer = call(*RUN, "--estimator", "bundled", "--depth-source", "dataset")
    assert answer.status == 2 and "--estimator dataset --split train" in answer.json["error"]
    call("pseudo-depth", "--recipe", TINY, "--split", "train")
    plain = call(*RUN).json
    borrowed = call(*RUN, "--estimator", "bundled", "--depth-source", "dataset").json
    assert [phase["key"] for phase in borrowed["phases"]] == [phase["key"] for phase in plain["phases"]]
    assert (plain["schedule"], borrowed["schedule"]) == ("depth-then-seg", "depth-then-seg@dataset")


def test_the_table_of_schedules_brings_its_controls_and_three_seeds() -> None:
    rows = list_rows(load_config("demo", {"training.precision": "float32"}), "schedules", None)
    assert {row.config.seed for row in rows} == {0, 1, 2}
    learnt = {row.name: row.config.depth.source for row in rows if "@" in row.name}
    assert learnt == {"depth-first+copy@shuffled": "shuffled", "depth-first+copy@gray": "gray"}
    plan = plan_runs(rows, lambda row: build_facts(depth=row.config.depth.source))
    assert len(plan.nodes) == 3 * (18 + 3 + 3), "controls share nothing with what learns depth"

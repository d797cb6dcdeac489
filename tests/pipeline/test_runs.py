"""Finished runs by the command line: found by any beginning, told apart by what differs, removed without harm."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Call = Callable[..., Any]
TINY = Path(__file__).parent / "tiny.toml"
STEP = '[[steps]]\nphase = "{}"\ntrains = ["encoder", "seg-branch"]\nseg = 1.0\n'


def test_runs_of_schedule_files_share_a_phase_that_stays_as_long_as_one_needs_it(call: Call, tmp_path: Path) -> None:
    one, two = tmp_path / "one.toml", tmp_path / "two.toml"
    one.write_text(STEP.format("a"))
    two.write_text(
        "[schedule]\nname = 'twice'\n" + (STEP.format("a") + STEP.format("b")).replace("steps", "schedule.steps")
    )
    run = ["run", "--recipe", TINY, "--iterations", "1"]
    first = call(*run, "--schedule", one).json
    second = call(*run, "--schedule", two).json
    other = call(*run, "--schedule", one, "--lr", "0.01").json
    assert (first["schedule"], second["schedule"]) == ("one", "twice") and second["phases"][0]["reused"]

    listed = {each["run"]: each for each in call("runs").json["runs"]}
    assert list(listed) == [first["run"], second["run"], other["run"]]
    assert listed[first["run"]]["differs"] == "lr=0.001" and listed[other["run"]]["differs"] == "lr=0.01"
    assert listed[second["run"]]["differs"] == ""
    text = call("runs", "list", as_json=False).stdout
    assert "lr=0.01" in text and "twice" in text

    by_id = listed[second["run"]]["id"][:6]
    (shown,) = call("runs", "show", by_id).json["runs"]
    assert shown["run"] == second["run"] and list(shown["shared"]) == [first["phases"][0]["key"]]
    assert call("evaluate", by_id).json["metrics"] == second["metrics"]
    assert call("runs", "open", by_id).json["runs"][0]["folder"] == second["folder"]

    refused = call("runs", "rm", by_id)
    assert refused.status == 2 and "--yes" in refused.json["error"] and Path(second["folder"]).exists()
    nodes = tmp_path / "work" / "nodes"
    own = nodes / second["phases"][1]["key"]
    size = sum(path.stat().st_size for folder in (own, Path(second["folder"])) for path in folder.rglob("*")
               if path.is_file() and path.name != ".lock")  # fmt: skip
    gone = call("runs", "rm", by_id, "--yes").json
    assert gone["runs"][0]["removed"] == [own.name] and gone["freed_bytes"] == pytest.approx(size, abs=1000)
    assert gone["runs"][0]["kept"] == {first["phases"][0]["key"]: f"shared with {first['run']}"}
    assert not own.exists() and not Path(second["folder"]).exists()
    assert call("evaluate", first["run"]).json["metrics"] == first["metrics"], "what it shared is whole"

    broken = Path(other["folder"]) / "run.json"
    kept = broken.read_text()
    broken.write_text("{")
    assert call("runs", "rm", first["run"], "--yes").json["runs"][0]["removed"] == [], "who knows what that one needs"
    broken.write_text(kept)
    assert (nodes / first["phases"][0]["key"]).exists()
    (nodes / "0123456789abcdef").mkdir()
    assert call("runs", "rm", other["run"], "--yes").json["runs"][0]["removed"] == [], "nor from what that one starts"
    assert call("runs").json["runs"] == []


def test_a_schedules_own_epochs_win_and_that_is_said(call: Call, tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(STEP.format("a") + "epochs = 1\n" + STEP.format("b"))
    answer = call("plan", "--recipe", TINY, "--schedule", file, "--iterations", "5")
    assert answer.status == 2
    assert "a of schedule.steps say their own epochs, which would win; the other phases" in answer.json["error"]
    file.write_text("name = 'nothing'\n")
    assert "holds no schedule: it needs steps" in call("plan", "--schedule", file).json["error"]
    assert "no such file" in call("plan", "--schedule", tmp_path / "none.toml").json["error"].lower()


def test_a_plan_says_how_long_training_takes_and_trains_nothing(call: Call, tmp_path: Path) -> None:
    words = ["plan", "--recipe", TINY, "--schedule", "seg-seg-seg", "--iterations", "100", "--measure"]
    answer = call(*words, "--accumulate", "2")
    found = answer.json
    assert 0 < found["minutes"] == pytest.approx(sum(phase["minutes"] for phase in found["phases"]), abs=0.01)
    assert answer.stderr.count("measuring") == 1, "phases that do the same are measured once"
    assert not (tmp_path / "work" / "nodes").exists()
    assert "minutes" not in call(*words[:-1]).json


def test_the_bare_command_shows_its_help(call: Call) -> None:
    answer = call(as_json=False)
    assert answer.status == 0 and answer.stdout.startswith("Usage: pipeline ") and "  runs " in answer.stdout
    assert json.loads(call("runs").stdout) == {"runs": [], "notes": []}

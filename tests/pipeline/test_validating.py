"""On which images a training is scored while it runs, and what the choice by it leaves in records and tables."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data_cache.files import read_json
from pipeline.console import Console
from pipeline.experiment.config import load_config
from pipeline.experiment.expand import expand_rows, make_plan
from pipeline.experiment.reading import Scope
from pipeline.experiment.training_images import open_training_images
from pipeline.experiment.validating import open_validation
from pipeline.session import Session
from pipeline.workspace import Workspace

Call = Callable[..., Any]
TINY = Path(__file__).parent / "tiny.toml"
RUN = ["run", "--recipe", TINY, "--schedule", "seg-only", "--iterations", "4"]


def test_scores_leave_no_trace_and_a_choice_is_told(call: Call, tmp_path: Path) -> None:
    work = tmp_path / "work"
    plain = call(*RUN).json
    scored = call("--workdir", tmp_path / "scored", *RUN, "--val-every", "3").json
    assert scored["run"] == plain["run"], "a look decides nothing"
    records = [
        read_json(folder / "nodes" / plain["phases"][0]["key"] / "node.json") for folder in (work, tmp_path / "scored")
    ]
    assert records[0]["weights"] == records[1]["weights"], "the same bits"
    lines = [json.loads(line) for line in (Path(scored["folder"]) / "metrics.jsonl").read_text().splitlines()]
    assert {line["step"]: list(line["val"]) for line in lines if "val" in line} == {
        3: ["miou_macro"],
        4: ["miou_macro"],
    }
    assert lines[-1]["val"]["miou_macro"] == scored["metrics"]["miou_macro"], "of the reported split"
    page = tmp_path / "report.html"
    assert call("--workdir", tmp_path / "scored", "report", "--out", page).status == 0
    assert "Scores while training" in page.read_text()

    answer = call(*RUN, "--keep", "best", "--val-every", "2")
    chosen, record = answer.json, read_json(Path(answer.json["folder"]) / "run.json")
    assert chosen["run"] != plain["run"]
    (note,) = [note for note in chosen["notes"] if "weights are chosen" in note]
    assert note == "weights are chosen (the best) on 1 image held out of train, and reported on val"
    assert record["selection"] == "best" and record["labelled_images"] == 11
    assert record["selected_on"] == {
        "split": "train",
        "held_out": True,
        "images": 1,
        "val_every": [2],
        "patience": None,
    }
    assert record["phases"][0]["best_step"] in (2, 4)
    assert "the best, chosen on 1 image held out of train" in call("runs", "show", chosen["run"], as_json=False).stdout

    ended = call(*RUN, "--patience", "1", "--val-every", "1", "--set", "training.lr=1e-9").json
    record = read_json(Path(ended["folder"]) / "run.json")
    assert record["selection"] == "last" and record["selected_on"]["patience"] == 1
    assert record["total_steps"] == record["phases"][0]["steps"] < 4

    rows = call("compare").json["rows"]
    assert [row["seeds"] for row in rows] == [[0], [0], [0]], "runs of different choices are no row"


@pytest.mark.parametrize("reported", ["val", "test"])
def test_the_images_of_a_choice_are_neither_trained_on_nor_reported(tmp_path: Path, reported: str) -> None:
    session = Session(Workspace(tmp_path), Console(quiet=True))
    options = {"size": (64, 64), "counts": {"train": 40, "val": 4, "test": 4}}
    wanted = {
        "training.keep": "best",
        "evaluation.split": reported,
        "schedule.name": "seg-only",
        "data.options": options,
    }
    plans = []
    for change in ({"seed": 0}, {"seed": 1}, {"seed": 1, "evaluation.size": "recipe"}):
        config = load_config(str(TINY), wanted | change)
        plans.append(make_plan(expand_rows(config, None, None, session, "cpu"), session, reuse=True))
    keys = [plan.runs[0].nodes[0].key for plan in plans]
    assert keys[1] != keys[2], "scored at another size, other weights may be the best"
    (run,) = plans[0].runs
    selection = run.facts.selection
    assert selection is not None and selection == plans[1].runs[0].facts.selection, "the same ones for every seed"
    images = open_training_images(run.config, session.workspace, None, selection)
    trained = [images.select(Scope(masks, False)) for masks in (True, False)]
    chosen = open_validation(run.config, session.workspace, selection)
    assert chosen.split == ("train" if reported == "val" else "val") != reported
    assert all(not set(part.image_ids) & set(chosen.image_ids) for part in trained)
    assert [len(part) for part in trained] == ([36, 36] if reported == "val" else [40, 40])
    shown = set(np.unique(np.concatenate([trained[0].read_pair(i)[1].ravel() for i in range(len(trained[0]))])))
    assert shown >= set(np.unique(np.concatenate([chosen.read_pair(i)[1].ravel() for i in range(len(chosen))])))


def test_without_an_image_to_spare_a_choice_is_refused(call: Call, tmp_path: Path) -> None:
    root = tmp_path / "own"
    for split in ("train", "val"):
        for name, number in (("a", 0), ("b", 1)):
            for kind, colour in (("images", (number, 50, 90 if split == "val" else 30)), ("masks", number)):
                (root / kind / split).mkdir(parents=True, exist_ok=True)
                mode = "RGB" if kind == "images" else "L"
                Image.new(mode, (64, 64), colour).save(root / kind / split / f"{name}.png")
    (root / "classes.txt").write_text("ground\nthing\n")
    answer = call(*RUN, "--dataset", "folder", "--data-root", root, "--set", "data.options={}", "--patience", "2")
    assert answer.status == 2 and "none of the 2 training images with masks can be spared" in answer.json["error"]
    assert not (tmp_path / "work/nodes").exists()
    answer = call(*RUN, "--keep", "best", "--val-every", "0")
    assert answer.status == 2 and "leave it out for one scoring an epoch" in answer.json["error"]

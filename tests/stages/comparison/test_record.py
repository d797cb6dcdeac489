"""run.json is read into types, and what is wrong with it is said."""

from __future__ import annotations

import json
from pathlib import Path

from stages.comparison.record import RunRecord

FACTS = {
    "name": "depth-first+copy",
    "seed": 1,
    "network": "unet-resnet18",
    "dataset": "scenes",
    "recipe": "demo",
    "metrics": {"miou_macro": 0.5, "confusion": [[1]], "broken": None},
    "phases": [
        {"name": "depth", "key": "a", "steps": 30, "seconds": 2.5, "reused": True},
        {"name": "seg", "steps": 20},
    ],
    "per_class": [{"name": "sky", "iou": None, "acc": 0.5, "pixels": 7}],
}


def write(folder: Path, facts: object) -> Path:
    (folder / "run.json").write_text(facts if isinstance(facts, str) else json.dumps(facts))
    return folder


def test_a_folder_or_its_file_can_be_named(tmp_path):
    write(tmp_path, FACTS)
    record = RunRecord.from_json(tmp_path)
    assert record == RunRecord.from_json(tmp_path / "run.json")
    assert record.folder == tmp_path
    assert record.metrics == {"miou_macro": 0.5}
    assert record.total_steps == 50
    assert [(phase.name, phase.elapsed_s, phase.reused) for phase in record.phases] == [
        ("depth", 2.5, True),
        ("seg", 0.0, False),
    ]
    assert record.per_class[0].iou is None
    assert record.identity is None and record.own_schedule, "what an older version did not say is not taken for granted"

"""Any bytes in the place of a record of our own: understood, or one message that names the file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_cache.errors import UserError
from data_cache.records import read_record
from data_cache.training_log import read_log
from pipeline.experiment.facts import MeasuredCosts, NetworkFacts
from pipeline.experiment.nodes import NodeRecord
from stages.comparison.losses import read_losses
from stages.comparison.record import RunRecord
from stages.export.preprocess import read_preprocess
from stages.export.proof_file import read_proof
from stages.training.checkpoint import read_checkpoint, write_checkpoint

HASH = "0123456789abcdef" * 2
DEPTH = {"estimator": "e", "licence": "l", "revision": "", "weights_sha256": "", "kind": "relative"}
NUMERICS = {"device": "cpu", "dtype": "float32", "tf32": False, "compile": False}
ENVIRONMENT = {"threads": 2, "versions": {"torch": "2"}}
LOSSES = {"seg": 1.0}
NODE = {
    "format": 2, "key": HASH, "weights": HASH, "seconds": 1.5, "losses": LOSSES, "copied": 0, "depth_store": DEPTH,
    "numerics": NUMERICS, "environment": ENVIRONMENT,
}  # fmt: skip
RUN = {
    "format": 2, "run": "r", "name": "seg-only", "seed": 0, "network": "unet", "dataset": "scenes", "recipe": "demo",
    "metrics": {"miou_macro": 0.5, "depth_mse": 2.0}, "total_steps": 3, "nodes": [HASH], "classes": ["a", "b"],
    "phases": [{"name": "seg", "key": HASH, "steps": 3, "seconds": 1.0, "reused": False, "losses": LOSSES}],
    "per_class": [{"name": "a", "iou": 0.5, "acc": None, "pixels": 7}], "palette": [[0, 0, 0], [255, 1, 2]],
    "image_size": [64, 64], "depth_store": DEPTH, "schedule": {"name": "seg-only", "steps": ["seg"], "own": False},
    "config": {"data": {"root": None}, "network": {}, "schedule": {}, "evaluation": {}}, "environment": ENVIRONMENT,
    "evaluation": {"version": 1, "key": HASH, "weights": HASH}, "started_at": "2026", "command": "pipeline run",
    "identity": {
        "data": "d", "split": "s", "depth": None, "numerics": NUMERICS, "evaluation": 1, "settings": {"data.flip": 0.5}
    },
}  # fmt: skip
SIZE = {"batch": 1, "height": 64, "width": 64, "max_abs_difference": 0.0, "argmax_agreement": 1.0}
PROOF = {
    "format": 2, "export_key": HASH, "files": {"a": HASH * 2}, "max_abs_difference": {"smp": None, "full": 0.0},
    "formats": {"onnx": {"sizes": [SIZE]}}, "parameters": {"before": 2, "after": 1},
    "flops": {"before": 2, "after": 1}, "latency_ms": {"before": 2.0, "after": 1.0, "device": "cpu"},
}  # fmt: skip
LINE = {"phase": "seg", "step": 1, "total": 1.0, "raw": LOSSES, "weighted": LOSSES, "share": LOSSES, "mean": LOSSES}
NETWORK = {
    "name": "unet", "parts": {"encoder": {"tensors": 1, "bytes": 4}}, "fresh": 0, "smallest_px": 1,
    "copies": {"a → b": {"tensors": 0, "problem": "none"}},
}  # fmt: skip
COSTS = {"machine": {"host": "h", "threads": 2}, "backbones": [{"encoder": "e", "parameters": 1, "milliseconds": 1.0}]}


def _read_state(file: Path) -> object:
    folder = file.parent / "state"
    if not folder.exists():
        write_checkpoint(folder, 2, {"network/a": torch.zeros(2)}, HASH)
    (folder / "step-00000002" / "state.json").write_bytes(file.read_bytes())
    return read_checkpoint(folder, HASH, 5)


def _read_log(file: Path) -> object:
    return [line.to_json("joint") for line in read_log(file)], read_losses(file.parent)


PARSERS: dict[str, tuple[str, dict[str, Any], Callable[[Path], object]]] = {
    "run": ("run.json", RUN, lambda file: RunRecord.from_json(file).row_key),
    "node": ("node.json", NODE, lambda file: read_record(file, NodeRecord).describe()),
    "proof": ("proof.json", PROOF, lambda file: read_proof(file.parent)),
    "preprocess": (
        "preprocess.json",
        {
            "format": 2,
            "mean": [0.5, 0.5, 0.5],
            "std": [1, 0.2, 0.2],
            "class_names": ["a", "b"],
            "palette": [[0, 0, 0], [255, 0, 9]],
            "size_rule": {"kind": "fixed", "input_size": [64, 96]},
        },
        lambda file: read_preprocess(file.parent),
    ),
    "log": (
        "metrics.jsonl",
        LINE,
        _read_log,
    ),
    "checkpoint": ("facts.json", {"format": 1, "step": 2, "key": HASH}, _read_state),
    "network": ("network.json", NETWORK, lambda file: read_record(file, NetworkFacts)),
    "costs": ("costs.json", COSTS, lambda file: read_record(file, MeasuredCosts)),
}
ODD = st.sampled_from(
    [None, True, -1, 0, 10**400, 1e999, -0.0, "", "\ud800", "\udce9", "../../x", "/etc", "a\0b", [], {}, [[]], {"": 1}]
)


def _mutate(value: Any, draw: st.DrawFn) -> Any:
    """Return a JSON value in which one value, anywhere, is another one or gone."""
    if isinstance(value, dict | list) and value and draw(st.integers(0, 4)):
        places = list(value) if isinstance(value, dict) else range(len(value))
        place = draw(st.sampled_from(places))
        changed = value.copy()
        if draw(st.integers(0, 5)):
            changed[place] = _mutate(value[place], draw)
        else:
            del changed[place]
        return changed
    return draw(ODD)


@st.composite
def damaged(draw: st.DrawFn, record: dict[str, Any]) -> bytes:
    """Draw a record with an odd value in it, or with odd bytes."""
    if draw(st.booleans()):
        return json.dumps(_mutate(record, draw)).encode() + b"\n"
    content = json.dumps(record).encode() + b"\n"
    start = draw(st.integers(0, len(content)))
    end = draw(st.integers(start, min(len(content), start + 30)))
    return content[:start] + draw(st.binary(max_size=10)) + content[end:]


@pytest.mark.parametrize("kind", PARSERS)
def test_any_bytes_are_understood_or_refused_by_name(kind: str, tmp_path: Path) -> None:
    name, record, read = PARSERS[kind]
    file = tmp_path / name
    file.write_text(json.dumps(record) + "\n")
    read(file)

    @settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(damaged(record))
    def check(content: bytes) -> None:
        file.write_bytes(content)
        try:
            read(file)
        except UserError as problem:
            assert ("state.json" if kind == "checkpoint" else name) in str(problem) or "step-00000002" in str(problem)

    check()

"""A metric is one declaration and one formula; every output then has it, with its direction, convention and source."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch

from data_cache.metrics import METRICS, Metric, explain_metrics
from data_cache.sample import PackedBatch
from stages.comparison.formats import FORMATS
from stages.comparison.record import RunRecord
from stages.comparison.report import write_report
from stages.comparison.table import build_table
from stages.evaluation import metrics as formulas
from stages.evaluation.evaluate import Evaluation, evaluate
from stages.evaluation.settings import EVALUATION_VERSION
from stages.export.card import CardFacts, render_card

CLASSES = ("sky", "road")
WORST = Metric(
    "worst class", "least IoU of a class", "ours", higher_is_better=False, unit="fraction", main=True, digits=5
)


def score() -> Evaluation:
    """Return what evaluation says of random predictions, of which 0.37037 is the worst class's IoU."""
    draw = torch.Generator().manual_seed(0)
    logits, labels = torch.rand(1, 2, 8, 8, generator=draw), torch.randint(2, (1, 8, 8), generator=draw)
    batch = PackedBatch(("a",), torch.zeros(1, 3, 8, 8, dtype=torch.uint8), labels.byte())
    plain = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    return evaluate(lambda _: logits, [batch], normalisation=plain, num_classes=2, class_names=CLASSES)


@pytest.fixture
def added(monkeypatch: pytest.MonkeyPatch) -> str:
    """Declare a metric and give its formula: what a person who adds one does."""
    monkeypatch.setitem(METRICS, "iou_worst", WORST)
    monkeypatch.setitem(formulas.POOLED, "iou_worst", lambda counts: float((counts.true_positive / counts.union).min()))
    return "iou_worst"


def test_an_added_metric_is_in_every_output(added: str, tmp_path: Path) -> None:
    evaluation = score()
    worst = min(row.iou for row in evaluation.per_class if row.iou is not None)
    assert evaluation.metrics[added] == pytest.approx(worst, abs=1e-6)
    facts = {"name": "a", "seed": 0, "network": "unet", "dataset": "scenes", "recipe": "demo", **evaluation.to_json()}
    (tmp_path / "run.json").write_text(json.dumps(facts))
    table = build_table([RunRecord.from_json(tmp_path)])
    shown = {name: render(table) for name, render in FORMATS.items()}
    shown["page"] = write_report(table, tmp_path / "r.html").read_text()
    shown["card"] = render_card(
        CardFacts("run", "scenes", "seg-only", metrics=evaluation.metrics), PROOF, PREPROCESS, network="unet",
        opens_with_smp=False,
    )  # fmt: skip
    shown["help"] = "\n".join(explain_metrics())
    for name, text in shown.items():
        plain = text.replace("\\", "").replace("<wbr>", "")
        assert added in plain, name
        assert name == "help" or f"{worst:.4f}"[:5] in plain, name
        if name not in ("text", "csv"):  # which have no room for it and name the command that says it
            assert WORST.convention in plain and WORST.source in plain, name
    assert "lower for iou_worst (↓)" in shown["text"] and "_worst\N{NO-BREAK SPACE}↓" in shown["text"]


PROOF = {
    "input_size": [64, 64],
    "size_rule": {"kind": "original", "input_size": None, "why": ""},
    "formats": {},
    "max_abs_difference": {"stripped_vs_full": 0.0},
    "networks": {},
    "versions": {},
    "table": [],
}
PREPROCESS = {
    "class_names": CLASSES, "palette": [[0, 0, 0]] * len(CLASSES), "mean": [0.5] * 3, "std": [0.5] * 3,
    "size_rule": PROOF["size_rule"],
}  # fmt: skip


def test_what_is_computed_must_be_declared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(formulas.POOLED, "undeclared", lambda counts: 0.0)  # noqa: ARG005
    with pytest.raises(ValueError, match=r"without a declaration in data_cache/metrics.py: undeclared"):
        score()


def test_a_change_of_the_metrics_raises_the_evaluation_version() -> None:
    """Runs scored before are scored anew only then. A formula that is repaired must raise it, too."""
    digest = hashlib.sha256(" ".join(METRICS).encode()).hexdigest()[:12]
    assert (EVALUATION_VERSION, digest) == (3, "dfa698a0cfa3"), "raise EVALUATION_VERSION and put both numbers here"

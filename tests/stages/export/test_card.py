"""What card and proof tell of a shipped model: costs measured in processes of their own, scores, front matter."""

import json
from functools import partial
from hashlib import pbkdf2_hmac
from threading import Thread

import pytest
import torch
from huggingface_hub import ModelCard, constants

from data_cache.errors import UserError
from data_cache.size_rule import ORIGINAL
from stages.export.bench import measure_formats
from stages.export.bench_worker import wait_until_idle
from stages.export.card import CardFacts
from stages.export.export import export_network
from stages.export.hub import LicenceLink, check_repository, list_upload, push_folder, read_front_matter
from stages.export.job import Scored
from stages.export.turns import FEWEST_PASSES, MOST_PASSES, take_turns
from stages.networks import build_network

SIZE = (64, 96)
NAMES = ("sky", "ground")
OPEN = (
    LicenceLink("depth teacher", "bundled", "Apache-2.0 (its own)"),
    LicenceLink("training images", "x", "Apache-2.0"),
)
SCORED = 7


def score(segment, *, rule):
    height, width = rule.input_size or SIZE
    return {"miou_macro": height / 1000, "pixel_acc": segment(torch.zeros(1, 3, height, width)).shape[1] / 10}


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """An export by another size rule than its run's; its labels score less as ONNX."""
    torch.manual_seed(0)
    network = build_network("unet-classic", len(NAMES), width=8).eval()
    scores = iter((0.5, 0.25))
    return export_network(
        network,
        tmp_path_factory.mktemp("export") / "model",
        input_size=SIZE,
        class_names=NAMES,
        palette=((1, 2, 3), (250, 0, 16)),
        card_facts=CardFacts("run", "scenes", "joint", (), {"miou_macro": 0.9}, "val", OPEN, scored_on=str(ORIGINAL)),
        formats=("onnx",),
        dynamic=False,
        score=score,
        score_labels=lambda _label: Scored(next(scores), SCORED, 9, "val"),
        latency_repeats=1,
    )


@pytest.fixture(scope="module")
def card(report):
    return (report.out / "README.md").read_text()


@pytest.mark.slow
def test_each_format_has_a_row_of_what_it_costs(report, card):
    """Latency and memory, too, where they are measured: see the test of the demo."""
    rows = {row["format"]: row for row in report.proof["table"]}
    assert list(rows) == ["safetensors", "onnx"]
    for row in rows.values():
        assert row["bytes"] == sum((report.out / file).stat().st_size for file in row["files"])
    assert "Latency and memory were not measured: `pipeline benchmark`" in card
    assert (rows["onnx"]["score"]["miou_macro"], rows["onnx"]["drop"]) == (0.25, 0.25)
    assert "| 0.2500 | 0.2500 | 100.000% |" in card and f"on {SCORED} of the 9 images of split val" in card


@pytest.mark.slow
def test_a_file_that_does_not_run_is_named(report, tmp_path):
    (tmp_path / "model.onnx").write_bytes((report.out / "model.onnx").read_bytes()[:-1000])
    with pytest.raises(UserError, match=r"onnx cannot be measured: .*model.onnx"):
        measure_formats(tmp_path, ["onnx"], SIZE, threads=1, passes=1)


@pytest.mark.slow
def test_scores_are_of_the_size_rule_that_ships(card):
    assert "Scored with images resized to 64x96 px, as this export takes them" in card
    assert "| miou_macro | 0.0640 |" in card and "| pixel_acc | 0.2000 |" in card and "0.9000" not in card


@pytest.mark.slow
def test_the_card_tells_colours_and_how_to_run_each_file_in_five_lines(report, card):
    assert "| 1 | ground | `#fa0010` | 250, 0, 16 |" in card
    pieces = [piece.partition("```")[0].strip().splitlines() for piece in card.split("```python")[1:]]
    assert len(pieces) == 2 and all(len(lines) <= 5 for lines in pieces)
    assert all(".resize((96, 64)" in "".join(lines) for lines in pieces)


@pytest.mark.slow
def test_the_folder_is_a_model_repository(report, card, monkeypatch):
    data = ModelCard(card).data
    assert (data.license, data.pipeline_tag, data.library_name) == (
        "apache-2.0", "image-segmentation", "pseudo-depth-pipeline",
    )  # fmt: skip
    assert {"onnx", "unet-classic"} < set(data.tags)
    (result,) = data.eval_results
    assert (result.dataset_name, result.dataset_split, result.metric_value) == ("scenes", "val", 0.064)
    assert data.to_yaml() == read_front_matter(card)
    files = list_upload(report.out)
    assert files == {path.name: path.stat().st_size for path in report.out.iterdir()}
    (report.out.parent / "file").touch()
    usual = (report.out.parent / "file").stat().st_mode
    assert {path.stat().st_mode for path in report.out.iterdir()} == {usual}, "whoever may read one may read all"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"HF_HUB_OFFLINE is set\), so nothing was sent; .* --dry-run"):
        push_folder(report.out, "somebody/model", files)


@pytest.mark.parametrize("name", ["model", "a/b/c", "../x", "a/..", "-a/b", "a/b c", "ä/b", "a--b/c"])
def test_names_of_no_repository_are_refused(name):
    with pytest.raises(UserError, match="is no model repository; write it as OWNER/NAME"):
        check_repository(name)


def test_turns_end_after_their_budget(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("stages.export.turns.time.perf_counter", lambda: now[0])

    def side(seconds, around):
        now[0] += seconds + around
        return seconds

    for seconds, around, passes in ((0.001, 0, MOST_PASSES), (0.5, 0.25, 10), (60.0, 0, FEWEST_PASSES)):
        turns = take_turns([partial(side, seconds, around)] * 2, warm_up=1)
        assert turns.passes == passes and turns.ratio(0, 1).median == 1
    assert json.dumps(turns.milliseconds(0).to_json()) == '{"median": 60000.0, "low": 60000.0, "high": 60000.0}'


def test_a_turn_ends_when_its_threads_sleep():
    spinning = Thread(target=pbkdf2_hmac, args=("sha256", b"", b"", 200_000))  # about 50 ms without the GIL
    spinning.start()
    wait_until_idle()
    assert not spinning.is_alive()

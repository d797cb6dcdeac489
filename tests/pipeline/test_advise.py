"""The lecture's decision table, its image sizes, and the measured encoders beside them."""

from __future__ import annotations

import json
import typing

import pytest

from data_cache.errors import UserError
from pipeline.commands import run
from pipeline.commands.advise import TARGETS, TRANSFERS, parse_input_size, recommend_transfer, warn_of_size
from pipeline.experiment import tables
from pipeline.experiment.tables import BACKBONES
from pipeline.experiment.transfer import apply_transfer
from stages.networks.encoders import check_encoder_name
from stages.training.settings import TransferMode


@pytest.fixture(autouse=True)
def _two_quick_encoders(monkeypatch):
    monkeypatch.setattr(tables, "BACKBONES", ("tu-resnet10t", "mobilenet_v2"))


@pytest.mark.parametrize(
    ("images", "similarity", "mode"),
    [
        (1, "similar", "feature-extractor"),
        (999, "similar", "feature-extractor"),
        (999, "different", "low-level-extractor"),
        (1000, "similar", "fine-tune"),
        (1000, "different", "fine-tune"),
    ],
)
def test_the_lectures_table(images, similarity, mode):
    assert recommend_transfer(images, similarity).mode == mode


def test_what_is_few_can_be_said():
    assert recommend_transfer(1500, "similar", small_below=2000).mode == "feature-extractor"
    assert recommend_transfer(500, "similar", small_below=200).mode == "fine-tune"


def test_no_images_are_refused():
    with pytest.raises(UserError, match="--images 0 leaves nothing to train on"):
        recommend_transfer(0, "similar")


def test_every_answer_is_a_mode_that_run_takes_and_scratch_is_never_advised():
    modes = {transfer.mode for transfer in TRANSFERS.values()}
    assert modes == set(typing.get_args(TransferMode)) - {"scratch"}


def test_every_target_names_encoders_that_exist_and_are_measured():
    for target in TARGETS.values():
        for encoder in target.encoders:
            check_encoder_name(encoder)
            assert encoder in BACKBONES


@pytest.mark.parametrize(("text", "side_px"), [("small-objects", 600), ("balanced", 400), ("fast", 256), ("513", 513)])
def test_sizes_by_number_or_preset(text, side_px):
    assert parse_input_size(text) == side_px


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fats", "unknown input size .*'fats' .did you mean 'fast'"),
        ("400.5", "unknown input size .*known: balanced, fast, small-objects"),
        ("63", "--input-size 63 is too small; every network takes 64 px or more"),
        ("-400", "--input-size -400 is too small"),
    ],
)
def test_impossible_sizes(text, message):
    with pytest.raises(UserError, match=message):
        parse_input_size(text)


def test_sizes_outside_the_lectures_range_are_warned_of():
    assert warn_of_size(200) == warn_of_size(600) == []
    assert "below the usual 200-600 px" in warn_of_size(199)[0]
    assert "4.0 times that of 400 px" in warn_of_size(800)[0]


def test_advice_by_command(call):
    answer = call("advise", "--images", 367, "--similarity", "different", "--target", "edge", "--input-size", 700)
    assert answer.status == 0
    facts = answer.json
    assert (facts["transfer"], facts["amount"], facts["encoders"][0]) == ("low-level-extractor", "small", "resnet18")
    assert "above the usual" in facts["warnings"][0]
    assert [(cost["encoder"], cost["parameters"]) for cost in facts["costs"]] == [
        ("tu-resnet10t", 4_922_488),
        ("mobilenet_v2", 2_223_872),
    ]


def test_the_command_it_gives_is_a_recipe_that_holds(call):
    words = call("advise", "--images", 5000, "--similarity", "similar").json["command"].split()
    words[words.index("mine.toml")] = "camvid"
    config = run.take_config(run.make_context("run", words[2:]))
    assert apply_transfer(config).network.options["encoder_weights"] == "imagenet"
    assert (config.training.transfer, config.data.crop) == ("fine-tune", (400, 400))


def test_encoders_are_measured_once_per_machine(call, tmp_path):
    words = ("advise", "--images", 10, "--similarity", "similar")
    first = call(*words)
    assert "measuring 2 encoders" in first.stderr
    again = call(*words)
    assert again.json["costs"] == first.json["costs"]
    assert "measuring" not in again.stderr
    assert "measuring" in call(*words, "--remeasure").stderr

    file = tmp_path / "work" / "backbones.json"
    other = json.loads(file.read_text())
    other["machine"]["threads"] += 1
    file.write_text(json.dumps(other))
    assert "measuring" in call(*words).stderr


def test_a_person_sees_mode_reason_encoder_size_and_cost(call):
    shown = call("advise", "--images", 2000, "--similarity", "similar", "--target", "cpu", as_json=False).stdout
    for words in ("fine-tune (2,000 images", "mobilenet_v2 (for cpu)", "400 px", "2,223,872", "pspnet from 500x500 px"):
        assert words in shown


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--images", 0, "--similarity", "similar"), "leaves nothing to train on"),
        (("--images", 9, "--similarity", "alike"), "'similar', 'different'"),
        (("--images", 9, "--similarity", "similar", "--target", "egde"), "did you mean 'edge'"),
        (("--similarity", "similar"), "--images"),
    ],
)
def test_bad_questions_end_with_2(call, words, message):
    answer = call("advise", *words)
    assert answer.status == 2
    assert message in answer.stderr

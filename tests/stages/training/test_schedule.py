"""Every schedule of the table exists and means what the paper says; nonsense cannot be written down."""

from dataclasses import FrozenInstanceError, replace

import pytest

from data_cache.errors import UserError
from stages.networks.parts import DEPTH_BRANCH, ENCODER, EVERYTHING, SEG_BRANCH, Part
from stages.training.schedule import CopyWeights, Phase, Schedule
from stages.training.schedules import (
    CONTROLS,
    DEPTH,
    JOINT,
    LONG,
    PAPER_ROWS,
    SCHEDULES,
    SEG,
    SEG_2,
    SEG_3,
    TABLE_ROWS,
)
from stages.training.settings import LossSettings, ScheduleSettings

SEG_TO_DEPTH = CopyWeights(Part.SEG_DECODER, Part.DEPTH_DECODER)
DEPTH_TO_SEG = CopyWeights(Part.DEPTH_DECODER, Part.SEG_DECODER)

STEPS_OF_ROWS = {  # the pseudo-depth paper, tables 2 and 3, written out by hand
    "seg-only": (SEG,),
    "joint": (JOINT,),
    "seg-first+copy": (SEG, SEG_TO_DEPTH, DEPTH, JOINT),
    "seg-first-direct+copy": (SEG, SEG_TO_DEPTH, JOINT),
    "seg-first": (SEG, DEPTH, JOINT),
    "seg-first-direct": (SEG, JOINT),
    "depth-first+copy": (DEPTH, DEPTH_TO_SEG, SEG, JOINT),
    "depth-first-direct+copy": (DEPTH, DEPTH_TO_SEG, JOINT),
    "depth-first": (DEPTH, SEG, JOINT),
    "depth-first-direct": (DEPTH, JOINT),
    "seg-only-long": (LONG,),
    "depth-then-seg": (DEPTH, SEG),
    "seg-seg-seg": (SEG, SEG_2, SEG_3),
}


def build(name):
    return ScheduleSettings(name=name).build(LossSettings())


def test_table_holds_ten_paper_rows_with_the_steps_of_the_paper_and_the_controls():
    assert len(PAPER_ROWS) == 10
    assert {name: build(name).steps for name in TABLE_ROWS} == STEPS_OF_ROWS
    assert all(build(name).name == name for name in TABLE_ROWS)
    assert set(CONTROLS) <= set(SCHEDULES)


def test_rows_share_fifteen_trainings():
    paths = set()
    for name in PAPER_ROWS:
        steps = build(name).steps
        paths |= {steps[: index + 1] for index, step in enumerate(steps) if isinstance(step, Phase)}
    assert len(paths) == 15
    assert sum(len(build(name).phases) for name in PAPER_ROWS) == 22


def test_single_phases_train_the_encoder_and_one_branch():
    assert SEG.trains == ENCODER | SEG_BRANCH
    assert DEPTH.trains == ENCODER | DEPTH_BRANCH
    assert JOINT.trains == EVERYTHING
    assert (JOINT.seg, JOINT.depth) == (0.85, 0.15)


def test_joint_weights_change_only_phases_with_both_losses():
    changed = build("depth-first+copy").with_loss_weights(0.5, 0.5)
    assert changed.steps == (DEPTH, DEPTH_TO_SEG, SEG, replace(JOINT, seg=0.5, depth=0.5))


def test_steps_are_immutable_and_hashable():
    with pytest.raises(FrozenInstanceError):
        SEG.seg = 2.0  # type: ignore[misc]
    assert len({SEG, DEPTH, JOINT, SEG}) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"trains": EVERYTHING, "seg": 1.0}, "trains the depth branch but depth has weight 0"),
        ({"trains": ENCODER | SEG_BRANCH, "depth": 1.0}, "trains the segmentation branch but seg has weight 0"),
        ({"trains": Part(0), "seg": 1.0}, "trains no part"),
        ({"trains": ENCODER}, "has no loss"),
        ({"trains": EVERYTHING, "seg": -1.0, "depth": 1.0}, "seg weight -1.0"),
        ({"trains": EVERYTHING, "seg": 1.0, "depth": float("nan")}, "depth weight nan"),
        ({"trains": EVERYTHING, "seg": 1.0, "depth": float("inf")}, "depth weight inf"),
        ({"trains": ENCODER, "seg": 1.0, "epochs": 0}, "epochs 0"),
        ({"trains": ENCODER, "seg": 1.0, "lr": 0.0}, "lr 0.0"),
        ({"trains": ENCODER, "seg": 1.0, "lr": float("inf")}, "lr inf"),
        ({"trains": ENCODER, "seg": 1.0, "budget_factor": 0}, "budget_factor 0"),
        ({"trains": DEPTH_BRANCH, "seg": 0.85, "depth": 0.15}, "reaches no part that is trained"),
        ({"trains": SEG_BRANCH, "seg": 0.85, "depth": 0.15}, "reaches no part that is trained"),
        ({"trains": SEG_BRANCH, "seg": 1.0, "images": "all"}, "nothing to learn from images without masks"),
    ],
)
def test_nonsensical_phase_cannot_be_constructed(arguments, message):
    with pytest.raises(ValueError, match=message):
        Phase("nonsense", **arguments)


@pytest.mark.parametrize(
    ("source", "target"),
    [
        (Part.SEG_HEAD, Part.DEPTH_HEAD),
        (Part.SEG_DECODER, Part.SEG_DECODER),
        (SEG_BRANCH, DEPTH_BRANCH),
        (Part.ENCODER, Part.SEG_DECODER),
    ],
)
def test_copy_goes_only_between_the_two_decoders(source, target):
    with pytest.raises(ValueError, match="a copy goes between seg-decoder and depth-decoder"):
        CopyWeights(source, target)


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ((), "has no phase"),
        ((SEG, SEG), "two phases of one name"),
        ((SEG, SEG_TO_DEPTH), "ends with a copy"),
        ((SEG_TO_DEPTH, DEPTH), "has nothing to copy"),
        ((SEG, DEPTH_TO_SEG, JOINT), "has nothing to copy"),
        ((SEG, SEG_TO_DEPTH, replace(SEG, name="again")), "no phase after it uses"),
    ],
)
def test_nonsensical_schedule_cannot_be_constructed(steps, message):
    with pytest.raises(ValueError, match=message):
        Schedule("nonsense", steps)


@pytest.mark.parametrize("name", ["joint", "seg-only", "seg-only-long"])
def test_copy_needs_a_first_decoder_and_a_later_one(name):
    with pytest.raises(ValueError, match="has nothing to copy"):
        SCHEDULES[name].with_copy()


def test_copying_twice_is_refused():
    with pytest.raises(ValueError, match="copies already"):
        build("depth-first+copy").with_copy()


@pytest.mark.parametrize("name", ["depth-last", "depth-first+weights", "depth-first+"])
def test_unknown_row_names_the_nearest(name):
    with pytest.raises((UserError, ValueError), match="depth-first"):
        build(name)

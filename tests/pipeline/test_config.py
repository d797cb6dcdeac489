"""A recipe is strict: what it cannot mean is refused with the nearest thing it could."""

from __future__ import annotations

from operator import attrgetter
from pathlib import Path
from typing import get_args

import pytest

from data_cache.errors import UserError
from pipeline.experiment.config import RunConfig, iterate_keys, load_config, recipe_names


@pytest.mark.parametrize("name", recipe_names())
def test_every_bundled_recipe_loads_with_a_full_card(name: str) -> None:
    config = load_config(name)
    assert all(config.card.model_dump().values()), "every field of the card is filled in"
    single_task = config.network.options.get("with_depth") is False or config.schedule.name == "seg-only"
    assert config.build_schedule().name == ("seg-only" if single_task else "depth-first+copy")


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("data.corp=[64,64]", "unknown key 'data.corp' .did you mean 'crop'"),
        ("trainig.lr=1", "unknown key 'trainig' .did you mean 'training'"),
        ("training.optimizer=adan", "training.optimizer: .*'adam', 'adamw' or 'sgd'"),
        ('training.lr_factors={"seg-brunch"=10.0}', "lr_factors has no part 'seg-brunch' .did you mean 'seg-branch'"),
        ('training.lr_factors={"seg-head"=0.0}', "lr factor 0.0 of seg-head must be positive; to freeze"),
        ("loss.class_weights=median", "loss.class_weights: .*a list or 'median-frequency', found 'median'$"),
        ("data.scale=[2.0,0.5]", "the smaller first"),
        ("data.root.x=1", "cannot set 'data.root.x'"),
        ("data.crop", "has no '='"),
    ],
)
def test_nonsense_is_refused_by_name(assignment: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_config("demo", {"data.root": "somewhere"}, [assignment])


def test_any_optional_key_can_be_switched_off() -> None:
    optional = [key.path for key in iterate_keys() if type(None) in get_args(key.field.annotation)]
    assert {"loss.class_weights", "training.clip_norm", "depth.input_size", "data.root"} <= set(optional)
    config = load_config("camvid", {}, [f"{path}=none" for path in optional])
    assert [attrgetter(path)(config) for path in optional] == [None] * len(optional)
    kept = load_config("demo", {}, ["network.encoder_weights=none", "schedule.mix=none"])
    assert (kept.network.options["encoder_weights"], kept.schedule.mix) == ("none", "none")


def test_class_weights_never_weigh_the_classes_of_another_dataset() -> None:
    assert isinstance(load_config("camvid").loss.class_weights, tuple)
    elsewhere = {"data.dataset": "folder", "data.root": "x"}
    with pytest.raises(
        UserError, match=r"of the 11 classes of 'camvid', and 'folder' has others; add: --set loss.class_w"
    ):
        load_config("camvid", elsewhere)
    for weights, expected in (("median-frequency", "median-frequency"), ("none", None), ("[1.0,2.0]", (1.0, 2.0))):
        assert load_config("camvid", elsewhere, [f"loss.class_weights={weights}"]).loss.class_weights == expected


def test_all_problems_are_told_at_once() -> None:
    with pytest.raises(
        UserError, match=r"(?s)training.lr.*unknown key 'data.corp'|unknown key 'data.corp'.*training.lr"
    ):
        load_config("demo", {}, ["data.corp=1", "training.lr=-1"])


def test_assignments_win_over_flags_and_flags_over_the_recipe() -> None:
    assert load_config("demo", {"training.lr": 0.5}).training.lr == 0.5
    assert load_config("demo", {"training.lr": 0.5}, ["training.lr=0.25"]).training.lr == 0.25
    assert load_config("demo", {"training.lr": None}) == load_config("demo")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"network = 'unet'", "network: Input should be a table"),
        (b"[network_options]\nunet = 3", "network_options.unet: Input should be a table"),
        (b"[data]\ndataset = 3\ncrop = 'big'\n[trainig]\nlr = 1", r"(?s)crop: .*a list.*dataset: .*'trainig' .did you"),
        (b"[[schedule.steps]]\nphase = 'x'\ntrain = ['encoder']", "'schedule.steps.0.train' .did you mean 'trains'"),
    ],
)
def test_a_recipe_with_mistakes_is_explained(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "own.toml"
    file.write_bytes(content)
    with pytest.raises(UserError, match=message):
        load_config(str(file), {"network.name": "segnet", "data.dataset": "camvid"})


@pytest.mark.parametrize("words", [({"data.dataset": "voc"}, []), ({}, ["data.dataset=voc"])], ids=["flag", "set"])
def test_another_dataset_does_not_get_the_options_of_the_recipes_own(words: tuple[dict, list]) -> None:
    options = ["data.options={sbd_list='x'}"]
    assert load_config("demo", {"data.options.seed": 1}).data.options == {"seed": 1}
    assert load_config("demo", words[0], words[1]).data.options == {}
    assert load_config("demo", words[0], [*words[1], *options]).data.options == {"sbd_list": "x"}


def test_own_steps_make_a_schedule() -> None:
    steps = (
        {"phase": "warm", "trains": ("encoder", "depth-branch"), "depth": 1.0, "epochs": 2},
        {"copy_from": "depth-decoder", "copy_to": "seg-decoder"},
        {"phase": "main", "trains": ("everything",), "seg": 0.5, "depth": 0.5},
    )
    schedule = RunConfig().changed({"schedule": {"name": "mine", "steps": steps}}).build_schedule()
    assert [str(step) for step in schedule.steps] == ["warm", "copy depth-decoder -> seg-decoder", "main"]
    assert schedule.phases[1].seg == 0.5, "own weights are not replaced by the recipe's joint weights"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schedule.name": "depht-first"}, "unknown schedule 'depht-first' .did you mean 'depth-first'"),
        ({"schedule.name": "joint", "schedule.copy_weights": True}, "nothing to copy"),
        ({"schedule.name": "seg-only", "schedule.copy_weights": True}, "nothing to copy"),
        ({"schedule.steps": ({"phase": "a", "trains": ("encoder", "seg-brunch"), "seg": 1.0},)}, "unknown part"),
        ({"schedule.steps": ({"phase": "a", "trains": ("everything",), "seg": 1.0},)}, "depth has weight 0"),
        ({"schedule.steps": ({"copy_from": "depth-decoder", "copy_to": "seg-decoder"},)}, "no phase"),
        ({"schedule.steps": ({"trains": ("encoder",)},)}, "needs either `phase`"),
    ],
)
def test_a_schedule_that_makes_no_sense_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_config("demo").changed({"schedule": {"name": "own"}} | changes).build_schedule()


def test_joint_weights_of_the_recipe_reach_named_schedules() -> None:
    schedule = load_config("demo", {}, ["loss.joint_seg=0.6", "loss.joint_depth=0.4"]).build_schedule()
    joint = schedule.phases[-1]
    assert (joint.seg, joint.depth) == (0.6, 0.4)
    assert [phase.seg for phase in schedule.phases[:2]] == [0.0, 1.0], "single phases keep theirs"


@pytest.mark.parametrize(
    ("assignment", "line"),
    [
        ("loss.joint_focal=0.9", r"loss\.joint_focal is called 'joint_seg' now; write: joint_seg = 0\.9"),
        ("training.checkpoint_every=100", r"training\.checkpoint_every is gone: checkpoints are written by time"),
        ("schedule.steps=[{phase='a', trains=['everything'], focal=1.0}]", r"steps\.0\.focal is called 'seg' now"),
    ],
)
def test_a_key_of_older_recipes_is_answered_with_the_new_line(assignment: str, line: str) -> None:
    with pytest.raises(UserError, match=line):
        load_config("demo", {}, [assignment])


def test_a_copy_is_said_in_one_way() -> None:
    by_name, by_flag = (
        load_config("demo", flags).build_schedule()
        for flags in ({"schedule.name": "depth-first+copy"},
                      {"schedule.name": "depth-first", "schedule.copy_weights": True})
    )  # fmt: skip
    assert by_name == by_flag and by_name.name == "depth-first+copy"
    with pytest.raises(UserError, match="give only one of them"):
        load_config("demo", {"schedule.name": "depth-first+copy", "schedule.copy_weights": False}).build_schedule()

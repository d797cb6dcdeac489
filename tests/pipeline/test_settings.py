"""A setting says what it decides, and every key follows: no field of a recipe can be forgotten by one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args, get_origin

import pytest

from data_cache.errors import UserError
from data_cache.settings import Decides, Section, find_declaration, setting
from pipeline.experiment.config import RunConfig, content_hash, iterate_keys
from pipeline.experiment.expand import list_rows
from pipeline.experiment.keys import evaluation_key
from pipeline.experiment.plan import PlannedRun, Row, plan_runs
from pipeline.experiment.reading import DataFacts, Reported, Selection
from stages.training.settings import StepSettings
from tests.pipeline.drawn_facts import build_facts

BASE = RunConfig().changed(
    {
        "training.precision": "float32",
        "network.encoder": "resnet18",
        "network.encoder_weights": "imagenet",
        "data.options": {"seed": 1},
        "evaluation.size": "recipe",
    }
)
OTHER: dict[str, Any] = {
    "data.workers": 2,
    "data.cache_limit_gb": 1.0,
    "data.crop": (64, 64),
    "data.scale": (0.5, 2.0),
    "data.root": "elsewhere",
    "data.options": {"seed": 2},
    "data.labelled_fraction": 0.5,
    "training.unlabelled_share": 0.25,
    "depth.kind": "metric",
    "depth.input_size": 56,
    "depth.batch_size": 3,
    "network.name": "segnet",
    "network_options": {"segnet": {"width": 8}},
    "row_changes": {"seg-only": {"training.lr": 1.0}},
    "training.iterations": 77,
    "training.momentum": 0.5,
    "training.lr_factors": {"encoder": 0.5},
    "training.encoder_policy": "always-freeze",
    "training.transfer": "fine-tune",
    "training.clip_norm": 1.0,
    "training.ema_decay": 0.5,
    "training.val_every": 7,
    "training.patience": 3,
    "loss.class_weights": (1.0,) * 8,
    "loss.seg": {"focal": 1.0, "dice": 0.5},
    "schedule.name": "seg-first",
    "schedule.copy_weights": True,
    "schedule.steps": ({"phase": "own", "trains": ("everything",), "seg": 1.0, "depth": 1.0},),
}
"""Another value of each field whose type does not give one."""
TOGETHER = {"schedule.steps": {"schedule.name": "own"}}
"""What must change along with a field."""
PHASES_OF = {
    Decides.FIRST_WEIGHTS: {"depth", "seg", "joint"},
    Decides.DATA: {"depth", "seg", "joint"},
    Decides.OPTIMISATION: {"depth", "seg", "joint"},
    Decides.NUMERICS: {"depth", "seg", "joint"},
    Decides.SEG_LOSS: {"seg", "joint"},
    Decides.DEPTH_LOSS: {"depth", "joint"},
    Decides.JOINT_LOSS: {"joint"},
    Decides.POOL: {"joint"},
    Decides.MIX: set(),
    Decides.SELECTION: {"seg", "joint"},
    Decides.SCHEDULE: {"path"},
    Decides.SCORES: {"scores"},
    Decides.NOTHING: set(),
}
ONLY_LOOKS = "training.val_every"
"""Decides only where weights are chosen, and here none are."""
OF_MASKS = {"data.labelled_fraction", "data.labelled_by"}
"""Say of which images the masks are read, so they are nothing to a phase that reads none."""
FIELDS = {key.path: key.field for key in iterate_keys()}


def find_facts(row: Row, chosen_on: str = "val") -> DataFacts:
    """Stand for the files: other data or another estimator have other fingerprints."""
    data, depth = row.config.data, row.config.depth
    images = content_hash([data.dataset, data.root, data.options], 8)
    maps = content_hash([images, depth.estimator, depth.kind, depth.input_size, depth.precision], 8)
    masks = content_hash([data.labelled_fraction, data.labelled_by], 8)
    return build_facts(
        images=content_hash([images, data.unlabelled], 8), masks=masks, depth=content_hash([maps, depth.source], 8),
        pool=100, reported=Reported(images, maps),
        selection=Selection("val", chosen_on, None, 10) if row.config.training.chooses else None,
    )  # fmt: skip


def plan_one(config: RunConfig, schedule: str | None = None) -> PlannedRun:
    if schedule is not None:
        config = config.changed({"schedule": {"name": schedule}})
    return plan_runs(list_rows(config, None, None), find_facts).runs[0]


def find_keys(config: RunConfig) -> dict[str, str]:
    """Return the key of a phase of each kind, of the recipe's own path, and of its scores."""
    depth_first, seg_first, own = plan_one(config, "depth-first"), plan_one(config, "seg-first"), plan_one(config)
    facts = own.facts
    return {
        "depth": depth_first.nodes[0].key,
        "seg": seg_first.nodes[0].key,
        "joint": depth_first.nodes[2].key,
        "path": own.nodes[-1].key,
        "scores": evaluation_key("weights", own.config, *facts.reported, needs_depth=True),
    }


def find_other_value(path: str) -> Any:
    """Return a value that the field does not have."""
    if path in OTHER:
        return OTHER[path]
    annotation = FIELDS[path].annotation
    value: Any = BASE
    for name in path.split("."):
        value = getattr(value, name)
    if get_origin(annotation) is Literal:
        return next(choice for choice in get_args(annotation) if choice not in (value, "auto"))
    match value:
        case bool():
            return not value
        case int():
            return value + 1
        case float():
            return value / 2 + 0.125
        case str():
            return f"{value}x"
    raise AssertionError(f"give {path} another value in OTHER")


@pytest.mark.parametrize("path", FIELDS)
def test_exactly_the_declared_keys_change(path: str) -> None:
    declaration = find_declaration(FIELDS[path])
    assert declaration is not None
    try:
        changed = BASE.changed({path: find_other_value(path), **TOGETHER.get(path, {})})
    except UserError as problem:
        pytest.fail(f"give {path} another value in OTHER: {problem}")
    assert changed != BASE, f"give {path} another value in OTHER"
    before, after = find_keys(BASE), find_keys(changed)
    expected = set().union(*(PHASES_OF[kind] for kind in declaration.decides))
    if path in OF_MASKS:
        expected.remove("depth")
    if path == ONLY_LOOKS:
        expected = set()
    if expected & {"depth", "seg", "joint"}:
        expected.add("path")  # the recipe's own schedule ends with a joint phase
    assert {name for name in before if before[name] != after[name]} == expected
    same_name = plan_one(BASE).name == plan_one(changed).name
    assert same_name == (not expected), "a run is named by what decides its result"
    rows = [plan_one(config).describe_settings() for config in (BASE, changed)]
    if not expected or path == "seed":
        assert rows[0] == rows[1], "seeds of one row are pooled"
    elif not declaration.resolved:
        assert rows[0] != rows[1], "rows of other settings are not"


def test_how_often_is_scored_decides_where_weights_are_chosen_by_it() -> None:
    base = BASE.changed({"training.keep": "best"})
    before, after = find_keys(base), find_keys(base.changed({ONLY_LOOKS: 7}))
    assert {name for name in before if before[name] != after[name]} == {"seg", "joint", "path"}
    other = plan_runs(list_rows(base, None, None), lambda row: find_facts(row, "other images")).runs[0]
    assert other.nodes[-1].key != plan_one(base).nodes[-1].key, "so does what is scored"


def test_options_of_a_network_decide_its_first_weights() -> None:
    before, after = find_keys(BASE), find_keys(BASE.changed({"network.encoder": "resnet34"}))
    assert {name for name in before if before[name] != after[name]} == {"depth", "seg", "joint", "path"}


@pytest.mark.parametrize("change", [{"seg": 2.0}, {"depth": 2.0}, {"trains": ("seg-branch", "depth-branch")},
                                    {"epochs": 7}, {"lr": 0.5}, {"images": "labelled"},
                                    {"mix": "cut"}], ids=str)  # fmt: skip
def test_every_field_of_an_own_step_but_its_name_decides_the_path(change: Mapping[str, Any]) -> None:
    step = {"phase": "own", "trains": ("everything",), "seg": 1.0, "depth": 1.0}
    runs = [
        plan_one(BASE.changed({"schedule": {"name": "mine", "steps": (found,)}}))
        for found in (step, step | change, step | {"phase": "renamed"})
    ]
    assert runs[0].nodes[-1].key != runs[1].nodes[-1].key
    assert runs[0].nodes[-1].key == runs[2].nodes[-1].key
    covered = {"phase", "trains", "seg", "depth", "epochs", "lr", "images", "mix", "copy_from", "copy_to"}
    assert set(StepSettings.model_fields) == covered, "add the new field to this test"


def test_a_field_that_declares_nothing_fails_at_import() -> None:
    with pytest.raises(TypeError, match=r"Silent\.forgotten: say what it decides"):

        class Silent(Section):
            known: int = setting(1, Decides.NOTHING)
            forgotten: int = 2

    with pytest.raises(TypeError, match="decides something"):
        setting(1)
    with pytest.raises(TypeError, match="NOTHING alone"):
        setting(1, Decides.NOTHING, Decides.DATA)

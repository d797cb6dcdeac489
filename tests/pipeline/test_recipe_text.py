"""Whatever stands in a recipe or behind ``--set``: settings come of it, or one error that a person can read."""

from __future__ import annotations

import json
import types
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from pydantic.fields import FieldInfo

from data_cache.errors import UserError
from pipeline.experiment.config import RunConfig, iterate_keys, load_config
from stages.training.settings import SegLoss

LAW = settings(
    max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
DEMO = (Path(__file__).parents[2] / "pipeline" / "recipes" / "demo.toml").read_bytes()
TEXT = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), max_size=12)
LOSSES = st.sampled_from(get_args(SegLoss))
SPECIAL: dict[str, SearchStrategy[Any]] = {
    "data.crop": st.tuples(st.integers(32, 16_384), st.integers(32, 16_384)),
    "data.scale": st.tuples(st.floats(0.0625, 1.0), st.floats(1.0, 16.0)),
    "data.options": st.dictionaries(TEXT, st.integers(-(2**63), 2**63 - 1), max_size=2),
    "training.lr_factors": st.dictionaries(st.sampled_from(["encoder", "seg-head"]), st.floats(1e-9, 1000.0)),
    "loss.class_weights": st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=4).map(tuple),
    "data.labelled_fraction": st.floats(0, 1, exclude_min=True) | st.integers(1, 99).map(lambda n: f"1/{n}"),
    "data.workers": st.integers(0, 256) | st.just("auto"),
    "loss.seg": LOSSES | st.dictionaries(LOSSES, st.floats(1e-6, 1000.0), min_size=1),
    "schedule.name": st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,59}", fullmatch=True),
}
"""Keys whose own checks say more than their types."""
LEFT_OUT = {"recipe", "network_options", "row_changes", "schedule.steps", "training.iterations"}


def values_of(path: str, field: FieldInfo) -> SearchStrategy[Any]:
    """Return what a key can be, from its declaration."""
    if path in SPECIAL:
        return SPECIAL[path]
    kind = field.annotation
    if get_origin(kind) in (Union, types.UnionType):
        (kind,) = (each for each in get_args(kind) if each is not type(None))
    bounds = {
        name: getattr(each, name) for each in field.metadata for name in ("ge", "gt", "le", "lt") if hasattr(each, name)
    }
    if get_origin(kind) is Literal:
        return st.sampled_from(get_args(kind))
    if kind is int:
        return st.integers(bounds.get("ge", 0), min(bounds.get("le", 2**63 - 1), bounds.get("lt", 2**63) - 1))
    if kind is float:
        return st.floats(
            bounds.get("ge", bounds.get("gt", 0)), bounds.get("le", bounds.get("lt", 1e6)),
            exclude_min="gt" in bounds, exclude_max="lt" in bounds,
        )  # fmt: skip
    return {bool: st.booleans(), str: TEXT}[kind]


KEYS = {path: values_of(path, field) for path, field in iterate_keys() if path not in LEFT_OUT}


def to_toml(value: Any) -> str:
    """Return a value in TOML; tables in one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{to_toml(str(key))} = {to_toml(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(to_toml, value)) + "]"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f") if isinstance(value, str) else (
        str(value).lower() if isinstance(value, bool) else repr(value)
    )  # fmt: skip


def load_or_refuse(*arguments: Any) -> RunConfig | None:
    try:
        config = load_config(*arguments)
        config.build_schedule()
        return config
    except UserError as problem:
        str(problem).encode("utf8", "backslashreplace")
        assert len(str(problem)) < 10_000, "a message is for reading"
        return None


@given(st.dictionaries(st.sampled_from(sorted(KEYS)), st.none(), min_size=1, max_size=12).flatmap(
    lambda chosen: st.fixed_dictionaries({path: KEYS[path] for path in chosen})))  # fmt: skip
@LAW
def test_valid_settings_survive_the_way_through_a_file(tmp_path: Path, wanted: dict[str, Any]) -> None:
    file = tmp_path / "own.toml"
    file.write_text("".join(f"{path} = {to_toml(value)}\n" for path, value in wanted.items()), encoding="utf8")
    config = load_config(str(file))
    for path, value in wanted.items():
        found: Any = config
        for name in path.split("."):
            found = getattr(found, name)
        assert found == value, path
    assert RunConfig.model_validate(config.model_dump()) == config


@given(st.dictionaries(
    st.sampled_from([*(path.partition(".")[0] for path in KEYS), "x"]) | TEXT,
    st.recursive(
        st.none().map(lambda _: []) | st.booleans() | st.integers() | st.floats() | TEXT | st.dates().map(str),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
            st.sampled_from([path.rpartition(".")[2] for path in KEYS]) | TEXT, inner, max_size=3),
        max_leaves=8,
    ), max_size=4,
))  # fmt: skip
@LAW
def test_any_tables_are_settings_or_one_error(tmp_path: Path, tree: dict[str, Any]) -> None:
    file = tmp_path / "own.toml"
    file.write_text("".join(f"{to_toml(key)} = {to_toml(value)}\n" for key, value in tree.items()), encoding="utf8")
    load_or_refuse(str(file), {"network.name": "segnet", "training.epochs": 3, "schedule.name": "joint"})


@given(st.binary(max_size=200) | st.tuples(
    st.integers(0, len(DEMO)), st.binary(max_size=4) | st.sampled_from([b"[" * 3000, b"a." * 3000, b"9" * 5000]),
    st.integers(0, 9),
).map(lambda cut: DEMO[: cut[0]] + cut[1] + DEMO[cut[0] + cut[2] :]))  # fmt: skip
@LAW
def test_any_bytes_are_a_recipe_or_one_error(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "own.toml"
    file.write_bytes(content)
    load_or_refuse(str(file))


@given(st.text(max_size=60) | st.tuples(
    st.sampled_from([*KEYS, *sorted(LEFT_OUT), "network.x", "data.options.size", "row_changes.joint"]),
    st.text("0123456789.-+e_[]{}\"'=, \n\\abntrfuxd:TZ\0", max_size=40),
).map("=".join))  # fmt: skip
@LAW
def test_any_text_behind_set_is_a_value_or_one_error(assignment: str) -> None:
    load_or_refuse("demo", {}, [assignment])


def test_a_byte_order_mark_is_read_over(tmp_path: Path) -> None:
    file = tmp_path / "own.toml"
    file.write_bytes(b"\xef\xbb\xbf" + DEMO)
    assert load_config(str(file)).changed({"recipe": "demo"}) == load_config("demo").changed({})


@pytest.mark.parametrize("key", ["epochs", "iterations"])
def test_epochs_or_iterations_asked_for_win_over_the_others_of_a_recipe(tmp_path: Path, key: str) -> None:
    other = {"epochs": "iterations", "iterations": "epochs"}[key]
    file = tmp_path / "own.toml"
    file.write_text(f"training.{other} = 7\n")
    with pytest.warns(UserWarning, match=f"the recipe's {other} = 7 do not count"):
        training = load_config(str(file), {f"training.{key}": 3}).training
    assert getattr(training, key) == 3 and getattr(training, other) == RunConfig().training.model_dump()[other]

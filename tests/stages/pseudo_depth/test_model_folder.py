"""A model folder with any bytes in any of its files opens, or is refused with one message; nothing else happens."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from data_cache.errors import UserError
from data_cache.sample import DepthKind
from stages.pseudo_depth.estimators import load_estimator
from stages.pseudo_depth.model_folder import describe_folder, read_preprocessing
from stages.pseudo_depth.weight_files import find_weights

NAMES = ("config.json", "preprocessor_config.json", "estimator.json", "model.safetensors.index.json")
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=6,
)
FUZZ = settings(
    max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture
def folder(tmp_path, depth_anything_folder):
    """A whole folder with every kind of file, sharded (in one shard)."""
    folder = Path(shutil.copytree(depth_anything_folder, tmp_path / "any"))
    (folder / "model.safetensors").rename(folder / "model-1.safetensors")
    spec = {
        "alias": "any", "kind": "relative", "size_multiple": 14, "recommended_size": 56, "licence": "none",
        "max_depth_m": None, "noncommercial": False, "hub_id": None, "revision": None,
    }  # fmt: skip
    (folder / "estimator.json").write_text(json.dumps(spec))
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-1.safetensors"}}')
    return folder


def look_at(folder):
    """Read all that is read without opening the network; refusals are fine."""
    try:
        describe_folder(folder, alias="any", kind=None)
        read_preprocessing(folder)
        find_weights(folder)
    except UserError as refusal:
        assert "any/" in str(refusal) or "any " in str(refusal)


@FUZZ
@given(name=st.sampled_from(NAMES), content=st.binary(max_size=60))
@example(name="config.json", content=b"[" * 5000)
@example(name="estimator.json", content=b'{"alias":' * 900 + b"1" + b"}" * 900)
@example(name="model.safetensors.index.json", content=b'{"weight_map": {"a": "\\u0000.safetensors"}}')
@example(name="model.safetensors.index.json", content=b'{"weight_map": {"a": "\\ud800.safetensors"}}')
def test_any_bytes(folder, name, content):
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(content)
    look_at(folder)
    (folder / name).write_bytes(whole)


@FUZZ
@given(name=st.sampled_from(NAMES), data=st.data())
def test_any_value_under_any_key(folder, name, data):
    whole = (folder / name).read_bytes()
    value = json.loads(whole)
    at = value[next(iter(value))] if name.startswith("model") else value
    at[data.draw(st.sampled_from(sorted(at)))] = data.draw(ANYTHING)
    (folder / name).write_text(json.dumps(value))
    look_at(folder)
    (folder / name).write_bytes(whole)


@settings(FUZZ, max_examples=40)
@given(data=st.data())
def test_any_number_in_the_configuration(tmp_path, depth_anything_folder, image, data):
    """The network is built, and run where that was possible."""
    folder = tmp_path / "any"
    shutil.copytree(depth_anything_folder, folder, dirs_exist_ok=True)
    config = json.loads((folder / "config.json").read_text())
    sections = [config, config["backbone_config"]]
    section = data.draw(st.sampled_from(sections))
    key = data.draw(st.sampled_from(sorted(section.keys() - {"backbone_config"})))
    number = st.integers(-3, 40) | st.sampled_from([2**31, 2**63, 10**18, 0.5])
    section[key] = data.draw(number | st.lists(number, max_size=4) | st.sampled_from(["x", None, True]))
    (folder / "config.json").write_text(json.dumps(config))
    try:
        estimator = load_estimator(str(folder), precision="float32")
        estimator.predict(estimator.prepare(image)[None])
    except UserError as refusal:
        assert "any" in str(refusal)


@settings(FUZZ, max_examples=40)
@given(data=st.data())
def test_any_flipped_or_missing_bytes_in_the_weights(tmp_path, depth_anything_folder, data):
    folder = tmp_path / "any"
    shutil.copytree(depth_anything_folder, folder, dirs_exist_ok=True)
    content = bytearray((folder / "model.safetensors").read_bytes())
    head = int.from_bytes(content[:8], "little") + 8
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, head - 1))] = data.draw(st.integers(0, 255))
    (folder / "model.safetensors").write_bytes(
        content[: data.draw(st.integers(0, len(content)) | st.just(len(content)))]
    )
    try:
        load_estimator(str(folder), precision="float32")
    except UserError as refusal:
        assert "any" in str(refusal)


def test_links_of_the_hub_cache_are_followed_and_others_out_of_the_folder_are_not(tmp_path, depth_anything_folder):
    repository = tmp_path / "models--owner--name"
    snapshot = repository / "snapshots" / "0123abcd"
    shutil.copytree(depth_anything_folder, snapshot)
    (repository / "blobs").mkdir()
    weights = snapshot / "model.safetensors"
    weights.rename(repository / "blobs" / "89ef")
    weights.symlink_to("../../blobs/89ef")
    assert find_weights(snapshot) == [weights]
    assert load_estimator(str(snapshot), kind=DepthKind.RELATIVE).spec.alias == "0123abcd"
    shutil.copytree(repository / "blobs", tmp_path / "elsewhere")
    weights.unlink()
    weights.symlink_to(tmp_path / "elsewhere" / "89ef")
    with pytest.raises(UserError, match=r"a link to .*elsewhere"):
        find_weights(snapshot)

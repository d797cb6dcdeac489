"""Fetching: pickles become safetensors once, with the same numbers, and never run code."""

from __future__ import annotations

import json
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from data_cache.errors import UserError
from data_cache.sample import DepthKind
from stages.pseudo_depth.aliases import ESTIMATORS
from stages.pseudo_depth.estimators import load_estimator
from stages.pseudo_depth.fetch import fetch_estimator
from stages.pseudo_depth.weight_files import hash_files
from stages.pseudo_depth.weights import convert_pickled_weights


@pytest.fixture
def pickled_folder(tmp_path: Path, dpt_dinov2_folder: Path) -> Path:
    """A model folder as the dpt-dinov2 repositories are: ``pytorch_model.bin`` only."""
    folder = Path(shutil.copytree(dpt_dinov2_folder, tmp_path / "pickled"))
    tensors = load_file(folder / "model.safetensors")
    torch.save(tensors, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return folder


def test_pickled_weights_are_not_opened_by_loading(pickled_folder):
    with pytest.raises(UserError, match=r"pickled weights only \(pytorch_model\.bin\).*pipeline fetch"):
        load_estimator(str(pickled_folder), kind=DepthKind.METRIC)


def test_fetch_converts_pickled_weights_and_the_maps_stay_the_same(tmp_path, pickled_folder, dpt_dinov2_folder, image):
    files = fetch_estimator(str(pickled_folder), tmp_path / "out", kind=DepthKind.METRIC)
    names = {path.name for path in files}
    assert names == {"config.json", "preprocessor_config.json", "model.safetensors", "estimator.json"}
    converted = load_estimator(str(tmp_path / "out"), precision="float32")  # the folder knows its kind now
    original = load_estimator(str(dpt_dinov2_folder), kind=DepthKind.METRIC, precision="float32")
    assert converted.spec.kind is DepthKind.METRIC
    prepared = original.prepare(image)[None]
    assert torch.equal(converted.predict(prepared), original.predict(prepared))
    assert (pickled_folder / "pytorch_model.bin").exists()  # somebody else's folder is left alone


def test_fetch_in_place_only_adds_and_a_second_fetch_changes_nothing(pickled_folder):
    (pickled_folder / "optimizer.pt").write_bytes(b"mine, and no weights")
    given = {path.name: path.read_bytes() for path in pickled_folder.iterdir()}
    fetch_estimator(str(pickled_folder), pickled_folder, kind=DepthKind.METRIC)
    kept = {path.name: path.read_bytes() for path in pickled_folder.iterdir()}
    assert given.items() <= kept.items() and kept.keys() - given == {"model.safetensors", "estimator.json"}
    before = {path.name: path.stat().st_mtime_ns for path in pickled_folder.iterdir()}
    fetch_estimator(str(pickled_folder), pickled_folder)
    assert {path.name: path.stat().st_mtime_ns for path in pickled_folder.iterdir()} == before


def test_a_fetched_folder_is_left_as_it_is_and_another_estimator_there_refused(tmp_path, depth_anything_folder):
    fetch_estimator(str(depth_anything_folder), tmp_path / "out")
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    fetch_estimator(str(depth_anything_folder), tmp_path / "out")
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == before
    (tmp_path / "out" / "model.safetensors").write_bytes((depth_anything_folder / "config.json").read_bytes())
    with pytest.raises(UserError, match="holds another estimator"):
        fetch_estimator(str(depth_anything_folder), tmp_path / "out")


def test_tied_tensors_survive_the_conversion(tmp_path):
    shared = torch.randn(4, 4)
    torch.save({"a": shared, "b": shared, "c": shared[1:3].t()}, tmp_path / "pytorch_model.bin")
    convert_pickled_weights([tmp_path / "pytorch_model.bin"], tmp_path / "model.safetensors")
    tensors = load_file(tmp_path / "model.safetensors")
    assert torch.equal(tensors["a"], shared) and torch.equal(tensors["b"], shared)
    assert torch.equal(tensors["c"], shared[1:3].t())


class _Bomb:
    def __reduce__(self):
        return (Path.touch, (Path(self.path),))


def test_a_pickle_with_code_in_it_is_refused_and_not_run(tmp_path):
    bomb = _Bomb()
    bomb.path = str(tmp_path / "ran")
    torch.save({"a": torch.zeros(1), "b": bomb}, tmp_path / "pytorch_model.bin", pickle_module=pickle)
    with pytest.raises(UserError, match="not a plain file of tensors and was not opened"):
        convert_pickled_weights([tmp_path / "pytorch_model.bin"], tmp_path / "model.safetensors")
    assert not (tmp_path / "ran").exists() and not (tmp_path / "model.safetensors").exists()


@pytest.mark.parametrize("content", [b"", b"garbage", pickle.dumps([1, 2])])
def test_a_file_that_is_no_table_of_tensors_is_refused(tmp_path, content):
    (tmp_path / "pytorch_model.bin").write_bytes(content)
    with pytest.raises(UserError, match=r"not a plain file of tensors|more than a table of tensors"):
        convert_pickled_weights([tmp_path / "pytorch_model.bin"], tmp_path / "model.safetensors")


def test_cached_snapshot_of_an_alias_needs_no_network(tmp_path, monkeypatch, pickled_folder):
    """The Hub cache as huggingface_hub lays it out, filled by hand: fetch finds the commit, converts, records all."""
    bin_file = pickled_folder / "pytorch_model.bin"
    alias = "dpt-dinov2-small-nyu"
    spec = replace(ESTIMATORS[alias], weights_sha256=hash_files([bin_file]))
    monkeypatch.setitem(ESTIMATORS, alias, spec)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    snapshot = tmp_path / "hub" / "models--facebook--dpt-dinov2-small-nyu" / "snapshots" / str(spec.revision)
    shutil.copytree(pickled_folder, snapshot)
    fetch_estimator(alias, tmp_path / "out")
    written = json.loads((tmp_path / "out" / "estimator.json").read_text())
    assert written["revision"] == spec.revision and written["max_depth_m"] == 10.0 and written["alias"] == alias
    estimator = load_estimator(str(tmp_path / "out"), precision="float32")
    assert estimator.revision == spec.revision and estimator.spec.size_multiple == 28
    (snapshot / "pytorch_model.bin").write_bytes(b"no pickle at all")
    with pytest.raises(UserError, match=r"pytorch_model.bin has SHA-256 .*, expected"):  # said before it is opened
        fetch_estimator(alias, tmp_path / "other")


def test_newest_commit_comes_from_the_cache_when_the_hub_is_out_of_reach(tmp_path, monkeypatch, depth_anything_folder):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    repository = tmp_path / "hub" / "models--LiheYoung--depth-anything-small-hf"
    commit = "0123456789abcdef0123456789abcdef01234567"
    shutil.copytree(depth_anything_folder, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    estimator = load_estimator("depth-anything-small")
    assert estimator.revision == commit and estimator.spec.alias == "depth-anything-small"
    (repository / "snapshots" / commit / "model.safetensors").unlink()  # as an interrupted download leaves it
    with pytest.raises(UserError, match="cannot be reached"):
        load_estimator("depth-anything-small")


def test_offline_fetch_says_so(tmp_path):
    with pytest.raises(UserError, match=r"depth-anything-small.*cannot be reached"):
        fetch_estimator("depth-anything-small", tmp_path / "out")


def test_fetch_refuses_what_it_cannot_or_must_not_bring(tmp_path):
    with pytest.raises(UserError, match="--accept-noncommercial"):
        fetch_estimator("depth-anything-v2-base", tmp_path / "out")
    with pytest.raises(UserError, match="comes with this package"):
        fetch_estimator("bundled", tmp_path / "out")
    with pytest.raises(UserError, match=r"unknown estimator 'depth-anythin-small'.*did you mean"):
        fetch_estimator("depth-anythin-small", tmp_path / "out")

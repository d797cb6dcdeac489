"""Weights and states on disk are complete or absent, and go back only where they belong."""

import hashlib
import json

import torch
from toy_network import build_toy

from stages.training.checkpoint import (
    load_weights,
    read_checkpoint,
    save_weights,
    write_checkpoint,
)

KEY = "3f2a"
STEPS = 20
TENSORS = {
    "network/a": torch.arange(6.0).view(1, 2, 3, 1),
    "network/count": torch.tensor(3),
    "weighting/x": torch.ones(2).double(),
}


def test_state_comes_back_as_it_was(tmp_path):
    write_checkpoint(tmp_path / "state", 12, TENSORS, KEY)
    step, tensors, *_ = read_checkpoint(tmp_path / "state", KEY, STEPS)
    assert step == 12
    assert tensors.keys() == TENSORS.keys()
    for name, value in TENSORS.items():
        assert torch.equal(tensors[name], value)
        assert tensors[name].dtype == value.dtype


def test_channels_last_values_keep_their_places(tmp_path):
    value = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    write_checkpoint(tmp_path, 1, {"network/w": value}, KEY)
    assert torch.equal(read_checkpoint(tmp_path, KEY, STEPS).tensors["network/w"], value)


def test_folder_holds_the_newest_state_only_and_neither_pickles_nor_leftovers(tmp_path):
    for step in (3, 6, 9):
        write_checkpoint(tmp_path, step, TENSORS, KEY)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000009"]
    assert sorted(path.name for path in tmp_path.glob("*/*")) == ["state.json", "state.safetensors"]
    assert read_checkpoint(tmp_path, KEY, STEPS).step == 9


def test_absent_state_is_none(tmp_path):
    assert read_checkpoint(tmp_path / "state", KEY, STEPS) is None


def test_weights_come_back_bit_for_bit(tmp_path):
    first, second = build_toy(0).to(memory_format=torch.channels_last), build_toy(1)
    save_weights(first, tmp_path / "nodes" / "w.safetensors")
    load_weights(second, tmp_path / "nodes" / "w.safetensors")
    assert all(torch.equal(value, second.state_dict()[name]) for name, value in first.state_dict().items())


def test_facts_are_plain_json(tmp_path):
    write_checkpoint(tmp_path, 4, TENSORS, KEY)
    folder = tmp_path / "step-00000004"
    content = hashlib.blake2b((folder / "state.safetensors").read_bytes(), digest_size=16).hexdigest()
    assert json.loads((folder / "state.json").read_text()) == {"format": 2, "step": 4, "key": KEY, "content": content}

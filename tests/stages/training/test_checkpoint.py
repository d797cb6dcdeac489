"""Weights and states on disk are complete or absent, and go back only where they belong."""

import hashlib
import json
import resource
import signal
from contextlib import contextmanager

import pytest
import torch
from toy_network import build_toy

from data_cache.errors import UserError
from stages.training.checkpoint import (
    load_weights,
    read_checkpoint,
    remove_checkpoints,
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


@contextmanager
def full_disk():
    """Let no file grow beyond 1 KiB, which the system reports as it reports a full disk: by a failing write.

    Not a fixture: pytest's own report, when it goes to a file, is written while fixtures are still up.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    former = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, former)


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


def test_half_written_state_is_not_seen(tmp_path):
    write_checkpoint(tmp_path, 3, TENSORS, KEY)
    half = tmp_path / ".step-00000006.1.tmp"
    half.mkdir()
    (half / "state.safetensors").write_bytes(b"\x00" * 10)
    assert read_checkpoint(tmp_path, KEY, STEPS).step == 3


def test_absent_state_is_none_and_removal_is_complete(tmp_path):
    folder = tmp_path / "state"
    assert read_checkpoint(folder, KEY, STEPS) is None
    write_checkpoint(folder, 1, TENSORS, KEY)
    remove_checkpoints(folder)
    assert not folder.exists()
    assert read_checkpoint(folder, KEY, STEPS) is None


def test_state_of_another_training_is_refused(tmp_path):
    write_checkpoint(tmp_path, 1, TENSORS, KEY)
    with pytest.raises(UserError, match=r"belongs to another training.*its key is 3f2a, this training's is 77.*delete"):
        read_checkpoint(tmp_path, "77", STEPS)


@pytest.mark.parametrize("name", ["state.json", "state.safetensors"])
def test_damaged_state_is_explained(tmp_path, name):
    write_checkpoint(tmp_path, 1, TENSORS, KEY)
    path = tmp_path / "step-00000001" / name
    path.write_bytes(path.read_bytes()[:9])
    with pytest.raises(UserError, match=r"step-00000001.*delete"):
        read_checkpoint(tmp_path, KEY, STEPS)


def test_full_disk_is_explained_and_the_former_state_stays(tmp_path):
    write_checkpoint(tmp_path, 1, TENSORS, KEY)
    with full_disk(), pytest.raises(UserError, match=r"cannot write .*step-00000002.*Free some space"):
        write_checkpoint(tmp_path, 2, {"network/a": torch.zeros(1000)}, KEY)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    assert read_checkpoint(tmp_path, KEY, STEPS).step == 1


def test_full_disk_leaves_former_weights(tmp_path):
    path = tmp_path / "weights.safetensors"
    path.write_bytes(b"former")
    with full_disk(), pytest.raises(UserError, match=r"cannot write .*weights.safetensors"):
        save_weights(build_toy(), path)
    assert [(entry.name, entry.read_bytes()) for entry in tmp_path.iterdir()] == [("weights.safetensors", b"former")]


def test_weights_come_back_bit_for_bit(tmp_path):
    first, second = build_toy(0).to(memory_format=torch.channels_last), build_toy(1)
    save_weights(first, tmp_path / "nodes" / "w.safetensors")
    load_weights(second, tmp_path / "nodes" / "w.safetensors")
    assert all(torch.equal(value, second.state_dict()[name]) for name, value in first.state_dict().items())


def test_weights_of_another_network_are_refused_naming_the_tensors(tmp_path):
    path = tmp_path / "w.safetensors"
    save_weights(build_toy(with_depth=False), path)
    with pytest.raises(UserError, match=r"depth_decoder\.0\.bias is missing in the file.*and 1 more"):
        load_weights(build_toy(), path)
    network = build_toy(with_depth=False)
    network.seg_head = torch.nn.Conv2d(8, 7, 1)
    with pytest.raises(
        UserError, match=r"seg_head\.bias is \(4,\) float32 in the file and \(7,\) float32 in the network"
    ):
        load_weights(network, path)


def test_missing_and_unreadable_weights_are_explained(tmp_path):
    with pytest.raises(UserError, match=r"cannot read .*w.safetensors.*pipeline run"):
        load_weights(build_toy(), tmp_path / "w.safetensors")
    (tmp_path / "w.safetensors").write_text("not weights")
    with pytest.raises(UserError, match=r"cannot read .*w.safetensors as safetensors"):
        load_weights(build_toy(), tmp_path / "w.safetensors")


def test_facts_are_plain_json(tmp_path):
    write_checkpoint(tmp_path, 4, TENSORS, KEY)
    folder = tmp_path / "step-00000004"
    content = hashlib.blake2b((folder / "state.safetensors").read_bytes(), digest_size=16).hexdigest()
    assert json.loads((folder / "state.json").read_text()) == {"format": 2, "step": 4, "key": KEY, "content": content}

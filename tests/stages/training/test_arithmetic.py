"""Torch's switches are set while a phase trains and not after it; what the device cannot do is explained."""

from __future__ import annotations

import os

import pytest
import torch
from toy_network import batches_from, build_toy

from data_cache.errors import UserError
from pipeline.experiment.devices import choose_device
from stages.training.arithmetic import training_arithmetic
from stages.training.loop import train_phase
from stages.training.schedules import SEG
from stages.training.settings import LossSettings, TrainingSettings

CPU = torch.device("cpu")


def switches():
    return {
        "tf32": (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32),
        "benchmark": torch.backends.cudnn.benchmark,
        "deterministic": (torch.backends.cudnn.deterministic, torch.are_deterministic_algorithms_enabled()),
    }


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("tf32", [False, True])
def test_switches_are_those_of_the_settings_inside_and_the_former_ones_after(tf32, deterministic):
    choose_device("cpu")  # from then on float32 means float32
    before = switches()
    assert before["tf32"] == (False, False)
    with training_arithmetic(TrainingSettings(tf32=tf32, deterministic=deterministic), CPU):
        assert switches() == {
            "tf32": (tf32, tf32), "benchmark": not deterministic, "deterministic": (deterministic, deterministic),
        }  # fmt: skip
        assert not deterministic or os.environ["CUBLAS_WORKSPACE_CONFIG"] in (":4096:8", ":16:8")
    assert switches() == before


def train(network, **settings):
    return train_phase(
        network, SEG, batches_from, total_steps=2, seed=0, key="", settings=TrainingSettings(**settings),
        losses=LossSettings(), device=CPU, dtype="float32",
    )  # fmt: skip


def test_an_operation_without_deterministic_form_is_named():
    network = build_toy()
    network.encoder.register_forward_hook(
        lambda _module, _inputs, maps: maps.put(torch.tensor([0]), maps.new_ones(1))  # on a CPU, too
    )
    train(network)
    with pytest.raises(UserError, match=r"put_?.* has no deterministic form on cpu.*leave --deterministic out"):
        train(network, deterministic=True)
    assert not torch.are_deterministic_algorithms_enabled()


def test_deterministic_training_ends_with_the_same_weights():
    plain, strict = build_toy(), build_toy()
    train(plain)
    train(strict, deterministic=True)
    assert all(
        torch.equal(first, second) for first, second in zip(plain.parameters(), strict.parameters(), strict=True)
    )

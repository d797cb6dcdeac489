"""What `doctor --gpu` looks at runs on a CPU as well; it fails where a device computes something else."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pipeline.commands.doctor import examine_machine
from pipeline.gpu_checks import Effort, Speeds, compare_networks, compare_states, name_limit
from pipeline.session import Session
from pipeline.speeds import CLASSES
from stages.networks import build_network
from tests.bad_input.world import Answer

CPU = torch.device("cpu")
LITTLE = Effort(
    networks=("unet", "segnet"), encoder="tu-resnet10t", size=(64, 64), batch_size=2, steps=1, images=4,
    estimator="tiny", estimator_px=56, disk_bytes=1_000_000,
)  # fmt: skip


def test_every_look_runs_on_a_cpu_and_finds_it_equal_to_itself(tmp_path: Path) -> None:
    session = Session.start(tmp_path, json_mode=True, quiet=True)
    checks = {each["name"]: each for each in examine_machine(session, gpu=CPU, effort=LITTLE).json["checks"]}
    compared = [checks[f"{name}: cpu as cpu"] for name in LITTLE.networks] + [checks["resumed training on cpu"]]
    assert all(each["ok"] for each in compared), compared
    assert "off by 0e+00" in checks["unet: cpu as cpu"]["found"]
    assert checks["float32 is float32"]["ok"]
    measured = ("labelling, tiny", "training step", "loader", "disk", "limit")
    assert all(checks[name]["ok"] and checks[name]["found"] for name in measured)
    assert not any(tmp_path.iterdir()), "what was measured is gone"


def test_a_device_that_computes_something_else_is_reported() -> None:
    torch.manual_seed(0)
    network = build_network("unet", CLASSES, encoder="tu-resnet10t", encoder_weights="none")
    wrong = copy.deepcopy(network)
    with torch.no_grad():
        next(wrong.seg_head.parameters()).mul_(1.05)
    found = compare_networks("unet", network, wrong, CPU)
    assert not found.ok
    assert "seg" in found.found


def test_a_resumed_training_that_ends_elsewhere_is_reported() -> None:
    straight = {"a": torch.ones(3), "b": torch.zeros(2)}
    found = compare_states(straight, straight | {"b": torch.tensor([0.0, 1e-7])}, CPU)
    assert (found.ok, found.found) == (False, "1 of 2 tensors differ")


@pytest.mark.parametrize(
    ("speeds", "said"),
    [
        (Speeds(step=50, loader=200, disk=100, workers=4), "the step: data comes 2.0 times as fast"),
        (Speeds(step=300, loader=100, disk=900, workers=4), "set --workers 12"),
        (Speeds(step=300, loader=200, disk=100, workers=4), "the disk: 100 images/s"),
    ],
)
def test_what_limits_is_what_is_slowest(speeds: Speeds, said: str) -> None:
    assert said in name_limit(speeds)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_there_is_one_message(call: Callable[..., Answer]) -> None:
    answer = call("doctor", "--gpu")
    assert answer.status == 2
    assert "there is none here" in answer.stderr


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_gpu_of_this_machine_passes(call: Callable[..., Answer]) -> None:
    failed = [check for check in call("doctor", "--gpu").json["checks"] if not check["ok"]]
    assert not failed

"""What Ray's workers ask before they train: the same work directory, the same software, the GPUs that were promised."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from data_cache.errors import UserError
from pipeline.experiment.engines.on_ray import _count_gpus, _find_versions, _Order


@pytest.fixture
def order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> _Order:
    """A command that was called in another folder than the worker is in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["worker"])
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)  # of this process, which has more to do
    work, folder = tmp_path / "work", tmp_path / "called here"
    work.mkdir()
    folder.mkdir()
    (work / "token").touch()
    return _Order(work, str(folder), ["pipeline", "table"], "head", work / "token", _find_versions())


def test_a_worker_is_where_and_what_the_command_was(order: _Order) -> None:
    assert order.begin().workspace.root == order.root
    assert (str(Path.cwd()), sys.argv) == (order.folder, ["pipeline", "table"])


def test_a_worker_that_sees_another_work_directory_refuses(order: _Order) -> None:
    order.token.unlink()
    with pytest.raises(UserError, match=r"work is not the same on .* as on head.*--workdir"):
        order.begin()


def test_a_worker_with_other_software_refuses(order: _Order) -> None:
    theirs = order.versions | {"torch": "1.0"}
    with pytest.raises(UserError, match=r"has torch .* instead of 1\.0 on head; install the same"):
        order._replace(versions=theirs).begin()


@pytest.mark.parametrize(
    ("there", "device", "wanted", "gpus"),
    [(0, "auto", None, 0), (4, "auto", None, 1), (4, "auto", 0.5, 0.5), (4, "cpu", None, 0), (4, "cuda", None, 1)],
)
def test_gpus_of_a_training(there: float, device: str, wanted: float | None, gpus: float) -> None:
    assert _count_gpus(there, device, wanted) == gpus


@pytest.mark.parametrize(
    ("device", "wanted", "message"),
    [
        ("cuda", None, "has 0 GPUs"),
        ("auto", 1.0, "has 0 GPUs"),
        ("cuda:1", None, "Ray deals"),
        ("cpu", 1.0, "give one"),
    ],
)
def test_gpus_that_cannot_be_had_are_refused(device: str, wanted: float | None, message: str) -> None:
    with pytest.raises(UserError, match=message):
        _count_gpus(0, device, wanted)

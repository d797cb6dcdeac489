"""Teaching: losses against their laws, a run that stops and goes on to the bit, a folder that opens."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoModelForDepthEstimation

from data_cache.datasets import open_dataset
from data_cache.errors import UserError
from data_cache.sample import DepthKind
from pipeline.commands.teach import teach_dataset
from stages.pseudo_depth.aliases import ESTIMATORS
from stages.pseudo_depth.depth_losses import metric_depth_loss, relative_depth_loss
from stages.pseudo_depth.estimators import load_estimator
from stages.pseudo_depth.model_folder import Preprocessing
from stages.pseudo_depth.teach_data import TeachOptions, batches_from
from stages.training.interruption import Interrupted, StopFlag

TINY = TeachOptions(steps=6, batch_size=2, input_size=28, precision="float32")


def teach(dataset, init, out, options=TINY, **more):
    return teach_dataset(dataset, init, out, options=options, device=torch.device("cpu"), **more)


class StopAfter(StopFlag):
    """Set when it is looked at after so many steps."""

    def __init__(self, steps):
        super().__init__()
        self.steps = steps

    def is_set(self):
        self.steps -= 1
        return self.steps < 0


def interrupt(dataset, out, *, after):
    """Teach and stop after a step."""
    with pytest.raises(Interrupted, match=f"after {after} of 6 steps"):
        teach(dataset, "nano", out, stop=StopAfter(after))


def same_weights(first, second):
    first, second = (load_file(folder / "model.safetensors") for folder in (first, second))
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture
def maps() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    target = torch.rand(2, 12, 16)
    valid = torch.rand(2, 12, 16) > 0.2
    return target, valid


@pytest.fixture
def scenes():
    return open_dataset("scenes", None, "train", size=(28, 42), counts={"train": 5})


def test_relative_loss_is_zero_exactly_for_increasing_affine_maps(maps):
    target, valid = maps
    scale = torch.tensor([3.0, 40.0]).view(2, 1, 1)
    assert relative_depth_loss(scale * target + 7, target, valid) < 1e-4
    assert relative_depth_loss(-target, target, valid) > 1  # upside down is not forgiven
    assert relative_depth_loss(target.square(), target, valid) > 0.05


def test_relative_loss_of_least_squares_fit_matches_numpy(maps):
    """The first two terms against numpy's own least squares and correlation."""
    target, valid = maps
    predicted = target + 0.3 * torch.rand(2, 12, 16)
    correlations, residuals = [], []
    for row in range(2):
        x, y = predicted[row][valid[row]].numpy(), target[row][valid[row]].numpy()
        slope, offset = np.polyfit(x, y, 1)
        correlations.append(np.corrcoef(x, y)[0, 1])
        residuals.append(np.abs(slope * x + offset - y))
    expected = 1 - np.mean(correlations) + np.concatenate(residuals).mean()
    whole = relative_depth_loss(predicted, target, valid)
    flat = torch.where(valid, predicted, torch.nan)
    assert torch.isfinite(whole)
    # the gradient term is what is left; it is at least 0 and at most twice the largest residual
    assert 0 <= whole.item() - expected <= 2 * np.concatenate(residuals).max()
    assert torch.isnan(flat).any()  # some pixels really were left out


def test_losses_ignore_invalid_pixels_and_send_finite_gradient(maps):
    target, valid = maps
    predicted = (target + 1).requires_grad_()
    spoiled = torch.where(valid, target, torch.full_like(target, 1e9))
    for loss in (relative_depth_loss, metric_depth_loss):
        torch.testing.assert_close(loss(predicted, spoiled, valid), loss(predicted, target, valid))
    constant = torch.ones_like(target).requires_grad_()
    relative_depth_loss(constant, target, valid).backward()
    assert constant.grad is not None and torch.isfinite(constant.grad).all()
    nothing = torch.zeros_like(valid)
    assert torch.isfinite(relative_depth_loss(predicted, target, nothing))
    assert torch.isfinite(metric_depth_loss(predicted, target, nothing))


def test_metric_loss_by_hand():
    """Twice too far everywhere: log residual ln 2, no slopes, so sqrt(ln²2 − ½ ln²2) = ln 2 / √2."""
    target = torch.full((1, 4, 4), 3.0)
    valid = torch.ones(1, 4, 4, dtype=torch.bool)
    assert metric_depth_loss(target, target, valid) == pytest.approx(0, abs=1e-5)
    assert metric_depth_loss(2 * target, target, valid).item() == pytest.approx(np.log(2) / np.sqrt(2), abs=2e-3)


def test_taught_folder_opens_everywhere_and_knows_its_kind(tmp_path, scenes):
    report = teach(scenes, "nano", tmp_path / "taught")
    assert (report["steps"], report["resumed_at"]) == (6, 0)
    estimator = load_estimator(str(tmp_path / "taught"))
    assert estimator.spec.kind is DepthKind.RELATIVE and estimator.spec.recommended_size == 28
    assert estimator.predict(estimator.prepare(scenes.read_image(0))[None]).shape == (1, 28, 42)
    assert AutoModelForDepthEstimation.from_pretrained(tmp_path / "taught").config.model_type == "depth_anything"
    assert AutoImageProcessor.from_pretrained(tmp_path / "taught").ensure_multiple_of == 14
    assert {path.name for path in (tmp_path / "taught").iterdir()} == {
        "config.json", "preprocessor_config.json", "model.safetensors", "estimator.json", "teaching.json",
        "metrics.jsonl",
    }  # fmt: skip


def test_jitter_changes_colours_but_never_the_order_of_greys(scenes):
    """Per channel an increasing affine map, cut off at the ends; wrapping around in uint8 would break the order."""
    options = {"batch_size": 2, "flip": 0.0}
    spec, preprocessing = (
        dataclasses.replace(ESTIMATORS["bundled"], recommended_size=28),
        Preprocessing((0, 0, 0), (255, 255, 255), "bicubic"),
    )
    plain, jittered = (
        next(batches_from(scenes, spec, preprocessing, TeachOptions(jitter=jitter, **options))(0))
        for jitter in (0.0, 0.3)
    )
    assert not torch.equal(plain.images, jittered.images)
    for before, after in zip(plain.images.flatten(0, 1), jittered.images.flatten(0, 1), strict=True):
        order = before.flatten().argsort()
        assert (after.flatten()[order].diff() >= 0).all()


def test_stored_precision_is_that_of_the_start(tmp_path, scenes, depth_anything_folder):
    options = TeachOptions(steps=1, batch_size=1, input_size=28, precision="float32")
    teach(scenes, "nano", tmp_path / "half", options)  # from nothing: float16
    teach(scenes, str(tmp_path / "half"), tmp_path / "still-half", options)
    teach(scenes, str(depth_anything_folder), tmp_path / "full", options)
    for name, dtype in (("half", torch.float16), ("still-half", torch.float16), ("full", torch.float32)):
        tensors = load_file(tmp_path / name / "model.safetensors")
        assert {tensor.dtype for tensor in tensors.values()} == {dtype}, name


def test_teaching_lowers_the_loss(tmp_path, scenes):
    losses: list[float] = []
    options = TeachOptions(steps=40, batch_size=5, input_size=28, precision="float32", lr=3e-3, jitter=0, flip=0)
    teach(scenes, "nano", tmp_path / "taught", options, on_step=lambda report: losses.append(report.raw["depth"]))
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])


def test_stopped_teaching_goes_on_and_ends_with_the_same_bits(tmp_path, scenes):
    teach(scenes, "nano", tmp_path / "whole")
    interrupt(scenes, tmp_path / "stopped", after=3)
    assert not (tmp_path / "stopped" / "model.safetensors").exists()
    assert teach(scenes, "nano", tmp_path / "stopped")["resumed_at"] == 3
    assert same_weights(tmp_path / "whole", tmp_path / "stopped")


def test_teaching_goes_on_only_with_the_options_it_began_with(tmp_path, scenes):
    interrupt(scenes, tmp_path, after=1)
    with pytest.raises(UserError, match=r"begun with other options \(lr was 0\.001\)"):
        teach(scenes, "nano", tmp_path, dataclasses.replace(TINY, lr=0.5))


def test_a_finished_teaching_is_not_done_again(tmp_path, scenes):
    first = teach(scenes, "nano", tmp_path / "taught")
    written_at = (tmp_path / "taught" / "model.safetensors").stat().st_mtime_ns
    again = teach(scenes, "nano", tmp_path / "taught")
    assert again == first | {"resumed_at": 6, "seconds": 0.0}
    assert (tmp_path / "taught" / "model.safetensors").stat().st_mtime_ns == written_at
    with pytest.raises(UserError, match=r"taught otherwise \(lr was 0\.001\); choose another --out"):
        teach(scenes, "nano", tmp_path / "taught", dataclasses.replace(TINY, lr=0.5))


def test_stopped_while_it_was_published_it_publishes_again(tmp_path, scenes):
    teach(scenes, "nano", tmp_path / "taught")
    (tmp_path / "taught" / "model.safetensors").unlink()
    assert teach(scenes, "nano", tmp_path / "taught")["resumed_at"] == 0
    assert (tmp_path / "taught" / "model.safetensors").is_file()


def test_a_given_estimator_is_taught_from_where_it_is(tmp_path, scenes, depth_anything_folder):
    options = TeachOptions(steps=1, batch_size=1, input_size=28, precision="float32", lr=1e-7, weight_decay=0)
    teach(scenes, str(depth_anything_folder), tmp_path / "taught", options)
    before = load_file(depth_anything_folder / "model.safetensors")
    after = load_file(tmp_path / "taught" / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.allclose(before[name], after[name], atol=1e-5) for name in before)
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_metric_estimator_learns_metres(tmp_path, scenes, write_depth_anything):
    folder = write_depth_anything(tmp_path / "metric", metric=True)
    teach(scenes, str(folder), tmp_path / "taught")
    spec = load_estimator(str(tmp_path / "taught")).spec
    assert (spec.kind, spec.max_depth_m) == (DepthKind.METRIC, 20)


def write_relative_depth_folder(root: Path, write_image_folder) -> Path:
    write_image_folder(root, [(28, 42)] * 2)
    (root / "depth" / "train").mkdir(parents=True)
    for number in range(2):
        np.save(
            root / "depth" / "train" / f"{number:03d}.npy", np.random.default_rng(number).random((28, 42), np.float32)
        )
    return root


def test_metric_estimator_cannot_learn_from_depth_without_a_unit(tmp_path, write_image_folder, write_depth_anything):
    root = write_relative_depth_folder(tmp_path / "data", write_image_folder)
    dataset = open_dataset("folder", root, "train", depth_kind="relative")
    teach(dataset, "nano", tmp_path / "taught")  # a relative one can
    folder = write_depth_anything(tmp_path / "metric", metric=True)
    with pytest.raises(UserError, match=r"predicts metres, but the depth of 'folder' has no unit"):
        teach(dataset, str(folder), tmp_path / "other")


def test_dataset_without_depth_cannot_teach(tmp_path, write_image_folder):
    dataset = open_dataset("folder", write_image_folder(tmp_path / "data", [(28, 42)]), "train")
    with pytest.raises(UserError, match="brings no ground-truth depth to teach"):
        teach(dataset, "nano", tmp_path / "taught")


def test_a_finished_or_foreign_folder_is_not_overwritten(tmp_path, scenes, depth_anything_folder):
    with pytest.raises(UserError, match="already holds a finished estimator"):
        teach(scenes, "nano", depth_anything_folder)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="not empty and no stopped teaching"):
        teach(scenes, "nano", tmp_path)
    assert json.loads((depth_anything_folder / "config.json").read_text())["model_type"] == "depth_anything"


def test_a_loss_that_is_not_finite_stops_the_teaching(tmp_path, scenes):
    options = TeachOptions(steps=30, batch_size=2, input_size=28, precision="float32", lr=1000.0)
    with pytest.raises(UserError, match=r"loss term 'depth' is (nan|inf) in phase 'teach', step \d+ of 30.*--lr"):
        teach(scenes, "nano", tmp_path / "taught", options)

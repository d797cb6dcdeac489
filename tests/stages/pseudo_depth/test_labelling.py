"""Labelling: what is stored is what the estimator says; interruptions, broken images and odd sizes lose nothing."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from data_cache.content import ContentHashes
from data_cache.datasets import open_dataset
from data_cache.depth_store import DepthStore, find_store
from data_cache.errors import Notice, UserError, is_out_of_memory
from data_cache.sample import DepthKind
from stages.pseudo_depth.aliases import ESTIMATORS
from stages.pseudo_depth.batching import compute_largest_px
from stages.pseudo_depth.depth_source import GroundTruthDepth
from stages.pseudo_depth.estimators import DepthEstimator, load_estimator
from stages.pseudo_depth.labelling import LabelProgress, describe_store, label_split
from stages.pseudo_depth.model_folder import Preprocessing

SIZES = [(60, 84), (84, 60), (60, 84), (64, 64), (60, 84), (120, 168), (84, 60)]


@pytest.fixture(scope="session")
def estimator(depth_anything_folder: Path) -> DepthEstimator:
    return load_estimator(str(depth_anything_folder), precision="float32")


@pytest.fixture
def dataset(tmp_path: Path, write_image_folder):
    return open_dataset("folder", write_image_folder(tmp_path / "data", SIZES), "train")


def read_all(folder: Path) -> dict[str, np.ndarray]:
    store = DepthStore(folder)
    return {image_id: store.read(image_id).raw for image_id in store.image_ids}


@pytest.mark.parametrize("batch_size", [1, 3, None])
def test_every_map_is_the_estimators_own_at_float16(tmp_path, dataset, estimator, batch_size):
    report = label_split(dataset, estimator, tmp_path / "depth", batch_size=batch_size)
    assert (report.images, report.labelled, report.skipped, report.failed) == (7, 7, 0, ())
    assert find_store(tmp_path / "depth", "folder", "train", estimator.spec.alias) == report.store
    store = DepthStore(report.store)
    for index, image_id in enumerate(dataset.image_ids):
        prepared = estimator.prepare(dataset.read_image(index))
        expected = estimator.predict(prepared[None])[0].numpy()
        found = store.read(image_id)
        assert found.source_size == SIZES[index] and found.record.checksum == ContentHashes().hash(
            dataset.sources(index).image
        )
        np.testing.assert_allclose(found.raw, expected, rtol=2e-3, atol=2e-3)


def test_provenance_says_what_the_numbers_are(tmp_path, dataset, estimator):
    label_split(dataset, estimator, tmp_path / "depth")
    provenance = DepthStore(find_store(tmp_path / "depth", "folder", "train", estimator.spec.alias)).provenance
    assert provenance.kind is DepthKind.RELATIVE and provenance.dtype == "float32"
    assert provenance.weights_sha256 == estimator.weights_sha256 and provenance.input_size == 56
    assert "multiples of 14" in provenance.resize_rule and "no padding" in provenance.resize_rule


def test_other_precision_or_size_is_another_store(dataset, estimator, depth_anything_folder):
    other = load_estimator(str(depth_anything_folder), precision="float32", input_size=84)
    quick = load_estimator(str(depth_anything_folder), precision="bfloat16")
    assert len({describe_store(dataset, one).key() for one in (estimator, other, quick)}) == 3


def test_labelling_again_labels_nothing(tmp_path, dataset, estimator):
    first = label_split(dataset, estimator, tmp_path / "depth")
    before = {path: path.read_bytes() for path in first.store.glob("shard-*.h5")}
    again = label_split(dataset, estimator, tmp_path / "depth")
    assert (again.labelled, again.skipped) == (0, 7)
    assert {path: path.read_bytes() for path in first.store.glob("shard-*.h5")} == before


def test_interrupted_labelling_keeps_finished_batches_and_goes_on(tmp_path, dataset, estimator):
    undisturbed = label_split(dataset, estimator, tmp_path / "whole", batch_size=1)

    def interrupt(progress: LabelProgress) -> None:
        if progress.done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        label_split(dataset, estimator, tmp_path / "depth", batch_size=1, progress=interrupt)
    folder = find_store(tmp_path / "depth", "folder", "train", estimator.spec.alias)
    assert len(DepthStore(folder)) == 3
    report = label_split(dataset, estimator, tmp_path / "depth", batch_size=1)
    assert (report.labelled, report.skipped) == (4, 3)
    expected, found = read_all(undisturbed.store), read_all(report.store)
    assert expected.keys() == found.keys()
    for image_id, raw in expected.items():
        np.testing.assert_array_equal(found[image_id], raw)


def test_broken_images_are_listed_and_the_rest_is_kept(tmp_path, dataset, estimator):
    images = tmp_path / "data" / "images" / "train"
    whole = (images / "001.png").read_bytes()
    (images / "001.png").write_bytes(whole[: len(whole) // 2])
    (images / "004.png").write_bytes(b"no image at all")
    report = label_split(dataset, estimator, tmp_path / "depth", batch_size=2)
    assert [failure.image for failure in report.failed] == ["001", "004"]
    assert all("images/train/" in failure.reason for failure in report.failed)
    assert (report.labelled, len(DepthStore(report.store))) == (5, 5)


@pytest.mark.parametrize(
    ("value", "said"), [(float("nan"), "not finite; try --set depth.precision=float32"), (1e6, "larger unit")]
)
def test_an_unusable_map_fails_its_image_alone(tmp_path, dataset, estimator, monkeypatch, value, said):
    predict, calls = estimator.predict, []

    def predict_badly_once(images):
        calls.append(images)
        return torch.where(torch.tensor(len(calls) == 3), value, predict(images))

    monkeypatch.setattr(estimator, "predict", predict_badly_once)
    monkeypatch.setattr(estimator, "precision", "bfloat16")
    report = label_split(dataset, estimator, tmp_path / "depth", batch_size=1)
    assert (report.labelled, len(report.failed)) == (6, 1) and said in report.failed[0].reason


def test_an_estimator_that_sees_nothing_costs_one_batch_and_a_blank_image_does_not_condemn_it(tmp_path, dataset):
    """Its maps are flat for the first images; noise tells a blind estimator from one that was shown blank images."""
    blind = load_estimator("bundled", precision="float32")
    for parameter in blind._network.parameters():
        parameter.zero_()
    with pytest.raises(UserError, match=r"'bundled' gives depth 0 everywhere, for the first images and for noise"):
        label_split(dataset, blind, tmp_path / "depth", batch_size=1)
    for path in (tmp_path / "data" / "images" / "train").iterdir():
        Image.new("RGB", Image.open(path).size).save(path)
    seeing = load_estimator("bundled", precision="float32")
    assert label_split(dataset, seeing, tmp_path / "depth", batch_size=1).labelled == 7


def test_ground_truth_depth_is_passed_through(tmp_path):
    scenes = open_dataset("scenes", None, "test", size=(32, 48), counts={"test": 4})
    report = label_split(scenes, GroundTruthDepth(), tmp_path / "depth")
    store = DepthStore(find_store(tmp_path / "depth", "scenes", "test", "dataset"))
    assert report.labelled == 4 and store.provenance.kind is DepthKind.METRIC and store.provenance.unit == "m"
    for index, image_id in enumerate(scenes.image_ids):
        expected = scenes.read_depth(index).astype(np.float16).astype(np.float32)
        np.testing.assert_array_equal(store.read(image_id).raw, expected)  # the sky stays infinitely far


def test_dataset_without_ground_truth_depth_is_refused(tmp_path, dataset):
    with pytest.raises(UserError, match=r"'folder' brings no ground-truth depth.*--estimator bundled"):
        label_split(dataset, GroundTruthDepth(), tmp_path / "depth")


def test_nonsense_options_are_refused(tmp_path, dataset, estimator):
    with pytest.raises(UserError, match="at least 1 worker"):
        label_split(dataset, estimator, tmp_path / "depth", workers=0)
    with pytest.raises(UserError, match="batches of at least 1"):
        label_split(dataset, estimator, tmp_path / "depth", batch_size=0)


def test_progress_ends_at_the_total(tmp_path, dataset, estimator):
    seen: list[LabelProgress] = []
    label_split(dataset, estimator, tmp_path / "depth", batch_size=2, progress=seen.append)
    assert [progress.done for progress in seen] == sorted(progress.done for progress in seen)
    assert seen[-1].done == seen[-1].total == 7 and seen[-1].eta_s == 0
    assert all(progress.images_per_second > 0 for progress in seen)


def test_many_rare_sizes_do_not_pile_up(tmp_path, write_image_folder, estimator):
    """Twenty different input sizes and batches of 2: groups that would wait for ever are run as they are."""
    sizes = [(56, 56 + 14 * step) for step in range(20)]
    dataset = open_dataset("folder", write_image_folder(tmp_path / "data", sizes), "train")
    done: list[int] = []
    report = label_split(
        dataset, estimator, tmp_path / "depth", batch_size=2, progress=lambda progress: done.append(progress.done)
    )
    assert report.labelled == 20
    assert len(done) == 20 and done[0] == 1  # no two images share a size, so no batch ever fills


class Hungry(nn.Module):
    """An estimator's network on a device whose memory holds so many images."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room
        self.seen: list[int] = []

    def forward(self, pixel_values):
        if len(pixel_values) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        self.seen.append(len(pixel_values))
        return SimpleNamespace(predicted_depth=pixel_values.mean(1) + 3)


def open_hungry(room: int) -> tuple[DepthEstimator, Hungry]:
    network = Hungry(room)
    preprocessing = Preprocessing((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), "bicubic")
    device = torch.device("cpu")
    spec = replace(ESTIMATORS["bundled"], alias="hungry", size_multiple=14, recommended_size=56)
    return DepthEstimator(spec, network, preprocessing, weights_sha256="0", device=device, precision="float32"), network


@pytest.mark.parametrize("batch_size", [4, None])
def test_a_batch_too_large_for_the_memory_is_halved_with_a_word_and_nothing_is_lost(
    tmp_path, write_image_folder, batch_size, recwarn
):
    dataset = open_dataset("folder", write_image_folder(tmp_path / "data", [(56, 84)] * 9), "train")
    estimator, network = open_hungry(room=1)
    report = label_split(dataset, estimator, tmp_path / "depth", batch_size=batch_size)
    assert report.labelled == 9 and network.seen == [1] * 9, "the size that fits is remembered"
    said = [str(warning.message) for warning in recwarn if issubclass(warning.category, Notice)]
    assert len(said) == 1 and "at once; labelling goes on with 1 at a time" in said[0]
    roomy, _ = open_hungry(room=100)
    expected = read_all(label_split(dataset, roomy, tmp_path / "roomy").store)
    for image_id, raw in read_all(report.store).items():
        np.testing.assert_array_equal(raw, expected[image_id])


def test_an_image_too_large_for_the_memory_is_refused_with_what_to_do(tmp_path, dataset):
    estimator, _ = open_hungry(room=0)
    with pytest.raises(UserError, match=r"cpu has too little memory for one image of 56x84; choose a smaller --input"):
        label_split(dataset, estimator, tmp_path / "depth", batch_size=2)


@pytest.mark.parametrize(("said", "ran_out"), [
    ("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported", True),
    ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", True),
    ("cuDNN error: CUDNN_STATUS_ALLOC_FAILED", True),
    ("CUDA error: an illegal memory access was encountered", False),
])  # fmt: skip
def test_memory_that_drivers_and_libraries_lack_has_run_out_too(said, ran_out):
    assert is_out_of_memory(RuntimeError(said)) == ran_out


def test_automatic_batches_fill_the_free_memory_and_no_more():
    """Two images of 100 px took 400 bytes; of 10,000 free bytes 8,000 are used, which hold 40 such images."""
    assert compute_largest_px(400, 200, 10_000) == 40 * 100
    assert compute_largest_px(0, 200, 0) == 0


def test_waits_are_shares_of_the_time(tmp_path, dataset, estimator):
    report = label_split(dataset, estimator, tmp_path / "depth", batch_size=1)
    assert set(report.waits) == {"images", "disk"}
    assert all(0 <= share <= 1 for share in report.waits.values()) and report.waits["images"] > 0


KILLED = """
import sys, time
from pathlib import Path
from data_cache.content import ContentHashes
from data_cache.datasets import open_dataset
from stages.pseudo_depth.estimators import load_estimator
from stages.pseudo_depth.labelling import label_split

def slow(progress):
    print(progress.done, flush=True)
    time.sleep(0.2)

root, weights, out = sys.argv[1:]
label_split(open_dataset("folder", Path(root), "train"), load_estimator(weights, precision="float32"), Path(out),
            batch_size=1, progress=slow)
"""


@pytest.mark.slow
def test_killed_labelling_continues_and_ends_as_if_undisturbed(tmp_path, dataset, estimator, depth_anything_folder):
    command = [
        sys.executable,
        "-c",
        KILLED,
        str(tmp_path / "data"),
        str(depth_anything_folder),
        str(tmp_path / "depth"),
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[3])
    assert process.stdout is not None
    for line in process.stdout:
        if int(line) >= 4:
            os.kill(process.pid, signal.SIGKILL)
            break
    process.wait()
    undisturbed = label_split(dataset, estimator, tmp_path / "whole", batch_size=1)
    report = label_split(dataset, estimator, tmp_path / "depth", batch_size=1)
    assert 0 < report.skipped < 7 and report.labelled + report.skipped == 7
    expected, found = read_all(undisturbed.store), read_all(report.store)
    assert expected.keys() == found.keys()
    for image_id, raw in expected.items():
        np.testing.assert_allclose(found[image_id], raw, rtol=1e-3, atol=1e-3)


def test_space_is_compared_with_the_plan_before_anything_is_labelled(tmp_path, monkeypatch):
    dataset = open_dataset("scenes", None, "train", size=(32, 48), counts={"train": 50})
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 50_000))
    with pytest.raises(UserError, match=r"depth maps of 50 images need about 0\.1 MB, but only 0\.1 MB are free"):
        label_split(dataset, GroundTruthDepth(), tmp_path)
    assert not list(tmp_path.rglob("*.h5"))

"""Estimators: the table, agreement with transformers' own processor and model, and every way a name can be wrong."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForDepthEstimation

from data_cache.errors import UserError
from data_cache.sample import DepthKind
from stages.pseudo_depth.aliases import ESTIMATORS
from stages.pseudo_depth.estimators import load_estimator


def test_table_holds_every_published_estimator():
    sizes = ("small", "base", "large")
    expected = {"bundled"}
    expected |= {f"dpt-dinov2-{size}-{head}" for size in (*sizes, "giant") for head in ("nyu", "kitti")}
    expected |= {f"depth-anything-{size}" for size in sizes} | {f"depth-anything-v2-{size}" for size in sizes}
    expected |= {f"depth-anything-v2-metric-{place}-{size}" for place in ("indoor", "outdoor") for size in sizes}
    assert set(ESTIMATORS) == expected


@pytest.mark.parametrize("spec", ESTIMATORS.values(), ids=str)
def test_every_entry_is_consistent(spec):
    assert (spec.kind is DepthKind.METRIC) == (spec.max_depth_m is not None)
    assert spec.recommended_size % spec.size_multiple == 0
    assert spec.size_multiple == (28 if spec.alias.startswith("dpt-dinov2") else 14)
    assert spec.noncommercial == spec.licence.startswith("CC-BY-NC")
    assert spec.revision is None or len(spec.revision) == 40  # the Hub takes full commits only
    assert spec.weights_sha256 is None or len(spec.weights_sha256) == 64


def test_listing_imports_no_torch():
    code = "import sys, stages.pseudo_depth.aliases; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"


def test_raw_map_is_that_of_transformers_own_processor_and_model(depth_anything_folder, image):
    estimator = load_estimator(str(depth_anything_folder), precision="float32")
    processor = AutoImageProcessor.from_pretrained(depth_anything_folder)
    network = AutoModelForDepthEstimation.from_pretrained(depth_anything_folder)
    with torch.no_grad():
        expected = network(**processor(Image.fromarray(image), return_tensors="pt")).predicted_depth
    found = estimator.predict(estimator.prepare(image)[None])
    assert found.shape == expected.shape == (1, 56, 84)
    assert expected.std() > 0.02  # the comparison means something
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=1e-3)


def test_statistics_on_the_scale_of_bytes_are_understood(dpt_dinov2_folder, draw_image):
    """The published dpt-dinov2 processors do not rescale; a float image in [0, 1] would be silently wrong."""
    image = draw_image((56, 84), 5)  # an exact multiple of 28, so their padding adds nothing
    estimator = load_estimator(str(dpt_dinov2_folder), kind=DepthKind.METRIC, precision="float32", input_size=56)
    processor = AutoImageProcessor.from_pretrained(dpt_dinov2_folder)
    network = AutoModelForDepthEstimation.from_pretrained(dpt_dinov2_folder)
    with torch.no_grad():
        expected = network(**processor(Image.fromarray(image), return_tensors="pt")).predicted_depth
    found = estimator.predict(estimator.prepare(image)[None])
    assert expected.std() > 0.02
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("size", [(375, 500), (100, 64), (256, 512)])
def test_dpt_maps_cover_the_input_evenly(dpt_dinov2_folder, draw_image, size):
    """At multiples of 28 the map has 16 pixels per patch of 14 on both axes; odd patch counts would be rounded up."""
    estimator = load_estimator(str(dpt_dinov2_folder), kind=DepthKind.METRIC, precision="float32", input_size=84)
    prepared = estimator.prepare(draw_image(size, 0))
    height, width = prepared.shape[-2:]
    assert height % 28 == 0 and width % 28 == 0
    assert estimator.predict(prepared[None]).shape == (1, height * 16 // 14, width * 16 // 14)


def test_a_batch_gives_what_single_images_give(depth_anything_folder, draw_image):
    estimator = load_estimator(str(depth_anything_folder), precision="float32")
    images = torch.stack([estimator.prepare(draw_image((60, 84), seed)) for seed in range(3)])
    single = torch.cat([estimator.predict(image[None]) for image in images])
    torch.testing.assert_close(estimator.predict(images), single, atol=1e-4, rtol=1e-4)


def test_maps_are_never_negative_and_metric_maps_stay_below_the_maximum(tmp_path, write_depth_anything, draw_image):
    for metric in (False, True):
        folder = write_depth_anything(tmp_path / str(metric), metric=metric, bias=0.0)
        estimator = load_estimator(str(folder), precision="float32")
        raw = estimator.predict(estimator.prepare(draw_image((60, 84), 0))[None])
        assert raw.min() >= 0
        assert not metric or raw.max() <= estimator.spec.max_depth_m == 20


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_the_bits_are_close_and_maps_are_not_rounded_to_them(depth_anything_folder, image, precision):
    exact = load_estimator(str(depth_anything_folder), precision="float32")
    quick = load_estimator(str(depth_anything_folder), precision=precision)
    prepared = exact.prepare(image)[None]
    expected, found = exact.predict(prepared), quick.predict(prepared)
    assert (found - expected).abs().mean() < 0.1 * expected.std() + 0.01
    assert not torch.equal(found, found.to(getattr(torch, precision)).float())  # the last layer computed in float32


@pytest.mark.slow
def test_compiled_network_gives_the_same_maps(depth_anything_folder, image):
    plain = load_estimator(str(depth_anything_folder), precision="float32")
    # compiling needs a C++ compiler; "eager" checks our wiring wherever the tests run
    compiled = load_estimator(str(depth_anything_folder), precision="float32", compile_backend="eager")
    prepared = plain.prepare(image)[None]
    torch.testing.assert_close(compiled.predict(prepared), plain.predict(prepared), atol=1e-4, rtol=1e-4)


def test_unknown_precision_is_explained(depth_anything_folder):
    with pytest.raises(UserError, match=r"unknown precision 'half'; known: auto, bfloat16, float16, float32"):
        load_estimator(str(depth_anything_folder), precision="half")


def test_hub_id_without_network_names_the_ways_out():
    with pytest.raises(UserError, match=r"dpt-dinov2-small-nyu.*pipeline fetch.*path.*--estimator bundled"):
        load_estimator("dpt-dinov2-small-nyu")
    with pytest.raises(UserError, match=r"someone/depth.*pipeline fetch"):
        load_estimator("someone/depth", kind=DepthKind.RELATIVE)


def test_known_hub_id_is_sent_to_its_alias():
    with pytest.raises(UserError, match="known as 'depth-anything-v2-small'"):
        load_estimator("depth-anything/Depth-Anything-V2-Small-hf")


def test_noncommercial_weights_have_to_be_accepted():
    with pytest.raises(UserError, match=r"CC-BY-NC-4.0.*--accept-noncommercial"):
        load_estimator("depth-anything-v2-large")
    with pytest.raises(UserError, match="pipeline fetch"):  # accepted: the next thing that is missing is the network
        load_estimator("depth-anything-v2-large", accept_noncommercial=True)


@pytest.mark.parametrize("name", ["depth-anything-v2-smal", "./no/such/folder", "a/b/c"])
def test_unknown_name_lists_what_is_possible(name):
    with pytest.raises(UserError, match=r"unknown estimator .*possible: bundled, .*OWNER/NAME with --kind"):
        load_estimator(name)


def test_misspelt_name_gets_a_suggestion():
    with pytest.raises(UserError, match="did you mean 'depth-anything-v2-small'"):
        load_estimator("depth-anything-v2-smal")


def test_ground_truth_depth_is_no_estimator_to_open():
    with pytest.raises(UserError, match="dataset's ground-truth depth"):
        load_estimator("dataset")


def test_kind_must_be_known(dpt_dinov2_folder):
    with pytest.raises(UserError, match=r"--kind relative .*--kind metric"):
        load_estimator(str(dpt_dinov2_folder))
    assert load_estimator(str(dpt_dinov2_folder), kind=DepthKind.METRIC).spec.kind is DepthKind.METRIC


def test_size_rules_are_read_from_the_folder(depth_anything_folder, dpt_dinov2_folder):
    assert load_estimator(str(depth_anything_folder)).spec.size_multiple == 14
    assert load_estimator(str(dpt_dinov2_folder), kind=DepthKind.METRIC).spec.size_multiple == 28
    with pytest.raises(UserError, match="input size 10 is too small"):
        load_estimator(str(depth_anything_folder), input_size=10)


def test_folder_that_describes_itself_is_believed(tmp_path, depth_anything_folder):
    shutil.copytree(depth_anything_folder, tmp_path, dirs_exist_ok=True)
    spec = {
        "alias": "x", "hub_id": None, "revision": None, "kind": "metric", "size_multiple": 14,
        "recommended_size": 70, "licence": "CC-BY-NC-4.0", "max_depth_m": 7.0, "noncommercial": True,
    }  # fmt: skip
    (tmp_path / "estimator.json").write_text(json.dumps(spec))
    with pytest.raises(UserError, match="--accept-noncommercial"):
        load_estimator(str(tmp_path))
    found = load_estimator(str(tmp_path), accept_noncommercial=True).spec
    assert (found.kind, found.recommended_size, found.max_depth_m) == (DepthKind.METRIC, 70, 7.0)
    with pytest.raises(UserError, match="says the numbers are metric, --kind says relative"):
        load_estimator(str(tmp_path), kind=DepthKind.RELATIVE)


def test_hash_is_that_of_the_weights_file(depth_anything_folder):
    import hashlib

    expected = hashlib.sha256((depth_anything_folder / "model.safetensors").read_bytes()).hexdigest()
    assert load_estimator(str(depth_anything_folder)).weights_sha256 == expected


def test_prepare_keeps_aspect_within_a_patch(depth_anything_folder, draw_image):
    estimator = load_estimator(str(depth_anything_folder), input_size=140)
    for size in [(90, 160), (160, 90), (128, 128)]:
        height, width = estimator.prepare(draw_image(size, 0)).shape[-2:]
        assert abs(height / width * size[1] / size[0] - 1) < 14 / min(height, width)
        assert np.isclose(min(abs(height - 140), abs(width - 140)), 0)

"""predict_files(): every readable image gets its own label map and overlay, whatever else is wrong."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data_cache.depth_target import TARGET_MODES
from data_cache.errors import UserError
from data_cache.loaders import build_evaluation_loader
from data_cache.outputs import Inputs, OutputFolder, open_output
from data_cache.sample import PackedBatch
from data_cache.samples import Source
from data_cache.size_rule import ORIGINAL, fixed_size
from stages.evaluation.evaluate import evaluate
from stages.evaluation.predict import (
    DEPTH_MEANINGS,
    Predictions,
    PredictionWriter,
    Segmenter,
    name_outputs,
    predict_files,
)
from stages.evaluation.sources import find_sources
from stages.networks.interface import Normalisation, Outputs

NAMES, PALETTE = ("dark", "light"), ((10, 20, 30), (250, 240, 230))
PLAIN = Normalisation((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def brightness(images, *, seg=True, depth=True):
    """A network that calls bright pixels class 1."""
    assert min(images.shape[-2:]) >= 64
    light = images.mean(1)
    return Outputs(torch.stack([0.5 - light, light - 0.5], dim=1), None)


def half_light(height: int = 80, width: int = 100) -> np.ndarray:
    image = np.zeros((height, width, 3), dtype=np.uint8)
    image[:, width // 2 :] = 255
    return image


def save(path: Path, image: np.ndarray | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(half_light() if image is None else image).save(path, format=None if path.suffix else "PNG")
    return path


def predict(files, out, *, network=brightness, class_names=NAMES, on_image=None, **options) -> Predictions:
    found = find_sources(files).images
    with open_output(out, Inputs(found), overwrite=False) as output:
        segmenter = Segmenter(network, PLAIN, **options)
        return predict_files(
            segmenter, found, output, class_names=class_names, palette=PALETTE, depth_meaning="what it means",
            on_image=on_image,
        )  # fmt: skip


@pytest.mark.parametrize("options", [{}, {"size_rule": fixed_size((64, 96))}, {"tile": 64, "margin": 32}])
@pytest.mark.parametrize("size", [(80, 100), (30, 200), (7, 9)])
def test_label_map_has_the_images_size_and_ids(tmp_path, options, size):
    predict([save(tmp_path / "a.png", half_light(*size))], tmp_path / "out", **options)
    with Image.open(tmp_path / "out/labels/a.png") as labels:
        assert labels.mode == "P" and labels.getpalette()[:6] == [10, 20, 30, 250, 240, 230]
        ids = np.array(labels)
    expected = (half_light(*size)[..., 0] > 0).astype(np.uint8)
    assert ids.shape == size
    assert (ids == expected).mean() > 0.85  # resizing blurs the one edge
    assert np.array(Image.open(tmp_path / "out/overlays/a.png")).shape == (*size, 3)


class Noise:
    """A dataset in memory whose images have unlike sizes."""

    name, split, image_ids, sizes = "noise", "val", ("a", "b", "c"), ((80, 100), (30, 200), (41, 44))

    def __len__(self):
        return len(self.sizes)

    def describe(self, index):
        return self.image_ids[index]

    def read_pair(self, index):
        image = np.random.default_rng(index).integers(0, 256, (*self.sizes[index], 3), dtype=np.uint8)
        return image, (image[..., 0] > 99).astype(np.uint8)


@pytest.mark.parametrize("rule", [ORIGINAL, fixed_size((64, 96))], ids=str)
def test_what_is_scored_is_what_is_predicted(rule):
    """Also of images too small for networks, which are enlarged, and of those that are resized to one size."""
    source, found = Source(Noise(), None), {}
    torch.manual_seed(0)
    network = torch.nn.Conv2d(3, 2, 5, padding=2).eval()
    evaluate(
        network,
        build_evaluation_loader(source, rule=rule, batch_size=2, with_depth=False),
        normalisation=PLAIN, num_classes=2, class_names=NAMES,
        on_predictions=lambda batch, labels, _: found.update(zip(batch.image_ids, labels.numpy(), strict=True)),
    )  # fmt: skip
    segmenter = Segmenter(network, PLAIN, size_rule=rule)
    for index, image_id in enumerate(Noise.image_ids):
        np.testing.assert_array_equal(found[image_id], segmenter.segment(source.read(index)[0]).labels)


def test_written_files_are_returned_and_the_ids_explained(tmp_path):
    files = predict([save(tmp_path / "a.jpg")], tmp_path / "out").files
    assert sorted(files) == sorted(path for path in (tmp_path / "out").rglob("[!.]*") if path.is_file())
    rows = list(csv.DictReader((tmp_path / "out/classes.csv").open()))
    assert [(row["id"], row["name"], row["blue"]) for row in rows] == [("0", "dark", "30"), ("1", "light", "230")]


def test_a_spreadsheet_opens_class_names_as_text(tmp_path):
    names = ("=HYPERLINK(1)", "도로, 道路")
    predict([save(tmp_path / "a.png")], tmp_path / "out", class_names=names)
    rows = list(csv.DictReader((tmp_path / "out/classes.csv").open(encoding="utf8")))
    assert [row["name"] for row in rows] == ["'=HYPERLINK(1)", "도로, 道路"]


@pytest.mark.parametrize(
    ("options", "remedy"),
    [({}, "--tile 512"), ({"tile": 64, "margin": 0}, r"a smaller --tile or --margin \(now 64 and 0\)")],
)
def test_an_image_beyond_memory_is_named_with_what_helps(tmp_path, options, remedy):
    def greedy(images, *, seg=True, depth=True):
        return Outputs(torch.empty(1 << 60, device=images.device), None)

    (failure,) = predict([save(tmp_path / "a.png")], tmp_path / "out", network=greedy, **options).failed
    assert re.search(rf"a.png \(100 x 80\) does not fit into memory; use {remedy}", failure.reason)


def test_same_names_in_several_folders_do_not_overwrite(tmp_path):
    files = [save(tmp_path / name) for name in ("x/a/1.png", "y/a/1.png", "x/b/1.jpg", "x/b/2.png")]
    predict(files, tmp_path / "out")
    names = {path.name for path in (tmp_path / "out/labels").iterdir()}
    assert names == {"x__a__1.png", "y__a__1.png", "b__1.png", "2.png"}


def test_names_are_unlike_even_when_only_suffix_or_case_differs(tmp_path):
    files = [tmp_path / name for name in ("a.png", "a.jpg", "A.png", "b.png", "a-png-1.png", f"{'ä' * 124}.ppm")]
    names = name_outputs(files)
    assert len({name.lower() for name in names.values()}) == len(files)
    assert names[files[3]] == "b" and len(names[files[5]].encode()) < 250


def test_what_is_asked_for_beside_labels_lies_in_files_that_say_what_they_mean(tmp_path):
    def network(images, *, seg=True, depth=True):
        return brightness(images)._replace(depth=images.mean(1) * 4 - 1 if depth else None)

    found = predict([save(tmp_path / "a.png")], tmp_path / "out", network=network, probabilities=True, depth=True)
    with Image.open(tmp_path / "out/depth/a.png") as depth:
        about, steps = depth.text, np.array(depth)
    assert steps.dtype == np.uint16 and about["meaning"] == "what it means"
    low, high = (float(about[end]) for end in ("low", "high"))
    right = half_light()[..., 0] > 0
    assert np.allclose(steps / 65535 * (high - low) + low, np.where(right, 3, -1), atol=1e-4)
    stored = np.load(tmp_path / "out/probabilities/a.npz", allow_pickle=False)
    light = round(255 / (1 + np.exp(-1)))
    assert stored["probabilities"].dtype == np.uint8 and tuple(stored["classes"]) == NAMES
    assert (stored["probabilities"][1] == np.where(right, light, 255 - light)).all()
    (record,) = found.records
    assert record["depth"] == {"file": "depth/a.png", "meaning": "what it means", "low": -1.0, "high": 3.0}
    assert record["shares"] == {"dark": 0.5, "light": 0.5} and record["probabilities"] == "probabilities/a.npz"


def test_each_image_is_told_of_and_what_is_not_finite_fails_alone(tmp_path):
    def network(images, *, seg=True, depth=True):
        outputs = brightness(images)
        return outputs._replace(seg_logits=outputs.seg_logits.where(images.mean() > 0.1, torch.nan))

    files, told = [save(tmp_path / "a.png"), save(tmp_path / "b.png", half_light() * 0)], []
    found = predict(files, tmp_path / "out", network=network, on_image=lambda file, *_: told.append(file))
    assert told == files and [record["image"] for record in found.records] == [str(files[0])]
    assert found.failed[0].image == str(files[1]) and "logits are not finite" in found.failed[0].reason


def test_every_depth_target_has_its_meaning():
    assert DEPTH_MEANINGS.keys() == TARGET_MODES.keys()


def test_patterns_stand_for_what_fits_them_and_numbers_for_cameras(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files = [save(tmp_path / name) for name in ("x/a.png", "x/y/b.png", "[c].png", "7")]
    (tmp_path / "film.MP4").touch()
    found = find_sources(map(Path, ["x/**", "[c].png", "*.MP4", "7", "3"]))
    assert [path.name for path in found.images] == ["a.png", "b.png", "[c].png", "7"]
    assert found.videos == [Path("film.MP4")] and found.cameras == [3]
    with pytest.raises(UserError, match=r"no image or video fits the pattern \*.gif"):
        find_sources([files[0], Path("*.gif")])


def test_a_folder_stands_for_its_images_and_a_repeated_file_counts_once(tmp_path):
    files = [save(tmp_path / name) for name in ("b.png", "a.JPG")]
    (tmp_path / "notes.txt").write_text("not an image")
    assert find_sources([tmp_path, files[0]]).images == [tmp_path / "a.JPG", tmp_path / "b.png"]


def test_no_image_at_all_is_refused(tmp_path):
    with pytest.raises(UserError, match="no image to predict"):
        predict([tmp_path], tmp_path / "out")


def test_tiles_and_one_size_exclude_each_other():
    with pytest.raises(UserError, match="takes images resized to 64x64 px; drop --tile"):
        Segmenter(brightness, PLAIN, size_rule=fixed_size((64, 64)), tile=64)


def test_network_is_left_in_its_mode(tmp_path):
    class Bright(torch.nn.Module):
        def forward(self, images):
            assert not self.training
            return brightness(images).seg_logits

    network = Bright().train()
    predict([save(tmp_path / "a.png")], tmp_path / "out", network=network)
    assert network.training


def batch_of(*image_ids: str) -> tuple[PackedBatch, torch.Tensor]:
    size = (len(image_ids), 4, 4)
    predictions = torch.arange(16).reshape(1, 4, 4).expand(size).remainder(2).to(torch.uint8)
    nothing = torch.zeros(len(image_ids), 3, 4, 4, dtype=torch.uint8)
    return PackedBatch(image_ids, nothing, nothing[:, 0]), predictions


def test_saved_predictions_carry_official_ids(tmp_path):
    batch, predictions = batch_of("aachen/aachen_000000_000019", "plain")
    output = OutputFolder(tmp_path, Inputs())
    writer = PredictionWriter(output, batch.image_ids, palette=PALETTE, official_ids={0: 7, 1: 8})
    writer(batch, predictions, None)
    assert writer.files[0] == tmp_path / "aachen/aachen_000000_000019.png"
    for file in writer.files:
        with Image.open(file) as saved:
            assert saved.mode == "L" and set(np.unique(np.array(saved))) == {7, 8}


def test_saved_predictions_keep_class_ids_under_a_palette(tmp_path):
    batch, predictions = batch_of("plain")
    PredictionWriter(OutputFolder(tmp_path, Inputs()), batch.image_ids, palette=PALETTE)(batch, predictions, None)
    with Image.open(tmp_path / "plain.png") as saved:
        assert saved.mode == "P" and np.array_equal(np.array(saved), predictions[0].numpy())

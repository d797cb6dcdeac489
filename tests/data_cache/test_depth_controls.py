"""Laws of the controls: no geometry of the image is left in them, and the same is made every time."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_cache.datasets import open_dataset
from data_cache.datasets.interface import SegmentationDataset
from data_cache.datasets.views import Part, View
from data_cache.depth_controls import MADE_UP, MadeUpDepth, ShuffledDepth, correlate_maps
from data_cache.depth_target import TARGET_MODES, compute_inverse_depth_target
from data_cache.errors import UserError
from data_cache.samples import Source, TrainingSamples
from data_cache.settings import AugmentationSettings

SIZES = [(20, 30), (30, 20), (25, 25), (40, 33), (64, 48)]


@pytest.fixture
def dataset(tmp_path: Path) -> SegmentationDataset:
    return write_dataset(tmp_path, "abcde")


def write_dataset(root: Path, names: str) -> SegmentationDataset:
    for kind in ("images", "masks"):
        (root / kind / "train").mkdir(parents=True)
    for name in names:
        rng, size = np.random.default_rng(ord(name)), SIZES[ord(name) % len(SIZES)]
        Image.fromarray(rng.integers(0, 255, (*size, 3), dtype=np.uint8)).save(root / f"images/train/{name}.png")
        Image.fromarray(rng.integers(0, 2, size, dtype=np.uint8)).save(root / f"masks/train/{name}.png")
    (root / "classes.txt").write_text("ground\nthing\n")
    return open_dataset("folder", root, "train")


class NumberedDepth(MadeUpDepth):
    """An estimator that draws an image's name: each map tells whose it is, and nothing else."""

    source = "numbered"

    def _make(self, index: int) -> np.ndarray:
        return np.linspace(0, ord(self.image_ids[index]), 12, dtype=np.float32).reshape(3, 4)


def shuffle(dataset: SegmentationDataset, places: Sequence[int] | None = None) -> ShuffledDepth:
    chosen = range(len(dataset)) if places is None else places
    shown = dataset if places is None else View([Part(dataset, chosen, labels=True)])
    return ShuffledDepth(shown, chosen, NumberedDepth(dataset))


def whose(dataset: SegmentationDataset) -> dict[str, str]:
    """Return image → image whose map it was given."""
    shuffled = shuffle(dataset)
    return {name: chr(int(shuffled.read(place).stats.max)) for place, name in enumerate(dataset.image_ids)}


def test_no_image_gets_its_own_map_and_none_gets_lost(tmp_path: Path) -> None:
    for number, names in enumerate(("ab", "abc", "abcdefghijklmnop")):
        given = whose(write_dataset(tmp_path / str(number), names))
        assert all(own != other for own, other in given.items())
        assert sorted(given.values()) == sorted(names)


def test_who_gets_which_map_hardly_depends_on_who_else_is_there(tmp_path: Path) -> None:
    few = whose(write_dataset(tmp_path / "few", "abcdefghijklmnop"))
    more = whose(write_dataset(tmp_path / "more", "abcdefghijklmnopq"))
    assert sum(few[name] != more[name] for name in few) == 1


def test_some_images_of_a_split_have_the_maps_they_have_among_all(dataset: SegmentationDataset) -> None:
    """So a control does not depend on how many images are labelled."""
    every, some = shuffle(dataset), shuffle(dataset, [3, 1])
    for place, index in enumerate((3, 1)):
        np.testing.assert_array_equal(some.read(place).values, every.read(index).values)
    assert list(some.image_ids) == ["d", "b"] and some.fingerprint() != every.fingerprint()


def test_a_shuffled_map_is_stretched_to_the_shape_of_its_new_image(dataset: SegmentationDataset) -> None:
    shuffled = shuffle(dataset)
    assert [shuffled.read(place).source_size for place in range(5)] == [dataset.read_size(place) for place in range(5)]
    assert shuffled.fingerprint() not in ("", NumberedDepth(dataset).fingerprint())


def test_a_single_image_has_no_other_one(tmp_path: Path) -> None:
    alone = write_dataset(tmp_path, "a")
    with pytest.raises(UserError, match="'shuffled' gives each image another one's map, but folder train has only one"):
        shuffle(alone)


def make_target(source: str, dataset: SegmentationDataset, index: int, mode: str = "robust") -> np.ndarray:
    made = MADE_UP[source](dataset)
    depth = made.read(index)
    return compute_inverse_depth_target(depth.raw, depth.stats, made.provenance.kind, None, mode).inverse_depth


@pytest.mark.parametrize("mode", [mode for mode in TARGET_MODES if mode != "metric"])
def test_the_constant_is_one_number_for_all_images(dataset: SegmentationDataset, mode: str) -> None:
    values = {float(value) for index in range(5) for value in make_target("constant", dataset, index, mode).ravel()}
    assert len(values) == 1
    assert mode not in ("robust", "minmax") or values == {0.5}


def test_gray_is_the_luminance_of_the_image(dataset: SegmentationDataset) -> None:
    for index, name in enumerate(dataset.image_ids):
        luminance = np.asarray(Image.open(Path(dataset.describe(index))).convert("L"), np.float64)
        low, high = np.percentile(luminance, (2, 98))
        expected = np.clip((luminance - low) / (high - low), 0, 1)
        # Pillow rounds to whole steps of 1/255, the store to float16
        np.testing.assert_allclose(make_target("gray", dataset, index), expected, atol=1.5 / (high - low), err_msg=name)


def test_noise_follows_from_the_name_and_from_nothing_else(tmp_path: Path) -> None:
    first, second = write_dataset(tmp_path / "1", "abc"), write_dataset(tmp_path / "2", "bcd")
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(tmp_path / "2/images/train/b.png")
    of_b = make_target("noise", first, 1)
    np.testing.assert_array_equal(of_b, make_target("noise", second, 0))
    assert abs(np.corrcoef(of_b.ravel(), make_target("noise", first, 0).ravel())[0, 1]) < 0.6
    assert of_b.std() > 0.2


@pytest.mark.parametrize("source", MADE_UP)
def test_made_up_maps_become_targets_of_every_shape(dataset: SegmentationDataset, source: str) -> None:
    made = pickle.loads(pickle.dumps(MADE_UP[source](dataset)))
    samples = TrainingSamples(Source(dataset, made), AugmentationSettings(crop=(32, 32)), 0, with_depth=True)
    for index in range(len(dataset)):
        depth = samples[0, index].inverse_depth
        assert depth is not None and depth.isfinite().any() and not (depth > 1).any() and not (depth < 0).any()


def test_fingerprints_tell_sources_and_images_apart_and_not_masks(tmp_path: Path) -> None:
    one, other = write_dataset(tmp_path / "1", "abc"), write_dataset(tmp_path / "2", "abd")
    found = {(source, number): kind(data).fingerprint()
             for source, kind in MADE_UP.items() for number, data in enumerate((one, other))}  # fmt: skip
    assert len(set(found.values())) == len(found)
    Image.fromarray(np.zeros((20, 30), np.uint8)).save(tmp_path / "1/masks/train/a.png")
    assert all(kind(open_dataset("folder", tmp_path / "1", "train")).fingerprint() == found[source, 0]
               for source, kind in MADE_UP.items())  # fmt: skip


class OneShape(MadeUpDepth):
    """An estimator that sees the same in every image, or its negative."""

    source = "one shape"
    sign = 1

    def _make(self, index: int) -> np.ndarray:  # noqa: ARG002 - all are alike
        return self.sign * np.random.default_rng(3).random((24, 32), np.float32)


class Negative(OneShape):
    sign = -1


def test_what_a_control_keeps_of_depth_is_its_correlation_with_the_maps(dataset: SegmentationDataset) -> None:
    maps = OneShape(dataset)
    assert correlate_maps(maps, maps) == pytest.approx(1)
    assert correlate_maps(Negative(dataset), maps) == pytest.approx(-1)
    assert correlate_maps(MADE_UP["constant"](dataset), maps) is None
    assert abs(correlate_maps(MADE_UP["noise"](dataset), maps) or 1) < 0.5

"""Images kept in memory are those of the files, whoever kept them; what has no room is read again."""

import multiprocessing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from data_cache.image_cache import ImageCache, measure_free_memory, open_cache
from data_cache.loaders import build_training_loader
from data_cache.samples import Source
from data_cache.settings import AugmentationSettings

AUGMENTATION = AugmentationSettings(crop=(32, 40), scale=(0.5, 2.0), flip=0.5, jitter=0.4)
SIZES = ((40, 60), (50, 44), (40, 60), (33, 47), (40, 60), (64, 64))
BYTES = 4 * sum(height * width for height, width in SIZES)


@dataclass(frozen=True)
class Noise:
    """Images that can be read until a file says that they are gone."""

    gone: Path
    is_mapped: bool = False
    name: str = "noise"
    split: str = "train"
    image_ids: tuple[str, ...] = tuple(map(str, range(len(SIZES))))

    def __len__(self):
        return len(SIZES)

    def read_size(self, index):
        return SIZES[index]

    def read_image(self, index):
        assert not self.gone.exists(), "read again"
        return np.random.default_rng(index).integers(0, 256, (*SIZES[index], 3), np.uint8)

    def read_pair(self, index):
        return self.read_image(index), self.read_labels(index)

    def read_labels(self, index):
        return np.random.default_rng(index).integers(0, 5, SIZES[index], np.uint8)


def load(source, *, workers, epochs=2):
    steps = 3 * epochs
    return build_training_loader(
        source, augmentation=AUGMENTATION, batch_size=2, seed=0, first_step=0, last_step=steps, workers=workers,
        with_depth=False,
    )  # fmt: skip


def assert_same(batches, others):
    for batch, other in zip(batches, others, strict=True):
        assert batch.image_ids == other.image_ids
        pairs = zip(batch.tensors, other.tensors, strict=True)
        assert all(torch.equal(one, two) for one, two in pairs if one is not None)


@pytest.mark.parametrize(
    ("method", "workers", "others"),
    [("fork", 0, 0), ("fork", 2, 2), pytest.param("spawn", 1, 0, marks=pytest.mark.exhaustive)],
)
def test_epochs_after_the_first_read_no_file_and_change_no_bit(tmp_path, method, workers, others):
    dataset = Noise(tmp_path / "gone")
    cached = Source(dataset, None, cache=open_cache(dataset, "on", 0.001))
    plain = list(load(Source(dataset, None), workers=0, epochs=4))
    usual = multiprocessing.get_start_method()
    multiprocessing.set_start_method(method, force=True)
    try:
        assert_same(load(cached, workers=workers, epochs=2), plain[:6])
        dataset.gone.touch()
        assert_same(load(cached, workers=others, epochs=4), plain)  # other processes, the same memory
    finally:
        multiprocessing.set_start_method(usual, force=True)


@pytest.mark.parametrize("workers", [0, 2])
def test_what_has_no_room_is_read_again(tmp_path, workers):
    dataset = Noise(tmp_path / "gone")
    cached = Source(dataset, None, cache=open_cache(dataset, "on", BYTES / 2e9))
    assert_same(load(cached, workers=workers), list(load(Source(dataset, None), workers=0)))
    kept = [cached.cache.find(index) is not None for index in range(len(dataset))]
    assert 0 < sum(kept) < len(dataset)


@pytest.mark.parametrize(
    ("choice", "limit_gb", "mapped", "kept"),
    [
        ("auto", 1.3 * BYTES / 1e9, False, True),
        ("auto", 0.9 * BYTES / 1e9, False, False),
        ("auto", None, False, True),
        ("auto", None, True, False),
        ("on", None, True, True),
        ("on", 0.0, False, True),
        ("off", None, False, False),
    ],
)
def test_auto_keeps_what_fits_and_is_worth_it(tmp_path, choice, limit_gb, mapped, kept):
    cache = open_cache(Noise(tmp_path / "gone", is_mapped=mapped), choice, limit_gb)
    assert (cache is not None) == kept


def test_the_share_of_a_process_counts(tmp_path):
    tiny = BYTES / measure_free_memory() / 10
    assert open_cache(Noise(tmp_path / "gone"), "auto", None, share=tiny) is None


def test_the_memory_has_no_name_and_goes_with_the_cache():
    before = sorted(Path("/dev/shm").iterdir())
    cache = ImageCache(3, 1000)
    cache.add(1, np.ones((4, 5, 3), np.uint8), np.zeros((4, 5), np.uint8))
    assert sorted(Path("/dev/shm").iterdir()) == before
    image, labels = cache.find(1)
    assert cache.find(0) is None and image.all() and not labels.any()
    opened = [link for link in Path("/proc/self/fd").iterdir() if "memfd:images" in _read_link(link)]
    del cache, image, labels
    left = [link for link in Path("/proc/self/fd").iterdir() if "memfd:images" in _read_link(link)]
    assert len(left) < len(opened)


def _read_link(link: Path) -> str:
    try:
        return str(link.readlink())
    except OSError:  # the one that listed the folder
        return ""

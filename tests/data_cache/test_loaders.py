"""Laws of the loaders: a batch is a function of (seed, step), whoever computes it; errors arrive as they were said."""

import gc
import multiprocessing
import os
import signal
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
import torch

from data_cache import ranks
from data_cache.content import ContentHashes
from data_cache.datasets.interface import Sources
from data_cache.depth_map import Provenance
from data_cache.depth_store import DepthStore
from data_cache.depth_writer import DepthStoreWriter
from data_cache.errors import UserError
from data_cache.loaders import batch_of_step, build_evaluation_loader, build_training_loader
from data_cache.order import steps_per_epoch
from data_cache.sample import IGNORE_INDEX, DepthKind
from data_cache.samples import Source
from data_cache.settings import AugmentationSettings
from data_cache.size_rule import fixed_size
from data_cache.split_depth import match_depth

AUGMENTATION = AugmentationSettings(crop=(32, 40), scale=(0.5, 2.0), flip=0.5, jitter=0.4, photometric="strong")


@dataclass(frozen=True)
class Ramps:
    """A tiny dataset in memory: labels are columns, depth grows to the right, sizes may differ."""

    sizes: tuple[tuple[int, int], ...]
    broken: int | None = None
    deadly: int | None = None
    name: str = "ramps"
    split: str = "train"
    classes: tuple[str, ...] = ("left", "right")
    palette: tuple[tuple[int, int, int], ...] = ((0, 0, 0), (9, 9, 9))
    ground_truth_depth_kind: DepthKind | None = None
    depth_rule: str = ""

    @property
    def raw_ids(self):
        return MappingProxyType({0: 0, 1: 1, 255: IGNORE_INDEX})

    @property
    def image_ids(self):
        return tuple(f"ramp/{number}" for number in range(len(self.sizes)))

    def __len__(self):
        return len(self.sizes)

    def read_image(self, index):
        if index == self.broken:
            raise UserError(f"{self.describe(index)} cannot be decoded: it ends after 7 bytes")
        if index == self.deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        return np.random.default_rng(index).integers(0, 256, (*self.sizes[index], 3), np.uint8)

    def read_pair(self, index):
        return self.read_image(index), self.read_labels(index)

    def read_labels(self, index):
        height, width = self.sizes[index]
        return np.repeat((np.arange(width) >= width // 2).astype(np.uint8)[None], height, 0)

    def sources(self, index):
        return Sources((f"ramp {index}",), (), ())

    def describe(self, index):
        return f"ramps train #{index}"


def build_source(folder: Path, dataset: Ramps) -> Source:
    numbers = ("", "", DepthKind.RELATIVE, "1", None, "", "none", None, "float32")
    provenance = Provenance(dataset.name, dataset.split, "own", *numbers, "lzf", "", {}, "")
    with DepthStoreWriter(folder, provenance, shard_size=4) as writer:
        for index in range(len(dataset)):
            ramp = np.repeat(np.linspace(1, 5, 30, dtype=np.float32)[None], 20, 0)
            writer.add(
                writer.prepare(
                    dataset.image_ids[index],
                    ramp,
                    dataset.sizes[index],
                    ContentHashes().hash(dataset.sources(index).image),
                )
            )
    return Source(dataset, match_depth(dataset, DepthStore(folder)))


@pytest.fixture
def source(tmp_path):
    return build_source(tmp_path / "depth", Ramps(((40, 60),) * 7))


def load(source, first=0, last=6, **changes):
    options = {"augmentation": AUGMENTATION, "batch_size": 2, "seed": 3, "with_depth": True}
    return list(build_training_loader(source, first_step=first, last_step=last, **options | changes))


def assert_same(batches, others):
    for batch, other in zip(batches, others, strict=True):
        assert batch.image_ids == other.image_ids
        for tensor, expected in zip(batch.tensors, other.tensors, strict=True):
            assert (tensor is None) == (expected is None)
            assert tensor is None or torch.equal(tensor.nan_to_num(7), expected.nan_to_num(7))


def test_batches_have_the_promised_shapes(source):
    packed = load(source, last=1)[0]
    assert packed.images.shape == (2, 3, 32, 40)
    assert packed.images.is_contiguous(memory_format=torch.channels_last)
    assert packed.seg_labels.shape == packed.inverse_depth.shape == (2, 32, 40)
    assert packed.images.dtype == packed.seg_labels.dtype == torch.uint8
    assert packed.inverse_depth.dtype == torch.float16
    assert packed.jitter.shape == (2, 3)
    assert packed.inverse_depth.nan_to_num().min() >= 0
    assert packed.inverse_depth.nan_to_num().max() <= 1
    assert torch.equal(~packed.inverse_depth.isnan(), packed.seg_labels != IGNORE_INDEX)


def test_depth_and_labels_tell_the_same_story(source):
    """The ramp crosses its middle where the label changes, in every crop, scale and flip."""
    for batch in load(source, last=12):
        for labels, depth in zip(batch.seg_labels, batch.inverse_depth, strict=True):
            sure = (depth - 0.5).abs() > 0.03  # NaN is not
            assert torch.equal((depth > 0.5)[sure], (labels == 1)[sure])


@pytest.mark.parametrize(("method", "workers"), [("fork", 2), pytest.param("spawn", 1, marks=pytest.mark.exhaustive)])
def test_workers_change_nothing(source, method, workers):
    usual = multiprocessing.get_start_method()
    multiprocessing.set_start_method(method, force=True)
    try:
        found = load(source, last=5, workers=workers)
    finally:
        multiprocessing.set_start_method(usual, force=True)
    assert_same(found, load(source, last=5))


@pytest.mark.parametrize("workers", [0, 2])
def test_resuming_gives_the_tail(source, workers):
    assert_same(load(source, first=4, last=9, workers=workers), load(source, last=9)[4:])


def test_depth_changes_neither_image_nor_labels(source):
    without = load(source, with_depth=False)
    assert_same(without, [batch._replace(inverse_depth=None) for batch in load(source)])


def test_seeds_and_epochs_differ(source):
    assert load(source, last=3)[0].image_ids != load(source, last=3, seed=4)[0].image_ids
    first, second = ({name: image for batch in load(source, epoch * 3, epoch * 3 + 3) for name, image in
                      zip(batch.image_ids, batch.images, strict=True)} for epoch in (0, 1))  # fmt: skip
    shared = first.keys() & second.keys()
    assert shared
    assert not any(torch.equal(first[name], second[name]) for name in shared)


def test_iterating_again_begins_again(source):
    loader = build_training_loader(
        source, augmentation=AUGMENTATION, batch_size=2, seed=0, first_step=1, last_step=4,
        workers=1, with_depth=True,
    )  # fmt: skip
    assert len(loader) == 3
    assert_same(list(loader), list(loader))


@pytest.mark.parametrize("workers", [0, 2])
def test_the_global_random_state_is_left_alone(source, workers):
    torch.manual_seed(5)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    load(source, workers=workers)
    evaluate_all(source, workers=workers)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()


@pytest.mark.parametrize(("num_images", "batch_size"), [(7, 2), (8, 4), (3, 5), (1, 1)])
def test_an_epoch_sees_each_image_at_most_once(num_images, batch_size):
    steps = steps_per_epoch(num_images, batch_size)
    for epoch in range(3):
        batches = [batch_of_step(step, num_images, batch_size, 0) for step in range(epoch * steps, (epoch + 1) * steps)]
        assert {number for number, _ in batches} == {epoch}
        seen = [index for _, indices in batches for index in indices]
        assert len(set(seen)) == len(seen) == min(num_images, steps * batch_size)
        assert set(seen) <= set(range(num_images))


def rows(batches, chosen):
    """The rows of batches that are chosen, as batches; where they lie is left out: it depends on the other rows."""
    return [
        batch._replace(
            image_ids=batch.image_ids[chosen], images=batch.images[chosen], seg_labels=batch.seg_labels[chosen],
            inverse_depth=batch.inverse_depth[chosen], placed=None, jitter=batch.jitter[chosen], num_labelled=None,
        )
        for batch in batches
    ]  # fmt: skip


LABELLED, POOL = slice(None, 2), slice(2, None)


@pytest.fixture
def pooled(tmp_path):
    """Seven images, and four behind them that come on top."""
    return replace(build_source(tmp_path / "pooled", Ramps(((40, 60),) * 11)), pool=4)


def test_a_pool_changes_nothing_about_the_images_with_labels(source, pooled):
    mixed = load(pooled, last=12, pool_size=3)
    assert [(len(batch.image_ids), batch.num_labelled) for batch in mixed] == [(5, 2)] * 12
    assert_same(rows(mixed, LABELLED), rows(load(source, last=12), LABELLED))


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_with_a_pool_are_a_function_of_the_step(pooled, workers):
    assert_same(load(pooled, 4, 9, pool_size=3, workers=workers), load(pooled, last=9, pool_size=3)[4:])


def test_every_image_of_a_pool_comes_equally_often_and_each_time_otherwise(pooled):
    """Though three a batch never end with an order of four."""
    shown = rows(load(pooled, last=8, pool_size=3), POOL)
    names = [name for batch in shown for name in batch.image_ids]
    assert sorted(names) == sorted([f"ramp/{index}" for index in range(7, 11)] * 6)
    assert all(len(set(names[start : start + 4])) == 4 for start in range(0, 24, 4))
    pictures = [image for batch in shown for name, image in zip(batch.image_ids, batch.images, strict=True)
                if name == "ramp/7"]  # fmt: skip
    assert not any(torch.equal(pictures[0], other) for other in pictures[1:])


def test_parts_of_a_step_are_its_batch_in_shares_of_both_kinds(pooled):
    whole, parts = load(pooled, last=3, pool_size=3), load(pooled, last=3, pool_size=3, parts=2)
    assert [(len(part.image_ids), part.num_labelled) for part in parts] == [(2, 1), (3, 1)] * 3
    for step, batch in enumerate(whole):
        first, second = parts[2 * step : 2 * step + 2]
        for name in ("images", "seg_labels", "inverse_depth", "jitter"):
            one, other = getattr(first, name), getattr(second, name)
            joined = torch.cat([one[:1], other[:1], one[1:], other[1:]])
            assert torch.equal(joined.nan_to_num(7), getattr(batch, name).nan_to_num(7))


def test_ranks_share_a_batch_with_its_pool(pooled, monkeypatch):
    whole = load(pooled, last=6, pool_size=3)
    found = []
    for rank in range(2):
        monkeypatch.setattr(ranks, "_world", ranks.World(rank=rank, size=2))
        found.append(load(pooled, last=6, pool_size=3))
    monkeypatch.undo()
    for batch, first, second in zip(whole, *found, strict=True):
        assert first.image_ids == second.image_ids == batch.image_ids
        assert first.num_labelled == second.num_labelled == batch.num_labelled == 2
        for name in ("images", "seg_labels", "inverse_depth", "jitter"):
            one, other = getattr(first, name), getattr(second, name)
            joined = torch.cat([one[:1], other[:1], one[1:], other[1:]])  # of either kind each rank has its share
            assert torch.equal(joined.nan_to_num(7), getattr(batch, name).nan_to_num(7))


def test_the_loader_follows_the_order(source):
    expected = [batch_of_step(step, 7, 2, 3)[1] for step in range(2, 8)]
    assert [[int(name[5:]) for name in batch.image_ids] for batch in load(source, 2, 8)] == expected


def test_targets_come_in_the_asked_mode(source):
    batch = load(replace(source, target_mode="zscore"), last=1)[0]
    assert batch.inverse_depth.nan_to_num().min() < -0.5


def test_training_sees_what_evaluation_sees_but_for_rounding(source):
    """Where nothing is cut, scaled, flipped or jittered."""
    plain = AugmentationSettings(crop=(40, 60), scale=(1.0, 1.0), flip=0.0)
    whole = {batch.image_ids[0]: batch for batch in evaluate_all(source, batch_size=1)}
    for batch in load(source, augmentation=plain, batch_size=1):
        exact = whole[batch.image_ids[0]]
        assert batch.placed is None and batch.jitter is None
        assert_same([batch], [exact._replace(inverse_depth=exact.inverse_depth.half())])


def evaluate_all(source, rule=None, **changes):
    options = {"batch_size": 3, "with_depth": True}
    return list(build_evaluation_loader(source, rule=rule, **options | changes))


MIXED = ((40, 60),) * 2 + ((50, 44),) * 3 + ((40, 60),)


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_sees_every_image_once_at_its_own_size(tmp_path, workers):
    source = build_source(tmp_path / "depth", Ramps(MIXED))
    batches = evaluate_all(source, workers=workers)
    assert [batch.image_ids for batch in batches] == [
        ("ramp/0", "ramp/1"),
        ("ramp/2",),
        ("ramp/3", "ramp/4"),
        ("ramp/5",),
    ]
    for batch in batches:
        for position, image_id in enumerate(batch.image_ids):
            index = int(image_id[5:])
            assert batch.images.shape[2:] == batch.inverse_depth.shape[1:] == MIXED[index]
            np.testing.assert_array_equal(batch.seg_labels[position], source.dataset.read_labels(index))
            np.testing.assert_array_equal(batch.images[position].permute(1, 2, 0), source.dataset.read_image(index))
        assert batch.inverse_depth.isfinite().all()
        assert batch.inverse_depth.dtype == torch.float32
        assert batch.placed is None


def test_evaluation_resizes_images_and_leaves_labels(tmp_path):
    source = build_source(tmp_path / "depth", Ramps(MIXED))
    batches = evaluate_all(source, rule=fixed_size((32, 48)))
    assert [tuple(batch.images.shape[2:]) for batch in batches] == [(32, 48)] * 4
    entered = fixed_size((32, 48)).fit(source.dataset.read_image(1))
    np.testing.assert_array_equal(batches[0].images[1].permute(1, 2, 0), entered)
    assert (entered % 1).any()
    assert [tuple(batch.seg_labels.shape[1:]) for batch in batches] == [(40, 60), (50, 44), (50, 44), (40, 60)]
    assert [tuple(batch.inverse_depth.shape[1:]) for batch in batches] == [(40, 60), (50, 44), (50, 44), (40, 60)]


@pytest.mark.parametrize("workers", [0, 2])
def test_what_is_wrong_with_an_image_arrives_as_it_was_said(source, workers):
    broken = replace(source, dataset=replace(source.dataset, broken=5))
    with pytest.raises(UserError) as caught:
        load(broken, workers=workers)
    assert str(caught.value) == "ramps train #5 cannot be decoded: it ends after 7 bytes"
    with pytest.raises(UserError, match=r"^ramps train #5 cannot be decoded"):
        evaluate_all(broken, workers=workers)


def test_a_worker_that_dies_is_explained(source):
    deadly = replace(source, dataset=replace(source.dataset, deadly=2))
    gc.collect()  # torch watches SIGCHLD: workers of earlier loaders must not die in the middle of this
    with pytest.raises(UserError, match=r"data loading worker died .*Use fewer workers"):
        load(deadly, workers=1)


def test_a_depth_phase_needs_a_store(source):
    with pytest.raises(
        UserError, match="no depth store; make one with: pipeline pseudo-depth --dataset ramps --split tr"
    ):
        load(replace(source, store=None))
    assert load(replace(source, store=None), with_depth=False)[0].inverse_depth is None


def test_images_that_changed_size_are_refused(source):
    with pytest.raises(
        UserError, match=r"ramps train #. is 44 x 60 px but was 40 x 60 px when .* label again: pipeline"
    ):
        load(replace(source, dataset=replace(source.dataset, sizes=((44, 60),) * 7)))


def test_an_empty_split_is_refused(source):
    with pytest.raises(UserError, match="ramps train has no images"):
        load(replace(source, dataset=replace(source.dataset, sizes=())))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_knows_how_long_it_was_waited_for(source, workers):
    loader = build_training_loader(
        source, augmentation=AUGMENTATION, batch_size=2, seed=0, first_step=0, last_step=4, workers=workers,
        with_depth=True,
    )  # fmt: skip
    batches = iter(loader)
    next(batches)
    assert loader.waited_s == loader.wait_share == 0, "the first batch waits for workers to start"
    list(batches)
    assert loader.waited_s > 0 and 0 < loader.wait_share <= 1

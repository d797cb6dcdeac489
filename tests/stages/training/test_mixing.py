"""Laws of mixed images: who covers whom, images and labels alike, and a training that takes nothing else from them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from toy_network import NUM_CLASSES, build_toy, make_batch

from data_cache.errors import Notice, UserError
from data_cache.sample import IGNORE_INDEX
from data_cache.unpacking import restyle, unpack
from stages.training.freezing import training_parts
from stages.training.loop import train_phase
from stages.training.mixing import (
    MASKS,
    Mixer,
    PoolView,
    draw_boxes,
    draw_partners,
    lay_over,
    mask_by_class,
    mask_by_depth,
)
from stages.training.optimisation import MovingAverage, modules_of_phase
from stages.training.schedule import Phase
from stages.training.schedules import JOINT, SEG
from stages.training.settings import LossSettings, MixSettings, TrainingSettings
from stages.training.trainer import PhaseTrainer

pytestmark = pytest.mark.filterwarnings("ignore::data_cache.errors.Notice")
CPU = torch.device("cpu")
LABELLED = 2
PLAIN = MixSettings(jitter=0.0, blur=0.0, confidence=0.3)
"""Mixes only, and trusts what a fresh network says."""


def mixing(phase, mix):
    return Phase(phase.name, phase.trains, phase.seg, phase.depth, images="all", mix=mix)


def make_pool_batch(step, *, size=6, side=16):
    """Two labelled images and others without labels, of which one leaves a part of the canvas empty."""
    batch = make_batch(step, size=size, side=side)
    batch.seg_labels[LABELLED:] = IGNORE_INDEX
    placed = torch.tensor([(0, 0, side, side)] * (size - 1) + [(2, 3, side - 6, side - 4)], dtype=torch.int32)
    covered = torch.zeros(side, side, dtype=torch.bool)
    covered[2 : side - 4, 3 : side - 1] = True
    batch.images[-1].masked_fill_(~covered, 0)
    return batch._replace(placed=placed, num_labelled=LABELLED)


def batches_from(first_step):
    return (make_pool_batch(step) for step in itertools.count(first_step))


def build_view(count=5, side=12, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, NUM_CLASSES, (count, side, side), generator=generator)
    labels[:, 0] = IGNORE_INDEX
    return PoolView(
        torch.rand(count, 3, side, side, generator=generator), labels != IGNORE_INDEX, labels,
        torch.rand(count, side, side, generator=generator), torch.rand(count, side, side, generator=generator),
    )  # fmt: skip


@pytest.mark.parametrize("count", [2, 3, 8])
def test_everybody_gets_somebody_else_and_is_taken_once(count):
    for seed in range(20):
        partners = draw_partners(count, np.random.default_rng(seed))
        assert sorted(partners) == list(range(count))
        assert all(own != other for own, other in enumerate(partners))


def test_the_nearer_covers_the_farther():
    nearness = torch.tensor([[[0.5, 0.5, 0.5, -2.0, -2.0, -torch.inf]], [[0.5, 0.52, 0.54, 0.0, -2.0, -2.0]]])
    partners = torch.tensor([1, 0])
    assert mask_by_depth(nearness, partners, 0.03).squeeze(1).tolist() == [
        [True, True, False, False, True, False],
        [True, True, True, True, True, True],
    ]


def test_equal_depth_without_a_margin_leaves_every_image_its_own():
    nearness = torch.rand(1, 8, 8).expand(4, 8, 8)
    assert mask_by_depth(nearness, torch.tensor([1, 2, 3, 0]), 0.0).all()


def test_half_of_the_classes_are_laid_over():
    labels = build_view().seg_labels
    labels[1] = labels[1] % 3
    labels[2] = 1
    labels[3] = IGNORE_INDEX
    chances = torch.rand(5, NUM_CLASSES, generator=torch.Generator().manual_seed(1))
    mask = mask_by_class(labels, chances)
    for own, shown, chance in zip(labels, mask, chances, strict=True):
        present = set(own.unique().tolist()) - {IGNORE_INDEX}
        chosen = sorted(present, key=lambda each: -chance[each])[: len(present) // 2]
        assert torch.equal(shown, torch.isin(own, torch.tensor(chosen, dtype=torch.int64)))


def test_boxes_have_half_of_the_area_and_lie_inside():
    boxes = np.array(draw_boxes(200, (96, 128), np.random.default_rng(0)))
    assert (boxes >= 0).all()
    assert (boxes[:, 0] + boxes[:, 2] <= 96).all()
    assert (boxes[:, 1] + boxes[:, 3] <= 128).all()
    assert np.abs(boxes[:, 2] * boxes[:, 3] / (96 * 128) - 0.5).max() < 0.01
    assert boxes[:, 2].min() < 60 < 90 < boxes[:, 2].max()


@pytest.mark.parametrize("mix", MASKS)
def test_an_image_mixed_with_itself_is_itself(mix):
    view, itself = build_view(), torch.arange(5)
    mask = MASKS[mix](view, itself, PLAIN, NUM_CLASSES, np.random.default_rng(0))
    assert mask.shape == view.seg_labels.shape
    assert all(torch.equal(lay_over(mask, each, itself), each) for each in view)


@pytest.mark.parametrize("mix", MASKS)
def test_images_and_labels_are_mixed_alike(mix):
    """Each pixel is one of two images', with the label that the labeller gives that image there."""
    labeller = build_toy().eval()
    batch = unpack(make_pool_batch(3), labeller.normalisation, CPU)
    mixer = Mixer(labeller, mixing(JOINT, mix), PLAIN, seed=5, device=CPU, dtype="float32")
    view, mixed = mixer.label(batch), mixer.mix(batch, 3)
    expected = labeller(batch.images[LABELLED:]).seg_logits.argmax(1)
    expected[-1][~batch.inside[-1]] = IGNORE_INDEX
    assert torch.equal(view.seg_labels, expected)
    taken = 0
    for own, image in enumerate(mixed.images):
        fits = [(image - other).abs().amax(0) < 1e-5 for other in view.images]
        mine = fits[own]
        partner = next(other for other in range(len(fits)) if other != own and bool((mine | fits[other]).all()))
        assert torch.equal(mixed.seg_labels[own][mine], expected[own][mine])
        assert torch.equal(mixed.seg_labels[own][~mine], expected[partner][~mine])
        taken += int((~mine).sum())
        if mix == "depth":
            assert torch.equal(mine, view.nearness[own] >= view.nearness[partner] - PLAIN.margin)
    assert taken > 0
    again, later = mixer.mix(batch, 3), [mixer.mix(batch, step) for step in range(4, 10)]
    assert torch.equal(again.images, mixed.images)
    assert not all(torch.equal(other.images, mixed.images) for other in later)


def test_only_confident_pixels_of_images_count_for_the_weight():
    labeller = build_toy().eval()
    batch = unpack(make_pool_batch(0), labeller.normalisation, CPU)
    for threshold in (0.0, 0.3, 1.0):
        settings = PLAIN.model_copy(update={"confidence": threshold})
        mixer = Mixer(labeller, mixing(SEG, "cut"), settings, seed=0, device=CPU, dtype="float32")
        view = mixer.label(batch)
        share = mixer.mix(batch, 0).trusted.item()
        if threshold == 0.3:
            inside = view.confidence[view.inside]
            assert share == pytest.approx((inside >= 0.3).float().mean().item(), abs=0.1)
            assert 0 < share < 1
        else:
            assert share == (1.0 if threshold == 0 else 0.0)


def test_restyling_changes_colours_and_blurs_only_what_is_to_be():
    network = build_toy()
    batch = unpack(make_pool_batch(0), network.normalisation, CPU)
    still = torch.ones(6, 3)
    options = {"inside": batch.inside, "normalisation": network.normalisation, "sigma": 1.0}
    blurred = torch.tensor([True, False] * 3)
    same = restyle(batch.images, **options, jitter=still, blurred=torch.zeros(6, dtype=torch.bool))
    smooth = restyle(batch.images, **options, jitter=still, blurred=blurred)
    torch.testing.assert_close(same, batch.images, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(smooth[~blurred], batch.images[~blurred], rtol=1e-4, atol=1e-5)
    assert smooth[0].std() < 0.8 * batch.images[0].std()
    assert not smooth[-2:][:, :, :1][1].any()
    packed = make_pool_batch(0)._replace(jitter=torch.tensor([[1.1, 0.8, 1.2]] * 6))
    loaded = unpack(packed, network.normalisation, CPU)
    ours = restyle(batch.images, **options, jitter=packed.jitter, blurred=torch.zeros(6, dtype=torch.bool))
    torch.testing.assert_close(ours, loaded.images, rtol=1e-4, atol=1e-4)


def train(network, phase, batches=batches_from, steps=3, mix=PLAIN, losses=None, **options):
    settings = {"lr": 0.01} | {name: options.pop(name) for name in set(options) & set(TrainingSettings.model_fields)}
    return train_phase(
        network, phase, batches, total_steps=steps, seed=7, key="a training", settings=TrainingSettings(**settings),
        losses=losses or LossSettings(), mixing=mix, device=CPU, dtype=options.pop("dtype", "float32"), **options,
    )  # fmt: skip


@pytest.mark.parametrize(("phase", "mix"), [(JOINT, "depth"), (JOINT, "cut"), (SEG, "class"), (SEG, "depth")], ids=str)
def test_mixed_images_move_exactly_the_parts_a_phase_trains(phase, mix):
    network = build_toy()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    reports = []
    train(network, mixing(phase, mix), on_step=reports.append)
    moved = {name.split(".")[0] for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {part.replace("-", "_") for part in phase.trains.names()}
    assert reports[0].raw["mixed"] > 0
    assert reports[0].weighted["mixed"] == pytest.approx(phase.seg * reports[0].raw["mixed"])
    assert reports[0].total == pytest.approx(sum(reports[0].weighted.values()))


@pytest.mark.parametrize("phase", [JOINT, SEG], ids=str)
def test_without_trusted_labels_gradients_are_those_without_mixed_images(phase):
    """Dropout included: what is drawn for mixed images shifts nothing. Segmentation alone reads labelled images."""

    def labelled_only(first_step):
        for batch in batches_from(first_step):
            rows = slice(LABELLED) if phase is SEG else slice(None)
            yield batch._replace(
                image_ids=batch.image_ids[rows], **{name: getattr(batch, name)[rows] for name in
                                                    ("images", "seg_labels", "inverse_depth", "placed")},
            )  # fmt: skip

    plain, mixed = build_toy(), build_toy()
    options = {"steps": 1, "optimizer": "sgd", "momentum": 0.9}
    train(plain, phase, labelled_only, **options)
    train(mixed, mixing(phase, "cut"), mix=PLAIN.model_copy(update={"confidence": 1.01}), **options)
    pairs = zip(plain.named_parameters(), mixed.parameters(), strict=True)
    assert [name for (name, one), other in pairs if not torch.equal(one, other)] == []


@pytest.mark.parametrize("mix", MASKS)
def test_a_bad_step_and_all_after_it_change_nothing_in_what_labels_either(mix):
    phase = mixing(JOINT, mix)
    with training_parts(network := build_toy(), phase.trains):
        trainer = PhaseTrainer(
            network, phase, total_steps=9, seed=0, settings=TrainingSettings(lr=0.01), mixing=PLAIN,
            losses=LossSettings(balance="share"), device=CPU, dtype="float32",
        )  # fmt: skip
        for step in range(2):
            trainer.train_step(step, make_pool_batch(step))
        before = {name: value.clone() for name, value in trainer.state().items()}
        spoilt = make_pool_batch(2)
        spoilt.inverse_depth[0, 5, 5] = torch.inf
        for step, batch in ((2, spoilt), (3, make_pool_batch(3))):
            trainer.train_step(step, batch)
        after = trainer.state()
        assert {name for name in after if not torch.equal(after[name], before[name])} == set()
        assert any(name.startswith("average/") for name in after)


@pytest.mark.parametrize(("mix", "ema"), [("depth", None), ("class", 0.9), ("cut", None)])
def test_resumed_mixing_ends_with_the_same_bits(tmp_path, mix, ema):
    """The moving average that labels comes from the checkpoint; it is handed on only where that was asked for."""
    phase, reference, stopped, resumed = mixing(JOINT, mix), build_toy(), build_toy(), build_toy(seed=3)
    options = {"ema_decay": ema, "losses": LossSettings(balance="share"), "log_gradients_every": 2}
    last = train(reference, phase, steps=6, **options)

    def broken_off(first_step):
        yield from itertools.islice(batches_from(first_step), 4)
        raise UserError("enough")

    with pytest.raises(UserError, match="enough"):
        train(stopped, phase, broken_off, steps=6, checkpoint_folder=tmp_path, checkpoint_minutes=1e-9, **options)
    summary = train(resumed, phase, steps=6, checkpoint_folder=tmp_path, **options)
    assert summary.resumed_from == 4
    assert summary.losses == last.losses
    pairs = zip(reference.state_dict().items(), resumed.state_dict().values(), strict=True)
    assert [name for (name, one), other in pairs if not torch.equal(one, other)] == []


def test_that_nothing_was_learned_from_mixed_images_is_said():
    with pytest.warns(Notice, match="learned nothing from mixed images: no label was as certain as mix.confidence"):
        train(build_toy(), mixing(SEG, "cut"), mix=MixSettings())


def test_the_average_is_handed_over_only_where_that_is_asked_for():
    ends = {}
    for ema in (None, 0.99):
        network = build_toy()
        train(network, mixing(SEG, "cut"), ema_decay=ema)
        ends[ema] = network.state_dict()
    trained = [name for name in ends[None] if name.startswith("seg_head")]
    assert all(not torch.equal(ends[None][name], ends[0.99][name]) for name in trained)


def test_the_labelling_network_is_the_average_and_shares_what_is_not_trained():
    network = build_toy()
    average = MovingAverage(network, modules_of_phase(network, SEG, TrainingSettings(encoder_policy="freeze")), 0.9)
    labeller = average.build_network()
    images = make_batch(0).images.float() / 255
    for step in (1, 2):
        with torch.no_grad():
            for value in network.seg_decoder.parameters():
                value.add_(0.1)
        average.update(step, torch.tensor(False))
    assert labeller.encoder[0].weight.data_ptr() == network.encoder[0].weight.data_ptr()
    assert not any(module.training for module in labeller.modules())
    labelled = labeller(images).seg_logits
    assert not torch.equal(labelled, network.eval()(images).seg_logits)
    average.hand_over()
    assert torch.equal(labelled, network.eval()(images).seg_logits)


def test_mixing_by_depth_without_depth_is_explained():
    with pytest.raises(UserError, match="mixes images by depth, but image 'image-0-5' was loaded without any"):
        train(build_toy(), mixing(SEG, "depth"), lambda _: iter([make_pool_batch(0)._replace(inverse_depth=None)]))


def test_too_little_memory_is_said_of_mixed_images_too():
    network = build_toy()

    def exhaust(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    network.seg_head.register_forward_hook(exhaust)
    said = r"6 images, 4 of them once more, mixed, of .*lower --batch-size to 1, or lower training.unlabelled_share, or"
    with pytest.raises(UserError, match=said):
        train(network, mixing(SEG, "cut"))

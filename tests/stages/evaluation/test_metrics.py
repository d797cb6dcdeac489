"""Segmentation metrics: identities, the anchors of the papers, and independent implementations."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from data_cache.metrics import find_background
from data_cache.sample import IGNORE_INDEX
from stages.evaluation.metrics import SegCounts

# Labelled VOC pixels per class in shares: background as measured, the other twenty alike except person.
BACKGROUND, PERSON = 0.7334, 0.049
VOC_SHARES = [BACKGROUND] + [(1 - BACKGROUND - PERSON) / 19] * 14 + [PERSON] + [(1 - BACKGROUND - PERSON) / 19] * 5


def random_maps(
    classes: int, *, images: int = 4, size: tuple[int, int] = (24, 31), seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Predictions that are right about half the time, and labels with void."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (images, *size), generator=draw)
    guesses = torch.randint(classes, (images, *size), generator=draw)
    right = torch.rand(images, *size, generator=draw) < torch.linspace(0.2, 0.9, images).view(-1, 1, 1)
    labels_with_void = torch.where(torch.rand(images, *size, generator=draw) < 0.1, IGNORE_INDEX, labels)
    return torch.where(right, labels, guesses), labels_with_void


def count(predictions: Tensor, labels: Tensor, classes: int, **options: int | None) -> SegCounts:
    counts = SegCounts(classes, **options)
    counts.update(predictions, labels)
    return counts


def expected_counts(shares: list[float], prediction_shares: list[float], scale: int = 10_000_000) -> SegCounts:
    """Counts of a predictor whose guesses do not depend on the truth."""
    counts = SegCounts(len(shares), background=0)
    counts.confusion = (torch.outer(torch.tensor(shares), torch.tensor(prediction_shares)) * scale).round().long()
    return counts


@pytest.mark.parametrize(
    ("predictor", "anchors"),
    [
        pytest.param([1.0] + [0.0] * 20, {"pixel_acc": 0.7334, "miou_micro": 0.579, "acc_binary": 0.9746,
                     "miou_macro": 0.0349, "iiou_macro_fg": 0.0, "iiou_micro_fg": 0.0}, id="all background"),
        pytest.param([1 / 21] * 21, {"pixel_acc": 0.0476, "miou_micro": 0.0244, "acc_binary": 0.9093,
                     "miou_macro": 0.0117, "iiou_macro_fg": 0.0099, "iiou_micro_fg": 0.0106}, id="uniform"),
        pytest.param([0.0] + [1 / 20] * 20, {"pixel_acc": 0.0133, "miou_micro": 0.0068, "acc_binary": 0.9060,
                     "miou_macro": 0.0096, "iiou_macro_fg": 0.0100, "iiou_micro_fg": 0.0107}, id="uniform foreground"),
        pytest.param([0.0] * 15 + [1.0] + [0.0] * 5, {"pixel_acc": 0.049, "miou_micro": 0.0249, "acc_binary": 0.9094,
                     "miou_macro": 0.0023, "iiou_macro_fg": 0.0024, "iiou_micro_fg": 0.0399}, id="all person"),
    ],
)  # fmt: skip
def test_anchors_of_the_paper_analysis(predictor, anchors):
    metrics = expected_counts(VOC_SHARES, predictor).compute()
    # 5e-4: the classes between background and person are taken to be equally frequent here, as they nearly are in VOC.
    assert {name: metrics[name] for name in anchors} == pytest.approx(anchors, abs=5e-4)


@pytest.mark.parametrize("classes", [2, 5, 21])
def test_pixel_weighted_metrics_are_functions_of_pixel_accuracy(classes):
    metrics = count(*random_maps(classes), classes).compute()
    p = metrics["pixel_acc"]
    assert metrics["miou_micro"] == pytest.approx(p / (2 - p), abs=1e-12)
    assert metrics["acc_binary"] == pytest.approx(1 - 2 * (1 - p) / classes, abs=1e-12)


def test_void_as_false_positive_follows_the_closed_form():
    predictions, labels = random_maps(21, images=1)
    metrics = count(predictions, labels, 21).compute("fp")
    void_share = float((labels == IGNORE_INDEX).double().mean())
    m = metrics["miou_micro"]
    assert metrics["acc_binary"] == pytest.approx(1 - (2 - void_share) * (1 - 2 * m / (1 + m)) / 21, abs=1e-12)
    assert metrics["miou_micro_imagewise"] == pytest.approx(m, abs=1e-12)  # one image: pooled and per image agree


def test_void_as_false_positive_equals_smp_without_ignore_index():
    from segmentation_models_pytorch import metrics as smp_metrics

    predictions, labels = random_maps(21)
    # smp refuses labels above C, so void becomes a 22nd class whose own row is then dropped: its FN count for nobody.
    stats = smp_metrics.get_stats(
        predictions, torch.where(labels == IGNORE_INDEX, 21, labels), mode="multiclass", num_classes=22
    )
    tp, fp, fn = (stat[:, :21] for stat in stats[:3])
    expected = (tp.sum(1) / (tp + fp + fn).sum(1)).mean()
    assert count(predictions, labels, 21).compute("fp")["miou_micro_imagewise"] == pytest.approx(
        float(expected), abs=1e-6
    )


def loop_metrics(predictions: Tensor, labels: Tensor, classes: int, background: int) -> dict[str, float]:
    """Return the metrics by plain loops over masks, without a confusion matrix."""

    def masks(image: slice | int, c: int) -> tuple[int, int, int]:
        known = labels[image] != IGNORE_INDEX
        predicted, true = (predictions[image] == c) & known, (labels[image] == c) & known
        return int((predicted & true).sum()), int((predicted | true).sum()), int(true.sum())

    pooled = [masks(slice(None), c) for c in range(classes)]
    iou = {c: tp / union for c, (tp, union, _) in enumerate(pooled) if union}
    total = sum(pixels for *_, pixels in pooled)
    per_image = [[masks(i, c) for c in range(classes)] for i in range(len(labels))]
    mean = lambda values: sum(values) / len(values)  # noqa: E731
    return {
        "miou_macro": mean(list(iou.values())),
        "miou_micro": sum(tp for tp, *_ in pooled) / sum(union for _, union, _ in pooled),
        "miou_micro_imagewise": mean([sum(r[0] for r in rows) / sum(r[1] for r in rows) for rows in per_image]),
        "miou_imagewise_macro": mean([mean([tp / union for tp, union, _ in rows if union]) for rows in per_image]),
        "pixel_acc": sum(tp for tp, *_ in pooled) / total,
        "iiou_macro_fg": mean([value for c, value in iou.items() if c != background]),
        "iiou_micro_fg": sum(tp for c, (tp, *_) in enumerate(pooled) if c != background)
        / sum(union for c, (_, union, _) in enumerate(pooled) if c != background),
        "fwiou": sum(pixels / total * iou[c] for c, (_, _, pixels) in enumerate(pooled) if c in iou),
    }  # fmt: skip


def test_every_convention_equals_plain_loops():
    predictions, labels = random_maps(7)
    labels[labels == 5] = 1
    predictions[predictions == 5] = 2  # class 5 has an empty union
    labels[0][labels[0] == 3] = 4  # class 3 is predicted but absent in image 0
    expected = loop_metrics(predictions, labels, 7, background=2)
    metrics = count(predictions, labels, 7, background=2).compute()
    assert {name: metrics[name] for name in expected} == pytest.approx(expected, abs=1e-12)


def test_without_background_all_classes_are_foreground():
    metrics = count(*random_maps(4), 4, background=None).compute()
    assert metrics["iiou_macro_fg"] == metrics["miou_macro"]
    assert metrics["iiou_micro_fg"] == metrics["miou_micro"]


def test_how_images_are_batched_changes_no_digit():
    predictions, labels = random_maps(5, images=7)
    whole, split = count(predictions, labels, 5), SegCounts(5)
    for start, end in ((0, 3), (3, 4), (4, 7)):
        split.update(predictions[start:end], labels[start:end])
    assert split.compute() == whole.compute()
    assert torch.equal(split.confusion, whole.confusion)


def test_sizes_may_differ_between_batches():
    counts = SegCounts(3)
    for seed, size in enumerate([(8, 8), (5, 11), (1, 1)]):
        counts.update(*random_maps(3, images=2, size=size, seed=seed))
    assert counts.num_images == 6


def test_predictions_on_void_change_nothing_unless_asked():
    predictions, labels = random_maps(4)
    other = torch.where(labels == IGNORE_INDEX, (predictions + 1) % 4, predictions)
    assert count(predictions, labels, 4).compute() == count(other, labels, 4).compute()


@pytest.mark.parametrize("void_as", ["ignore", "fp"])
def test_all_void_and_absent_classes_give_numbers_not_nan(void_as):
    labels = torch.full((2, 4, 4), IGNORE_INDEX)
    for counts in (count(torch.zeros(2, 4, 4, dtype=torch.int64), labels, 3, background=0), SegCounts(3)):
        assert all(math.isfinite(value) for value in counts.compute(void_as).values())


def test_an_unlabelled_image_does_not_move_the_imagewise_means():
    predictions, labels = random_maps(4)
    padded = torch.cat([labels, torch.full_like(labels[:1], IGNORE_INDEX)])
    more = count(torch.cat([predictions, predictions[:1]]), padded, 4)
    assert more.compute() == count(predictions, labels, 4).compute()


def test_perfect_predictions_score_one():
    _, labels = random_maps(4)
    metrics = count(torch.where(labels == IGNORE_INDEX, 0, labels), labels, 4, background=0).compute()
    assert set(metrics.values()) == {1.0}


def test_per_class_rows_mark_absent_classes():
    labels = torch.tensor([[[0, 0, 1, IGNORE_INDEX]]])
    rows = count(torch.tensor([[[0, 1, 1, 2]]]), labels, 4).per_class(["a", "b", "c", "d"])
    assert [(row.iou, row.acc, row.pixels) for row in rows] == [
        (0.5, 0.5, 2),
        (0.5, 1.0, 1),
        (None, None, 0),
        (None, None, 0),
    ]


@pytest.mark.parametrize(("label", "prediction", "what"), [(3, 0, r"labels \[3\]"), (0, 3, r"predictions up to 3")])
def test_ids_outside_the_classes_are_refused(label, prediction, what):
    with pytest.raises(ValueError, match=what):
        count(torch.full((1, 2, 2), prediction), torch.full((1, 2, 2), label), 3).compute()


@pytest.mark.parametrize(("names", "index"), [(("sky", "Background"), 1), (("sky", "road"), None)])
def test_background_is_found_by_name(names, index):
    assert find_background(names) == index


@given(
    classes=st.integers(1, 5),
    sizes=st.lists(st.tuples(st.integers(1, 4), st.integers(1, 5)), min_size=1, max_size=4),
    seed=st.integers(0, 2**31),
    void=st.sampled_from([0.0, 0.3, 1.0]),
)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_scores_are_what_counting_pixel_by_pixel_gives(classes, sizes, seed, void):
    draw = np.random.default_rng(seed)
    pairs = [(draw.integers(classes, size=size), draw.integers(classes, size=size)) for size in sizes]
    for _, labels in pairs:
        labels[draw.random(labels.shape) < void] = IGNORE_INDEX
    counts = SegCounts(classes)
    for predictions, labels in pairs:
        counts.update(torch.from_numpy(predictions)[None], torch.from_numpy(labels)[None])
    pixels = [
        [(int(p), int(t)) for p, t in zip(predictions.flat, labels.flat, strict=True) if t != IGNORE_INDEX]
        for predictions, labels in pairs
    ]
    pooled, images = [pair for image in pixels for pair in image], [image for image in pixels if image]

    def ious(found):
        hits = {c: sum(p == t == c for p, t in found) for c in range(classes)}
        unions = {c: sum(c in pair for pair in found) for c in range(classes)}
        return {c: (hits[c], unions[c]) for c in range(classes) if unions[c]}

    def macro(found):
        scores = [hit / union for hit, union in ious(found).values()]
        return sum(scores) / len(scores) if scores else 0.0

    def micro(found):
        hits, unions = (sum(each) for each in zip(*ious(found).values(), strict=True)) if found else (0, 0)
        return hits / unions if unions else 0.0

    def mean(scores):
        return sum(scores) / len(scores) if scores else 0.0

    expected = {
        "miou_macro": macro(pooled),
        "miou_micro": micro(pooled),
        "pixel_acc": mean([p == t for p, t in pooled]),
        "acc_binary": mean([mean([(p == c) == (t == c) for p, t in pooled]) for c in range(classes)]),
        "fwiou": mean([ious(pooled)[t][0] / ious(pooled)[t][1] for _, t in pooled]),
        "miou_micro_imagewise": mean(list(map(micro, images))),
        "miou_imagewise_macro": mean(list(map(macro, images))),
    }
    found = counts.compute()
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-12)

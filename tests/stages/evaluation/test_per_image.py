"""What each image scored adds up to the scores of the split, however it is batched; and reads by every convention."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from data_cache.errors import UserError
from data_cache.metrics import METRICS
from data_cache.sample import IGNORE_INDEX, PackedBatch
from stages.evaluation.conventions import CONVENTIONS, choose_conventions, score_by_conventions
from stages.evaluation.evaluate import Evaluation, evaluate
from stages.networks.interface import Outputs

HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
NAMES = ("background", "ball", "box", "never")
IMAGES, SIZE = 7, (24, 20)


def draw_split() -> PackedBatch:
    """Labels in blocks, of which one class never occurs; an image without a label; one without depth."""
    draw = torch.Generator().manual_seed(3)
    coarse = torch.randint(3, (IMAGES, 6, 5), generator=draw, dtype=torch.uint8)
    labels = coarse.repeat_interleave(4, 1).repeat_interleave(4, 2)
    labels[:, :3] = IGNORE_INDEX
    labels[2] = IGNORE_INDEX
    labels[4, 5:] = 1
    depth = torch.rand((IMAGES, *SIZE), generator=draw)
    depth[5] = torch.nan
    depth[1, :7] = torch.nan
    images = torch.randint(256, (IMAGES, 3, *SIZE), generator=draw, dtype=torch.uint8)
    return PackedBatch(tuple(f"town/{place}" for place in range(IMAGES)), images, labels, depth)


def guess(images: torch.Tensor, *, seg: bool = True, depth: bool = True) -> Outputs:
    """Return what depends on the pixels: classes by brightness, depth by one colour."""
    bright = (images.mean(dim=1) + 1) * 1.5
    logits = torch.stack([-((bright - place) ** 2) for place in range(len(NAMES))], dim=1)
    return Outputs(logits, images[:, 0] if depth else None)


def score(batches: list[PackedBatch], **options: bool) -> Evaluation:
    return evaluate(guess, batches, normalisation=HALF, num_classes=len(NAMES), class_names=NAMES, **options)


@pytest.fixture(scope="module")
def evaluation() -> Evaluation:
    return score([draw_split()], with_depth=True)


def test_images_add_up_to_the_split(evaluation):
    scores, metrics = evaluation.image_scores, evaluation.metrics
    confusion = np.array(evaluation.confusion)
    np.testing.assert_array_equal(scores.tp.sum(0), confusion.diagonal())
    np.testing.assert_array_equal((scores.tp + scores.fp).sum(0), confusion.sum(0))
    np.testing.assert_array_equal((scores.tp + scores.fn).sum(0), confusion.sum(1))
    for name in ("miou_imagewise_macro", "boundary_f1", "depth_absrel", "depth_delta1"):
        values = getattr(scores, "miou_imagewise" if name == "miou_imagewise_macro" else name)
        assert np.nanmean(values) == pytest.approx(metrics[name], abs=1e-12), name
    pixels = np.isfinite(draw_split().inverse_depth.numpy()).sum(axis=(1, 2))
    assert np.nansum(scores.depth_mse * pixels) / pixels.sum() == pytest.approx(metrics["depth_mse"], abs=1e-12)
    assert np.nansum(scores.pixel_acc * (scores.tp + scores.fn).sum(1)) / confusion.sum() == pytest.approx(
        metrics["pixel_acc"], abs=1e-12
    )


def test_images_without_labels_or_depth_have_no_score(evaluation):
    scores = evaluation.image_scores
    assert np.isnan(scores.miou_imagewise).tolist() == np.isnan(scores.pixel_acc).tolist() == [i == 2 for i in range(7)]
    assert [np.isnan(values[5]) for values in (scores.depth_mse, scores.depth_absrel, scores.depth_delta1)] == [
        True
    ] * 3
    assert scores.void[2].sum() == SIZE[0] * SIZE[1] and not scores.tp[2].any()


def test_a_lone_image_scores_as_in_its_split(evaluation):
    whole = draw_split()
    for place in (0, 1, 4):
        alone = score([PackedBatch(*(each[place : place + 1] for each in whole[:4]))], with_depth=True)
        scores = evaluation.image_scores
        for name in ("boundary_f1", "depth_mse", "depth_absrel", "depth_delta1", "pixel_acc"):
            assert getattr(scores, name)[place] == pytest.approx(alone.metrics[name], abs=1e-12), name
        assert scores.miou_imagewise[place] == pytest.approx(alone.metrics["miou_macro"], abs=1e-12)


def test_how_images_are_batched_changes_no_image(evaluation):
    whole = draw_split()
    parts = [PackedBatch(*(each[first : first + 3] for each in whole[:4])) for first in range(0, IMAGES, 3)]
    for name, values in score(parts, with_depth=True).image_scores._asdict().items():
        np.testing.assert_array_equal(values, getattr(evaluation.image_scores, name))
    assert score(parts).image_scores.image_ids.tolist() == list(whole.image_ids)


def test_without_depth_there_are_no_depth_errors():
    assert np.isnan(score([draw_split()]).image_scores.depth_mse).all()


def test_examples_name_images(evaluation):
    examples = evaluation.to_json()["examples"]
    worst, best = examples["worst"][0], examples["best"][0]
    values = evaluation.image_scores.miou_imagewise
    assert worst == {"image": f"town/{np.nanargmin(values)}", "miou_imagewise": np.nanmin(values)}
    assert best == {"image": f"town/{np.nanargmax(values)}", "miou_imagewise": np.nanmax(values)}


def test_conventions_are_the_metrics_where_they_have_their_names(evaluation):
    readings = score_by_conventions(evaluation.image_scores, choose_conventions("all"), background=0)
    assert [reading.name for reading in readings] == list(CONVENTIONS)
    shared = [reading for reading in readings if reading.name in METRICS]
    assert {each.name: each.void_ignored for each in shared} == pytest.approx(
        {each.name: evaluation.metrics[each.name] for each in shared}, abs=1e-12
    )
    assert {each.name: each.void_as_fp for each in shared} == pytest.approx(evaluation.metrics_paper, abs=1e-12)


def test_the_other_conventions_equal_plain_loops(evaluation):
    split, predictions = draw_split(), []
    evaluate(
        guess, [split], normalisation=HALF, num_classes=4, class_names=NAMES,
        on_predictions=lambda _, labels, __: predictions.extend(labels.numpy()),
    )  # fmt: skip
    pairs = [(p, t) for p, t in zip(predictions, split.seg_labels.numpy(), strict=True) if (t != IGNORE_INDEX).any()]
    for void_as_fp in (False, True):
        of_images, accuracies = [], []
        for guessed, truth in pairs:
            seen = np.ones_like(truth, bool) if void_as_fp else truth != IGNORE_INDEX
            ious = {}
            for c in range(4):
                predicted, true = (guessed == c) & seen, truth == c
                if (predicted | true).any():
                    ious[c] = ((predicted & true).sum() / (predicted | true).sum(), true.any())
                accuracies.append((predicted != true).sum())
            of_images.append(ious)
        pixels = sum(truth.size if void_as_fp else (truth != IGNORE_INDEX).sum() for _, truth in pairs)
        present = np.mean([np.mean([iou for iou, there in ious.values() if there]) for ious in of_images])
        classes = [[ious[c][0] for ious in of_images if c in ious] for c in range(4)]
        expected = {
            "miou_imagewise_present": present,
            "class_iou_imagewise": np.mean([np.mean(values) for values in classes if values]),
            "acc_binary_20": 1 - sum(accuracies) / 20 / pixels,
            "acc_binary_21": 1 - sum(accuracies) / 21 / pixels,
        }
        labelled = np.array([place for place in range(IMAGES) if place != 2])
        scores = evaluation.image_scores
        scores = scores._replace(**{name: getattr(scores, name)[labelled] for name in ("tp", "fp", "fn", "void")})
        found = score_by_conventions(scores, choose_conventions(",".join(expected)), background=0)
        assert {each.name: each[1 + void_as_fp] for each in found} == pytest.approx(expected, abs=1e-12)


def test_an_unknown_convention_is_refused_with_the_nearest():
    with pytest.raises(UserError, match=r"unknown convention 'miou' .*known: acc_binary"):
        choose_conventions("fwiou,miou")

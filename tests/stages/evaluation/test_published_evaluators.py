"""Scores equal those of evaluators that others publish: torchmetrics, and Cityscapes' own on exported label images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from cityscapesscripts.evaluation import evalPixelLevelSemanticLabeling as official
from PIL import Image
from torchmetrics import MeanSquaredError
from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex, MultilabelAccuracy

from data_cache.datasets import open_dataset
from data_cache.image_scores import read_image_scores
from data_cache.loaders import build_evaluation_loader
from data_cache.metrics import IMAGES_FILE
from data_cache.outputs import Inputs, open_output
from data_cache.sample import IGNORE_INDEX
from data_cache.samples import Source
from stages.evaluation.depth_errors import DepthErrors
from stages.evaluation.evaluate import evaluate
from stages.evaluation.metrics import SegCounts
from stages.evaluation.predict import PredictionWriter

CLASSES, IMAGES, SIZE = 6, 5, (24, 31)


@pytest.fixture(scope="module")
def maps() -> tuple[torch.Tensor, torch.Tensor]:
    """Predictions that are right about half the time, and labels with void; every class occurs."""
    draw = torch.Generator().manual_seed(0)
    labels = torch.randint(CLASSES, (IMAGES, *SIZE), generator=draw)
    right = torch.rand(labels.shape, generator=draw) < torch.linspace(0.2, 0.9, IMAGES).view(-1, 1, 1)
    predictions = torch.where(right, labels, torch.randint(CLASSES, labels.shape, generator=draw))
    return predictions, torch.where(torch.rand(labels.shape, generator=draw) < 0.1, IGNORE_INDEX, labels)


@pytest.fixture(scope="module")
def counts(maps) -> SegCounts:
    counted = SegCounts(CLASSES, background=0)
    counted.update(*maps)
    return counted


def jaccard(maps, average: str) -> torch.Tensor:
    return MulticlassJaccardIndex(CLASSES, average=average, ignore_index=IGNORE_INDEX)(*maps)


def per_image(maps, average: str) -> float:
    return float(
        np.mean([float(jaccard([each[place : place + 1] for each in maps], average)) for place in range(IMAGES)])
    )


def one_vs_rest(maps) -> float:
    """The mean over classes of the accuracy of telling each from the rest, labelled pixels only."""
    predictions, labels = maps
    labelled = labels != IGNORE_INDEX
    guesses, truth = (torch.nn.functional.one_hot(each[labelled], CLASSES) for each in (predictions, labels))
    return float(MultilabelAccuracy(CLASSES, average="macro")(guesses, truth))


ORACLES = {
    "miou_macro": lambda maps: jaccard(maps, "macro"),
    "miou_micro": lambda maps: jaccard(maps, "micro"),
    "fwiou": lambda maps: jaccard(maps, "weighted"),
    "iiou_macro_fg": lambda maps: jaccard(maps, "none")[1:].mean(),
    "miou_micro_imagewise": lambda maps: per_image(maps, "micro"),
    "miou_imagewise_macro": lambda maps: per_image(maps, "macro"),
    "pixel_acc": lambda maps: MulticlassAccuracy(CLASSES, average="micro", ignore_index=IGNORE_INDEX)(*maps),
    "acc_binary": one_vs_rest,
}


@pytest.mark.parametrize("name", ORACLES)
def test_metrics_equal_torchmetrics(name, maps, counts):
    assert counts.compute()[name] == pytest.approx(float(ORACLES[name](maps)), abs=1e-6)


def test_classes_equal_torchmetrics(maps, counts):
    rows = counts.per_class([str(place) for place in range(CLASSES)])
    assert [row.iou for row in rows] == pytest.approx(jaccard(maps, "none").tolist(), abs=1e-6)
    recall = MulticlassAccuracy(CLASSES, average="none", ignore_index=IGNORE_INDEX)(*maps)
    assert [row.acc for row in rows] == pytest.approx(recall.tolist(), abs=1e-6)


def test_squared_error_of_depth_equals_torchmetrics():
    draw = torch.Generator().manual_seed(0)
    depth, target = torch.rand(2, *SIZE, generator=draw), torch.rand(2, *SIZE, generator=draw)
    valid = torch.rand(target.shape, generator=draw) < 0.7
    scores = DepthErrors()
    scores.update(depth, target, valid)
    assert scores.compute()["depth_mse"] == pytest.approx(
        float(MeanSquaredError()(depth[valid], target[valid])), abs=1e-6
    )


def write_cityscapes(root: Path) -> list[Path]:
    """Write three frames whose masks hold every one of the 34 label ids; return the masks."""
    draw, masks = np.random.default_rng(0), []
    for frame in range(3):
        stem = f"ulm_00000{frame}_000019"
        files = {
            root / "leftImg8bit" / "val" / "ulm" / f"{stem}_leftImg8bit.png": draw.integers(256, size=(64, 96, 3)),
            root / "gtFine" / "val" / "ulm" / f"{stem}_gtFine_labelIds.png": np.kron(
                draw.permutation(np.arange(96) % 34).reshape(8, 12), np.ones((8, 8))
            ),
        }
        for path, pixels in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.astype(np.uint8)).save(path)
        masks.append(path)
    return masks


def test_cityscapes_own_evaluator_gives_the_same_on_exported_images(tmp_path, monkeypatch):
    masks = write_cityscapes(tmp_path / "data")
    dataset = open_dataset("cityscapes", tmp_path / "data", "val")
    channels = torch.randn((len(dataset.classes), 3, 1, 1), generator=torch.Generator().manual_seed(0))
    with open_output(tmp_path / "saved", Inputs(), overwrite=False, on_wait=print) as output:
        writer = PredictionWriter(output, dataset.image_ids, official_ids=dataset.prediction_ids)
        evaluation = evaluate(
            lambda images: torch.nn.functional.conv2d(images, channels),
            build_evaluation_loader(Source(dataset, None, "robust"), rule=None, batch_size=2, with_depth=False),
            normalisation=((0.5,) * 3, (0.5,) * 3),
            num_classes=len(dataset.classes),
            class_names=dataset.classes,
            on_predictions=writer,
        )
        writer.write_scores(evaluation.image_scores)
    for name, value in {"evalInstLevelScore": False, "JSONOutput": False, "quiet": True, "evalLabels": []}.items():
        monkeypatch.setattr(official.args, name, value)
    predictions = [tmp_path / "saved" / f"{image_id}.png" for image_id in dataset.image_ids]
    found = official.evaluateImgLists([str(path) for path in predictions], [str(path) for path in masks], official.args)
    expected = {name: found["classScores"][name] for name in dataset.classes}
    assert {row.name: row.iou for row in evaluation.per_class} == pytest.approx(expected, abs=1e-6)
    assert evaluation.metrics["miou_macro"] == pytest.approx(found["averageScoreClasses"], abs=1e-6)
    assert max(expected.values()) > 0.01, "something is right by chance"
    saved = read_image_scores(tmp_path / "saved" / IMAGES_FILE)
    assert saved.image_ids.tolist() == list(dataset.image_ids)
    assert saved.tp.sum(0).tolist() == np.array(evaluation.confusion).diagonal().tolist()

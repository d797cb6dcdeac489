"""The committed weights: small enough, opening offline, and as good on unseen scenes as their card says."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from data_cache.datasets import open_dataset
from stages.pseudo_depth.aliases import BUNDLED_FOLDER, ESTIMATORS
from stages.pseudo_depth.estimators import load_estimator
from stages.pseudo_depth.model_folder import describe_folder


def test_weights_are_small_and_what_the_table_says():
    assert (BUNDLED_FOLDER / "model.safetensors").stat().st_size <= 6e6
    assert describe_folder(BUNDLED_FOLDER, alias="bundled", kind=None) == ESTIMATORS["bundled"]
    parameters = sum(tensor.numel() for tensor in load_estimator("bundled")._network.parameters())
    assert 2e6 <= parameters <= 3e6


@pytest.fixture(scope="module")
def correlations() -> np.ndarray:
    """Per-image Pearson correlation of the bundled teacher's map with the true inverse depth, 200 unseen scenes."""
    scenes = open_dataset("scenes", None, "test")
    estimator = load_estimator("bundled", precision="float32")
    found = []
    for first in range(0, len(scenes), 25):
        indices = range(first, min(first + 25, len(scenes)))
        images = torch.stack([estimator.prepare(scenes.read_image(index)) for index in indices])
        raw = interpolate(estimator.predict(images)[:, None], size=scenes.size, mode="bilinear", align_corners=False)
        for index, large in zip(indices, raw[:, 0].numpy(), strict=True):
            truth = 1 / scenes.read_depth(index).astype(np.float64)  # the sky is 0
            found.append(np.corrcoef(large.ravel(), truth.ravel())[0, 1])
    assert len(found) == 200
    return np.array(found)


@pytest.mark.exhaustive
def test_correlation_with_true_inverse_depth(correlations):
    assert correlations.mean() >= 0.95


@pytest.mark.exhaustive
def test_card_states_what_is_measured(correlations):
    card = (BUNDLED_FOLDER / "README.md").read_text()
    stated = re.search(r"mean per-image correlation \*\*(0\.\d+)\*\*", card)
    assert stated is not None
    assert float(stated[1]) == pytest.approx(correlations.mean(), abs=0.002)
    assert "not fit for photographs" in card

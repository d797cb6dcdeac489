"""Scores are counted without waiting for the device, and ranks that counted parts have counted the whole."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from data_cache.depth_target import TARGET_MODES
from stages.evaluation.boundary import BoundaryScores
from stages.evaluation.counting import count_cells
from stages.evaluation.depth_errors import DepthErrors
from stages.evaluation.metrics import SegCounts


@pytest.mark.parametrize("lanes", [1, 3, 32])
def test_a_histogram_is_numpys_however_many_lanes_count_it(lanes):
    cells = torch.randint(0, 7, (2, 5, 9), generator=torch.Generator().manual_seed(0))
    assert torch.equal(count_cells(cells, 9, lanes), torch.bincount(cells.flatten(), minlength=9))


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_no_update_waits_for_the_device(device):
    """A number that the host asks of a fake tensor raises, and so do tensors on unlike devices."""
    with FakeTensorMode():
        predictions = torch.zeros(2, 16, 20, dtype=torch.uint8, device=device)
        labels = torch.zeros(2, 16, 20, dtype=torch.int64, device=device)
        depth = torch.rand(2, 16, 20, device=device)
        SegCounts(3, background=0, device=device).update(predictions, labels)
        BoundaryScores(70, device=device).update(predictions, labels)
        for target in TARGET_MODES:
            DepthErrors(target, device=device).update(depth, depth, depth > 0.5)


@pytest.mark.parametrize("num_classes", [3, 9, 21, 40, 150])
def test_boundaries_do_not_depend_on_how_many_classes_there_could_be(num_classes):
    """More classes need wider words, or several."""
    draw = torch.Generator().manual_seed(0)
    labels, predictions = torch.randint(0, 3, (2, 3, 24, 31), generator=draw)
    few, many = BoundaryScores(3), BoundaryScores(num_classes)
    few.update(predictions, labels)
    spread = torch.tensor([0, num_classes // 2, num_classes - 1])
    many.update(spread[predictions], spread[labels])
    assert many.compute() == pytest.approx(few.compute(), abs=1e-12)

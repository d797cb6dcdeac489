"""Measured encoders are what the papers' tables count, and cost time."""

from __future__ import annotations

import pytest

from data_cache.errors import UserError
from stages.networks.backbone_cost import measure_backbones


def test_encoders_without_classifier_have_the_counted_parameters():
    rounds = []
    costs = measure_backbones(["tu-resnet10t", "mobilenet_v2"], repeats=2, progress=rounds.append)
    assert [(cost.encoder, cost.parameters) for cost in costs] == [
        ("tu-resnet10t", 4_922_488),
        ("mobilenet_v2", 2_223_872),
    ]
    assert all(cost.milliseconds > 0 for cost in costs)
    assert rounds == [0, 1, 2]


def test_an_unknown_encoder_is_named():
    with pytest.raises(UserError, match=r"unknown encoder 'resnet19'.*did you mean 'resnet18'"):
        measure_backbones(["resnet19"])

"""Every choice that a recipe offers has its entry in a table, and nothing else has."""

from typing import get_args

import pytest
from pydantic import ValidationError

from stages.training.losses import DEPTH_LOSSES, SEG_LOSSES
from stages.training.optimisation import LR_SCHEDULES, OPTIMIZERS
from stages.training.settings import LossSettings, TrainingSettings
from stages.training.weighting import WEIGHTINGS


@pytest.mark.parametrize(
    ("settings", "name", "table"),
    [
        (LossSettings, "seg", SEG_LOSSES),
        (LossSettings, "depth", DEPTH_LOSSES),
        (LossSettings, "weighting", WEIGHTINGS),
        (TrainingSettings, "optimizer", OPTIMIZERS),
        (TrainingSettings, "lr_schedule", LR_SCHEDULES),
    ],
)
def test_tables_hold_exactly_the_choices(settings, name, table):
    choices = get_args(settings.model_fields[name].annotation)
    assert set(get_args(choices[0]) or choices) == set(table)


@pytest.mark.parametrize(
    ("settings", "arguments", "message"),
    [
        (TrainingSettings, {"lr_factors": {"encodr": 0.1}}, "no part 'encodr'.*did you mean 'encoder'"),
        (TrainingSettings, {"lr_factors": {"encoder": 0.0}}, "lr factor 0.0 of encoder.*do not train the part"),
        (LossSettings, {"class_weights": (0.0, 0.0)}, "not all 0"),
        (LossSettings, {"class_weights": (1.0, 2.0), "seg": "dice"}, "seg = dice has no term.*combine with one"),
        (LossSettings, {"seg": {}}, "at least one loss"),
        (LossSettings, {"seg": {"focal": 0.0}}, "a weight above 0"),
    ],
)
def test_nonsensical_settings_are_explained(settings, arguments, message):
    with pytest.raises(ValidationError, match=message):
        settings(**arguments)

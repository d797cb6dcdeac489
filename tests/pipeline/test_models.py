"""What is said where the runtime of an exported file refuses an image."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from data_cache.errors import UserError
from pipeline.experiment.models import _guard

IMAGES = torch.zeros(1, 3, 8, 8)
FAILS = "model.x fails on images of shape 1x3x8x8: {}; export the run again"
TOO_LARGE = "model.x takes images of up to 4x4 px; label it in tiles"


@pytest.mark.parametrize(
    ("problem", "said"),
    [
        (RuntimeError("bad shape\nat node 3"), FAILS.format("bad shape")),
        (EOFError(), FAILS.format("EOFError")),
        (UserError(TOO_LARGE), TOO_LARGE),
    ],
)
def test_what_a_runtime_finds_wrong_is_said_in_words_and_a_remedy_of_its_own_stays(
    problem: Exception, said: str
) -> None:
    def segment(images: Tensor) -> Tensor:
        raise problem

    with pytest.raises(UserError) as found:
        _guard(segment, Path("model.x"), 2)(IMAGES)
    assert str(found.value) == said


def test_what_answers_other_classes_is_no_model_of_this_run() -> None:
    with pytest.raises(UserError, match="with 1x2x8x8 numbers, which are no logits of 3 classes"):
        _guard(lambda images: images[:, :2], Path("model.x"), 3)(IMAGES)

"""What `pipeline predict` decides itself: views of files of one size, frames on the page, how a camera ends."""

from __future__ import annotations

import dataclasses
import signal
from pathlib import Path

import numpy as np
import pytest

from data_cache.errors import UserError
from data_cache.size_rule import fixed_size
from pipeline.commands.predict import Slides, heeding_interrupts
from pipeline.experiment.config import RunConfig
from pipeline.experiment.models import Model, check_views
from stages.evaluation.predict import Predictions
from stages.evaluation.views import choose_views
from stages.networks.interface import Normalisation

MODEL = Model(
    None, Normalisation((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)), fixed_size((64, 64)), ("dark", "light"),
    ((10, 20, 30), (250, 240, 230)), RunConfig(), False, Path("export"), Path("export/model.onnx"), format="onnx",
)  # fmt: skip


def test_a_file_of_one_size_is_shown_no_other_but_its_mirror_image():
    with pytest.raises(
        UserError, match=r"--tta scales: export/model.onnx takes images resized to 64x64 px and no others"
    ):
        check_views(MODEL, choose_views("flip,scales"))
    check_views(MODEL, choose_views("flip"))
    check_views(dataclasses.replace(MODEL, format=None), choose_views("scales"))


@pytest.mark.parametrize("frames", [1, 5, 12, 13, 100])
def test_a_page_shows_a_few_frames_from_all_over_a_video_however_long(tmp_path, frames):
    slides = Slides(MODEL)
    for number in range(frames):
        slides.add_frame("film", number, np.zeros((9, 12, 3), np.uint8), np.zeros((9, 12), np.uint8))
    slides.write(tmp_path / "p.html", Predictions([], [], [], []), overwrite=False, on_wait=print)
    shown = [number for number in range(frames) if f"frame {number}<" in (tmp_path / "p.html").read_text()]
    assert shown[0] == 0 and min(frames, 6) <= len(shown) <= 12
    steps = set(np.diff(shown).tolist())
    assert len(steps) <= 1 and frames - shown[-1] <= max(steps, default=1)


def test_ctrl_c_ends_a_camera_and_its_repetition_the_command():
    with heeding_interrupts([0]) as was_asked:
        assert not was_asked()
        signal.raise_signal(signal.SIGINT)
        assert was_asked()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)

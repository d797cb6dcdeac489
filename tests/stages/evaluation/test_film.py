"""Videos frame by frame: as many as there are, at their rate and size, and no two of them in memory for long."""

from __future__ import annotations

import csv
import subprocess
import weakref
from fractions import Fraction
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest

from data_cache.errors import UserError
from data_cache.outputs import Inputs, open_output
from stages.evaluation.film import name_videos, predict_videos
from stages.evaluation.frames import check_sources, open_frames
from stages.evaluation.predict import Predictions, Segmenter
from tests.stages.evaluation.test_predict import NAMES, PALETTE, PLAIN, brightness

pytestmark = pytest.mark.slow
NTSC = Fraction(30000, 1001)


def film(path: Path, frames: int = 6, size: tuple[int, int] = (72, 96), rate: Fraction = NTSC) -> Path:
    """Write a video whose frame k is bright on its right (k + 1) / 8."""
    height, width = size
    writer = imageio_ffmpeg.write_frames(
        str(path), (width, height), fps=rate, macro_block_size=1, quality=10, pix_fmt_out="yuv444p", codec="libx264"
    )
    writer.send(None)
    for number in range(frames):
        image = np.zeros((height, width, 3), np.uint8)
        image[:, width - width * (number + 1) // 8 :] = 255
        writer.send(image)
    writer.close()
    return path


def predict(out: Path, videos, *, network=brightness, stop_after: int = 100) -> tuple[Predictions, list[dict]]:
    found = Predictions([], [], [], [])
    seen: list[weakref.ref] = []

    def on_frame(name, number, pixels, labels):
        seen.append(weakref.ref(pixels))
        assert sum(each() is not None for each in seen) <= 2
        assert pixels.shape[:2] == labels.shape
        return number + 1 >= stop_after

    with open_output(out, Inputs(videos), overwrite=False) as output:
        records = predict_videos(
            Segmenter(network, PLAIN), name_videos(videos, []), output, found, class_names=NAMES, palette=PALETTE,
            on_frame=on_frame, on_video=lambda *_: None,
        )  # fmt: skip
    return found, records


@pytest.mark.parametrize("size", [(72, 96), (71, 95)], ids=str)
def test_an_overlaid_video_has_the_frames_the_rate_and_the_size_of_its_source(tmp_path, size):
    source = film(tmp_path / "a.mkv", size=size)
    found, (record,) = predict(tmp_path / "out", [source])
    assert found.failed == found.notes == []
    reader = imageio_ffmpeg.read_frames(str(tmp_path / "out/videos/a.mp4"))
    facts = next(reader)
    assert facts["size"] == (size[1], size[0]) and facts["fps"] == 29.97
    frames = [np.frombuffer(frame, np.uint8).reshape(*size, 3) for frame in reader]
    assert len(frames) == record["frames"] == 6
    for frame in frames:  # half the photograph, half the colour of its class
        assert abs(frame[10, 4].astype(int) - (37, 42, 47)).max() < 16, "dark colours are lifted, then halved"
        assert abs(frame[10, -4].astype(int) - (252, 248, 242)).max() < 16
    rows = list(csv.DictReader((tmp_path / "out/videos/a.csv").open()))
    assert [float(row["light"]) for row in rows] == pytest.approx([(k + 1) / 8 for k in range(6)], abs=0.02)
    assert float(rows[5]["seconds"]) == pytest.approx(5 / NTSC, abs=1e-4)
    assert record["shares"]["light"] == pytest.approx(3.5 / 8, abs=0.02)
    assert record["frames_per_second"] == pytest.approx(29.97003)


def test_a_video_may_be_ended_early_and_is_then_whole(tmp_path):
    _, (record,) = predict(tmp_path / "out", [film(tmp_path / "a.mp4")], stop_after=2)
    assert record["frames"] == 2
    assert imageio_ffmpeg.count_frames_and_secs(str(tmp_path / "out/videos/a.mp4"))[0] == 2


def test_what_cannot_be_read_leaves_nothing_and_stops_nothing(tmp_path):
    sound, text, fine = (tmp_path / name for name in ("sound.mp4", "text.mp4", "fine.mp4"))
    make = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-f", "lavfi", "-i", "sine=duration=0.1", str(sound)]
    subprocess.run(make, check=True, stdin=subprocess.DEVNULL)
    text.write_text("no video")
    found, records = predict(tmp_path / "out", [sound, text, tmp_path / "gone.mp4", film(fine)])
    assert [Path(record["video"]).name for record in records] == ["fine.mp4"]
    reasons = [failure.reason for failure in found.failed]
    assert "sound.mp4 cannot be read (it has no frame)" in reasons[0] and "text.mp4 cannot be read" in reasons[1]
    assert "gone.mp4 is missing" in reasons[2]
    assert {path.name for path in (tmp_path / "out/videos").iterdir()} == {"fine.mp4", "fine.csv"}


def test_a_network_that_fails_on_a_frame_leaves_no_half_video(tmp_path):
    def network(images, *, seg=True, depth=True):
        outputs = brightness(images)
        return outputs._replace(seg_logits=outputs.seg_logits.where(images.mean() < 0.3, float("nan")))

    found, records = predict(tmp_path / "out", [film(tmp_path / "a.mp4")], network=network)
    assert records == [] and "not finite" in found.failed[0].reason
    assert not list((tmp_path / "out/videos").iterdir())


def test_a_camera_that_is_absent_is_said_before_any_work():
    with pytest.raises(UserError, match=r"there is no camera 97 ./dev/video97; found: "):
        check_sources([], [97])
    with pytest.raises(UserError, match="no camera 97"), open_frames(97):
        pass

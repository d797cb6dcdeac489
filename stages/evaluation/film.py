"""Overlaid videos, and the share of each class in every frame of them."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_cache.errors import UserError
from data_cache.escaping import csv_text
from data_cache.outputs import OutputFolder
from stages.evaluation.colour import RGB
from stages.evaluation.forward import evaluation_mode
from stages.evaluation.frames import open_frames, write_frames
from stages.evaluation.panels import draw_overlay
from stages.evaluation.predict import FailedImage, Predictions, Segmenter, count_shares, name_outputs

OnFrame = Callable[[str, int, NDArray[np.uint8], NDArray[np.uint8]], bool]
"""Called per frame with the video's name, the frame's number from 0, its pixels and its labels; True ends the video."""


def name_videos(videos: Sequence[Path], cameras: Sequence[int]) -> dict[str, Path | int]:
    """Return what is to be read under the name that its results get."""
    files: dict[str, Path | int] = {name: file for file, name in name_outputs(videos).items()}
    for camera in cameras:
        name = f"camera{camera}"
        while name in files:
            name += "-live"
        files[name] = camera
    return files


def predict_videos(
    segmenter: Segmenter,
    sources: Mapping[str, Path | int],
    output: OutputFolder,
    found: Predictions,
    *,
    class_names: Sequence[str],
    palette: Sequence[RGB],
    on_frame: OnFrame,
    on_video: Callable[[str, int], None],
) -> list[dict[str, Any]]:
    """Write ``videos/NAME.mp4``, overlaid, and ``videos/NAME.csv``, the share of each class in every frame.

    One that cannot be read costs the others nothing, and leaves nothing behind.

    Args:
        sources: as ``name_videos`` gives them.
        found: takes the files, the failures and the notes.
        on_frame: may end a video, which is then written as far as it got.
        on_video: called with the name of each, and how many frames are to be expected, before it is read.

    Returns:
        A record per video, as in predictions.json.

    Raises:
        UserError: something else lies where a result belongs.
    """
    places = {
        name: tuple(output.folder / "videos" / f"{name}{suffix}" for suffix in (".mp4", ".csv")) for name in sources
    }
    output.check([path for pair in places.values() for path in pair])
    records = []
    with evaluation_mode(segmenter.network):
        for name, source in sources.items():
            film, table = places[name]
            try:
                with (
                    open_frames(source) as frames,
                    output.write(film) as temporary,
                    output.write(table) as temporary_table,
                    temporary_table.open("w", encoding="utf8", newline="") as stream,
                ):
                    on_video(name, frames.expected)
                    rows = csv.writer(stream)
                    rows.writerow(("frame", "seconds", *map(csv_text, class_names)))
                    total, number = np.zeros(len(class_names)), 0
                    with write_frames(temporary, frames) as write:
                        for pixels in frames.pixels:
                            labels = segmenter.segment(pixels).labels
                            write(draw_overlay(pixels, labels, palette))
                            shares = count_shares(labels, len(class_names))
                            rows.writerow((number, round(float(number / frames.rate), 4), *shares))
                            total += shares
                            number += 1
                            if on_frame(name, number - 1, pixels, labels):
                                break
            except UserError as problem:
                found.failed.append(FailedImage(str(source), str(problem)))
                continue
            if 0 < number < 0.9 * frames.expected:
                found.notes.append(f"video {source}: {number} frames, of about {frames.expected} that it announces")
            found.files.extend((film, table))
            records.append(
                {
                    "video": str(source),
                    "height": frames.height,
                    "width": frames.width,
                    "frames": number,
                    "frames_per_second": round(float(frames.rate), 6),
                    "overlay": film.relative_to(output.folder).as_posix(),
                    "shares_per_frame": table.relative_to(output.folder).as_posix(),
                    "shares": dict(zip(class_names, (total / number).round(6).tolist(), strict=True)),
                }
            )
    return records

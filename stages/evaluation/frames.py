"""Videos and cameras frame by frame, in memory that does not grow with their length; the room of imageio-ffmpeg."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_cache.errors import UserError

_NTSC = Fraction(1000, 1001)
_NTSC_RATES = [rate * _NTSC for rate in (24, 30, 48, 60, 120)]
"""Frames per second that ffmpeg prints as 23.98, 29.97, …"""
_QUALITY = 7
"""Of 10; libx264 then works with CRF 15, in which lines of one pixel stay visible."""


class Frames(NamedTuple):
    """A video that is being read."""

    rate: Fraction
    """Frames per second."""
    height: int
    width: int
    expected: int
    """Frames that its duration lets expect; 0 of a camera, and where it says no duration."""
    pixels: Iterator[NDArray[np.uint8]]
    """(H, W, 3) RGB, upright, at an even rate: where a video's own rate changes, frames are repeated or left out."""


def import_ffmpeg() -> Any:
    """Return the package that runs ffmpeg.

    Raises:
        UserError: it is not installed.
    """
    try:
        import imageio_ffmpeg
    except ImportError as error:
        raise UserError("videos and cameras need the package imageio-ffmpeg: pip install '.[video]'") from error
    logging.getLogger("imageio_ffmpeg").setLevel(logging.ERROR)  # it warns of what is checked here
    return imageio_ffmpeg


def check_sources(videos: Sequence[Path], cameras: Sequence[int]) -> None:
    """Find out what no video could be read without, before work is spent.

    Raises:
        UserError: the package is not installed, or a camera is absent.
    """
    if videos or cameras:
        import_ffmpeg()
    for camera in cameras:
        find_camera(camera)


def find_camera(index: int) -> tuple[str, list[str]]:
    """Return what ffmpeg calls a camera, and the options with which it opens one.

    Raises:
        UserError: it is absent, or the system's cameras cannot be told by number.
    """
    if sys.platform == "darwin":
        return str(index), ["-f", "avfoundation", "-framerate", "30"]
    if sys.platform != "linux":
        raise UserError(f"camera {index}: cameras are read on Linux and macOS only; record a video, and name its file")
    if not Path(f"/dev/video{index}").exists():
        found = ", ".join(sorted(str(path) for path in Path("/dev").glob("video*"))) or "none"
        raise UserError(
            f"there is no camera {index} (/dev/video{index}; found: {found}) and no file of that name; connect it, or "
            "name a video"
        )
    return f"/dev/video{index}", ["-f", "v4l2"]


@contextmanager
def open_frames(source: Path | int) -> Iterator[Frames]:
    """Open a video file, or a camera by its number, and close it at the end of the block.

    Raises:
        UserError: it cannot be read; ``pixels`` raises it, too.
    """
    ffmpeg = import_ffmpeg()
    if isinstance(source, int):
        name, options = find_camera(source)
    else:
        if not source.is_file():
            raise UserError(f"video {source} is missing; put it back or leave it out")
        name, options = f"file:{source}", ["-protocol_whitelist", "file"]  # a playlist may name no other places
    reader = ffmpeg.read_frames(name, input_params=options)
    try:
        facts = _explain(source, lambda: next(reader))
        width, height = facts["size"]
        if not facts["fps"]:
            raise UserError(f"video {source} does not say how many frames a second has; convert it, for example to MP4")
        rate = _find_rate(facts["fps"])
        yield Frames(rate, height, width, round(facts["duration"] * rate), _read(source, reader, height, width))
    finally:
        reader.close()


def _read(source: Path | int, reader: Iterator[bytes], height: int, width: int) -> Iterator[NDArray[np.uint8]]:
    read = False
    while (frame := _explain(source, lambda: next(reader, None))) is not None:
        read = True
        yield np.frombuffer(frame, np.uint8).reshape(height, width, 3).copy()  # torch wants memory of its own
    if not read:
        raise UserError(f"video {source} cannot be read (it has no frame); replace it or leave it out")


def _explain(source: Path | int, read: Callable[[], Any]) -> Any:
    """Return what can be read; what ffmpeg says of it otherwise, in its last words, becomes a ``UserError``."""
    try:
        return read()
    except (OSError, RuntimeError, IndexError, AttributeError) as error:  # the last two: a header without a picture
        said = [line.strip() for line in str(error).splitlines() if line.strip()]
        if "does not contain any stream" in str(error):
            said = ["it has no frame"]
        what = f"camera {source}" if isinstance(source, int) else f"video {source}"
        raise UserError(f"{what} cannot be read ({said[-1] if said else error}); replace it or leave it out") from error


@contextmanager
def write_frames(out: Path, frames: Frames) -> Iterator[Callable[[NDArray[np.uint8]], None]]:
    """Yield what takes (H, W, 3) frames of an MP4 of the same size and rate, in H.264, without sound.

    A size that is not even keeps all of its colour (yuv444p), which not every player shows; others are yuv420p.

    Raises:
        UserError: it cannot be written.
    """
    even = frames.width % 2 == frames.height % 2 == 0
    writer = import_ffmpeg().write_frames(
        f"file:{out}",
        (frames.width, frames.height),
        fps=frames.rate,
        pix_fmt_out="yuv420p" if even else "yuv444p",
        quality=_QUALITY,
        macro_block_size=1,
        ffmpeg_log_level="quiet",
        output_params=["-f", "mp4"],
    )
    broken = UserError(f"ffmpeg could not write the overlaid video into {out.parent}; is its disk full?")

    def write(frame: NDArray[np.uint8]) -> None:
        try:
            writer.send(np.ascontiguousarray(frame))
        except (OSError, StopIteration) as error:
            raise broken from error

    writer.send(None)
    try:
        yield write
    finally:
        writer.close()
    try:  # ffmpeg's index of the frames comes last; without it the file is worth nothing
        reader = import_ffmpeg().read_frames(f"file:{out}")
        next(reader)
        reader.close()
    except (OSError, RuntimeError, IndexError, AttributeError) as error:
        raise broken from error


def _find_rate(printed: float) -> Fraction:
    """Return the rate that ffmpeg has printed with two digits."""
    exact = min(_NTSC_RATES, key=lambda rate: abs(rate - printed))
    return exact if abs(exact - printed) < 0.006 and printed != round(printed) else Fraction(str(printed))

"""`pipeline predict`: label maps, overlays and more of images, videos and cameras."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.options import GivenPath, choose_margin, device_option, format_option, overwrite_option, tile_options

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from pipeline.experiment.models import Model
    from pipeline.session import Result, Session
    from stages.comparison.sliders import Slide
    from stages.evaluation.predict import Prediction, Predictions

_FRAMES_SHOWN = 6
"""Of each video on the page, at most twice as many while it is read."""


@click.command()
@click.argument("model", metavar="RUN|EXPORT|FILE")
@click.argument("paths", metavar="PATH…", nargs=-1, required=True, type=GivenPath())
@click.option("--out", required=True, type=GivenPath(), help="Folder for what is found.")
@click.option("--html", type=GivenPath(), help="Also write a page with a slider over each image, photo and classes.")
@click.option("--probabilities", is_flag=True, help="Also write those of all classes: uint8 (C, H, W) in an .npz.")
@click.option("--depth", is_flag=True, help="Also write what the depth branch of a run says, as 16-bit PNGs.")
@click.option(
    "--tta", metavar="flip,scales", help="Take the mean over views: mirrored; at 0.75, 1 and 1.25 of the size."
)
@overwrite_option
@format_option
@tile_options
@device_option
@click.pass_obj
def predict(session: Session, model: str, paths: Sequence[Path], out: Path, device: str, **options: Any) -> None:
    """Write label maps, overlays and class shares of images, and overlaid videos.

    PATH is an image, a folder of images, a pattern in quotes, a video, or the number of a camera, which Ctrl-C ends.
    """
    from pipeline.experiment.devices import choose_device

    session.show(predict_paths(session, model, paths, out, choose_device(device), **options))


def predict_paths(
    session: Session,
    reference: str,
    paths: Sequence[Path],
    out: Path,
    device: torch.device,
    *,
    format_name: str | None = None,
    tile: int | None = None,
    margin: int | None = None,
    tta: str | None = None,
    probabilities: bool = False,
    depth: bool = False,
    html: Path | None = None,
    overwrite: bool = False,
) -> Result:
    """Write what a model finds in images, videos and cameras.

    Returns:
        ``files``, ``failed`` [{``image``, ``reason``}], ``model``, ``notes``, ``page``, ``images``, ``frames``,
        ``seconds``, ``images_per_second``.

    Raises:
        UserError: something else lies where a result belongs, a camera is absent, or the model has no depth to show.
    """
    from data_cache.outputs import Inputs, check_page, open_output
    from pipeline.experiment.models import build_segmenter, open_model
    from pipeline.session import Result
    from stages.evaluation.film import name_videos, predict_videos
    from stages.evaluation.frames import check_sources
    from stages.evaluation.predict import check_legend, predict_files, write_records
    from stages.evaluation.sources import find_sources
    from stages.evaluation.views import choose_views

    margin, views = choose_margin(tile, margin), choose_views(tta)
    session.workspace.check_output(out, "--out")
    if html is not None:
        session.workspace.check_output(html, "--html")
        check_page(html, overwrite=overwrite, option="--html", example="predictions.html")
    sources = find_sources(paths)
    check_sources(sources.videos, sources.cameras)
    model = open_model(session, reference, device, format_name)
    check_legend(out, model.class_names)
    meaning = describe_depth(model) if depth else ""
    segmenter = build_segmenter(model, tile=tile, margin=margin, views=views, depth=depth, probabilities=probabilities)
    names, palette = model.class_names, model.palette
    slides = Slides(model) if html is not None else None
    progress = Progress(session, slides)
    inputs = Inputs([*sources.images, *sources.videos])
    with open_output(out, inputs, overwrite=overwrite, on_wait=session.console.info) as output, progress:
        if sources.images:
            progress.begin("images", len(sources.images))
        found = predict_files(
            segmenter, sources.images, output, class_names=names, palette=palette, depth_meaning=meaning,
            on_image=progress.show_image,
        )  # fmt: skip
        plain = dataclasses.replace(segmenter, depth=False, probabilities=False)
        with heeding_interrupts(sources.cameras) as was_asked:
            videos = predict_videos(
                plain, name_videos(sources.videos, sources.cameras), output, found, class_names=names,
                palette=palette, on_video=progress.begin,
                on_frame=lambda *frame: progress.show_frame(*frame) or was_asked(),
            )  # fmt: skip
        if videos and (depth or probabilities):
            found.notes.append("of videos the overlay and the class shares are written, no depth and no probabilities")
        records = write_records(found, output, model=str(model.folder), class_names=names, videos=videos)
    found.files.append(records)
    if slides is not None and html is not None:
        slides.write(html, found, overwrite=overwrite, on_wait=session.console.info)
        found.files.append(html)
    frames = sum(video["frames"] for video in videos)
    facts = {
        "files": list(map(str, found.files)),
        "failed": [failure._asdict() for failure in found.failed],
        "model": str(model.folder),
        "notes": found.notes,
        "page": str(html) if html else None,
        "images": len(found.records),
        "frames": frames,
        "seconds": round(progress.seconds, 3),
        "images_per_second": round((len(found.records) + frames) / max(progress.seconds, 1e-9), 3),
    }
    return Result(facts, _describe(facts, out), failed=bool(found.failed))


def describe_depth(model: Model) -> str:
    """Return what the numbers of a run's depth branch are, in words.

    Raises:
        UserError: there is no depth branch, or it has learnt nothing.
    """
    from data_cache.errors import UserError
    from stages.evaluation.predict import DEPTH_MEANINGS

    if not model.has_depth:
        raise UserError(f"--depth: {model.folder} has no depth branch, as no export has; name the run it was made from")
    if not model.config.build_schedule().needs_depth:
        raise UserError(
            f"--depth: {model.folder} was trained by a schedule in which the depth branch learns nothing; "
            "name a run of another one, for example depth-first"
        )
    source = model.config.depth.source
    return DEPTH_MEANINGS[model.config.depth.target] + (f", learnt from {source}" if source != "teacher" else "")


class Progress(contextlib.ExitStack):
    """Shows how far one thing after another has come, and hands on what a page will show."""

    def __init__(self, session: Session, slides: Slides | None) -> None:
        super().__init__()
        self.seconds = 0.0
        """Since the first thing began, up to the last that was done."""
        self._console, self._slides = session.console, slides
        self._began_at: float | None = None

    def begin(self, what: str, total: int) -> None:
        """Begin something of so many images or frames, 0 where nobody knows."""
        self.close()
        self._advance = self.enter_context(self._console.progress(f"predicting {what}", total))
        self._done, self._started_at = 0, time.perf_counter()
        self._began_at = self._began_at or self._started_at

    def show_image(self, file: Path, pixels: NDArray[np.uint8] | None, found: Prediction | None) -> None:
        """Count an image."""
        self._count()
        if self._slides is not None and pixels is not None and found is not None:
            self._slides.add_image(str(file), pixels, found.labels)

    def show_frame(self, name: str, number: int, pixels: NDArray[np.uint8], labels: NDArray[np.uint8]) -> bool:
        """Count a frame, after which the video goes on."""
        self._count()
        if self._slides is not None:
            self._slides.add_frame(name, number, pixels, labels)
        return False

    def _count(self) -> None:
        self._done += 1
        now = time.perf_counter()
        self.seconds = now - (self._began_at or now)
        self._advance(self._done, f"{self._done / max(now - self._started_at, 1e-9):.1f} images/s")


class Slides:
    """Pictures for a page, drawn while the images are in memory."""

    def __init__(self, model: Model) -> None:
        from stages.evaluation.colour import lift_dark

        self._model = model
        self._colours = dict(zip(model.class_names, lift_dark(model.palette), strict=True))
        self._images: list[Slide] = []
        self._of_videos: dict[str, dict[int, Slide]] = {}
        self._left_out = 0

    def add_image(self, name: str, pixels: NDArray[np.uint8], labels: NDArray[np.uint8]) -> None:
        """Keep one image, as long as a page has room."""
        from stages.comparison.sliders import LARGEST_PAGE

        if len(self._images) < LARGEST_PAGE:
            about = f"{pixels.shape[1]} × {pixels.shape[0]} px"
            self._images.append(self._draw(Path(name).name, about, pixels, labels))
        else:
            self._left_out += 1

    def add_frame(self, name: str, number: int, pixels: NDArray[np.uint8], labels: NDArray[np.uint8]) -> None:
        """Keep a frame where it is one of a few, evenly spread over what was seen of the video so far."""
        kept = self._of_videos.setdefault(name, {})
        step = 1
        while number >= step * 2 * _FRAMES_SHOWN:
            step *= 2
        if number % step == 0:
            for other in [other for other in kept if other % step]:
                del kept[other]
            kept[number] = self._draw(name, f"frame {number}", pixels, labels)

    def write(self, out: Path, found: Predictions, *, overwrite: bool, on_wait: Callable[[str], None]) -> None:
        """Write the page."""
        from data_cache.outputs import write_page
        from stages.comparison.sliders import LARGEST_PAGE, build_sliders

        frames = [slide for kept in self._of_videos.values() for slide in kept.values()]
        notes = [*found.notes]
        if self._left_out:
            notes.append(f"the page shows the first {LARGEST_PAGE} images; {self._left_out} more are in the folder")
        page = build_sliders(
            [*self._images, *frames],
            title=f"What {self._model.folder.name} sees",
            facts=f"Shares of the pixels on average over what is shown here; model {self._model.folder}.",
            colours=self._colours,
            failures=[failure.reason for failure in found.failed],
            notes=notes,
        )
        write_page(page, out, overwrite=overwrite, on_wait=on_wait)

    def _draw(self, name: str, about: str, pixels: NDArray[np.uint8], labels: NDArray[np.uint8]) -> Slide:
        from stages.comparison.sliders import Slide
        from stages.evaluation.panels import draw_slide
        from stages.evaluation.predict import count_shares

        names = self._model.class_names
        shares = dict(zip(names, count_shares(labels, len(names)), strict=True))
        return Slide(name, about, *draw_slide(pixels, labels, self._model.palette), shares)


@contextlib.contextmanager
def heeding_interrupts(cameras: Sequence[int]) -> Iterator[Callable[[], bool]]:
    """Yield whether Ctrl-C was pressed: nothing else ends a camera, and what it has shown is to be kept."""
    if not cameras:
        yield lambda: False
        return
    asked: list[int] = []

    def ask(number: int, _frame: object) -> None:
        asked.append(number)
        signal.signal(signal.SIGINT, former)  # the second time is meant otherwise

    former = signal.signal(signal.SIGINT, ask)
    try:
        yield lambda: bool(asked)
    finally:
        signal.signal(signal.SIGINT, former)


def _describe(facts: dict[str, Any], out: Path) -> str:
    from pipeline.console import count

    lines = [*facts["files"], *(f"note: {note}" for note in facts["notes"])]
    lines += [f"not predicted: {failure['reason']}" for failure in facts["failed"]]
    counts = count(facts["images"], "image") + (f" and {count(facts['frames'], 'frame')}" if facts["frames"] else "")
    lines.append(f"{counts} in {facts['seconds']:.1f} s, {facts['images_per_second']:.1f} images/s")
    if facts["failed"]:
        lines.append(f"{len(facts['failed'])} could not be predicted; the others are in {out}")
    return "\n".join(lines)

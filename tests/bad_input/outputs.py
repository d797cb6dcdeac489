"""Results that would take the place of something else, or lie among what is read."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import imageio_ffmpeg
from PIL import Image

from data_cache.outputs import SEAL, Inputs, OutputFolder, write_page
from stages.evaluation.predict import Predictions, write_records
from tests.bad_input.world import Answer, Case, World

Prepare = Callable[[World], Sequence[str | Path]]


def _report(name: str, *words: str) -> Prepare:
    return lambda world: ["report", "--out", world.root / name, *words]


def _report_on(make: Callable[[Path, World], object], *words: str) -> Prepare:
    """Return a report to a place where something was made before."""

    def prepare(world: World) -> Sequence[str | Path]:
        out = world.user / "page.html"
        make(out, world)
        return ["report", "--out", out, *words]

    return prepare


def _edit_page(out: Path, _world: World) -> None:
    write_page(f"<head>{SEAL}</head>mine", out, overwrite=False)
    out.write_bytes(out.read_bytes() + b"my remarks")


def _predict_onto(make: Callable[[Path, World], object], *words: str) -> Prepare:
    """Return a prediction of photo.png where something lies in place of its label map."""

    def prepare(world: World) -> Sequence[str | Path]:
        labels = world.user / "out" / "labels" / "photo.png"
        labels.parent.mkdir(parents=True)
        make(labels, world)
        return ["predict", world.export, world.user / "photo.png", "--out", world.user / "out", *words]

    return prepare


_WRITTEN = (
    "out/.written.jsonl",
    "out/classes.csv",
    "out/labels/photo.png",
    "out/overlays/photo.png",
    "out/predictions.json",
)


def _copy_mask(labels: Path, world: World) -> None:
    shutil.copy(world.mask("val"), labels)


def _correct_by_hand(labels: Path, world: World) -> None:
    output = OutputFolder(labels.parent.parent, Inputs())
    with output.write(labels) as temporary:
        shutil.copy(world.mask("val"), temporary)
    shutil.copy(world.mask("val", 1), labels)


def _predict_beside_other_classes(world: World) -> Sequence[str | Path]:
    output = OutputFolder(world.root / "out", Inputs())
    write_records(Predictions([], [], [], []), output, model="runs/other", class_names=("sea", "land"))
    return ["predict", world.export, world.user / "photo.png", "--out", output.folder, "--overwrite"]


def _predict_beside_inputs(world: World) -> Sequence[str | Path]:
    folder = world.user / "mine" / "labels"
    folder.mkdir(parents=True)
    shutil.copy(world.user / "photo.png", folder / "photo.jpg")
    return ["predict", world.export, folder, "--out", folder.parent, "--overwrite"]


def _predict_all(world: World, names: Sequence[str]) -> Sequence[str | Path]:
    for name in names:
        (world.user / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(world.user / "photo.png", world.user / "in" / name)
    return ["predict", world.export, *sorted((world.user / "in").iterdir()), "--out", world.root / "out"]


def _predict_mixed(world: World) -> Sequence[str | Path]:
    _predict_all(world, ("fine.png", "café\udcff.png"))
    (world.user / "in" / "loop.png").symlink_to("loop.png")
    (world.user / "in" / "folder.png").mkdir()
    (world.user / "in" / "broken.png").write_text("no image")
    return ["predict", world.export, world.user / "in", "n" * 300, "--out", world.root / "out"]


def _count_labels(expected: int) -> Callable[[World, Answer], None]:
    def check(world: World, answer: Answer) -> None:
        assert len(list((world.root / "out" / "labels").glob("[!.]*.png"))) == expected
        assert len(answer.json["files"]) == 2 * expected + 2

    return check


def _predict_to(out: str | Callable[[World], str | Path], *words: str) -> Prepare:
    return lambda world: [
        "predict", world.export, world.user / "photo.png", "--out", out if isinstance(out, str) else out(world), *words
    ]  # fmt: skip


def _evaluate(name: str, *words: str) -> Prepare:
    def prepare(world: World) -> Sequence[str | Path]:
        (world.user / "link").symlink_to(world.mask("val").parent)
        shutil.copytree(world.mask("val").parent, world.user / "mine")
        words_on_data = ["evaluate", world.export, "--data-root", world.data, "--split", "val"]
        return [*words_on_data, "--save-predictions", world.root / name, *words]

    return prepare


def _cache_export(world: World) -> Sequence[str | Path]:
    place = world.user / "maps" / "folder" / world.store("train").name
    place.mkdir(parents=True)
    (place / "scales.csv").write_text("mine")
    return ["cache", "export", world.store("train"), "--out", world.user / "maps"]


def _export(prepare: Callable[[World], str | Path], *words: str) -> Prepare:
    return lambda world: [
        "export", world.run_folder("seg-only").name, "--formats", "safetensors", "--no-benchmark", "--out",
        prepare(world), *words
    ]  # fmt: skip


def _put_beside(name: str) -> Callable[[World], Path]:
    """Return what puts a file of the user's, and a folder, into the export."""

    def prepare(world: World) -> Path:
        (world.export / name).write_text("mine")
        (world.export / "slides").mkdir()
        (world.export / "slides" / "a.txt").write_text("mine")
        return world.export

    return prepare


def _kept_beside(world: World, answer: Answer) -> None:
    assert (world.export / "remarks.txt").read_text() == (world.export / "slides" / "a.txt").read_text() == "mine"
    assert not (world.export / "model.onnx").exists() and "slides" not in str(answer.json["files"])
    assert not list(world.root.glob(".*")), "nothing is left over beside it"


def _link_to_export(world: World) -> Path:
    (world.root / "link").symlink_to(world.export)
    return world.root / "link"


def _stays_a_link(world: World, _answer: Answer) -> None:
    assert (world.root / "link").is_symlink() and not (world.export / "model.onnx").exists()


def _fetch_into_itself(world: World) -> Sequence[str | Path]:
    folder = world.user / "model"
    shutil.copytree(world.estimator, folder)
    (folder / "estimator.json").unlink(missing_ok=True)
    shutil.copy(world.user / "optimizer.pt", folder / "optimizer.pt")
    return ["fetch", folder, "--out", world.user, "--kind", "relative"]


def _endless_panels(world: World) -> Sequence[str | Path]:
    for panel in (world.run_folder() / "panels").glob("*.png"):
        panel.unlink()
        panel.symlink_to("/dev/zero")
    return ["report", "--out", world.root / "report.html"]


def _thin_image(world: World) -> Sequence[str | Path]:
    Image.new("RGB", (20_000, 1)).save(world.root / "thin.png")
    return ["predict", world.export, world.root / "thin.png", world.user / "photo.png", "--out", world.root / "out"]


def _nothing_is_written(world: World, _: Answer) -> None:
    assert not (world.root / "out").exists()


def _photo_is_labelled(world: World, _: Answer) -> None:
    assert (world.root / "out" / "labels" / "photo.png").is_file()


def _video_without_frames(world: World) -> Sequence[str | Path]:
    film = world.root / "film.mp4"
    make = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-f", "lavfi", "-i", "sine=duration=0.1", film]
    subprocess.run(make, check=True, stdin=subprocess.DEVNULL)
    return ["predict", world.export, film, world.user / "photo.png", "--out", world.root / "out"]


CASES = [
    Case(
        "a video without frames among others to predict",
        _video_without_frames,
        ("film.mp4", "it has no frame", "leave it out"),
        check=_photo_is_labelled,
    ),
    Case(
        "a camera that is absent",
        lambda world: ["predict", world.export, "97", "--out", world.root / "out"],
        ("no camera 97", "/dev/video97", "name a video"),
        check=_nothing_is_written,
    ),
    Case(
        "a pattern that fits no image",
        lambda world: ["predict", world.export, world.user / "*.jpg", "--out", world.root / "out"],
        ("no image or video fits the pattern", "*.jpg"),
        check=_nothing_is_written,
    ),
    Case(
        "files to predict of which none is there",
        lambda world: ["predict", world.export, world.user / "foto.png", "holiday/", "--out", world.root / "out"],
        ("foto.png is missing", "seen from", "check the name"),
        check=_nothing_is_written,
    ),
    Case(
        "depth of an export, which has no depth branch",
        _predict_to(lambda world: world.root / "out", "--depth"),
        ("--depth", "no depth branch", "name the run"),
        check=_nothing_is_written,
    ),
    Case(
        "depth of a run that learnt none",
        lambda world: [
            "predict",
            world.run_folder("seg-only").name,
            world.user / "photo.png",
            "--out",
            world.root / "out",
            "--depth",
        ],
        ("--depth", "learns nothing", "depth-first"),
        check=_nothing_is_written,
    ),
    Case(
        "--tta with a kind of view that there is not",
        _predict_to(lambda world: world.root / "out", "--tta", "flips"),
        ("--tta", "did you mean 'flip'", "scales"),
    ),
    Case(
        "predict --html a LaTeX file",
        lambda world: [
            "predict",
            world.export,
            world.user / "photo.png",
            "--out",
            world.root / "out",
            "--html",
            world.user / "thesis.tex",
        ],
        ("thesis.tex", "--overwrite"),
        check=_nothing_is_written,
    ),
    Case(
        "report of a run whose panels are links to an endless device",
        _endless_panels,
        ("report.html",),
        exit=0,
    ),
    Case(
        "an image of 20,000 x 1 px among others to predict",
        _thin_image,
        ("20000 x 1 px is too thin", "cut it"),
        check=_photo_is_labelled,
    ),
    Case("report --out a LaTeX file", _report("user/thesis.tex"), ("thesis.tex", "--overwrite")),
    Case("report --out an image", _report("user/photo.png"), ("photo.png", "--overwrite")),
    Case("report --out a folder", _report("user"), ("is a folder", "report.html")),
    Case("report --out below a file", _report("user/notes.txt/r.html"), ("notes.txt", "Not a directory")),
    Case(
        "report --out a link to a file, with --overwrite",
        _report_on(lambda out, world: out.symlink_to(world.user / "thesis.tex"), "--overwrite"),
        ("page.html", "a link"),
    ),
    Case("report --out a pipe, with --overwrite", _report_on(lambda out, _: os.mkfifo(out), "--overwrite"), ("pipe",)),
    Case("report --out a report that was edited since", _report_on(_edit_page), ("page.html", "changed since")),
    Case(
        "report --out an untouched report",
        _report_on(lambda out, _: write_page(f"<head>{SEAL}</head>", out, overwrite=False)),
        (),
        exit=0,
        changes=("user/page.html",),
    ),
    Case(
        "report --out among the runs, with --overwrite", _report("work/runs/r.html", "--overwrite"), ("program keeps",)
    ),
    Case("report --out a name of 300 characters", _report("n" * 300), ("too long",)),
    Case("--out that is empty", _predict_to(" "), ("--out", "empty")),
    Case("an image that is called nothing", lambda world: ["predict", world.export, "", "--out", "out"], ("is empty",)),
    Case("--out with a NUL character", _predict_to("out\0put"), ("--out", "NUL")),
    Case("predict --out a file", _predict_to(lambda world: world.user / "notes.txt"), ("notes.txt",)),
    Case("predict --out a name of 300 characters", _predict_to(lambda world: world.root / ("n" * 300)), ("too long",)),
    Case(
        "predict --out an endless link",
        _predict_to(lambda world: (world.root / "loop").symlink_to("loop") or world.root / "loop"),
        ("loop", "no folder"),
    ),
    Case("predict --out a name that is not UTF-8", _predict_to(lambda world: world.root / "o\udcff"), (), exit=0),
    Case("predict --out among the depth stores", _predict_to(lambda world: world.store()), ("program keeps",)),
    Case(
        "predict --out a folder with labels of other classes",
        _predict_beside_other_classes,
        ("out holds predictions of other classes", "runs/other", "another --out"),
    ),
    Case("a mask in place of a label map", _predict_onto(_copy_mask), ("photo.png", "--overwrite")),
    Case("a label map that was corrected by hand", _predict_onto(_correct_by_hand), ("photo.png", "changed since")),
    Case(
        "a mask in place of a label map, with --overwrite",
        _predict_onto(_copy_mask, "--overwrite"),
        (),
        exit=0,
        changes=tuple(f"user/{name}" for name in _WRITTEN),
    ),
    Case(
        "a hard link to the image in place of its label map, with --overwrite",
        _predict_onto(lambda labels, world: labels.hardlink_to(world.user / "photo.png"), "--overwrite"),
        ("photo.png", "is read"),
    ),
    Case(
        "a link in place of a label map, with --overwrite",
        _predict_onto(lambda labels, world: labels.symlink_to(world.user / "thesis.tex"), "--overwrite"),
        ("photo.png", "a link"),
    ),
    Case("predictions among the images, with --overwrite", _predict_beside_inputs, ("labels", "read from")),
    Case(
        "an endless link, a folder and a broken file among the images",
        _predict_mixed,
        ("loop.png", "folder.png", "broken.png"),
        check=_count_labels(2),
    ),
    Case(
        "images whose names differ in suffix only",
        lambda world: _predict_all(world, ("a.png", "a.bmp", "a-bmp-1.png")),
        (),
        exit=0,
        check=_count_labels(3),
    ),
    Case(
        "image names of 255 bytes",
        lambda world: _predict_all(world, (f"{'n' * 251}.png", "ä" * 127)),
        (),
        exit=0,
        check=_count_labels(2),
    ),
    Case("--save-predictions onto the masks", _evaluate("data/masks/val"), ("masks/val", "--save-predictions")),
    Case(
        "--save-predictions onto the images, with --overwrite",
        _evaluate("data/images/val", "--overwrite"),
        ("images/val",),
    ),
    Case("--save-predictions below other images", _evaluate("data/images/train/new"), ("images/train",)),
    Case(
        "--save-predictions through a link to the masks", _evaluate("user/link", "--overwrite"), ("link", "masks/val")
    ),
    Case("--save-predictions onto masks elsewhere", _evaluate("user/mine"), ("val0.png", "--overwrite")),
    Case(
        "cache preview --out among the images",
        lambda world: ["cache", *world.with_recipe("preview", "--out", world.image("train").parent)],
        ("images/train", "--out"),
    ),
    Case("cache export onto a foreign file", _cache_export, ("scales.csv", "--overwrite")),
    Case("export --out a file", _export(lambda world: world.user / "notes.txt"), ("notes.txt", "--out")),
    Case("export --out a folder of other files", _export(lambda world: world.user, "--overwrite"), ("no export",)),
    Case("export --out the work directory", _export(lambda world: world.work, "--overwrite"), ("no export",)),
    Case("export --out among the nodes", _export(lambda world: world.work / "nodes" / "x"), ("program keeps",)),
    Case("export --out the root of the disk", _export(lambda _: "/", "--overwrite"), ("mounted",)),
    Case("export --out another export", _export(lambda world: world.export), ("another export", "--overwrite")),
    Case(
        "export --overwrite where other files lie beside",
        _export(_put_beside("remarks.txt"), "--overwrite"),
        (),
        exit=0,
        check=_kept_beside,
    ),
    Case(
        "export --overwrite where a file of the user's has a name it needs",
        lambda world: [
            "export",
            "--formats",
            "safetensors,pt2",
            "--overwrite",
            "--out",
            _put_beside("model.pt2")(world),
        ],
        ("model.pt2", "move it away"),
    ),
    Case(
        "export --overwrite through a link to the folder",
        _export(_link_to_export, "--overwrite"),
        (),
        exit=0,
        check=_stays_a_link,
    ),
    Case("export --out a name of 255 bytes", _export(lambda world: world.root / ("n" * 255)), (), exit=0),
    Case(
        "teach --out a folder of other files",
        lambda world: world.with_recipe("teach", "--out", world.user),
        ("user", "not empty"),
    ),
]

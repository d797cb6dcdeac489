"""`pipeline select`: an order of images that needs no mask, through the command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from data_cache.settings import LabelledBy
from pipeline.console import Console
from pipeline.experiment import selecting, student
from pipeline.experiment.config import load_config
from pipeline.experiment.selecting import Selection, gather_places, order_training_images
from pipeline.session import Session
from pipeline.workspace import Workspace
from stages.pseudo_depth.estimators import DepthEstimator, load_estimator
from tests.bad_input.world import Answer

Call = Callable[..., Answer]
TINY = Path(__file__).parent / "tiny.toml"
BUNDLED = ("--recipe", TINY, "--estimator", "bundled")


def test_the_list_is_read_again_and_the_sheet_shows_it(call: Call, tmp_path: Path) -> None:
    first = call("select", *BUNDLED, "--budget", 4)
    assert first.status == 0 and "no depth on the sheet" in first.stderr
    found = first.json
    assert Path(found["out"]).read_text().split() == found["selected"] and len(set(found["selected"])) == 4
    assert (found["pool"], found["covered"], found["by"]) == (12, 0, "depth-features")
    assert [path.rpartition("#")[2] for path in found["paths"]] == [
        str(int(name.removeprefix("train-"))) for name in found["selected"]
    ]
    with Image.open(found["sheet"]) as sheet:
        assert sheet.width > 4 * 192 and np.asarray(sheet.convert("L")).std() > 20
    given = tmp_path / "given.txt"
    given.write_text("\n" + "\n".join(found["selected"][:2]) + "\n\n")
    more = call("select", *BUNDLED, "--budget", 5, "--given", given).json
    assert more["selected"][:2] == found["selected"][2:], "what is labelled counts as chosen"
    assert not set(more["selected"]) & set(found["selected"][:2]) and more["covered"] == 2


@pytest.mark.parametrize("by", ["depth-features", "depth-map", "random"])
def test_no_mask_is_opened(call: Call, write_images: Callable[[Path], Path], tmp_path: Path, by: LabelledBy) -> None:
    data = write_images(tmp_path / "data")
    words = ("--recipe", TINY, "--dataset", "folder", "--data-root", data, "--estimator", "bundled")
    assert call("pseudo-depth", *words, "--split", "train").status == 0
    before = call("select", *words, "--budget", 3, "--by", by).json
    for mask in (data / "masks" / "train").iterdir():
        mask.write_bytes(b"no image")
    after = call("--workdir", tmp_path / "work", "select", *words, "--budget", 3, "--by", by).json
    assert before == after
    assert before["paths"] == [str(data / "images" / "train" / f"{name}.png") for name in before["selected"]]


def test_images_without_masks_are_chosen_from_and_those_with_masks_are_covered(
    call: Call, write_images: Callable[[Path], Path], tmp_path: Path
) -> None:
    data = write_images(tmp_path / "data")
    (data / "images" / "unlabelled").mkdir()
    for number in (1, 4, 5):
        (data / "images" / "train" / f"{number}.png").rename(data / "images" / "unlabelled" / f"x{number}.png")
        (data / "masks" / "train" / f"{number}.png").unlink()
    (data / "masks" / "train" / "2.png").unlink()
    words = ("--recipe", TINY, "--dataset", "folder", "--data-root", data, "--estimator", "bundled")
    found = call("select", *words, "--budget", 4).json
    assert sorted(found["selected"]) == ["2", "x1", "x4", "x5"] and (found["pool"], found["covered"]) == (4, 2)
    folders = {name: "unlabelled" if name.startswith("x") else "train" for name in found["selected"]}
    assert found["paths"] == [str(data / "images" / folder / f"{name}.png") for name, folder in folders.items()]
    found = call("select", *words, "--budget", 1, "--unlabelled", "ignore").json
    assert found["selected"] == ["2"] and (found["pool"], found["covered"]) == (1, 2)


def test_a_seed_decides_what_is_drawn_and_nothing_else(call: Call) -> None:
    def order(by: str, seed: int) -> list[str]:
        return call("select", *BUNDLED, "--budget", 6, "--by", by, "--seed", seed).json["selected"]

    assert order("random", 0) != order("random", 1)
    assert order("random", 1) == order("random", 1)
    assert order("depth-features", 0) == order("depth-features", 1)


@pytest.fixture
def write_images() -> Callable[[Path], Path]:
    """Write a ``folder`` dataset of six images that differ."""

    def write(root: Path) -> Path:
        rng = np.random.default_rng(0)
        for kind in ("images", "masks"):
            (root / kind / "train").mkdir(parents=True)
        (root / "classes.txt").write_text("a\nb\n")
        for number in range(6):
            pixels = np.repeat(np.repeat(rng.integers(0, 255, (4, 4, 3), np.uint8), 16, 0), 16, 1)
            Image.fromarray(pixels).save(root / "images" / "train" / f"{number}.png")
            Image.fromarray(np.zeros((64, 64), np.uint8)).save(root / "masks" / "train" / f"{number}.png")
        return root

    return write


def ask(work: Path, **options: Any) -> Selection:
    """Return the images of the tiny recipe's training split, to be ordered."""
    config = load_config(str(TINY), {"depth.estimator": "bundled"})
    session = Session(Workspace(work), Console(quiet=True))
    images = gather_places(selecting.find_parts(config, session.workspace))
    return Selection(config, session, images, **options)


def test_features_are_the_mean_of_the_encoders_last_state(tmp_path: Path) -> None:
    teacher: DepthEstimator = load_estimator("bundled", precision="float32")
    image = teacher.prepare(np.random.default_rng(0).integers(0, 255, (60, 80, 3), np.uint8))[None]
    states = []
    backbone = teacher._network.backbone
    with torch.inference_mode():
        handle = backbone.register_forward_hook(lambda _module, _inputs, output: states.append(output.feature_maps[-1]))
        teacher.predict(image)
        handle.remove()
    np.testing.assert_allclose(teacher.encode(image), states[0].mean(1), atol=1e-6)


def test_known_features_are_not_computed_again_and_damaged_ones_are(tmp_path: Path, monkeypatch) -> None:
    asked = ask(tmp_path)
    first = selecting.find_features(asked)
    calls = []
    compute = selecting._encode
    monkeypatch.setattr(selecting, "_encode", lambda *args: (calls.append(len(args[1])), compute(*args)))
    np.testing.assert_array_equal(selecting.find_features(asked), first)
    assert calls == []
    (file,) = (tmp_path / "features").iterdir()
    file.write_bytes(file.read_bytes()[:-100])
    np.testing.assert_allclose(selecting.find_features(asked), first, atol=1e-3)
    assert calls == [12]


@pytest.mark.slow
def test_difficult_is_what_a_student_of_the_others_cannot_tell(tmp_path: Path, monkeypatch, call: Call) -> None:
    assert call("--workdir", tmp_path, "pseudo-depth", *BUNDLED, "--split", "train").status == 0
    monkeypatch.setattr(selecting, "FIRST_ROUND", 3)
    monkeypatch.setattr(student, "STEPS", 3)
    monkeypatch.setattr(student, "SIZE", (64, 64))
    asked = ask(tmp_path, covered=frozenset({2, 5}))
    order = asked.order("difficulty", 8)
    rows = [asked.images.index(place) for place in order]
    assert len(set(rows)) == 8 and not {2, 5} & set(rows)
    assert asked.order("difficulty", 5) == order[:5], "rounds end at the same numbers whatever the budget"
    assert order[:1] == asked.order("depth-features", 1), "below a first round there is no student"


def test_the_error_of_a_student_is_that_of_its_depth(tmp_path: Path, monkeypatch, call: Call) -> None:
    assert call("--workdir", tmp_path, "pseudo-depth", *BUNDLED, "--split", "train").status == 0
    asked, built = ask(tmp_path), []
    store = selecting.find_stores(asked)["train"]
    build = student.build_network
    monkeypatch.setattr(
        student, "build_network", lambda *args, **options: built.append(build(*args, **options)) or built[0]
    )
    monkeypatch.setattr(student, "STEPS", 2)
    lessons = [student.Lesson(place.dataset, store, place.at) for place in asked.images]
    errors = student.measure_errors(lessons, [0, 1], asked.session, "cpu")
    assert (errors[:2] == 0).all() and (errors[2:] > 0).all()
    image, target = student._read(lessons[5])
    mean, std = (torch.tensor(values)[:, None, None] for values in built[0].normalisation)
    with torch.inference_mode():
        found = built[0].eval()(((image / 255 - mean) / std)[None]).depth[0].clamp(min=0).numpy()
    valid, wanted = np.isfinite(target.numpy()), target.float().numpy()
    expected = np.abs(np.log1p(found[valid]) - np.log1p(wanted[valid])).mean()
    assert errors[5] == pytest.approx(expected, rel=0.05), "in bfloat16 where the machine has it"


def test_every_row_and_seed_of_a_table_has_the_same_order(tmp_path: Path, monkeypatch) -> None:
    asked = ask(tmp_path)
    configs = [asked.config.changed({"data.labelled_by": "depth-features", "seed": seed}) for seed in (0, 1)]
    first = order_training_images(configs[0], asked.session, 6)
    monkeypatch.setattr(selecting, "ORDERS", {})
    assert order_training_images(configs[1], asked.session, 4) == first[:4], "asked once, kept in the work directory"


def test_a_choice_that_leaves_a_class_without_a_mask_is_refused(
    call: Call, write_images: Callable[[Path], Path], tmp_path: Path
) -> None:
    data = write_images(tmp_path / "data")
    words = ("--recipe", TINY, "--dataset", "folder", "--data-root", data, "--estimator", "bundled")
    order = call("select", *words, "--budget", 6).json["selected"]
    mask = np.zeros((64, 64), np.uint8)
    mask[:32] = 1
    Image.fromarray(mask).save(data / "masks" / "train" / f"{order[4]}.png")
    plan = ("plan", *words, "--schedule", "seg-only", "--set", "evaluation.split=train",
            "--set", "data.labelled_by=depth-features", "--labelled-fraction")  # fmt: skip
    answer = call(*plan, "2/3")
    assert answer.status == 2 and "keeps 4 of 6 masks, none of which shows b" in answer.stderr
    assert call(*plan, "5/6").status == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--budget", "13"), "13 images are asked for, but 12"),
        (("--budget", "3", "--estimator", "dataset"), "depth-features are those of an estimator"),
        (("--budget", "3", "--by", "depth-map"), "pipeline pseudo-depth"),
    ],
)
def test_what_cannot_be_chosen_is_said_in_one_message(call: Call, words: tuple[str, ...], said: str) -> None:
    answer = call("select", *BUNDLED, *words)
    assert answer.status == 2 and said in answer.stderr and "Traceback" not in answer.stderr

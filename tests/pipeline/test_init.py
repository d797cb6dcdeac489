"""What `pipeline init` sees in folders of somebody's files."""

from __future__ import annotations

import tomllib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data_cache.datasets.folder import Folder
from data_cache.errors import UserError
from data_cache.own_files.splitting import divide
from pipeline.experiment.config import RunConfig
from pipeline.experiment.reading import count_steps
from pipeline.experiment.sizing import Machine, choose_sizes
from tests.bad_input.world import Answer

Call = Callable[..., Answer]
SIDE = 64


def draw(seed: int, num_classes: int = 2) -> tuple[Image.Image, np.ndarray]:
    """Return a photo of bright squares on a ground of its own, and their labels (SIDE, SIDE)."""
    rng = np.random.default_rng(seed)
    ground = Image.fromarray(rng.integers(0, 120, (7, 7), np.uint8)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    labels = np.zeros((SIDE, SIDE), np.uint8)
    for label in range(1, num_classes):
        top, left = rng.integers(0, SIDE // 2, 2)
        labels[top : top + SIDE // 3, left : left + SIDE // 3] = label
    pixels = np.asarray(ground)[..., None] + 90 * (labels[..., None] > 0) + rng.integers(0, 20, (SIDE, SIDE, 3))
    return Image.fromarray(pixels.astype(np.uint8)), labels


def save(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def write_pairs(root: Path, image: str, mask: str, number: int = 10, classes: int = 3, first: int = 0) -> None:
    """Write photos and masks of ids under patterns with ``{n}``."""
    for n in range(number):
        photo, labels = draw(n + 100 * number, classes)
        save(photo, root / image.format(n=f"{n:02d}"))
        save(Image.fromarray(labels + np.uint8(first)), root / mask.format(n=f"{n:02d}"))


def beside_each_other(root: Path) -> None:
    write_pairs(root, "{n}.png", "{n}_mask.png")
    save(draw(99)[0], root / "99.png")


def by_suffix_in_train(root: Path) -> None:
    write_pairs(root, "train/{n}.jpg", "train/{n}.png", first=1)
    (root / "classes.txt").write_text("ground\nbox\nbin\n")


def in_train_and_valid(root: Path) -> None:
    for split, number in (("train", 6), ("valid", 3)):
        for n in range(number):
            photo, labels = draw(n + 50 * number, 3)
            save(photo, root / split / "images" / f"{n}.jpg")
            colours = np.array([(0, 0, 0), (200, 30, 30), (30, 200, 30)], np.uint8)
            save(Image.fromarray(colours[labels]), root / split / "labels" / f"{n}_L.png")
    (root / "class_dict.csv").write_text("name,r,g,b\nvoid,0,0,0\nbox,200,30,30\nbin,30,200,30\n")


def in_one_folder_of_masks(root: Path) -> None:
    for n in range(9):
        photo, labels = draw(n, 3)
        save(photo, root / "images" / ("train" if n < 6 else "val") / f"frame_{n}.jpg")
        labels[0] = 17
        save(Image.fromarray(labels), root / "annotations" / f"mask_{n}.png")


def with_own_depth(root: Path) -> None:
    for split, number in (("train", 4), ("val", 2)):
        write_pairs(root, f"images/{split}/{{n}}.jpg", f"masks/{split}/{{n}}.png", number)
        for n in range(number):
            depth = np.linspace(9, 1, SIDE, dtype=np.float32)[:, None] * np.ones((1, SIDE), np.float32)
            (root / "depth" / split).mkdir(parents=True, exist_ok=True)
            np.save(root / "depth" / split / f"{n:02d}.npy", depth)


@pytest.mark.parametrize(
    ("make", "options", "images"),
    [
        (
            beside_each_other,
            {"images": "{name}", "masks": "{name}_mask", "classes": ["background", "class 1", "class 2"]},
            {"train": 8, "val": 2, "unlabelled": 1},
        ),
        (
            by_suffix_in_train,
            {"images": "{split}/{name}", "masks": "{split}/{name}.png", "classes": ["ground", "box", "bin"],
             "first_id": 1, "split_names": {"train": "train", "val": "train"}},
            {"train": 8, "val": 2},
        ),
        (
            in_train_and_valid,
            {"images": "{split}/images/{name}", "masks": "{split}/labels/{name}_L",
             "classes": ["box 200 30 30", "bin 30 200 30"], "split_names": {"train": "train", "val": "valid"}},
            {"train": 6, "val": 3},
        ),
        (
            in_one_folder_of_masks,
            {"images": "images/{split}/frame_{name}", "masks": "annotations/mask_{name}",
             "classes": ["background", "class 1", "class 2", "class 17"], "ids": [0, 1, 2, 17]},
            {"train": 6, "val": 3},
        ),
        (
            with_own_depth,
            {"classes": ["background", "class 1", "class 2"], "depth_kind": "metric"},
            {"train": 4, "val": 2},
        ),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)  # fmt: skip
def test_layouts_that_people_have(
    call: Call, tmp_path: Path, make: Callable[[Path], None], options: dict[str, Any], images: dict[str, int]
) -> None:
    root, recipe = tmp_path / "mine", tmp_path / "mine.toml"
    make(root)
    found = call("init", root, "--out", recipe).json
    assert {"recipe", "found", "decided", "commands"} <= found.keys() and found["problems"] == []
    assert (found["found"]["options"], found["found"]["images"]) == (options, images)
    said = tomllib.loads(recipe.read_text())
    assert said["data"]["options"].items() >= options.items() and said["loss"]["class_weights"] == "median-frequency"
    assert said["depth"]["estimator"] == ("dataset" if "depth_kind" in options else "bundled")
    examined = call("datasets", "--recipe", recipe)
    assert (examined.status, examined.json["problems"]) == (0, [])
    assert {split: count for split, count in examined.json["images"].items() if count} == images
    assert call("init", root, "--out", recipe).json == found  # its own file, which nobody has changed
    again = recipe.read_text()
    recipe.write_text(again.replace("flip = 0.5", "flip = 0.0"))
    refused = call("init", root, "--out", recipe)
    assert refused.status == 2 and "--overwrite" in refused.stderr and "flip = 0.0" in recipe.read_text()
    assert call("init", root, "--out", recipe, "--overwrite").status == 0 and recipe.read_text() == again


def test_exported_depth_is_own_depth_without_a_further_key(call: Call, tmp_path: Path) -> None:
    root, recipe = tmp_path / "mine", tmp_path / "mine.toml"
    with_own_depth(root)
    call("init", root, "--out", recipe)
    (source,) = (Path(each) for each in call("pseudo-depth", "--recipe", recipe, "--split", "train").json["stores"])
    maps = {}
    for form, suffix in (("npy", ".npy"), ("png16", ".png")):
        call("cache", "export", source, "--out", tmp_path / form, "--form", form)
        folder = tmp_path / form / "folder" / source.name
        assert len(list(folder.glob(f"*{suffix}"))) == 4
        dataset = Folder(root, "train", classes=("a", "b", "c"), depth=f"{folder}/{{name}}")
        assert dataset.ground_truth_depth_kind == "metric"
        maps[form] = np.stack([dataset.read_depth(index) for index in range(len(dataset))])
    truth = np.stack([np.load(path) for path in sorted((root / "depth" / "train").iterdir())])
    np.testing.assert_allclose(maps["npy"], truth, rtol=1e-3)  # stored as float16
    np.testing.assert_allclose(maps["png16"], maps["npy"], atol=np.ptp(truth) / 65534)
    with pytest.raises(UserError, match=r"depth_kind is 'relative', but .* says that the maps are metric"):
        Folder(root, "train", classes=("a", "b", "c"), depth=f"{folder}/{{name}}", depth_kind="relative")


def test_a_failed_labelling_leaves_nothing_in_the_way(call: Call, tmp_path: Path) -> None:
    root, recipe = tmp_path / "mine", tmp_path / "mine.toml"
    with_own_depth(root)
    call("init", root, "--out", recipe)
    for path in (root / "images" / "train").iterdir():
        path.rename(path.with_suffix(".kept"))
        path.write_bytes(b"no image")
    words = ("pseudo-depth", "--recipe", recipe, "--split", "train")
    assert call(*words).status == 2
    assert not list((tmp_path / "work" / "depth").glob("folder/*"))
    for path in (root / "images" / "train").glob("*.jpg"):
        path.with_suffix(".kept").rename(path)
    refused = call("cache", "preview")
    assert refused.status == 2 and "there are none; make them with" in refused.json["error"]
    assert not (tmp_path / "work" / "scenes").exists()
    labelled = call(*words).json
    assert (labelled["labelled"], labelled["failed"]) == (4, [])
    assert "there are stores of: folder; name the recipe" in call("cache", "preview").json["error"]
    tested = call("run", "--recipe", recipe, "--set", "evaluation.split=test")
    assert tested.status == 2 and "'test'; known: train, val" in tested.json["error"]


def test_a_division_keeps_classes_in_train_and_equal_images_on_one_side() -> None:
    rng = np.random.default_rng(0)
    hashes = {f"{n:02d}": rng.random(256) < 0.4 for n in range(20)}
    hashes |= {f"{n:02d}b": hashes[f"{n:02d}"] for n in range(5)}
    rare = {"03": frozenset({0, 9}), "07": frozenset({0, 8}), "08": frozenset({0, 8}), "11": frozenset({0, 8})}
    classes = {name: rare.get(name, frozenset({0})) for name in hashes}
    division = divide(hashes, classes)
    assert divide(dict(reversed(hashes.items())), classes) == division
    assert sorted(division.train + division.val) == sorted(hashes) and not division.left_out
    assert all((f"{n:02d}" in division.val) == (f"{n:02d}b" in division.val) for n in range(5))
    assert "03" in division.train and 3 <= len(division.val) <= 8
    shown = Counter(name in division.val for name in ("07", "08", "11"))
    assert shown[True] >= 1 and shown[False] >= 1
    film = {f"{n:02d}": hashes["00"] ^ (np.arange(256) < 10 * n) for n in range(20)}  # each frame like the last few
    cut = divide(film, {})
    assert cut.val == tuple(f"{n:02d}" for n in range(16, 20)) and cut.left_out and cut.left_out[-1] == "15"
    assert sorted(cut.train + cut.left_out) == [f"{n:02d}" for n in range(16)]


@pytest.mark.parametrize(
    ("sizes", "machine", "whole"),
    [
        ({(360, 480): 9}, Machine("2 CPU cores", None), True),
        ({(3000, 4000): 9}, Machine("2 CPU cores", None), False),
        ({(3000, 4000): 5, (4000, 3000): 4}, Machine("a GPU", 24_000_000_000), False),
        ({(64, 64): 9}, Machine("a GPU", 8_000_000_000), True),
        ({(9000, 12000): 9}, Machine("2 CPU cores", None), False),
    ],
)
def test_sizes_fit_the_machine_and_make_a_recipe(
    sizes: dict[tuple[int, int], int], machine: Machine, whole: bool
) -> None:
    chosen = choose_sizes(Counter(sizes), 9, machine)
    budget = {"training.epochs": chosen.epochs, "training.batch_size": chosen.batch_size}
    config = RunConfig().changed({"data.crop": chosen.crop, "data.scale": chosen.scale} | budget)
    assert chosen.at_crop_size is not whole
    told = int(chosen.epochs_reason.split()[0])
    assert told == count_steps(config.build_schedule().phases[0], config, 1, 9)
    assert all(side % 32 == 0 for side in chosen.crop)
    if not whole:  # what training sees at once, and what prediction sees, are alike in size
        zoom = chosen.crop[0] / max(height for height, _ in sizes)
        assert chosen.scale[0] <= max(zoom, 1 / 16) * 1.3 and chosen.scale[1] >= zoom

"""Few masks, many images: what is read of which image, by the command line, on own files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from data_cache.datasets import POOL
from data_cache.datasets.scenes import Scenes
from data_cache.datasets.views import Part, View
from data_cache.loaders import Loader, build_training_loader
from data_cache.sample import PackedBatch
from data_cache.samples import Source
from data_cache.settings import AugmentationSettings
from stages.networks import build_network
from stages.training.interruption import Interrupted, StopFlag
from stages.training.loop import train_phase
from stages.training.schedules import SEG
from stages.training.settings import LossSettings, MixSettings, TrainingSettings

Call = Callable[..., Any]
TINY = Path(__file__).parent / "tiny.toml"
TRAIN = [f"t{index}" for index in range(8)]
KEPT = ["t1", "t4", "t6"]


def draw(path: Path, seed: int, shape: tuple[int, ...] = (64, 64, 3), colours: int = 256) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, colours, shape, np.uint8)).save(path)


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """Eight training images, two to be scored, five without masks; depth of its own; a list of three to be used."""
    root = tmp_path / "own"
    splits = {"train": TRAIN, "val": ["v0", "v1"], "unlabelled": [f"u{index}" for index in range(5)]}
    for number, (split, names) in enumerate(splits.items()):
        for place, name in enumerate(names):
            draw(root / "images" / split / f"{name}.png", 100 * number + place)
            draw(root / "depth" / split / f"{name}.png", 1000 + 100 * number + place, (16, 16))
            if split != "unlabelled":
                draw(root / "masks" / split / f"{name}.png", 100 * number + place, (64, 64), 2)
    (root / "classes.txt").write_text("ground\nthing\n")
    (tmp_path / "kept.txt").write_text("\n".join(KEPT))
    return root


def words(own: Path, *more: str | Path) -> list[str | Path]:
    data = ["--dataset", "folder", "--data-root", own, "--set", "data.options.depth_kind=relative"]
    return ["--recipe", TINY, *data, "--set", "network.encoder=tu-test_resnet", "--batch-size", "2", *more]


def label(call: Call, own: Path) -> None:
    answer = call("pseudo-depth", *words(own)[:-2])
    assert answer.status == 0, answer.stderr
    assert answer.json["images"] == 8 + 5 + 2, "all that the recipe needs: training images, the pool, what is scored"


def read_weights(tmp_path: Path, run: dict[str, Any]) -> list[str]:
    files = [tmp_path / "work/nodes" / phase["key"] / "weights.safetensors" for phase in run["phases"]]
    return [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]


def test_no_mask_of_the_pool_reaches_a_loss(call: Call, own: Path, tmp_path: Path) -> None:
    """Masks of other content, broken ones and missing ones: the same trainings, to the bit."""
    label(call, own)
    run = words(own, "--labelled-fraction", tmp_path / "kept.txt", "--schedule", "joint", "--iterations", "2")
    run += ["--set", "schedule.mix=depth", "--set", "mix.confidence=0.5"]
    first = call("run", *run)
    assert first.status == 0, first.stderr
    record = json.loads((tmp_path / "work/nodes" / first.json["phases"][0]["key"] / "node.json").read_text())
    assert record["losses"]["mixed"] > 0
    assert first.json["phases"][0]["images_seen"] == {"labelled": 4, "unlabelled": 4}
    before = read_weights(tmp_path, first.json)

    draw(own / "masks/train/t0.png", 77, (64, 64), 2)
    (own / "masks/train/t2.png").write_bytes(b"no image")
    (own / "masks/train/t3.png").unlink()
    draw(own / "masks/unlabelled/u0.png", 78, (64, 64), 2)
    (own / "masks/unlabelled/u1.png").write_bytes(b"no image")
    again = call("run", *run)
    assert again.json["phases"][0]["key"] == first.json["phases"][0]["key"] and again.json["phases"][0]["reused"]
    anew = call("run", *run, "--no-reuse").json
    assert not anew["phases"][0]["reused"] and read_weights(tmp_path, anew) == before

    draw(own / "masks/train/t1.png", 79, (64, 64), 2)
    assert call("run", *run).json["phases"][0]["key"] != first.json["phases"][0]["key"]


def plan(call: Call, own: Path, *more: str | Path) -> dict[str, dict[str, Any]]:
    answer = call("plan", *words(own, *more))
    assert answer.status == 0, answer.stderr
    return {phase["name"]: phase for phase in answer.json["phases"]}


def test_phases_are_shared_wherever_they_read_the_same(call: Call, own: Path, tmp_path: Path) -> None:
    label(call, own)
    epochs = ["--schedule", "depth-first", "--set", "training.iterations=2"]
    whole, half, kept = (
        plan(call, own, *epochs, *fraction)
        for fraction in ([], ["--labelled-fraction", "1/2"], ["--labelled-fraction", tmp_path / "kept.txt"])
    )
    assert whole["depth"]["key"] == half["depth"]["key"] == kept["depth"]["key"], "depth needs no mask"
    assert len({each["seg"]["key"] for each in (whole, half, kept)}) == 3

    ignored = plan(call, own, *epochs, "--unlabelled", "ignore")
    (own / "images/unlabelled").rename(own / "aside")
    assert plan(call, own, *epochs) == ignored, "without a pool, and with one that is left alone"
    (own / "aside").rename(own / "images/unlabelled")

    joint = ["--schedule", "joint", "--iterations", "2"]
    assert plan(call, own, *joint, "--set", "training.unlabelled_share=0") == plan(
        call, own, *joint, "--unlabelled", "ignore"
    )
    assert plan(call, own, *joint)["joint"]["key"] != plan(call, own, *joint, "--unlabelled", "ignore")["joint"]["key"]


def test_epochs_are_passes_over_what_a_phase_learns_from(call: Call, own: Path, tmp_path: Path) -> None:
    label(call, own)
    passes = ["--schedule", "depth-first", "--labelled-fraction", "1/2", "--epochs", "3"]
    found = {name: (phase["steps"], phase["images_seen"]) for name, phase in plan(call, own, *passes).items()}
    assert found == {
        "depth": (3 * (13 // 2), {"labelled": 0, "unlabelled": 36}),
        "seg": (3 * 2, {"labelled": 12, "unlabelled": 0}),
        "joint": (3 * 2, {"labelled": 12, "unlabelled": 12}),
    }
    ninety = plan(call, own, *passes, "--set", "training.unlabelled_share=0.9")["joint"]
    assert ninety["images_seen"] == {"labelled": 12, "unlabelled": 12 * 9}


def test_images_without_masks_are_allowed_when_a_person_says_so(call: Call, own: Path) -> None:
    label(call, own)
    for name in ("t2", "t5"):
        (own / f"masks/train/{name}.png").unlink()
    allowed = plan(call, own, "--schedule", "joint", "--unlabelled", "allow", "--epochs", "1")
    assert allowed["joint"]["steps"] == 6 // 2
    depth = plan(call, own, "--schedule", "depth-first", "--unlabelled", "allow", "--epochs", "1")["depth"]
    assert depth["steps"] == 13 // 2, "theirs is as good as the others'"


def test_a_pool_that_no_phase_reads_is_not_looked_at(call: Call, own: Path) -> None:
    (own / "images/unlabelled/u0.png").write_bytes((own / "images/val/v1.png").read_bytes())
    (own / "images/unlabelled/u3.png").write_bytes(b"no image")
    assert plan(call, own, "--schedule", "seg-only")


def test_the_doctor_looks_at_images_without_masks(call: Call, own: Path) -> None:
    answer = call("datasets", "folder", "--data-root", own)
    report = answer.json
    assert report["images"]["unlabelled"] == 5 and report["labelled"]["unlabelled"] == 0
    assert not any("unlabelled" in problem and "mask" in problem for problem in report["problems"])
    assert "unlabelled" not in report["classes"]


def test_class_weights_are_of_the_masks_that_are_used(call: Call, own: Path, tmp_path: Path) -> None:
    """All masks show both classes alike, but for those of the list."""
    for name in KEPT:
        Image.fromarray((np.arange(64 * 64).reshape(64, 64) % 4 == 0).astype(np.uint8)).save(
            own / f"masks/train/{name}.png"
        )
    more = ["--schedule", "seg-only", "--iterations", "1", "--set", "loss.class_weights=median-frequency"]
    run = call("run", *words(own, *more, "--labelled-fraction", tmp_path / "kept.txt")).json
    config = json.loads((Path(run["folder"]) / "run.json").read_text())["config"]
    assert config["loss"]["class_weights"] == pytest.approx([0.5 / 0.75, 0.5 / 0.25], rel=1e-5)


def test_seeds_of_a_fraction_are_one_row_of_other_images_and_other_weights(call: Call, own: Path) -> None:
    for number, mask in enumerate(sorted((own / "masks/train").glob("*.png")), 2):  # each with another share of class 1
        Image.fromarray((np.arange(64 * 64).reshape(64, 64) % number == 0).astype(np.uint8)).save(mask)
    more = ["--schedule", "seg-only", "--iterations", "1", "--set", "loss.class_weights=median-frequency"]
    runs = [
        Path(call("run", *words(own, *more, "--labelled-fraction", "0.25", "--seed", str(seed))).json["folder"])
        for seed in (0, 1)
    ]
    first, second = (json.loads((run / "run.json").read_text())["config"]["loss"]["class_weights"] for run in runs)
    assert first != second
    rows = call("compare", *runs).json["rows"]
    assert [row["seeds"] for row in rows] == [[0, 1]]


def test_a_training_on_batches_of_both_goes_on_as_if_undisturbed(tmp_path: Path) -> None:
    train, pool = (Scenes(None, split, size=(64, 64), counts={"train": 5, POOL: 3}) for split in ("train", POOL))
    view = View([Part(train, range(5), labels=True), Part(pool, range(3), labels=False)])
    source, stop = Source(view, None, pool=3), StopFlag()

    def feed(first_step: int, last_step: int = 5) -> Loader:
        return build_training_loader(
            source, augmentation=AugmentationSettings(crop=(64, 64), jitter=0.2), batch_size=2, pool_size=2, seed=1,
            first_step=first_step, last_step=last_step, with_depth=False,
        )  # fmt: skip

    def stop_in_the_middle(first_step: int) -> Iterator[PackedBatch]:
        for step, batch in enumerate(feed(first_step), first_step + 1):
            if step == 3:
                stop.set()
            yield batch

    def learn(batches: Callable[[int], Iterable[PackedBatch]], folder: Path | None) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        options = {"encoder": "tu-test_resnet", "encoder_weights": "none", "decoder_channels": (8, 8, 8, 8, 8)}
        network = build_network("unet", len(train.classes), **options)
        train_phase(
            network, replace(SEG, mix="class"), batches, total_steps=5, seed=1, key="pool",
            mixing=MixSettings(confidence=0), settings=TrainingSettings(lr=1e-2), losses=LossSettings(),
            device=torch.device("cpu"), dtype="float32",
            checkpoint_folder=folder, stop=stop if folder else None,
        )  # fmt: skip
        return network.state_dict()

    undisturbed = learn(feed, None)
    with pytest.raises(Interrupted, match="after 3 of 5 steps"):
        learn(stop_in_the_middle, tmp_path / "state")
    stop = StopFlag()
    resumed = learn(feed, tmp_path / "state")
    assert all(torch.equal(value, resumed[name]) for name, value in undisturbed.items())

"""Labelling and evaluation over ranks: what two processes make is what one makes, and a killed one loses its batch.

One pair of processes goes through all of it, because starting one takes longer than all that it does.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from data_cache import ranks
from data_cache.datasets import open_dataset
from data_cache.depth_repair import verify_store
from data_cache.depth_store import DepthStore
from data_cache.loaders import build_evaluation_loader
from data_cache.samples import Source
from data_cache.split_depth import match_depth
from pipeline.commands.evaluate import open_writer
from pipeline.experiment.config import load_config
from pipeline.session import Session
from stages.evaluation.evaluate import evaluate
from stages.evaluation.panels import PanelCollector
from stages.networks import build_network
from stages.pseudo_depth.depth_source import GroundTruthDepth
from stages.pseudo_depth.estimators import load_estimator
from stages.pseudo_depth.labelling import LabelProgress, LabelReport, label_split

pytestmark = pytest.mark.slow
BATCH = 2
IMAGES = 12
"""Six for each of two ranks, so that their batches are those of one process; a broken one comes after them."""
SCENES = 11
"""Six batches, the last with one scene."""


FIND_PORT = "import socket; place = socket.create_server(('127.0.0.1', 0)); print(place.getsockname()[1])"


def write_images(root: Path) -> None:
    draw = np.random.default_rng(0)
    for kind in ("images", "masks"):
        (root / kind / "train").mkdir(parents=True)
    (root / "classes.txt").write_text("a\nb\n")
    for index in range(IMAGES):
        coarse = Image.fromarray(draw.integers(0, 255, (4, 6, 3), np.uint8)).resize((84, 56))
        if index in (1, 8):
            coarse.putalpha(100)
        coarse.save(root / "images" / "train" / f"{index:02d}.png")
    (root / "images" / "train" / f"{IMAGES}.png").write_bytes(b"no image at all")
    for index in range(IMAGES + 1):
        Image.new("L", (84, 56)).save(root / "masks" / "train" / f"{index:02d}.png")


def label(place: Path, name: str, progress: Callable[[LabelProgress], None] | None = None) -> LabelReport:
    dataset = open_dataset("folder", place / "data", "train")
    source = load_estimator("bundled", precision="float32", input_size=56)
    return label_split(dataset, source, place / name, batch_size=BATCH, workers=1, progress=progress)


def open_scenes() -> Any:
    return open_dataset("scenes", None, "val", size=(64, 80), counts={"val": SCENES})


def label_own(place: Path, name: str) -> LabelReport:
    return label_split(open_scenes(), GroundTruthDepth(), place / name, workers=1)


def score(place: Path, name: str) -> dict[str, Any]:
    """Evaluate an untrained network on scenes, with depth, and save what it predicts.

    ``places`` are those of the panels that this process draws, ``saved`` the files that it wrote.
    """
    store, together = next((place / "two" / "scenes").iterdir()), name == "two"
    torch.manual_seed(0)
    dataset = open_scenes()
    network = build_network("unet", len(dataset.classes), encoder="resnet18", encoder_weights="none")
    source = Source(dataset, match_depth(dataset, DepthStore(store)), "robust")
    panels = PanelCollector((dataset.image_ids[9], dataset.image_ids[0]))
    session = Session.start(place / f"work-{name}", json_mode=False, quiet=True)
    with open_writer(session, place / f"saved-{name}", dataset, load_config("scenes-small"), overwrite=False) as writer:
        assert writer is not None

        def take(*predicted: Any) -> None:
            panels(*predicted)
            writer(*predicted)

        evaluation = evaluate(
            network,
            build_evaluation_loader(source, rule=None, batch_size=BATCH, with_depth=True, together=together),
            normalisation=network.normalisation,
            num_classes=len(dataset.classes),
            class_names=dataset.classes,
            with_depth=True,
            on_predictions=take,
            together=together,
        )
    of_images = {name: values.tolist() for name, values in evaluation.image_scores._asdict().items()}
    return (
        evaluation.to_json()
        | {"places": sorted(panels.items), "saved": [file.name for file in writer.files]}
        | {"of_images": of_images}
    )


def describe(report: LabelReport) -> dict[str, Any]:
    """Return what does not depend on how long it took, or where."""
    facts = report._asdict()
    for name in ("store", "seconds", "images_per_second", "waits"):
        del facts[name]
    return json.loads(json.dumps(facts).replace(str(report.store), "STORE"))


def be_a_rank(place: Path) -> None:
    """Do what each of the two processes does; the second is killed in the end."""
    torch.set_num_threads(1)
    ranks.join(ranks.World.from_environment())

    def die(progress: LabelProgress) -> None:
        if ranks.rank() == 1 and progress.done >= 8:  # of all, of which it has done every second
            os.kill(os.getpid(), signal.SIGKILL)

    found = {
        "labelled": describe(label(place, "two")),
        "again": describe(label(place, "two")),
        "own": describe(label_own(place, "two")),
        "scores": score(place, "two"),
    }
    (place / f"rank-{ranks.rank()}.json").write_text(json.dumps(found))
    label(place, "killed", die)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which two processes have done their work."""
    folder = tmp_path_factory.mktemp("shares")
    write_images(folder / "data")
    port = subprocess.check_output([sys.executable, "-c", FIND_PORT], text=True).strip()  # no sockets in tests
    job = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    pair = [
        subprocess.Popen(
            [sys.executable, __file__, str(folder)],
            env={**os.environ, **job, "RANK": rank, "LOCAL_RANK": rank, "PYTHONPATH": str(Path(__file__).parents[2])},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in ("0", "1")
    ]
    said = [process.communicate(timeout=300)[1] for process in pair]
    assert (folder / "rank-0.json").exists() and (folder / "rank-1.json").exists(), said
    assert pair[1].returncode == -signal.SIGKILL and pair[0].returncode == 1, said
    return folder


@pytest.fixture(scope="module")
def reports(place: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    first, second = (json.loads((place / f"rank-{rank}.json").read_text()) for rank in (0, 1))
    return first, second


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute with as many threads as each rank has."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def alone(place: Path) -> LabelReport:
    with one_thread():
        return label(place, "one")


def read_all(folder: Path) -> dict[str, np.ndarray]:
    store = DepthStore(folder)
    return {image_id: store.read(image_id).raw for image_id in store.image_ids}


def assert_same_maps(found: Path, expected: Path) -> None:
    assert verify_store(found) == []
    maps, wanted = read_all(found), read_all(expected)
    assert maps.keys() == wanted.keys() and len(maps) >= SCENES
    for image_id, raw in wanted.items():
        np.testing.assert_array_equal(maps[image_id], raw, err_msg=image_id)


def test_ranks_label_what_one_process_labels_and_report_the_sum(place, reports, alone):
    expected = describe(alone)
    assert expected["labelled"] == IMAGES and len(expected["failed"]) == 1 and "2 (01, 08)" in expected["notes"][0]
    for report in reports:
        assert report["labelled"] == expected
        assert (report["again"]["labelled"], report["again"]["skipped"]) == (0, IMAGES)
    folder = next((place / "two" / "folder").iterdir())
    assert_same_maps(folder, alone.store)
    assert sorted(path.name for path in folder.glob("*.h5")) == ["index.h5", "shard-00000.h5", "shard-00001.h5"]


def test_ranks_pass_on_ground_truth_depth_as_one_process_does(place, reports):
    expected = label_own(place, "one")
    assert [report["own"] for report in reports] == [describe(expected)] * 2
    assert_same_maps(next((place / "two" / "scenes").iterdir()), expected.store)


def test_a_killed_rank_loses_its_batch_and_one_process_goes_on(place, alone):
    folder = next((place / "killed" / "folder").iterdir())
    kept = set(DepthStore(folder).image_ids)
    assert kept >= {f"{index:02d}" for index in range(IMAGES // 2)}, "the other rank's are all there"
    with one_thread():
        report = label(place, "killed")
    assert (report.skipped, report.labelled) == (len(kept), IMAGES - len(kept)) and len(kept) < IMAGES
    assert_same_maps(folder, alone.store)


def test_ranks_score_what_one_process_scores(place, reports):
    with one_thread():
        expected = score(place, "one")
    for report in reports:
        scores = report["scores"]
        assert scores["confusion"] == expected["confusion"] and scores["images"] == SCENES
        assert scores["per_class"] == expected["per_class"]
        for kind in ("metrics", "metrics_paper"):
            assert scores[kind] == pytest.approx(expected[kind], rel=1e-12, abs=0)
        for name, values in expected["of_images"].items():
            np.testing.assert_array_equal(scores["of_images"][name], values, err_msg=name)
    assert [report["scores"]["places"] for report in reports] == [[1], [0]], "each panel is drawn once"
    assert [name for report in reports for name in report["scores"]["saved"]] == expected["saved"]
    saved, wanted = ({f.name: f.read_bytes() for f in (place / f"saved-{n}").glob("*.png")} for n in ("two", "one"))
    assert saved == wanted and len(saved) == SCENES


if __name__ == "__main__":
    be_a_rank(Path(sys.argv[1]))

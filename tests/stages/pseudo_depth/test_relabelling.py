"""What changed is labelled again, and nothing else; what a training learnt from is told apart by content."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_cache.datasets import open_dataset
from data_cache.depth_store import DepthStore
from data_cache.errors import UserError
from data_cache.split_depth import SplitDepth, match_depth
from stages.pseudo_depth.depth_source import GroundTruthDepth
from stages.pseudo_depth.labelling import LabelReport, label_split

NAMES = ("a", "b", "c", "d")


def write_image(root: Path, name: str, seed: int) -> None:
    """Write an uncompressed image, so that files of equal size have other contents, with mask and depth."""
    rng = np.random.default_rng(seed)
    Image.fromarray(rng.integers(0, 255, (64, 64, 3), np.uint8)).save(root / "images" / "train" / f"{name}.bmp")
    Image.fromarray(np.zeros((64, 64), np.uint8)).save(root / "masks" / "train" / f"{name}.png")
    write_depth(root, name, seed)


def write_depth(root: Path, name: str, seed: int) -> None:
    steps = np.random.default_rng(seed).integers(1, 9000, (64, 64)).astype(np.uint16)
    np.save(root / "depth" / "train" / f"{name}.npy", steps.astype(np.float32))


def write_tree(root: Path, seed: int) -> Path:
    for kind in ("images", "masks", "depth"):
        (root / kind / "train").mkdir(parents=True)
    (root / "classes.txt").write_text("a\nb\n")
    for number, name in enumerate(NAMES):
        write_image(root, name, seed + number)
    return root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_tree(tmp_path / "data", 0)


@pytest.fixture(params=["estimator", "ground truth"])
def label(request, tmp_path: Path, depth_anything_folder: Path) -> Callable[..., LabelReport]:
    if request.param == "ground truth":
        estimator = GroundTruthDepth()
    else:
        from stages.pseudo_depth.estimators import load_estimator

        estimator = load_estimator(str(depth_anything_folder), precision="float32")

    def run(root: Path, **options: object) -> LabelReport:
        dataset = open_dataset("folder", root, "train", **{"depth_kind": "metric"} | options)
        return label_split(dataset, estimator, tmp_path / "depth", batch_size=1)

    return run


def match(root: Path, report: LabelReport, **options: object) -> SplitDepth:
    dataset = open_dataset("folder", root, "train", **{"depth_kind": "metric"} | options)
    return match_depth(dataset, DepthStore(report.store))


def read_maps(depth: SplitDepth) -> dict[str, bytes]:
    return {image_id: depth.read(index).raw.tobytes() for index, image_id in enumerate(depth.image_ids)}


def test_one_more_image_costs_one_map(root, label):
    first = label(root)
    before, shards = match(root, first), {path: path.read_bytes() for path in first.store.glob("shard-*.h5")}
    write_image(root, "e", 50)
    with pytest.raises(
        UserError, match=r"lacks depth for 1 of 5 images \(e\); label these, and only these, with: pipe"
    ):
        match(root, first)
    again = label(root)
    assert (again.store, again.labelled, again.skipped) == (first.store, 1, 4)
    after = match(root, again)
    assert after.fingerprint() != before.fingerprint()
    assert read_maps(after).items() > read_maps(before).items()
    assert {path: path.read_bytes() for path in shards} == shards


def test_one_image_less_costs_nothing_and_is_told_apart(root, label):
    first = label(root)
    before = match(root, first)
    (root / "images" / "train" / "c.bmp").unlink()
    after = match(root, first)
    assert after.fingerprint() != before.fingerprint()
    assert label(root).labelled == 0
    write_image(root, "c", 2)
    assert match(root, first).fingerprint() == before.fingerprint()


def test_an_image_replaced_at_equal_size_is_the_only_one_labelled(root, label):
    first = label(root)
    before = match(root, first)
    maps = read_maps(before)
    size = (root / "images" / "train" / "b.bmp").stat().st_size
    write_image(root, "b", 99)
    assert (root / "images" / "train" / "b.bmp").stat().st_size == size
    with pytest.raises(UserError, match=r"was made from another state of 1 of 4 images \(b\); label these"):
        match(root, first)
    again = label(root)
    assert (again.store, again.labelled, again.skipped) == (first.store, 1, 3)
    after = match(root, again)
    assert after.fingerprint() != before.fingerprint()
    assert {name for name, content in read_maps(after).items() if content != maps[name]} == {"b"}


def test_a_copy_of_the_data_needs_no_labels(root, label, tmp_path):
    first = label(root)
    copy = shutil.copytree(root, tmp_path / "copy", copy_function=shutil.copy)
    assert label(copy).labelled == 0
    assert match(copy, first).fingerprint() == match(root, first).fingerprint()


def test_two_datasets_with_the_same_names_do_not_take_turns(root, label, tmp_path):
    """Each keeps its maps, whoever labelled last, and reads its own."""
    other = write_tree(tmp_path / "other", 60)
    write_image(other, "a", 0)  # shared by both
    first = label(root)
    mine = match(root, first)
    maps, key = read_maps(mine), mine.fingerprint()
    second = label(other)
    assert second.labelled == 3
    assert read_maps(mine) == read_maps(match(root, second)) == maps
    assert match(root, second).fingerprint() == key
    theirs = read_maps(match(other, second))
    assert {name for name in NAMES if theirs[name] == maps[name]} == {"a"}
    assert label(root).labelled == label(other).labelled == 0


def test_a_replaced_depth_file_is_stored_anew_where_depth_is_taken_from_it(root, label, request):
    first = label(root)
    before = match(root, first).fingerprint()
    size = (root / "depth" / "train" / "d.npy").stat().st_size
    write_depth(root, "d", 77)
    assert (root / "depth" / "train" / "d.npy").stat().st_size == size
    again = label(root)
    counts = request.node.callspec.params["label"] == "ground truth"
    assert (again.labelled, again.skipped) == ((1, 3) if counts else (0, 4))
    assert (match(root, again).fingerprint() != before) == counts


def test_other_depth_options_are_never_answered_by_the_old_numbers(root, label, request):
    first = label(root)
    counts = request.node.callspec.params["label"] == "ground truth"
    options = {"depth_unit_m": 0.01}
    if counts:
        with pytest.raises(UserError, match=r"made with other depth options \(metric.* 0.001 m; now metric.* 0.01 m\)"):
            match(root, first, **options)
    again = label(root, **options)
    assert (again.store != first.store, again.labelled) == ((True, 4) if counts else (False, 0))


def test_a_store_of_another_split_is_refused(root, label):
    report = label(root)
    shutil.copytree(root / "images" / "train", root / "images" / "val")
    dataset = open_dataset("folder", root, "val")
    with pytest.raises(UserError, match=r"holds the depth of folder train, not of folder val; label that with: .*val"):
        match_depth(dataset, DepthStore(report.store))

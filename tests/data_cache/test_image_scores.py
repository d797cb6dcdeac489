"""images.npz: what is written is read, numpy opens it, equal scores are equal bytes, a damaged one gets one message."""

from __future__ import annotations

import zipfile

import numpy as np
import pytest

from data_cache.errors import UserError
from data_cache.image_scores import ImageScores, read_image_scores, write_image_scores
from data_cache.metrics import IMAGES_FILE


def make_scores(images: int = 5, classes: int = 3, seed: int = 0) -> ImageScores:
    draw = np.random.default_rng(seed)
    counts = [draw.integers(1, 100, size=(images, classes)) for _ in range(4)]
    values = [draw.random(images) for _ in range(6)]
    ids = np.array([f"folder/image {place:02}" for place in range(images)])
    return ImageScores(ids, np.array([f"class {place}" for place in range(classes)]), *counts, *values)


def test_what_is_written_is_read(tmp_path):
    scores = make_scores()
    scores.depth_mse[2] = np.nan
    write_image_scores(scores, tmp_path / IMAGES_FILE)
    found = read_image_scores(tmp_path / IMAGES_FILE)
    with np.load(tmp_path / IMAGES_FILE, allow_pickle=False) as opened:
        assert sorted(opened) == sorted(ImageScores._fields)
        for name, values in scores._asdict().items():
            np.testing.assert_array_equal(getattr(found, name), values)
            np.testing.assert_array_equal(opened[name], values)


def test_equal_scores_are_equal_bytes(tmp_path):
    for name in ("one", "two"):
        write_image_scores(make_scores(), tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_examples_are_the_lowest_middle_and_highest_scores():
    scores = make_scores(images=8)._replace(miou_imagewise=np.array([0.5, np.nan, 0.1, 0.9, 0.3, 0.7, 0.2, 0.8]))
    found = scores.find_examples(2)
    assert {name: [each["miou_imagewise"] for each in images] for name, images in found.items()} == {
        "worst": [0.1, 0.2], "median": [0.3, 0.5], "best": [0.9, 0.8],
    }  # fmt: skip
    assert found["best"][0]["image"] == "folder/image 03"
    assert [len(images) for images in scores.find_examples(100).values()] == [7, 7, 7]


def rewrite(path, **changes):
    """Write the file with other arrays; None leaves one out."""
    arrays = make_scores()._asdict() | changes
    np.savez(path, **{name: values for name, values in arrays.items() if values is not None})


DAMAGES = {
    "no archive": lambda path: path.write_bytes(b"not an archive"),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-40]),
    "empty": lambda path: path.write_bytes(b""),
    "an array missing": lambda path: rewrite(path, fn=None),
    "another shape": lambda path: rewrite(path, fn=np.zeros((4, 3), np.int64)),
    "another type": lambda path: rewrite(path, fn=np.zeros((5, 3))),
    "negative": lambda path: rewrite(path, fn=np.full((5, 3), -1)),
    "objects": lambda path: rewrite(path, image_ids=np.array([None] * 5, dtype=object)),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_file_is_named(tmp_path, damage):
    path = tmp_path / IMAGES_FILE
    write_image_scores(make_scores(), path)
    damage(path)
    with pytest.raises(UserError, match=r"images\.npz is damaged \(.+\); remove it"):
        read_image_scores(path)


def test_flipped_bytes_are_found_or_leave_the_shapes(tmp_path):
    path = tmp_path / IMAGES_FILE
    write_image_scores(make_scores(), path)
    whole, draw = path.read_bytes(), np.random.default_rng(0)
    found = 0
    for place in draw.integers(len(whole), size=60):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        try:
            assert read_image_scores(path).tp.shape == (5, 3)
        except UserError:
            found += 1
    assert found > 30


def test_an_array_that_claims_more_than_it_holds_takes_no_memory(tmp_path):
    path = tmp_path / IMAGES_FILE
    write_image_scores(make_scores(), path)
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    entries["image_ids.npy"] = entries["image_ids.npy"].replace(b"(5,), }          ", b"(5000000000000,),}")
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    with pytest.raises(UserError, match=r"image_ids has 301 bytes for shape \(5000000000000,\)"):
        read_image_scores(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"images\.npz is missing"):
        read_image_scores(tmp_path / IMAGES_FILE)

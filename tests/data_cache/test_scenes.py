"""Laws of the drawn dataset: what it depends on, exactness, what pictures are, how the cache behaves."""

from __future__ import annotations

import dataclasses
import pickle
import threading
from pathlib import Path

import numpy as np
import pytest

from data_cache.datasets import open_dataset
from data_cache.datasets.interface import SegmentationDataset
from data_cache.datasets.scene_layout import (
    BALL,
    BOX,
    CLASSES,
    GROUND,
    PICTURE,
    SKY,
    WALL,
    Camera,
    Paint,
    Pattern,
    Picture,
    Scene,
    Shape,
    Solid,
    Weather,
)
from data_cache.datasets.scene_rendering import GROUND_ENDS_M, render_scene
from data_cache.datasets.scenes import Scenes
from data_cache.errors import UserError
from data_cache.sample import DepthKind

SMALL = (48, 64)
COUNTS = {"train": 4, "val": 2, "test": 2}
FIELDS = ("read_image", "read_labels", "read_depth", "read_instances")


def open_small(root: Path | None = None, split: str = "train", **options: object) -> Scenes:
    return Scenes(root, split, **({"size": SMALL, "counts": COUNTS} | options))


def assert_same_scene(first: Scenes, second: Scenes, index: int) -> None:
    for field in FIELDS:
        np.testing.assert_array_equal(getattr(first, field)(index), getattr(second, field)(index), err_msg=field)


def back_project(camera: Camera, depth: np.ndarray) -> np.ndarray:
    """World points (3, H, W) of a depth map, by rotation matrices: an oracle beside the renderer's own rays."""
    height, width = depth.shape
    rows, columns = np.mgrid[0:height, 0:width]
    focal_px = camera.focal * width
    in_camera = np.stack(
        [(columns + 0.5 - width / 2) / focal_px, -(rows + 0.5 - height / 2) / focal_px, np.ones(depth.shape)]
    )
    roll, pitch = camera.roll, camera.pitch
    turn = np.array([[np.cos(roll), -np.sin(roll), 0], [np.sin(roll), np.cos(roll), 0], [0, 0, 1]])
    nod = np.array([[1, 0, 0], [0, np.cos(pitch), -np.sin(pitch)], [0, np.sin(pitch), np.cos(pitch)]])
    points = np.einsum("ij,jhw->ihw", nod @ turn, in_camera) * np.where(np.isfinite(depth), depth, 0.0)
    return points + np.array([0.0, camera.height, 0.0])[:, None, None]


# What a scene depends on


def test_fits_the_dataset_contract() -> None:
    dataset = open_small()
    assert isinstance(dataset, SegmentationDataset)
    assert (len(dataset), dataset.ground_truth_depth_kind) == (4, DepthKind.METRIC)
    assert len(set(dataset.image_ids)) == 4
    assert dataset.read_image(0).shape == (*SMALL, 3)
    assert [getattr(dataset, field)(0).dtype for field in FIELDS] == [np.uint8, np.uint8, np.float32, np.int32]
    assert dataset.describe(2) == "scenes train #2"


def test_cached_scenes_equal_scenes_drawn_on_demand(tmp_path: Path) -> None:
    for index in range(2):
        assert_same_scene(open_small(tmp_path, "val"), open_small(None, "val"), index)


def test_number_of_scenes_changes_none_of_them() -> None:
    assert_same_scene(open_small(), open_small(counts={"train": 40}), 3)


@pytest.mark.parametrize("other", [{"split": "val"}, {"split": "test"}, {"seed": 1}], ids=str)
def test_splits_and_seeds_draw_other_scenes(other: dict[str, object]) -> None:
    assert open_small().draw(0) != open_small(**other).draw(0)


def test_indices_draw_other_scenes() -> None:
    dataset = open_small()
    assert len({dataset.draw(index) for index in range(4)}) == 4


def test_size_does_not_move_what_stands_where() -> None:
    small, large = open_small(size=(32, 48)), open_small(size=(96, 144))
    # The centre pixel of each 3 x 3 block looks along the small image's ray.
    np.testing.assert_array_equal(small.read_labels(1), large.read_labels(1)[1::3, 1::3])
    np.testing.assert_allclose(small.read_depth(1), large.read_depth(1)[1::3, 1::3], rtol=1e-6)


@pytest.mark.parametrize("size", [(33, 47), (64, 32)], ids=str)
def test_any_size(size: tuple[int, int]) -> None:
    assert open_small(size=size).read_labels(0).shape == size


# Exactness


@pytest.mark.parametrize("index", range(4))
def test_labels_instances_and_depth_agree(index: int) -> None:
    dataset = open_small()
    labels, depth, instances = (getattr(dataset, field)(index) for field in FIELDS[1:])
    np.testing.assert_array_equal(labels == SKY, np.isinf(depth))
    np.testing.assert_array_equal(instances == 0, np.isin(labels, (SKY, GROUND, WALL)))
    assert (depth > 0).all()
    assert depth[np.isfinite(depth)].max() <= GROUND_ENDS_M
    for instance in np.unique(instances[instances > 0]):
        assert len(np.unique(labels[instances == instance])) == 1


@pytest.mark.parametrize("index", range(4))
def test_depth_puts_every_pixel_on_its_surface(index: int) -> None:
    dataset = open_small(size=(96, 128))
    scene = dataset.draw(index)
    labels, depth, instances = (getattr(dataset, field)(index) for field in FIELDS[1:])
    points = back_project(scene.camera, depth.astype(np.float64))
    tolerance = 1e-5 * GROUND_ENDS_M
    assert np.abs(points[1][labels == GROUND]).max() < tolerance
    for number, thing in enumerate(scene.things, start=1):
        here = points[:, instances == number] - np.asarray(thing.centre)[:, None]
        assert np.isin(labels[instances == number], thing.label).all()
        if thing.shape is Shape.BALL:
            np.testing.assert_allclose(np.linalg.norm(here, axis=0), thing.half[0], atol=tolerance)
        assert (np.abs(here[1]) <= thing.half[1] + tolerance).all()


def test_a_ball_on_the_axis_is_a_radius_nearer_than_its_centre() -> None:
    ball = Solid(Shape.BALL, BALL, (0.0, 1.5, 5.0), (0.5, 0.5, 0.5), 0.0, PAINT)
    rendering = render_scene(make_scene(things=(ball,)), (33, 33), np.random.default_rng(0))
    assert rendering.labels[16, 16] == BALL
    assert rendering.depth[16, 16] == pytest.approx(4.5, abs=1e-6)
    # Ground under a level camera: depth = height · focal / rows below the horizon.
    assert rendering.depth[32, 0] == pytest.approx(1.5 * 0.9 * 33 / 16, rel=1e-6)


# Pictures

PAINT = Paint(Pattern.MARBLE, (0.7, 0.3, 0.2), (0.9, 0.6, 0.3), 2.0, (0.1, 0.2, 0.3))
GROUND_PAINT = Paint(Pattern.PLAIN, (0.3, 0.3, 0.3), (0.3, 0.3, 0.3), 1.0, (0.0, 0.0, 0.0))
OVERCAST = Weather(
    sun=(0.0, 1.0, 0.0),
    sun_strength=0.0,
    ambient=0.8,
    tint=(1.0, 1.0, 1.0),
    zenith=(0.4, 0.5, 0.8),
    haze=(0.7, 0.7, 0.8),
    visibility=1e9,
    clouds=0.0,
    exposure=1.0,
    noise=0.0,
)
LEVEL = Camera(height=1.5, pitch=0.0, roll=0.0, focal=0.9)


def make_scene(
    things: tuple[Solid, ...] = (), pictures: tuple[Picture, ...] = (), walls: tuple[Solid, ...] = ()
) -> Scene:
    return Scene(LEVEL, OVERCAST, GROUND_PAINT, walls, things, pictures)


@pytest.mark.parametrize("shape", [Shape.BALL, Shape.BOX], ids=str)
def test_a_picture_seen_from_its_viewpoint_has_the_colours_and_outline_of_the_thing(shape: Shape) -> None:
    thing = Solid(shape, BALL if shape is Shape.BALL else BOX, (0.3, 0.4, 4.0), (0.4, 0.4, 0.4), 0.5, PAINT)
    picture = Picture(thing, viewpoint=(0.0, 1.5, 0.0), wall=None, light=(0.0, 1.0, 0.0), fading=0.0)
    real = render_scene(make_scene(things=(thing,)), (96, 128), np.random.default_rng(0))
    flat = render_scene(make_scene(pictures=(picture,)), (96, 128), np.random.default_rng(0))
    outline = flat.labels == PICTURE
    np.testing.assert_array_equal(outline, real.labels == thing.label)
    difference = np.abs(real.image[outline].astype(int) - flat.image[outline].astype(int))
    assert difference.mean() < 3.0  # of 255; the patterns lose a little contrast with their distance
    assert (flat.depth[outline] > real.depth[outline]).all()


def test_pictures_change_no_depth() -> None:
    dataset = open_small(size=(96, 128))
    for index in range(4):
        scene = dataset.draw(index)
        bare = render_scene(dataclasses.replace(scene, pictures=()), (96, 128), np.random.default_rng(0))
        np.testing.assert_array_equal(bare.depth, dataset.read_depth(index))
        pictured = dataset.read_labels(index) == PICTURE
        assert np.isin(bare.labels[pictured], (GROUND, WALL)).all()
        np.testing.assert_array_equal(bare.labels[~pictured], dataset.read_labels(index)[~pictured])


def test_a_picture_on_a_wall_stays_on_that_wall() -> None:
    wall = Solid(Shape.BOX, WALL, (0.0, 1.5, 8.0), (3.0, 1.5, 0.1), 0.0, GROUND_PAINT)
    subject = Solid(Shape.BALL, BALL, (0.5, 1.0, 8.0), (0.6, 0.6, 0.6), 0.0, PAINT)
    picture = Picture(subject, (0.0, 1.5, 0.0), 0, (0.0, 1.0, 0.0), 0.0)
    rendering = render_scene(make_scene(walls=(wall,), pictures=(picture,)), (96, 128), np.random.default_rng(0))
    pictured = rendering.labels == PICTURE
    assert pictured.sum() > 50
    np.testing.assert_allclose(rendering.depth[pictured], 7.9, rtol=1e-6)


def test_no_class_is_rare() -> None:
    dataset = Scenes(None, "train", counts={"train": 40})
    labels = np.stack([dataset.read_labels(index) for index in range(40)])
    shares = np.bincount(labels.ravel(), minlength=len(CLASSES)) / labels.size
    assert len(shares) == len(CLASSES)
    assert (shares > 0.02).all(), dict(zip(CLASSES, shares, strict=True))


# The cache


def test_scenes_are_rendered_once(tmp_path: Path) -> None:
    open_small(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npy")}
    assert len(before) == 4
    open_small(tmp_path).read_image(0)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npy")} == before
    assert [path for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_two_that_render_at_once_both_succeed(tmp_path: Path) -> None:
    failures: list[BaseException] = []

    def work() -> None:
        try:
            open_small(tmp_path).read_image(3)
        except BaseException as error:  # noqa: BLE001 — shown by the assertion below
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert [path for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_different_options_do_not_share_a_cache(tmp_path: Path) -> None:
    first = open_small(tmp_path).read_image(0)
    assert not np.array_equal(first, open_small(tmp_path, seed=5).read_image(0))
    np.testing.assert_array_equal(first, open_small(tmp_path).read_image(0))


def test_an_opened_dataset_pickles_without_its_arrays(tmp_path: Path) -> None:
    dataset = open_small(tmp_path)
    dataset.read_image(0)
    packed = pickle.dumps(dataset)
    assert len(packed) < 4000
    assert_same_scene(pickle.loads(packed), dataset, 1)


def test_what_is_read_may_be_written_to(tmp_path: Path) -> None:
    dataset = open_small(tmp_path)
    dataset.read_image(0)[:] = 0
    assert dataset.read_image(0).any()


def test_index_outside_the_split(tmp_path: Path) -> None:
    with pytest.raises(IndexError, match="has 4 images, none at 4"):
        open_small(tmp_path).read_image(4)


@pytest.mark.parametrize("damage", [b"", b"not an array at all, but longer than a header"], ids=["empty", "garbage"])
def test_a_damaged_cache_names_the_folder_to_delete(tmp_path: Path, damage: bytes) -> None:
    open_small(tmp_path)
    next(tmp_path.rglob("image.npy")).write_bytes(damage)
    with pytest.raises(UserError, match=r"cannot read the drawn scenes in .*image\.npy.*delete the folder"):
        open_small(tmp_path).read_image(0)


def test_a_truncated_cache_is_noticed(tmp_path: Path) -> None:
    open_small(tmp_path)
    path = next(tmp_path.rglob("depth.npy"))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="delete the folder"):
        open_small(tmp_path).read_depth(0)


def test_a_cache_of_another_shape_is_noticed(tmp_path: Path) -> None:
    open_small(tmp_path)
    np.save(next(tmp_path.rglob("labels.npy")), np.zeros((4, 9, 9), np.uint8))
    with pytest.raises(UserError, match=r"holds no uint8 array \(4, 48, 64\).*delete the folder"):
        open_small(tmp_path).read_labels(0)


def test_a_cache_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"cannot use .*file.*choose another place"):
        open_small(tmp_path / "file")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": (96,)}, r"size must be \(height, width\)"),
        ({"size": (4, 4)}, "8 to 8192"),
        ({"size": "96x128"}, "got '96x128'"),
        ({"seed": -1}, "seed must be a whole number"),
        ({"seed": True}, "seed must be a whole number"),
        ({"counts": {"train": -3}}, "count of train"),
        ({"counts": {"trian": 3}}, "unknown split in scenes' counts 'trian' .did you mean 'train'"),
        ({"counts": {"val": 3}}, "the train split is empty"),
        ({"colour": 3}, "no option 'colour'.*it has: size, counts, seed"),
        ({"sizes": (3, 4)}, "did you mean 'size'"),
    ],
    ids=str,
)
def test_options_that_make_no_sense(options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        open_dataset("scenes", None, "train", **options)


def test_unknown_split() -> None:
    with pytest.raises(UserError, match=r"unknown split of scenes 'vall' .did you mean 'val'"):
        open_dataset("scenes", None, "vall")

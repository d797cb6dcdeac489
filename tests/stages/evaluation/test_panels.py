"""Images for people: written where asked, depth on one scale, labels never blended."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from data_cache.sample import IGNORE_INDEX, PackedBatch
from stages.evaluation.colour import (
    NEITHER_RIGHT,
    ONE_RIGHT,
    OTHER_RIGHT,
    VOID,
    build_depth_table,
    colour_depth,
    colour_differences,
    colour_labels,
    lift_dark,
)
from stages.evaluation.panels import (
    PanelCollector,
    PanelItem,
    SheetItem,
    contact_sheet,
    draw_map,
    draw_panel,
    draw_tiles,
    spread_over,
    write_panels,
)

NAMES, PALETTE = ("sky", "road"), ((70, 130, 180), (128, 64, 128))


def make_item(image_id: str = "seq/0001", *, with_depth: bool = True) -> PanelItem:
    labels = np.tile(np.array([0, 1], dtype=np.uint8), (24, 16))
    depth = np.linspace(0, 1, 24 * 32, dtype=np.float32).reshape(24, 32) if with_depth else None
    image = np.full((24, 32, 3), 127, dtype=np.uint8)
    return PanelItem(image_id, image, labels, labels, depth, None, depth)


def test_depth_colours_brighten_towards_near():
    brightness = build_depth_table().astype(float) @ (0.2126, 0.7152, 0.0722)
    assert (np.diff(brightness) >= -0.5).all() and brightness[-1] > brightness[0] + 200


def test_equal_depths_get_equal_colours_and_invalid_ones_grey():
    depth = np.array([[0.2, 0.5, np.nan, 9.0]])
    valid = np.array([[True, True, True, False]])
    colours = colour_depth(depth, 0, 1, valid)
    assert np.array_equal(colours[0, 1], colour_depth(np.array([[0.5]]), 0, 1)[0, 0])
    assert [tuple(colour) for colour in colours[0, 2:]] == [VOID, VOID]


def test_void_labels_are_grey():
    assert tuple(colour_labels(np.array([[IGNORE_INDEX]], dtype=np.uint8), PALETTE)[0, 0]) == VOID


def test_classes_in_nearly_black_are_lifted_apart_from_one_another_and_from_black():
    dark = [(0, 0, 0), (64, 0, 0), (0, 64, 0), (0, 0, 64), (64, 64, 0)]
    lifted = lift_dark([*dark, *PALETTE])
    assert len(set(lifted)) == len(lifted) and lifted[len(dark) :] == list(PALETTE)
    assert min(map(max, lifted)) >= 64


def test_a_panel_shows_only_colours_of_the_palette_in_its_label_tiles():
    panel = np.array(draw_panel(make_item(), class_names=NAMES, palette=PALETTE))
    truth = panel[30 : 30 + 190, 10 + 266 : 10 + 266 + 256].reshape(-1, 3)
    assert {tuple(colour) for colour in truth.tolist()} == set(PALETTE)


@pytest.mark.parametrize(("with_depth", "tiles"), [(True, 5), (False, 3)])
def test_panel_has_one_tile_per_map(with_depth, tiles):
    assert draw_panel(make_item(with_depth=with_depth), class_names=NAMES, palette=PALETTE).width == 10 + tiles * 266


def test_differences_say_who_is_right_and_leave_out_void():
    truth, one, other = (
        np.array([row], dtype=np.uint8) for row in ([0, 0, 0, 0, IGNORE_INDEX], [0, 1, 1, 0, 0], [1, 0, 2, 0, 1])
    )
    shown = colour_differences(np.full((1, 5, 3), 90, np.uint8), truth, one, other)[0].tolist()
    assert [tuple(colour) for colour in shown[:3]] == [ONE_RIGHT, OTHER_RIGHT, NEITHER_RIGHT]
    assert shown[3] == shown[4] == [218, 218, 218], "the pale image"


@pytest.mark.parametrize(("with_depth", "count"), [(True, 7), (False, 5)])
def test_tiles_show_every_map_once_and_classes_in_their_own_colours(with_depth, count):
    item = make_item(with_depth=with_depth)
    tiles = draw_tiles(item, PALETTE, name="a", base=item._replace(prediction=1 - item.prediction), base_name="b")
    assert len(tiles) == count
    truth = np.array(Image.open(io.BytesIO(tiles[1].data)).convert("RGB"))
    assert np.array_equal(truth, colour_labels(item.truth, PALETTE))
    assert [tile.caption for tile in tiles if tile.is_labels] == [
        "truth", "prediction of b", "prediction of a", "where they differ",
    ]  # fmt: skip
    alone = draw_tiles(item, PALETTE, name="a", base=item, base_name="a")
    assert len(alone) == count - 2, "a run beside itself is shown once"


def test_a_map_is_as_high_as_its_image_and_no_larger_than_a_page_needs():
    tile = draw_map(SheetItem("x", np.zeros((400, 1600, 3), dtype=np.uint8), np.ones((4, 16))))
    assert Image.open(io.BytesIO(tile.data)).size == (512, 64)


def test_panels_are_written_under_safe_names(tmp_path):
    files = write_panels({0: make_item(), 1: make_item("b c")}, tmp_path / "panels", class_names=NAMES, palette=PALETTE)
    assert [file.name for file in files] == ["00-seq_0001.png", "01-b_c.png"]
    assert sorted(files) == sorted((tmp_path / "panels").iterdir())


def make_batch(count: int) -> PackedBatch:
    depth = torch.rand(count, 8, 8)
    depth[:, 0] = torch.nan
    images = torch.randint(256, (count, 3, 8, 8), dtype=torch.uint8)
    labels = torch.zeros(count, 8, 8, dtype=torch.uint8)
    return PackedBatch(tuple(f"i{n}" for n in range(count)), images, labels, depth)


def test_collector_keeps_the_named_images():
    collector = PanelCollector(("i7", "i1"))
    batch = make_batch(2)
    collector(batch, torch.ones(2, 8, 8, dtype=torch.uint8), None)
    assert {place: item.image_id for place, item in collector.items.items()} == {1: "i1"}
    last = collector.items[1]
    assert last.predicted_depth is None and last.prediction.max() == 1
    assert np.array_equal(last.image, batch.images[1].permute(1, 2, 0))
    assert np.array_equal(last.depth_valid, np.arange(8)[:, None] > np.zeros(8))
    assert np.array_equal(last.inverse_depth[1:], batch.inverse_depth[1, 1:]) and not last.inverse_depth[0].any()


@pytest.mark.parametrize("count", [1, 4])
def test_contact_sheet_shows_every_item(tmp_path, count):
    image = np.zeros((30, 40, 3), dtype=np.uint8)
    near_left = np.tile(np.linspace(1, 80, 20), (10, 1))
    items = [SheetItem(f"image {n}", image, near_left, large_is_near=False) for n in range(count)]
    out = contact_sheet(items, tmp_path / "sheet.png", columns=2)
    with Image.open(out) as sheet:
        assert sheet.width == 10 + min(2, count) * 396
        pixels = np.array(sheet).astype(int)
    row = pixels[100, 10 + 194 : 10 + 386].sum(axis=1)
    assert row[5] > row[-5]  # metres: near is left, and bright


def test_contact_sheet_survives_a_map_without_a_finite_value(tmp_path):
    contact_sheet([SheetItem("x", np.zeros((8, 8, 3), dtype=np.uint8), np.full((4, 4), np.nan))], tmp_path / "s.png")


def test_empty_contact_sheet_is_refused(tmp_path):
    with pytest.raises(ValueError, match="at least one"):
        contact_sheet([], tmp_path / "s.png")


@pytest.mark.parametrize(("num_images", "count"), [(10, 3), (3, 5), (7, 7), (4, 0)])
def test_images_from_all_over_a_split_are_different_ones(num_images: int, count: int) -> None:
    places = spread_over(num_images, count)
    assert len(set(places)) == len(places) == min(num_images, count) and set(places) <= set(range(num_images))

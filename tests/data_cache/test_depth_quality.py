"""What is stored without an error but hardly looks like depth is reported; sound maps are passed over in silence."""

import math
from pathlib import Path

import numpy as np
import pytest

from data_cache.datasets import open_dataset
from data_cache.depth_map import DepthStats, MapRecord, compute_depth_stats
from data_cache.depth_quality import check_worth, find_suspicious
from data_cache.errors import UserError
from data_cache.sample import DepthKind


def measure(raw: np.ndarray, kind: DepthKind = DepthKind.RELATIVE, max_depth_m: float | None = None) -> DepthStats:
    return compute_depth_stats(np.asarray(raw, np.float16), kind, max_depth_m)


def record(raw: np.ndarray, kind: DepthKind = DepthKind.RELATIVE) -> MapRecord:
    stats = measure(raw, kind)
    return MapRecord("sum", "", 0, stats.std, stats.valid_share, stats.row_correlation)


@pytest.mark.parametrize("kind", DepthKind)
def test_row_correlation_against_numpy(kind):
    raw = np.random.default_rng(0).uniform(1, 50, (30, 20)).astype(np.float16)
    raw += np.arange(30)[:, None].astype(np.float16)
    raw[3, 4:9] = np.nan
    inverse, rows = raw.astype(np.float64), np.repeat(np.arange(30)[:, None], 20, 1)
    if kind is DepthKind.METRIC:
        inverse = 1 / inverse
    seen = np.isfinite(inverse)
    expected = np.corrcoef(rows[seen], inverse[seen])[0, 1]
    found = measure(raw, kind)
    assert found.row_correlation == pytest.approx(expected, abs=1e-6)
    assert found.valid_share == pytest.approx(595 / 600)


def test_drawn_scenes_are_upright_and_sound():
    scenes = open_dataset("scenes", None, "val", size=(48, 64), counts={"val": 12})
    sound = {name: record(scenes.read_depth(index), DepthKind.METRIC) for index, name in enumerate(scenes.image_ids)}
    assert find_suspicious(sound) == []
    # metres that are taken for inverse depth
    (found,) = find_suspicious({name: record(scenes.read_depth(i)) for i, name in enumerate(scenes.image_ids)})
    assert found.image == "" and "near is at the top" in found.reason


def test_maps_without_information_are_named():
    slope = np.linspace(1, 2, 100).reshape(10, 10)
    sparse = np.full((10, 10), np.nan)
    sparse[0] = slope[0]
    records = {
        "good": record(slope), "flat": record(np.full((4, 4), 3.0)), "empty": record(np.full((4, 4), np.nan)),
        "sparse": record(sparse),
    }  # fmt: skip
    found = dict(find_suspicious(records))
    assert found.keys() == {"flat", "empty", "sparse"}
    assert found["flat"] == "every valid pixel has the same depth" and found["empty"] == "no pixel is valid"
    assert found["sparse"] == "only 10.0% of the pixels are valid"
    check_worth(records, Path("store"))
    with pytest.raises(UserError, match="every map of 2 images in store is constant or without a valid pixel"):
        check_worth({name: records[name] for name in ("flat", "empty")}, Path("store"))


def test_saturated_sky_moves_no_statistic():
    """A metric estimator gives sky its largest distance; a map with that sky has the numbers of one without it."""
    ground = np.random.default_rng(1).uniform(2, 40, (20, 30)).astype(np.float16)
    sky = np.full((20, 30), 80, np.float16)
    whole = measure(np.concatenate((sky, ground)), DepthKind.METRIC, 80.0)
    part = measure(ground, DepthKind.METRIC, 80.0)
    names = ("min", "max", "p2", "p98", "median", "mean", "std", "inverse_mean", "inverse_std")
    assert [getattr(whole, name) for name in names] == pytest.approx([getattr(part, name) for name in names])
    assert whole.valid_share == 0.5
    assert math.isnan(measure(sky, DepthKind.METRIC, 80.0).median)

"""From what an estimator gave to what a depth decoder learns: inverse depth, large = near, scaled per image."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_cache.depth_map import INVERSE_FLOOR, DepthStats, find_valid, invert
from data_cache.errors import UserError, unknown_name
from data_cache.sample import DepthKind

_TINY = float(np.finfo(np.float32).tiny)


class _InverseStats(NamedTuple):
    """Statistics of a whole map in inverse depth; those of a metric map follow from its distances, 1/d falls with d."""

    min: float
    max: float
    p2: float
    p98: float
    median: float
    mean: float
    std: float


class DepthTarget(NamedTuple):
    inverse_depth: NDArray[np.float32]
    """(h, w), large = near; 0 where invalid."""
    valid: NDArray[np.bool_]
    """(h, w); False where not measured (non-finite, metric distances not above 0) and on saturated sky."""


def compute_inverse_depth_target(
    raw: NDArray[np.float32],
    stats: DepthStats,
    kind: DepthKind,
    max_depth_m: float | None,
    mode: str = "robust",
    *,
    zoom: float = 1.0,
) -> DepthTarget:
    """Turn a raw map, or any part of one, into the target of a depth decoder.

    Args:
        raw: (h, w), in the estimator's unit.
        stats: of the whole map, so that a crop gets the numbers the whole image would have there.
        kind: relative maps are inverse depth already; metric ones become 1/d, d floored at 1e-3 of the median.
        max_depth_m: where a metric estimator saturates; at 0.995 of it and beyond is sky.
        mode: one of TARGET_MODES: ``robust`` clip((v - p2) / (p98 - p2), 0, 1); ``minmax`` the same with min and max;
            ``zscore`` (v - mean) / std; ``log`` robust over log v; ``metric`` 1/d in 1/m. A map without spread becomes
            0.
        zoom: how many times larger than in the image everything is shown to the network. What is twice as large looks
            half as far away, and a network cannot tell it from what is: ``metric`` distances are divided by the zoom,
            so 1/d is multiplied. The other targets are scaled per image, where the zoom cancels.

    Raises:
        UserError: unknown mode, or ``metric`` asked of a relative map.
    """
    if mode not in TARGET_MODES:
        raise unknown_name("depth target", mode, TARGET_MODES)
    if mode == "metric" and kind is DepthKind.RELATIVE:
        raise UserError(
            "depth target 'metric' needs an estimator that gives metres, and this store holds relative inverse depth; "
            "choose another target or label with a metric estimator"
        )
    valid = find_valid(raw, kind, max_depth_m)
    target = np.zeros_like(raw)
    if not valid.any():
        return DepthTarget(target, valid)
    inverse = invert(raw, kind, stats.median)
    with np.errstate(invalid="ignore", over="ignore"):  # invalid pixels may be anything; they are zeroed below
        scaled = TARGET_MODES[mode](inverse, _invert_stats(stats, kind))
        if mode == "metric":
            scaled = scaled * np.float32(zoom)
    np.copyto(target, scaled, where=valid)
    return DepthTarget(target, valid)


def _scale_log(inverse: NDArray[np.float32], stats: _InverseStats) -> NDArray[np.float32]:
    # Relative maps reach 0 (infinitely far); the same floor that bounds metric maps bounds the logarithm here.
    floor = max(INVERSE_FLOOR * stats.median, _TINY)
    low, high = (math.log(max(percentile, floor)) for percentile in (stats.p2, stats.p98))
    return _to_unit_range(np.log(np.maximum(inverse, np.float32(floor))), low, high)


TARGET_MODES: dict[str, Callable[[NDArray[np.float32], _InverseStats], NDArray[np.float32]]] = {
    "robust": lambda inverse, stats: _to_unit_range(inverse, stats.p2, stats.p98),
    "minmax": lambda inverse, stats: _to_unit_range(inverse, stats.min, stats.max),
    "zscore": lambda inverse, stats: (inverse - np.float32(stats.mean)) * _reciprocal(stats.std),
    "log": _scale_log,
    "metric": lambda inverse, _: inverse,
}


def _invert_stats(stats: DepthStats, kind: DepthKind) -> _InverseStats:
    moments = (stats.inverse_mean, stats.inverse_std)
    if kind is DepthKind.RELATIVE:
        return _InverseStats(stats.min, stats.max, stats.p2, stats.p98, stats.median, *moments)
    distances = np.array((stats.max, stats.min, stats.p98, stats.p2, stats.median), np.float32)
    least, most, p2, p98, median = map(float, invert(distances, kind, stats.median))
    return _InverseStats(least, most, p2, p98, median, *moments)


def _to_unit_range(values: NDArray[np.float32], low: float, high: float) -> NDArray[np.float32]:
    return np.clip((values - np.float32(low)) * _reciprocal(high - low), 0, 1)


def _reciprocal(spread: float) -> np.float32:
    """Return 1/spread, and 0 for a map without spread, which then becomes 0 everywhere."""
    return np.float32(1 / spread if spread > 0 else 0)

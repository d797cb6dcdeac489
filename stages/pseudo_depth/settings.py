"""Which depth, and how it becomes a target. Imports no torch."""

from __future__ import annotations

from typing import Literal

from data_cache.settings import LARGEST_BATCH, Decides, Section, setting
from stages.networks.precision import Precision

DepthSource = Literal["teacher", "dataset", "shuffled", "constant", "gray", "noise"]


class DepthSettings(Section):
    """The estimator of the pseudo depth, and the target a depth decoder learns."""

    estimator: str = setting("bundled", Decides.DEPTH_LOSS, Decides.SCORES, resolved=True, flag="--estimator")
    """Alias (see `pipeline estimators`), Hub id, local folder, or "dataset" for the dataset's ground-truth depth."""
    kind: Literal["relative", "metric"] | None = setting(
        None, Decides.DEPTH_LOSS, Decides.SCORES, resolved=True, flag="--kind"
    )
    """What the numbers of an estimator without an alias mean; an alias knows."""
    input_size: int | None = setting(None, Decides.DEPTH_LOSS, Decides.SCORES, resolved=True, ge=28, le=8192)
    """Short side at which the estimator sees the image, px; the estimator's recommendation where it is not given."""
    source: DepthSource = setting("teacher", Decides.DEPTH_LOSS, resolved=True, flag="--depth-source")
    """What the depth decoder learns: the estimator's maps, the dataset's own depth, or a control that holds no geometry
    of the image: another image's map, a constant, the image's luminance, noise. Scores hold against the estimator."""
    target: Literal["robust", "minmax", "zscore", "log", "metric"] = setting(
        "robust", Decides.DEPTH_LOSS, Decides.SCORES
    )
    """Scaling of inverse depth at load time."""
    batch_size: int | None = setting(None, Decides.NOTHING, ge=1, le=LARGEST_BATCH, flag="--batch-size")
    """Images per forward pass while labelling; as many as the device's memory holds where it is not given."""
    precision: Precision = setting("auto", Decides.DEPTH_LOSS, Decides.SCORES, resolved=True)
    """Type the estimator computes in; auto takes bfloat16 where the hardware multiplies it, float16 on GPUs that have
    only that."""
    codec: Literal["lzf", "gzip", "blosc", "none"] = setting("gzip", Decides.NOTHING, flag="--codec")
    """Compression of the depth store: gzip is the smallest and every HDF5 program opens it; lzf is read faster, blosc
    fastest (pip install '.[blosc]')."""
    accept_noncommercial: bool = setting(False, Decides.NOTHING, flag="--accept-noncommercial")
    """Use weights whose licence forbids commercial use; the export's card will name them."""

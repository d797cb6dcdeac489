"""Every estimator that has a name: which weights, what their numbers mean, which sizes they take. Imports no torch."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from data_cache.sample import DepthKind

_HUB_ID = re.compile(r"[A-Za-z0-9_]([\w.-]*[A-Za-z0-9_])?/(?!.*\.git$)[A-Za-z0-9_]([\w.-]*[A-Za-z0-9_])?", re.ASCII)

BUNDLED_FOLDER = Path(__file__).parent / "bundled"
"""The small teacher that comes with the package and needs no network."""

GROUND_TRUTH = "dataset"
"""Name of the estimator that is none: the depth a dataset brings along."""


@dataclass(frozen=True)
class EstimatorSpec:
    """What has to be known about a depth estimator before it is run."""

    alias: str
    """Short name; the Hub id or the folder's name for weights that are not in the table."""
    hub_id: str | None
    """Repository on the Hugging Face Hub; None for local weights."""
    revision: str | None
    """Commit the weights are pinned to; None where no commit is vouched for, then the newest is taken and recorded."""
    kind: DepthKind
    """What the numbers mean: relative inverse depth (large = near) or metres (large = far)."""
    size_multiple: int
    """Both sides of the input are multiples of this many pixels, so that nothing is padded or cut."""
    recommended_size: int
    """Side in pixels that the nearer one of the image's sides is brought to."""
    licence: str
    """Licence of the weights as their publisher states it."""
    max_depth_m: float | None = None
    """Largest distance a metric estimator can say, in metres."""
    noncommercial: bool = False
    """Whether the licence forbids commercial use; such weights have to be accepted explicitly."""
    weights_sha256: str | None = None
    """SHA-256 of the published weights file (pickled for dpt-dinov2), checked when the weights are fetched."""

    @property
    def unit(self) -> str:
        """Unit of the stored numbers; relative inverse depth has none."""
        return "m" if self.kind is DepthKind.METRIC else "1"


def undescribed(alias: str, hub_id: str | None = None) -> EstimatorSpec:
    """Return what stands for an estimator without an entry in the table until its files have been looked at."""
    return EstimatorSpec(alias, hub_id, None, DepthKind.RELATIVE, 1, 1, "unknown; see the repository's card")


def is_hub_id(name: str) -> bool:
    """Whether a name has the form OWNER/NAME of the Hub; it takes no revision."""
    return len(name) <= 96 and _HUB_ID.fullmatch(name) is not None and ".." not in name and "--" not in name


def _dpt_dinov2(size: str, head: str, revision: str, sha256: str) -> EstimatorSpec:
    """Describe a DINOv2 encoder with a DPT head trained on NYU (indoor, 10 m) or KITTI (driving, 80 m)."""
    # 28, not 14: the DPT head doubles odd patch counts upwards (37 -> 38), which would stretch the map.
    # 476 and 364 are the multiples nearest to the short sides of NYU (480x640) and KITTI (375x1242).
    return EstimatorSpec(
        alias=f"dpt-dinov2-{size}-{head}",
        hub_id=f"facebook/dpt-dinov2-{size}-{head}",
        revision=revision,
        kind=DepthKind.METRIC,
        size_multiple=28,
        recommended_size={"nyu": 476, "kitti": 364}[head],
        licence="Apache-2.0 (DINOv2 model card; the converted weights carry no tag)",
        max_depth_m={"nyu": 10.0, "kitti": 80.0}[head],
        weights_sha256=sha256,
    )


def _depth_anything(
    alias: str,
    hub_id: str,
    licence: str,
    *,
    revision: str | None = None,
    sha256: str | None = None,
    max_depth_m: float | None = None,
) -> EstimatorSpec:
    """Describe a Depth Anything model; those with a largest depth are metric, the others relative."""
    return EstimatorSpec(
        alias=alias,
        hub_id=hub_id,
        revision=revision,
        kind=DepthKind.RELATIVE if max_depth_m is None else DepthKind.METRIC,
        size_multiple=14,
        recommended_size=518,
        licence=licence,
        max_depth_m=max_depth_m,
        noncommercial=licence.startswith("CC-BY-NC"),
        weights_sha256=sha256,
    )


def _metric(place: str, size: str, revision: str, sha256: str) -> EstimatorSpec:
    """Describe a metric fine-tuning of Depth Anything V2, indoor (Hypersim) or outdoor (Virtual KITTI)."""
    return _depth_anything(
        f"depth-anything-v2-metric-{place}-{size}",
        f"{_V2}-Metric-{place.title()}-{size.title()}-hf",
        "none stated by the publisher",
        revision=revision,
        sha256=sha256,
        max_depth_m={"indoor": 20.0, "outdoor": 80.0}[place],
    )


_V1_LICENCE = "Apache-2.0 (code; the weights carry no statement)"
_V1 = "LiheYoung/depth-anything"
_V2 = "depth-anything/Depth-Anything-V2"

BUNDLED = EstimatorSpec(
    alias="bundled",
    hub_id=None,
    revision=None,
    kind=DepthKind.RELATIVE,
    size_multiple=14,
    recommended_size=98,
    licence="Apache-2.0 (this project's; trained on its own drawings)",
)

# fmt: off
_SPECS = (
    BUNDLED,
    # commits and hashes of dpt-dinov2 and V2 metric: field notes 3.1, which name the commits
    _dpt_dinov2("small", "nyu",   "21a14468819a6aa4a1bbe56d872ba8be23184b0f",
                "16f263f1793476fe83a10c02da0897573935b4ddb640123c213b39f672649e2a"),
    _dpt_dinov2("base",  "nyu",   "5776fdeb81586a1563c9a4414d47e4156b3ea9b1",
                "6f09db8fd5a5368934ac7eb0ab9881b1fb059d9b85c08ce916ada16f030b22c1"),
    _dpt_dinov2("large", "nyu",   "ef81b2d74ef33a42107b498206e889d3b2a10c27",
                "d4dedbe0ca27012862c1f32128d4f7db9b528dc831e28dbee9d7abe10ba48705"),
    _dpt_dinov2("giant", "nyu",   "c18b63c9ecc1c5e868d240dc8f58ab5e56e8e1a1",
                "2850413a96d137e46a4f75563ecbedf47387bb7fca8fd9a078b00420e340e829"),
    _dpt_dinov2("small", "kitti", "c0d86b8c609b96365202ba99a2065e2b549ad782",
                "d75e96bdb1355fb9075aa3ecd727daa78fbd2887f6c02dbf410aa4b0237a6ba8"),
    _dpt_dinov2("base",  "kitti", "e388c90f97fd01c1e3fa393fad136b3be1dd71d0",
                "85f648db0567d70d2b9434559d1a79c0bdb1d64aca37ae8e59820256d17ff3d1"),
    _dpt_dinov2("large", "kitti", "8c762dd3921556d73ba9f4c6af96665feb5195c7",
                "27b17137a546badf93285fba5d5a4cb6bd09974601a5477848a602a271a07c41"),
    _dpt_dinov2("giant", "kitti", "a2ad1f6f221e58dc561e2f8bc98cd705f6bde7fb",
                "71bb74fe8c73bbb078da13e12a1efe67667b018a015b02708f6fa444d745e444"),
    _depth_anything("depth-anything-small", f"{_V1}-small-hf", _V1_LICENCE),
    _depth_anything("depth-anything-base",  f"{_V1}-base-hf",  _V1_LICENCE),
    _depth_anything("depth-anything-large", f"{_V1}-large-hf", _V1_LICENCE),
    _depth_anything("depth-anything-v2-small", f"{_V2}-Small-hf", "Apache-2.0",
                    revision="5426e4f0f36572d16453bbda7a8389317b1bef99",
                    sha256="3152477ce0d8d6978d76b995120de97cb5b928701fd0f817769f59e249a16b70"),
    _depth_anything("depth-anything-v2-base",  f"{_V2}-Base-hf",  "CC-BY-NC-4.0"),
    _depth_anything("depth-anything-v2-large", f"{_V2}-Large-hf", "CC-BY-NC-4.0"),
    _metric("indoor",  "small", "8078d68a9c75a972131914f6afd0c1723be0da7f",
            "e990eb82fbf11b05b7813261196a2b841bdcf5a05f64396724a8987fa90504a3"),
    _metric("indoor",  "base",  "c6d9784685727bfc6d0a7b5452ce94afaee1e7f5",
            "8b902f5d9a8c8a9520f3a8c6a00afe442b464eff5aaf0cb405d1da721cd9f79f"),
    _metric("indoor",  "large", "d2fc6a93601aabb1139a3bf0ebfcb4e89c67817f",
            "04d3295ff4f9cbee72b8998a85930fe870b45ba4431e7af47415fbded02388ca"),
    _metric("outdoor", "small", "fd2c22027eaf20374204f14099b8341e1925ad39",
            "ad065c77a7421ca55159a1f0db9433397a607690f2d76bb8a6fc54b1be7a3124"),
    _metric("outdoor", "base",  "5b575fded0346068343a6d96d0ce3ab6dbc9fb49",
            "1f2e9ed13ee39126686994669f8d1bfd9cd8f093a4d2a0891e5a0e5263b480c9"),
    _metric("outdoor", "large", "4eab4cf1983c2801c515804005214de56a4b67cc",
            "15f7de4b22f1b1194847ea694ee9ed6395563ba5cd52b70b87901f183c232c9a"),
)
# fmt: on

ESTIMATORS: dict[str, EstimatorSpec] = {spec.alias: spec for spec in _SPECS}
"""Alias → estimator. ``dataset`` is not among them: it has no weights."""

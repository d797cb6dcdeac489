"""What a model folder says about itself: meaning of the numbers, sizes, normalisation, weights. Imports no torch."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data_cache.errors import UserError
from data_cache.files import read_json, write_json
from data_cache.sample import DepthKind
from stages.pseudo_depth.aliases import EstimatorSpec

SPEC_FILE = "estimator.json"
"""Written beside fetched and taught weights, so that a folder knows what its numbers mean."""

WEIGHTS_FILE = "model.safetensors"
SHARD_INDEX = "model.safetensors.index.json"
PICKLED_PATTERNS = ("*.bin", "*.pt", "*.pth", "*.ckpt")

_PIL_RESAMPLING = {"bilinear": 2, "bicubic": 3}


@dataclass(frozen=True)
class Preprocessing:
    """How an estimator wants its pixels, read from its ``preprocessor_config.json``."""

    mean: tuple[float, float, float]
    """Per channel, on the scale 0 to 255."""
    std: tuple[float, float, float]
    """Per channel, on the scale 0 to 255."""
    resampling: str
    """``bicubic`` or ``bilinear``."""


def describe_folder(folder: Path, *, alias: str, kind: DepthKind | None) -> EstimatorSpec:
    """Return what a model folder says about itself: ``estimator.json`` if there, else its configuration and ``kind``.

    Raises:
        UserError: when nothing says what the numbers mean, or ``kind`` contradicts the folder.
    """
    spec_file = folder / SPEC_FILE
    if spec_file.is_file():
        spec = read_spec(spec_file)
        if kind is not None and kind is not spec.kind:
            raise UserError(f"{spec_file} says the numbers are {spec.kind}, --kind says {kind}; drop --kind")
        return spec
    config = read_config(folder)
    max_depth_m = None
    if config.get("model_type") == "depth_anything":
        stated = DepthKind(config.get("depth_estimation_type", "relative"))
        kind = kind or stated
        max_depth_m = config.get("max_depth") if stated is DepthKind.METRIC else None
    if kind is None:
        raise UserError(
            f"{alias} does not say what its numbers mean; add --kind relative (inverse depth, large = near) "
            "or --kind metric (metres, large = far)"
        )
    return EstimatorSpec(
        alias=alias,
        hub_id=None,
        revision=None,
        kind=kind,
        size_multiple=_size_multiple_of(config),
        recommended_size=_recommended_size_of(folder),
        licence="unknown; see the weights' publisher",
        max_depth_m=max_depth_m,
    )


def read_spec(path: Path) -> EstimatorSpec:
    """Read an ``estimator.json``."""
    try:
        fields = read_description(path)
        return EstimatorSpec(**fields | {"kind": DepthKind(fields["kind"])})
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} does not describe an estimator ({error}); fetch or teach it again") from error


def write_spec(spec: EstimatorSpec, folder: Path) -> None:
    """Write ``estimator.json`` into a model folder."""
    write_json(folder / SPEC_FILE, asdict(spec))


def _patch_size_of(config: Mapping[str, Any]) -> int:
    patch = config.get("patch_size") or (config.get("backbone_config") or {}).get("patch_size") or 14
    return max(patch) if isinstance(patch, list) else int(patch)


def _size_multiple_of(config: Mapping[str, Any]) -> int:
    """Return the multiple at which the network neither pads nor cuts."""
    backbone = config.get("backbone_config") or {}
    match config.get("model_type"):
        case "depth_anything" | "prompt_depth_anything":
            return _patch_size_of(config)
        case "dpt" if backbone.get("model_type") == "dinov2":
            return 2 * int(backbone.get("patch_size", 14))  # even patch counts; the head rounds odd ones up
        case _:
            return 32  # stride of the other families' deepest feature map (GLPN, ZoeDepth, DPT on plain ViT)


def _recommended_size_of(folder: Path) -> int:
    size = read_description(folder / "preprocessor_config.json").get("size", 518)
    if isinstance(size, dict):
        size = size.get("height") or size.get("shortest_edge") or 518
    return int(size)


def read_preprocessing(folder: Path) -> Preprocessing:
    """Read how pixels are to be normalised; published estimators state it either on the scale 0–1 or 0–255."""
    config = read_description(folder / "preprocessor_config.json")
    # dpt-dinov2 says do_rescale false and gives mean and std for 0–255; the others divide by 255 first
    rescale = config.get("rescale_factor", 1 / 255) if config.get("do_rescale", True) else 1.0
    normalise = config.get("do_normalize", True)
    mean = config.get("image_mean") or (0.485, 0.456, 0.406) if normalise else (0.0, 0.0, 0.0)
    std = config.get("image_std") or (0.229, 0.224, 0.225) if normalise else (1.0, 1.0, 1.0)
    resampling = "bilinear" if config.get("resample") == _PIL_RESAMPLING["bilinear"] else "bicubic"
    return Preprocessing(
        mean=(mean[0] / rescale, mean[1] / rescale, mean[2] / rescale),
        std=(std[0] / rescale, std[1] / rescale, std[2] / rescale),
        resampling=resampling,
    )


def write_preprocessing(preprocessing: Preprocessing, folder: Path, spec: EstimatorSpec) -> None:
    """Write ``preprocessor_config.json`` in the form transformers reads, mean and std on the scale 0–1."""
    config = {
        "image_processor_type": "DPTImageProcessor",
        "do_resize": True,
        "size": {"height": spec.recommended_size, "width": spec.recommended_size},
        "keep_aspect_ratio": True,
        "ensure_multiple_of": spec.size_multiple,
        "resample": _PIL_RESAMPLING[preprocessing.resampling],
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [round(value / 255, 6) for value in preprocessing.mean],
        "image_std": [round(value / 255, 6) for value in preprocessing.std],
        "do_pad": False,
    }
    write_json(folder / "preprocessor_config.json", config)


def read_config(folder: Path) -> dict[str, Any]:
    """Return the folder's ``config.json``."""
    return read_description(folder / "config.json")


def read_description(path: Path) -> dict[str, Any]:
    """Return the object of a model folder's JSON file, an empty one when there is no file."""
    return read_json(path, "fetch or teach the estimator again") if path.is_file() else {}


def find_weights(folder: Path) -> list[Path]:
    """Return the safetensors files of a model folder, in order.

    Raises:
        UserError: when there are none, or only pickled ones.
    """
    single = folder / WEIGHTS_FILE
    if single.is_file():
        return [single]
    index = folder / SHARD_INDEX
    if index.is_file():
        names = sorted(set(read_description(index).get("weight_map", {}).values()))
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise UserError(f"{folder} lacks the weights {', '.join(missing)} that {SHARD_INDEX} names; fetch it again")
        return [folder / name for name in names]
    pickled = find_pickled_weights(folder)
    if pickled:
        raise UserError(
            f"{folder} holds pickled weights only ({', '.join(path.name for path in pickled)}), which can run code "
            f"when opened; turn them into {WEIGHTS_FILE} once with: pipeline fetch {folder}"
        )
    raise UserError(
        f"{folder} holds no weights ({WEIGHTS_FILE} is missing); "
        f"point to a folder that has config.json and {WEIGHTS_FILE}"
    )


def find_pickled_weights(folder: Path) -> list[Path]:
    """Return the pickled weight files of a model folder."""
    return sorted(path for pattern in PICKLED_PATTERNS for path in folder.glob(pattern))


def hash_files(paths: list[Path]) -> str:
    """Return the SHA-256 of the files' bytes, one after another."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()

"""What a model folder says about itself: meaning of the numbers, sizes, normalisation. Imports no torch.

``estimator.json`` is ours. ``config.json`` and ``preprocessor_config.json`` are others': what is used of them is parsed
as strictly, and what would fetch or run something foreign is refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from data_cache.errors import UserError
from data_cache.escaping import printable_text
from data_cache.files import read_json, write_json
from data_cache.records import Record, parse_record, read_record
from data_cache.sample import DepthKind
from stages.pseudo_depth.aliases import GROUND_TRUTH, EstimatorSpec
from stages.pseudo_depth.weight_files import FETCH_AGAIN

SPEC_FILE = "estimator.json"
"""Written beside fetched and taught weights, so that a folder knows what its numbers mean."""
CONFIG_FILE = "config.json"
PREPROCESSOR_FILE = "preprocessor_config.json"

LARGEST_SIZE_PX = 8192
"""Beyond any estimator's input; a file or an option that says more is mistaken."""
LARGEST_COUNT = 1000
"""Of layers, heads and the like. The largest published estimator has 40 layers of 24 heads."""
_LARGEST_MULTIPLE = 1024

_PIL_RESAMPLING = {2: "bilinear", 3: "bicubic"}
_OUR_CHOICE = {
    "attn_implementation", "_attn_implementation", "experts_implementation", "_experts_implementation", "use_kernels",
    "kernel_config", "fusion_config",
}  # fmt: skip
"""Keys with which a ``config.json`` could have compiled code downloaded; transformers gets to see none of them."""


def _check_name(name: str) -> str:
    if not name.strip() or not name.isprintable() or name == GROUND_TRUTH:
        raise ValueError(f"{name!r} is no name for an estimator")
    return name


def _check_printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("it holds control characters")
    return text


class _Spec(Record):
    """``estimator.json``."""

    alias: Annotated[str, Field(max_length=200), AfterValidator(_check_name)]
    hub_id: str | None = None
    revision: str | None = None
    kind: DepthKind
    size_multiple: int = Field(ge=1, le=_LARGEST_MULTIPLE)
    recommended_size: int = Field(ge=1, le=LARGEST_SIZE_PX)
    licence: Annotated[str, Field(max_length=2000), AfterValidator(_check_printable)]
    max_depth_m: float | None = Field(None, gt=0)
    noncommercial: bool = False
    weights_sha256: str | None = Field(None, pattern="^[0-9a-f]{64}$")


_Patch = Annotated[int, Field(ge=1, le=_LARGEST_MULTIPLE)]


class _Foreign(Record):
    """What is used of a file by others."""

    VERSION_KEY = ""  # it has no version of ours


class _Backbone(_Foreign):
    model_type: str | None = None
    patch_size: _Patch | list[_Patch] | None = None


class ModelConfig(_Foreign):
    """What is used of ``config.json`` besides building the network."""

    model_type: str
    backbone_config: _Backbone | None = None
    patch_size: _Patch | list[_Patch] | None = None
    depth_estimation_type: Literal["relative", "metric"] | None = None
    max_depth: float | None = Field(None, gt=0)
    dtype: str | None = None
    torch_dtype: str | None = None
    """What transformers 4 called it."""


_Side = Annotated[int, Field(ge=1, le=LARGEST_SIZE_PX)]


class _Sides(_Foreign):
    height: _Side | None = None
    shortest_edge: _Side | None = None
    longest_edge: _Side | None = None


def _expect_three(values: object) -> object:
    return values or None  # some publish [] for "as usual"


_Channels = Annotated[list[float] | None, Field(min_length=3, max_length=3), BeforeValidator(_expect_three)]


class _Preprocessor(_Foreign):
    """What is used of ``preprocessor_config.json``."""

    do_rescale: bool = True
    rescale_factor: float = Field(1 / 255, gt=1e-6, lt=1e6)
    do_normalize: bool = True
    image_mean: _Channels = None
    image_std: Annotated[
        list[Annotated[float, Field(gt=1e-6, lt=1e6)]] | None,
        Field(min_length=3, max_length=3),
        BeforeValidator(_expect_three),
    ] = None
    resample: Literal[2, 3] | None = None
    """Pillow's number: 2 bilinear, 3 bicubic."""
    size: _Side | _Sides | None = None


@dataclass(frozen=True)
class Preprocessing:
    """How an estimator wants its pixels, read from its ``preprocessor_config.json``."""

    mean: tuple[float, float, float]
    """Per channel, on the scale 0 to 255."""
    std: tuple[float, float, float]
    """Per channel, on the scale 0 to 255."""
    resampling: str
    """``bicubic`` or ``bilinear``."""


def find_model_folder(name: str) -> Path | None:
    """Return the existing folder that the name of an estimator means as a path, None where it means none."""
    try:
        folder = Path(name).expanduser()
        return folder if name and folder.is_dir() else None
    except (OSError, RuntimeError, ValueError):  # longer than names can be; the home of nobody; a NUL in it
        return None


def name_of_folder(folder: Path) -> str:
    """Return what a model folder is called in stores and messages: its own name, as text."""
    return printable_text(folder.resolve().name)


def describe_folder(folder: Path, *, alias: str, kind: DepthKind | None) -> EstimatorSpec:
    """Return what a model folder says about itself: ``estimator.json`` if there, else its configuration and ``kind``.

    Raises:
        UserError: a file is damaged or holds nonsense, nothing says what the numbers mean, or ``kind`` contradicts the
            folder.
    """
    config = read_known_config(folder)
    multiple = _size_multiple_of(config)
    spec_file = folder / SPEC_FILE
    if spec_file.is_file():
        spec = read_spec(spec_file)
        if kind is not None and kind is not spec.kind:
            raise UserError(f"{spec_file} says the numbers are {spec.kind}, --kind says {kind}; drop --kind")
        if spec.size_multiple % multiple:
            raise UserError(
                f"{spec_file} says size_multiple {spec.size_multiple}, but the network of {CONFIG_FILE} takes "
                f"multiples of {multiple} and cuts the rest off; fetch or teach the estimator again"
            )
        return spec
    max_depth_m = None
    if config.model_type == "depth_anything":
        stated = DepthKind(config.depth_estimation_type or kind or "relative")
        if kind not in (None, stated):
            raise UserError(f"{folder / CONFIG_FILE} says the numbers are {stated}, --kind says {kind}; drop --kind")
        kind = stated
        max_depth_m = config.max_depth if stated is DepthKind.METRIC else None
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
        size_multiple=multiple,
        recommended_size=_recommended_size_of(folder),
        licence="unknown; see the weights' publisher",
        max_depth_m=max_depth_m,
    )


def read_spec(path: Path) -> EstimatorSpec:
    """Read an ``estimator.json``."""
    return EstimatorSpec(**dict(read_record(path, _Spec, "fetch or teach the estimator again")))


def write_spec(spec: EstimatorSpec, folder: Path) -> None:
    """Write ``estimator.json`` into a model folder."""
    write_json(folder / SPEC_FILE, {_Spec.VERSION_KEY: _Spec.VERSION, **asdict(spec)})


def _patch_size_of(config: ModelConfig | _Backbone, default: int = 14) -> int:
    patch = config.patch_size or default
    return max(patch) if isinstance(patch, list) else patch


def _size_multiple_of(config: ModelConfig) -> int:
    """Return the multiple at which the network neither pads nor cuts."""
    backbone = config.backbone_config or _Backbone()
    match config.model_type:
        case "depth_anything" | "prompt_depth_anything":
            return _patch_size_of(config, _patch_size_of(backbone))
        case "dpt" if backbone.model_type == "dinov2":
            return 2 * _patch_size_of(backbone)  # even patch counts; the head rounds odd ones up
        case _:
            return 32  # stride of the other families' deepest feature map (GLPN, ZoeDepth, DPT on plain ViT)


def _recommended_size_of(folder: Path) -> int:
    size = _read_preprocessor(folder).size
    if isinstance(size, _Sides):
        size = size.height or size.shortest_edge or size.longest_edge
    return size or 518


def read_preprocessing(folder: Path) -> Preprocessing:
    """Read how pixels are to be normalised; published estimators state it either on the scale 0–1 or 0–255."""
    config = _read_preprocessor(folder)
    # dpt-dinov2 says do_rescale false and gives mean and std for 0–255; the others divide by 255 first
    rescale = config.rescale_factor if config.do_rescale else 1.0
    mean = config.image_mean or (0.485, 0.456, 0.406) if config.do_normalize else (0.0, 0.0, 0.0)
    std = config.image_std or (0.229, 0.224, 0.225) if config.do_normalize else (1.0, 1.0, 1.0)
    return Preprocessing(
        mean=(mean[0] / rescale, mean[1] / rescale, mean[2] / rescale),
        std=(std[0] / rescale, std[1] / rescale, std[2] / rescale),
        resampling=_PIL_RESAMPLING[config.resample or 3],
    )


def write_preprocessing(preprocessing: Preprocessing, folder: Path, spec: EstimatorSpec) -> None:
    """Write ``preprocessor_config.json`` in the form transformers reads, mean and std on the scale 0–1."""
    config = {
        "image_processor_type": "DPTImageProcessor",
        "do_resize": True,
        "size": {"height": spec.recommended_size, "width": spec.recommended_size},
        "keep_aspect_ratio": True,
        "ensure_multiple_of": spec.size_multiple,
        "resample": next(number for number, name in _PIL_RESAMPLING.items() if name == preprocessing.resampling),
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [round(value / 255, 6) for value in preprocessing.mean],
        "image_std": [round(value / 255, 6) for value in preprocessing.std],
        "do_pad": False,
    }
    write_json(folder / PREPROCESSOR_FILE, config)


def read_config(folder: Path) -> dict[str, Any]:
    """Return the folder's ``config.json``, without the keys that are no matter of a file's.

    Raises:
        UserError: it is damaged, wants code or weights from elsewhere, or counts more layers than there can be.
    """
    return _read_foreign(folder / CONFIG_FILE)


def read_known_config(folder: Path) -> ModelConfig:
    """Return what is used of ``config.json``; UserError as ``read_config``, or for nonsense."""
    return parse_record(read_config(folder), ModelConfig, str(folder / CONFIG_FILE), FETCH_AGAIN)


def _read_preprocessor(folder: Path) -> _Preprocessor:
    path = folder / PREPROCESSOR_FILE
    return parse_record(_read_foreign(path), _Preprocessor, str(path), FETCH_AGAIN)


def _read_foreign(path: Path) -> dict[str, Any]:
    config = read_json(path, FETCH_AGAIN)
    _refuse_foreign(config, path)
    return config


def _refuse_foreign(config: dict[str, Any], path: Path) -> None:
    """Refuse what would run or fetch something; drop, in place, what is our choice."""
    for section in _sections_of(config):
        for key in _OUR_CHOICE & section.keys():
            del section[key]
        if section.get("auto_map"):
            raise UserError(
                f"{path} asks to run code that came with the weights (auto_map), which this program never does; "
                "take an estimator that transformers itself knows, for example depth-anything-v2-small"
            )
        if section.get("transformers_weights"):
            raise UserError(
                f"{path} names a file of weights of its own (transformers_weights); only model.safetensors and what "
                f"its index names are read, so rename that file or {FETCH_AGAIN}"
            )
        if section.get("quantization_config"):
            raise UserError(f"{path} describes quantised weights, which are not read; take float16 or float32 ones")
        if section.get("use_pretrained_backbone") or (section.get("backbone") and not section.get("backbone_config")):
            raise UserError(
                f"{path} names a backbone that would have to be downloaded ({section.get('backbone')!r}); take a "
                "folder whose backbone_config describes it and whose weights hold it"
            )
        for key, value in section.items():
            if key.startswith("num_") and isinstance(value, int) and value > LARGEST_COUNT:
                raise UserError(
                    f"{path} says {key} {value}, more than any network has ({LARGEST_COUNT}); {FETCH_AGAIN}"
                )


def _sections_of(value: Any) -> Iterator[dict[str, Any]]:
    """Yield every object in a piece of JSON, itself included; a stack rather than recursion, whatever the depth."""
    waiting = [value]
    while waiting:
        match waiting.pop():
            case dict() as section:
                yield section
                waiting += section.values()
            case list() as items:
                waiting += items

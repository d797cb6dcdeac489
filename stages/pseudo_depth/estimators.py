"""Depth estimators through transformers: open the weights, feed them correctly, give back raw maps.

The one file that imports transformers. It opens whatever ``AutoModelForDepthEstimation`` opens, from a local folder and
without a network call; Hub ids are first brought into a folder by ``weights.download_snapshot``. transformers gets a
parsed configuration and tensors: it opens no file itself, so it can neither run code nor unpickle.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import conv2d

from data_cache.errors import Notice, UserError, is_out_of_memory, nearest
from data_cache.sample import DepthKind
from stages.networks.precision import Dtype, Precision, resolve_dtype
from stages.networks.tensor_files import check_trained, parse_tensors
from stages.pseudo_depth.aliases import BUNDLED_FOLDER, ESTIMATORS, GROUND_TRUTH, EstimatorSpec, is_hub_id, undescribed
from stages.pseudo_depth.geometry import compute_input_size, resize_image
from stages.pseudo_depth.model_folder import (
    CONFIG_FILE,
    LARGEST_SIZE_PX,
    SPEC_FILE,
    Preprocessing,
    describe_folder,
    find_model_folder,
    name_of_folder,
    read_config,
    read_preprocessing,
    read_stored_dtype,
)
from stages.pseudo_depth.weight_files import FETCH_AGAIN, SHARD_INDEX, WEIGHTS_FILE, find_weights, read_shard_map
from stages.pseudo_depth.weights import download_snapshot


class DepthEstimator:
    """A depth network with everything that is needed to run it on plain uint8 images.

    Attributes:
        spec: what the numbers mean and which sizes fit.
        revision: commit of the weights, None for weights that come from no repository.
        weights_sha256: hash of the safetensors file the weights were read from.
        precision: ``bfloat16`` or ``float32``; what the network computes in (the last layer always in float32).
    """

    def __init__(
        self,
        spec: EstimatorSpec,
        network: nn.Module,
        preprocessing: Preprocessing,
        *,
        weights_sha256: str,
        device: torch.device,
        precision: Dtype,
        input_size: int | None = None,
        compile_backend: str | None = None,
    ) -> None:
        self.spec = replace(spec, recommended_size=check_input_size(input_size, spec)) if input_size else spec
        self.revision = spec.revision
        self.weights_sha256 = weights_sha256
        self.precision = precision
        self.device = device
        self._resampling = preprocessing.resampling
        self._mean = torch.tensor(preprocessing.mean, device=device).view(1, 3, 1, 1)
        self._std = torch.tensor(preprocessing.std, device=device).view(1, 3, 1, 1)
        network = network.to(device).to(memory_format=torch.channels_last).eval().requires_grad_(False)
        _keep_last_layer_in_float32(network)
        self._network = torch.compile(network, backend=compile_backend) if compile_backend else network

    def compute_input_size(self, source_size: tuple[int, int]) -> tuple[int, int]:
        """Return the (h, w) at which an image of (H, W) pixels is estimated."""
        return compute_input_size(source_size, recommended=self.spec.recommended_size, multiple=self.spec.size_multiple)

    @property
    def resize_rule(self) -> str:
        """The rule that leads from image to input size, in words; part of a store's provenance."""
        return (
            f"{self._resampling} antialiased to multiples of {self.spec.size_multiple}, one side near "
            f"{self.spec.recommended_size}, aspect kept, no padding"
        )

    def prepare(self, image: NDArray[np.uint8]) -> Tensor:
        """Return an image (H, W, 3) as uint8 (3, h, w) at its input size."""
        height, width = image.shape[:2]
        return resize_image(image, self.compute_input_size((height, width)), mode=self._resampling)

    @torch.inference_mode()
    def predict(self, images: Tensor) -> Tensor:
        """Return the raw maps of images that are at their input size.

        Args:
            images: (B, 3, h, w) uint8 RGB.

        Returns:
            (B, h', w') float32, at least 0, on the estimator's device, at the network's output resolution; not
            necessarily finite, which the caller checks per image.
        """
        if self.device.type == "cuda":
            images = images.pin_memory()  # else the copy would wait for the batch before
        pixels = images.to(self.device, non_blocking=True)
        pixels = ((pixels - self._mean) / self._std).to(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            raw = run_network(self._network, pixels, self.spec.alias)
        return raw.float().clamp_min(0)  # clamp keeps nan, so the caller still sees it


def run_network(network: Callable[..., Any], pixels: Tensor, alias: str) -> Tensor:
    """Return the depth (B, h', w') that a network of transformers gives for normalised pixels (B, 3, h, w).

    Raises:
        UserError: it fails on them, or gives something else.
    """
    with _explaining(f"estimator {alias!r} fails on images of {pixels.shape[-2]}x{pixels.shape[-1]} px"):
        depth: Tensor = network(pixel_values=pixels).predicted_depth
    if depth.ndim != 3 or len(depth) != len(pixels) or 0 in depth.shape:
        raise UserError(
            f"estimator {alias!r} gives depth of shape {tuple(depth.shape)} for {len(pixels)} images, one map each is "
            f"expected; {FETCH_AGAIN}"
        )
    return depth


def load_estimator(
    name: str,
    *,
    kind: DepthKind | None = None,
    device: str | torch.device = "cpu",
    precision: Precision = "auto",
    input_size: int | None = None,
    compile_backend: str | None = None,
    accept_noncommercial: bool = False,
) -> DepthEstimator:
    """Open a depth estimator.

    Args:
        name: an alias of ``ESTIMATORS``, a folder with ``config.json`` and safetensors, or a Hub id ``owner/name``.
        kind: what the numbers mean; needed only where neither table nor folder says it.
        device: where it runs.
        precision: ``auto`` (bfloat16 where the hardware computes it), ``bfloat16`` or ``float32``.
        input_size: replaces the recommended size in pixels.
        compile_backend: of ``torch.compile``, None leaves the network as it is; ``inductor`` needs a C++ compiler (a
            Triton on GPUs).
        accept_noncommercial: open weights whose licence forbids commercial use.

    Raises:
        UserError: when there is no such estimator, its kind is unknown, its licence was not accepted, its weights are
            missing or pickled, or it cannot be reached.
    """
    device = torch.device(device)
    spec, folder = resolve_estimator(name, kind=kind, accept_noncommercial=accept_noncommercial)
    preprocessing = read_preprocessing(folder)
    network, weights_sha256 = open_network(folder)
    if (folder / SPEC_FILE).is_file() and spec.weights_sha256 not in (None, weights_sha256):
        raise UserError(
            f"the weights of {folder} are not those it was made with: SHA-256 {weights_sha256}, {SPEC_FILE} says "
            f"{spec.weights_sha256}; {FETCH_AGAIN}"
        )
    return DepthEstimator(
        spec,
        network,
        preprocessing,
        weights_sha256=weights_sha256,
        device=device,
        precision=resolve_dtype(precision, device.type),
        input_size=input_size,
        compile_backend=compile_backend,
    )


def resolve_estimator(
    name: str, *, kind: DepthKind | None = None, accept_noncommercial: bool = False
) -> tuple[EstimatorSpec, Path]:
    """Return an estimator's description and the folder of its files, downloading a Hub id unless it is cached."""
    if name == GROUND_TRUTH:
        raise UserError(
            f"{GROUND_TRUTH!r} is the dataset's ground-truth depth and has no weights to open; choose an estimator"
        )
    if name in ESTIMATORS and kind not in (None, ESTIMATORS[name].kind):
        raise UserError(f"estimator {name!r} gives {ESTIMATORS[name].kind} depth, --kind says {kind}; drop --kind")
    if name == "bundled":
        return ESTIMATORS["bundled"], BUNDLED_FOLDER
    if name in ESTIMATORS:
        spec = ESTIMATORS[name]
        check_licence(spec, accepted=accept_noncommercial)
        return download_snapshot(spec)
    if (folder := find_model_folder(name)) is not None:
        check_family(folder)
        find_weights(folder)
        spec = describe_folder(folder, alias=name_of_folder(folder), kind=kind)
        check_licence(spec, accepted=accept_noncommercial)
        return spec, folder
    if not is_hub_id(name):
        raise UserError(
            f"unknown estimator {name!r}{nearest(name, ESTIMATORS)}; possible: {', '.join(ESTIMATORS)}, "
            f"{GROUND_TRUTH}, the path of an existing model folder, or a Hub id OWNER/NAME with --kind"
        )
    return _resolve_hub_id(name, kind)


def _resolve_hub_id(hub_id: str, kind: DepthKind | None) -> tuple[EstimatorSpec, Path]:
    for spec in ESTIMATORS.values():
        if spec.hub_id == hub_id:
            raise UserError(
                f"{hub_id} is known as {spec.alias!r}; use that name, it pins the commit and the meaning of the numbers"
            )
    found, folder = download_snapshot(undescribed(hub_id, hub_id))
    check_family(folder)
    spec = describe_folder(folder, alias=hub_id, kind=kind)
    return replace(spec, hub_id=hub_id, revision=found.revision, licence=found.licence), folder


def check_licence(spec: EstimatorSpec, *, accepted: bool) -> None:
    """Raise UserError when weights forbid commercial use and that was not accepted."""
    if spec.noncommercial and not accepted:
        raise UserError(
            f"the weights of {spec.alias!r} are licensed {spec.licence}: no commercial use, and what is trained on "
            "their depth inherits the question; accept with --accept-noncommercial, or use depth-anything-v2-small"
        )


def check_family(folder: Path) -> None:
    """Raise UserError unless a folder is of a model that transformers knows as a depth estimator."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_DEPTH_ESTIMATION_MAPPING_NAMES as FAMILIES

    if not (folder / CONFIG_FILE).is_file():
        raise UserError(
            f"{folder} is no estimator: {CONFIG_FILE} is missing; name a folder that from_pretrained can open"
        )
    family = read_config(folder).get("model_type")
    if not isinstance(family, str) or family not in FAMILIES:
        raise UserError(
            f"{folder / CONFIG_FILE} cannot be opened as a depth estimator: its model_type is {family!r}; "
            f"transformers knows {', '.join(FAMILIES)}"
        )


def open_network(folder: Path) -> tuple[nn.Module, str]:
    """Open the network of a local model folder in float32; transformers itself opens no file, and fetches none.

    It is given the parsed configuration and the tensors. So nothing else that a folder may hold or name is followed:
    code, pickles, adapters, further files of weights.

    Returns:
        The network, and the SHA-256 of the very bytes its weights were read from.

    Raises:
        UserError: the folder is damaged, or configuration and weights do not fit together.
    """
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_DEPTH_ESTIMATION_MAPPING

    check_family(folder)
    tensors, sha256 = _read_weights(folder)
    with _quiet_transformers(), _explaining(f"{folder / CONFIG_FILE} describes no network that can be built"):
        config = AutoConfig.for_model(**read_config(folder))
        network_class = MODEL_FOR_DEPTH_ESTIMATION_MAPPING[type(config)]
        with torch.device("meta"):  # numbers of any size take no memory there
            sketch = network_class(config)
    _check_size(folder, tensors, sketch)
    check_trained(tensors, sketch.state_dict(), f"the weights of {folder}", FETCH_AGAIN)
    with _quiet_transformers(), _explaining(f"the weights of {folder} do not fit its {CONFIG_FILE}"):
        network, loading = network_class.from_pretrained(
            None,
            config=config,
            state_dict=tensors,
            dtype=torch.float32,
            local_files_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are reported, and refused below
        )
    _check_loaded(folder, network, loading)
    return network, sha256


def _read_weights(folder: Path) -> tuple[dict[str, Tensor], str]:
    """Return the tensors of a folder, and the hash of the bytes they came from."""
    digest, tensors, places = hashlib.sha256(), dict[str, Tensor](), dict[str, str]()
    paths = find_weights(folder)
    for path in paths:
        content = path.read_bytes()
        digest.update(content)
        found = parse_tensors(content, path, FETCH_AGAIN)
        tensors |= found
        places |= dict.fromkeys(found, path.name)
    if paths[0].name != WEIGHTS_FILE and places != read_shard_map(folder / SHARD_INDEX):
        raise UserError(f"{folder / SHARD_INDEX} and the files that it names hold different tensors; {FETCH_AGAIN}")
    return tensors, digest.hexdigest()


def _check_size(folder: Path, tensors: Mapping[str, Tensor], sketch: nn.Module) -> None:
    """Refuse a network far larger than its weights, before memory is spent on it."""
    have, need = (sum(each.numel() for each in state.values()) for state in (tensors, sketch.state_dict()))
    if need > 2 * have + 1_000_000:
        raise UserError(
            f"{folder / CONFIG_FILE} describes a network of {need:,} numbers, the weights hold {have:,}; {FETCH_AGAIN}"
        )


def _check_loaded(folder: Path, network: nn.Module, loading: Mapping[str, Any]) -> None:
    """Refuse a network of which a part would stay random, and weights of which a part would be left out."""
    parts = {name for name, _ in network.named_children()}  # a twelfth layer is of a part, so are biases of its layers
    missing = sorted(loading["missing_keys"])
    left_out = sorted(name for name in loading["unexpected_keys"] if name.partition(".")[0] in parts)
    other_shape = sorted((name, tuple(found), tuple(wanted)) for name, found, wanted in loading["mismatched_keys"])
    problems = [
        *([f"the weights lack {len(missing)} tensors of the network, {missing[0]} first"] if missing else []),
        *([f"the network has no place for {len(left_out)} tensors, {left_out[0]} first"] if left_out else []),
        *(f"{name} has shape {found} instead of {wanted}" for name, found, wanted in other_shape[:1]),
        *map(str, loading["error_msgs"][:1]),
    ]
    if problems:
        raise UserError(f"the weights of {folder} do not fit its {CONFIG_FILE}: {'; '.join(problems)}; {FETCH_AGAIN}")
    if foreign := sorted(loading["unexpected_keys"]):
        warnings.warn(
            f"{folder}: {len(foreign)} tensors belong to no part of the network and are left out, {foreign[0]} first",
            Notice,
            stacklevel=2,
        )


def read_stored_type(folder: Path) -> torch.dtype:
    """Return the precision a model folder's weights are stored in."""
    return {"float16": torch.float16, "bfloat16": torch.bfloat16}.get(read_stored_dtype(folder), torch.float32)


@contextlib.contextmanager
def _explaining(what: str) -> Iterator[None]:
    """Turn what a library raises over a file's nonsense into one message."""
    try:
        yield
    except Exception as problem:  # numbers that fit nothing end in any exception, a strict check or an arithmetic error
        if is_out_of_memory(problem):
            raise
        said = " ".join(str(problem).split())[:300]
        raise UserError(f"{what} ({type(problem).__name__}: {said}); {FETCH_AGAIN}") from problem


def write_network(network: nn.Module, folder: Path, *, dtype: torch.dtype = torch.float32) -> None:
    """Write ``config.json`` and safetensors of a network into a folder; ``open_network`` reads it back in float32."""
    network = copy.deepcopy(network).to("cpu", dtype).to(memory_format=torch.contiguous_format)
    with _quiet_transformers():
        network.save_pretrained(folder)  # type: ignore[operator]  # transformers models have it, nn.Module does not


def build_small_network(size: Mapping[str, Any], *, seed: int) -> nn.Module:
    """Build a fresh DINOv2 backbone with a Depth Anything head.

    Args:
        size: keyword arguments of ``backbone`` (Dinov2Config) and ``head`` (DepthAnythingConfig).
        seed: of the initial weights.
    """
    from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation, Dinov2Config

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        backbone = Dinov2Config(reshape_hidden_states=False, **size["backbone"])
        network = DepthAnythingForDepthEstimation(DepthAnythingConfig(backbone_config=backbone, **size["head"]))
    nn.init.constant_(network.head.conv3.bias, 0.3)  # above the final ReLU, which would otherwise start half dead
    return network


@contextlib.contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Keep transformers from drawing progress bars and load reports over ours; what matters is raised by us."""
    from transformers.utils import logging

    was_shown, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if was_shown:
            logging.enable_progress_bar()


class _Float32Conv(nn.Module):
    """A 1×1 convolution that computes in float32 under autocast, so that maps are not rounded to 8 bits of mantissa."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, features: Tensor) -> Tensor:
        with torch.autocast(features.device.type, enabled=False):
            return conv2d(features.float(), self.conv.weight, self.conv.bias)


def _keep_last_layer_in_float32(network: nn.Module) -> None:
    for parent in list(network.modules()):  # a list first: the loop changes what it walks through
        for name, child in parent.named_children():
            if isinstance(child, nn.Conv2d) and child.out_channels == 1 and child.kernel_size == (1, 1):
                setattr(parent, name, _Float32Conv(child))


def check_input_size(size: int, spec: EstimatorSpec) -> int:
    """Return a size in pixels; UserError where it is less than the estimator's multiple, or absurd."""
    if not spec.size_multiple <= size <= LARGEST_SIZE_PX:
        raise UserError(
            f"input size {size} is too {'small' if size < spec.size_multiple else 'large'} for {spec.alias!r}; take a "
            f"multiple of {spec.size_multiple} up to {LARGEST_SIZE_PX}, "
            f"{math.ceil(spec.recommended_size / spec.size_multiple) * spec.size_multiple} is recommended"
        )
    return size

"""Depth estimators: found by name, opened, fed correctly; they give back raw maps.

Hub ids are first brought into a folder by ``weights.download_snapshot``; from then on nothing needs a network.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import conv2d

from data_cache.datasets.interface import SegmentationDataset
from data_cache.depth_map import Provenance, UnfitMap
from data_cache.errors import UserError, nearest
from data_cache.sample import DepthKind
from stages.networks.precision import Dtype, Precision, autocast, resolve_dtype
from stages.pseudo_depth.aliases import BUNDLED_FOLDER, ESTIMATORS, GROUND_TRUTH, EstimatorSpec, is_hub_id, undescribed
from stages.pseudo_depth.depth_source import Reading
from stages.pseudo_depth.estimator_network import check_family, open_network, run_encoder, run_network
from stages.pseudo_depth.geometry import compute_input_size, resize_image
from stages.pseudo_depth.model_folder import (
    LARGEST_SIZE_PX,
    SPEC_FILE,
    Preprocessing,
    describe_folder,
    find_model_folder,
    name_of_folder,
    read_preprocessing,
)
from stages.pseudo_depth.weight_files import FETCH_AGAIN, find_weights
from stages.pseudo_depth.weights import download_snapshot


class DepthEstimator:
    """A depth network with everything that is needed to run it on plain uint8 images.

    Attributes:
        spec: what the numbers mean and which sizes fit.
        revision: commit of the weights, None for weights that come from no repository.
        weights_sha256: hash of the safetensors file the weights were read from.
        precision: ``bfloat16``, ``float16`` or ``float32``; what the network computes in (the last layer always in
            float32).
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

    def describe(self, dataset: SegmentationDataset, provenance: Provenance) -> Provenance:  # noqa: ARG002
        """Return how maps of this estimator are made; it sees images alone, so they are the same for every dataset."""
        return replace(
            provenance,
            estimator=self.spec.alias,
            revision=self.revision or "",
            weights_sha256=self.weights_sha256,
            kind=self.spec.kind,
            unit=self.spec.unit,
            max_depth_m=self.spec.max_depth_m,
            resize_rule=self.resize_rule,
            input_size=self.spec.recommended_size,
            dtype=self.precision,
            licence=self.spec.licence,
        )

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

    def read(self, dataset: SegmentationDataset, index: int) -> Reading:
        """Read an image of a dataset, at its input size."""
        image, notes = dataset.read_noted_image(index)
        return Reading(self.prepare(image), (image.shape[0], image.shape[1]), notes)

    @torch.inference_mode()
    def predict(self, images: Tensor) -> Tensor:
        """Return the raw maps of images that are at their input size.

        Args:
            images: (B, 3, h, w) uint8 RGB.

        Returns:
            (B, h', w') float32, at least 0, on the estimator's device, at the network's output resolution; not
            necessarily finite, which the caller checks per image.
        """
        with autocast(self.device, self.precision):
            raw = run_network(self._network, self._normalise(images), self.spec.alias)
        return raw.float().clamp_min(0)  # clamp keeps nan, so the caller still sees it

    @torch.inference_mode()
    def encode(self, images: Tensor) -> Tensor:
        """Return float32 features (B, C) of images that are at their input size: see ``run_encoder``."""
        with autocast(self.device, self.precision):
            return run_encoder(self._network, self._normalise(images), self.spec.alias)

    def _normalise(self, images: Tensor) -> Tensor:
        if self.device.type == "cuda":
            images = images.pin_memory()  # else the copy would wait for the batch before
        pixels = images.to(self.device, non_blocking=True)
        return ((pixels - self._mean) / self._std).to(memory_format=torch.channels_last)

    def check_alive(self, images: Tensor, maps: Tensor) -> None:
        """Refuse an estimator that sees nothing, by its first maps (B, h, w), before the data set is spent on it.

        A blank image may have a flat map. So where no map tells anything, the estimator is shown noise.
        """
        if any(_tells_something(each) for each in maps):
            return
        shape = (1, *images.shape[1:])
        noise = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        of_noise = self.predict(noise)[0]
        if not _tells_something(of_noise):
            low, high = float(of_noise.min()), float(of_noise.max())
            gives = f"depth from {low:.4g} to {high:.4g}" if high > low else f"depth {low:.4g} everywhere"
            raise UserError(
                f"estimator {self.spec.alias!r} gives {gives}, for the first images and for noise; its weights are "
                f"damaged or untrained, fetch or teach them again{self._hint_precision()}"
            )

    def check_map(self, raw: NDArray[np.float32]) -> None:
        """Refuse a map with numbers that are not finite; an estimator has no word for unknown."""
        num_bad = int(np.count_nonzero(~np.isfinite(raw)))
        if num_bad:
            raise UnfitMap(
                f"the estimator gave {num_bad} of {raw.size} values that are not finite{self._hint_precision()}"
            )

    def _hint_precision(self) -> str:
        return "; try --set depth.precision=float32" if self.precision != "float32" else ""


def _tells_something(depth: Tensor) -> bool:
    """Whether a map (h, w), as it would be stored, is finite and not constant."""
    stored = depth.half()
    return bool(torch.isfinite(stored).all()) and bool(stored.min() != stored.max())


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
        precision: see ``resolve_dtype``.
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
        precision=resolve_dtype(precision, str(device)),
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

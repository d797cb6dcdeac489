"""Depth networks of transformers: opened from a folder, run, written, built anew; the one file that imports it.

Opened is whatever ``AutoModelForDepthEstimation`` opens, without a network call. transformers gets a parsed
configuration and tensors: it opens no file itself, so it can neither run code nor unpickle.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from data_cache.errors import Notice, UserError, is_out_of_memory
from stages.networks.tensor_files import check_trained, give_usual_mode, parse_tensors
from stages.pseudo_depth.model_folder import CONFIG_FILE, read_config, read_known_config
from stages.pseudo_depth.weight_files import FETCH_AGAIN, SHARD_INDEX, WEIGHTS_FILE, find_weights, read_shard_map


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
    config = read_known_config(folder)
    dtype = config.dtype or config.torch_dtype or "float32"
    return {"float16": torch.float16, "bfloat16": torch.bfloat16}.get(dtype, torch.float32)


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


def run_encoder(network: Callable[..., Any], pixels: Tensor, alias: str) -> Tensor:
    """Return (B, C) features of normalised pixels (B, 3, h, w): the encoder's last state, its mean over all places.

    Raises:
        UserError: it fails on them, or has no such state.
    """
    assert isinstance(network, nn.Module)
    encoder = next(network.children())
    with _explaining(f"estimator {alias!r} fails on images of {pixels.shape[-2]}x{pixels.shape[-1]} px"):
        found = encoder(pixels)
        state: Tensor = found.feature_maps[-1] if "feature_maps" in found else found.last_hidden_state
    if state.ndim not in (3, 4) or len(state) != len(pixels):
        raise UserError(
            f"the encoder of estimator {alias!r} ends in a state of shape {tuple(state.shape)} for {len(pixels)} "
            "images, which tells no features of each; choose another estimator, or another way than depth-features"
        )
    return state.float().mean(dim=1 if state.ndim == 3 else (2, 3))


def write_network(network: nn.Module, folder: Path, *, dtype: torch.dtype = torch.float32) -> None:
    """Write ``config.json`` and safetensors of a network into a folder; ``open_network`` reads it back in float32."""
    network = copy.deepcopy(network).to("cpu", dtype).to(memory_format=torch.contiguous_format)
    with _quiet_transformers():
        network.save_pretrained(folder)  # type: ignore[operator]  # transformers models have it, nn.Module does not
    give_usual_mode(folder / WEIGHTS_FILE)


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

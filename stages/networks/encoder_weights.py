"""Pretrained encoder weights: from the Hub when there is a connection, from a local safetensors file always."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub import constants, file_exists, try_to_load_from_cache
from segmentation_models_pytorch.encoders import encoders as smp_encoders
from segmentation_models_pytorch.encoders import get_encoder
from torch import Tensor, nn

from data_cache.errors import UserError, nearest
from data_cache.escaping import quoted
from data_cache.files import atomic_file
from data_cache.images import format_examples
from stages.networks.encoders import check_encoder_name
from stages.networks.hub import find_hub_problem
from stages.networks.tensor_files import check_trained, read_metadata, read_tensors, save_tensors

CLASSIFIER_PREFIXES = ("fc.", "_fc.", "classifier.", "head.", "last_linear.")
"""Weights of a classifier, which a file may carry and an encoder does not want."""
_PUBLISHED_FILE = "model.safetensors"


def is_weights_file(encoder_weights: str) -> bool:
    """Whether the option names a file rather than a set of published weights."""
    return "/" in encoder_weights or os.sep in encoder_weights or Path(encoder_weights).suffix != ""


def resolve_smp_weights(encoder: str, encoder_weights: str) -> str | bool | None:
    """Translate ``imagenet`` and its like to smp's argument and check that they can be had; None for files.

    Raises:
        UserError: for weights that the encoder is not published with, or without a connection.
    """
    check_weights_name(encoder, encoder_weights)
    if encoder_weights == "none" or is_weights_file(encoder_weights):
        return None
    _check_available(encoder, encoder_weights)
    return True if encoder.startswith("tu-") else encoder_weights


def check_weights_name(encoder: str, encoder_weights: str) -> None:
    """Raise UserError for published weights that an encoder does not have; needs no connection."""
    if encoder_weights == "none" or is_weights_file(encoder_weights):
        return
    if encoder.startswith("tu-"):
        possible = ["imagenet"] if timm.is_model_pretrained(encoder.removeprefix("tu-")) else []
    else:
        possible = list(smp_encoders[encoder]["pretrained_settings"])
    if encoder_weights not in possible:
        names = [*possible, "none"]
        raise UserError(
            f"encoder {encoder!r} has no weights {quoted(encoder_weights)}{nearest(encoder_weights, names)}; "
            f"possible: {', '.join(names)}, or the path of a safetensors file"
        )


def build_no_connection_error(encoder: str, reason: object) -> UserError:
    """Build the one error for pretrained weights that cannot be downloaded."""
    return UserError(
        f"cannot download the pretrained weights of encoder {encoder!r}: no connection to {constants.ENDPOINT} "
        f"({reason}). On a machine with a connection run 'pipeline fetch' and copy the file here, then set "
        'encoder_weights to its path; or set encoder_weights = "none" to start from random weights'
    )


def _check_available(encoder: str, encoder_weights: str) -> None:
    """Raise UserError unless the weights are in the cache, intact, or can be downloaded, as safetensors."""
    if encoder.startswith("tu-"):
        repository, revision = timm.get_pretrained_cfg(encoder.removeprefix("tu-")).hf_hub_id, None
    else:
        settings = smp_encoders[encoder]["pretrained_settings"][encoder_weights]
        repository, revision = settings["repo_id"], settings["revision"]
    if repository:
        cached = try_to_load_from_cache(repository, _PUBLISHED_FILE, revision=revision)
        if isinstance(cached, str):
            read_tensors(Path(cached), "delete that file, it is downloaded again")
            return
    if (problem := find_hub_problem()) is not None:
        raise build_no_connection_error(encoder, problem)
    try:
        published = bool(repository) and file_exists(repository, _PUBLISHED_FILE, revision=revision)
    except Exception as problem:  # the Hub client lets exceptions of whichever HTTP library it uses through
        raise build_no_connection_error(encoder, problem) from problem
    if not published:
        raise UserError(
            f"the weights of encoder {encoder!r} are published as a pickle only, which is never opened here; choose "
            'another encoder, encoder_weights = "none", or a safetensors file of them'
        )


def load_encoder_file(encoder: nn.Module, name: str, file: Path) -> None:
    """Load a safetensors file into an encoder as smp or timm builds it.

    The file may hold an encoder (as ``fetch_encoder_weights`` writes it), a classifier as torchvision or timm publish
    it, or a whole network with ``encoder.`` in front, as an export folder does; classifier weights and stages beyond
    the chosen depth are left out.

    Raises:
        UserError: when the file is missing, no safetensors file, or of another architecture.
    """
    weights = read_encoder_file(file)
    wanted = encoder.state_dict()
    known = _all_stage_names(name, wanted)
    if name.startswith("tu-"):
        weights = {_find_smp_name(key, known): value for key, value in weights.items()}
    encoder.load_state_dict(match_weights(name, file, wanted, weights, optional=known))


def read_encoder_file(file: Path) -> dict[str, Tensor]:
    """Return the tensors of an encoder's file, or those of the encoder in a network's; none of a classifier.

    Raises:
        UserError: as ``read_weights_file``.
    """
    weights = read_weights_file(file)
    if any(key.startswith("encoder.") for key in weights):
        weights = {key.removeprefix("encoder."): v for key, v in weights.items() if key.startswith("encoder.")}
    return {key: value for key, value in weights.items() if not key.startswith(CLASSIFIER_PREFIXES)}


def match_weights(
    name: str,
    file: Path | str,
    wanted: Mapping[str, Tensor],
    weights: Mapping[str, Tensor],
    *,
    optional: Iterable[str] = (),
) -> dict[str, Tensor]:
    """Return ``wanted`` with the values of ``weights``, which must be of the same architecture.

    Args:
        name: of the encoder, for the message.
        file: where the weights come from, for the message.
        wanted: state dict of the module.
        weights: tensors of the file under the module's names.
        optional: further names that a file of this architecture may hold; they are left out.

    Raises:
        UserError: for missing or unknown names or other shapes, both sides shown; for values that are not finite.
    """
    # Counters of batch norm came with torch 0.4.1; older files lack them and lose nothing by it.
    missing = [key for key in wanted if key not in weights and not key.endswith("num_batches_tracked")]
    extra = sorted(weights.keys() - set(wanted) - set(optional))
    shapes = [
        f"{key} {tuple(weights[key].shape)} instead of {tuple(value.shape)}"
        for key, value in wanted.items()
        if key in weights and weights[key].shape != value.shape
    ]
    if missing or extra or shapes:
        differences = {
            "the encoder has, the file lacks": missing,
            "the file has, the encoder lacks": extra,
            "of another shape": shapes,
        }
        lines = [
            f"{file} ({len(weights)} tensors) are not the weights of encoder {name!r} ({len(wanted)} tensors):",
            *(f"  {what} ({len(n)}): {format_examples(n[:6], len(n)) or 'none'}" for what, n in differences.items()),
            f"give the file of {name!r}, or choose the network or encoder that the file belongs to",
        ]
        raise UserError("\n".join(lines))
    check_trained({key: weights[key] for key in wanted if key in weights}, wanted, file, "fetch it again")
    return {key: weights.get(key, value) for key, value in wanted.items()}


def fetch_encoder_weights(encoder: str, out_file: Path) -> Path:
    """Download an encoder's ImageNet weights and write them as one safetensors file for offline machines.

    Args:
        encoder: name as in ``encoder``: smp's, or ``tu-`` and timm's.
        out_file: file to write, published by rename; its folder is made.

    Returns:
        ``out_file``.

    Raises:
        UserError: for an unknown encoder, one without published weights, or without a connection; where there is
            another file.
    """
    check_encoder_name(encoder)
    if is_fetched(encoder, out_file):
        return out_file
    smp_weights = resolve_smp_weights(encoder, "imagenet")
    try:
        module = get_encoder(encoder, weights=smp_weights)
    except OSError as error:
        raise build_no_connection_error(encoder, error) from error
    return write_weights_file(module.state_dict(), encoder, out_file)


def is_fetched(encoder: str, out_file: Path) -> bool:
    """Whether a file holds an encoder's weights as ``write_weights_file`` writes them; UserError if it is another."""
    if not os.path.lexists(out_file):
        return False
    if read_metadata(out_file).get("encoder") != encoder:
        raise UserError(f"{out_file} exists already and holds no weights of {encoder!r}; choose another --out")
    return True


def write_weights_file(weights: Mapping[str, Tensor], encoder: str, out_file: Path) -> Path:
    """Write an encoder's ImageNet weights as one safetensors file, published by rename; returns ``out_file``."""
    with atomic_file(out_file) as temporary:
        save_tensors(temporary, weights, {"format": "pt", "encoder": encoder, "encoder_weights": "imagenet"})
    return out_file


def read_weights_file(file: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file.

    Raises:
        UserError: when the file is missing or no safetensors file.
    """
    if file.suffix != ".safetensors":
        raise UserError(
            f"encoder_weights {str(file)!r} is not a .safetensors file; other formats are pickles, which can run code "
            "when opened, and are never read here. Convert it once with safetensors.torch.save_file, or run "
            "'pipeline fetch'"
        )
    if not file.is_file():
        raise UserError(
            f'encoder_weights {str(file)!r} does not exist; give the path of a safetensors file, "imagenet" or "none"'
        )
    return read_tensors(file, "fetch it again with: pipeline fetch")


def _all_stage_names(name: str, wanted: Mapping[str, Any]) -> set[str]:
    """Names that a file of this encoder may hold: those of all stages, and those of timm's whole classifier."""
    if not name.startswith("tu-"):
        return set(wanted)
    with torch.device("meta"):
        whole, classifier = get_encoder(name, weights=None), timm.create_model(name.removeprefix("tu-"))
    return {*wanted, *whole.state_dict(), *classifier.state_dict()}


def _find_smp_name(key: str, known: Collection[str]) -> str:
    """Return smp's name of a weight that timm calls ``conv1.…`` or ``blocks.1.…``; other names as they are.

    smp has ``model.`` in front; for some architectures timm, asked for features, flattens that to ``blocks_1.…``.
    """
    flattened = re.sub(r"^(\w+)\.(\d+)\.", r"\1_\2.", key)
    return next((name for name in (f"model.{key}", f"model.{flattened}") if name in known), key)

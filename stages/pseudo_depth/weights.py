"""Weights as files: fetch them from the Hub, turn pickles into safetensors.

Only safetensors are ever loaded. Pickled weights are opened in exactly one place, ``convert_pickled_weights``, which
``pipeline fetch`` calls with ``weights_only=True``.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from data_cache.errors import UserError
from stages.networks.hub import find_hub_problem
from stages.networks.tensor_files import save_tensors
from stages.pseudo_depth.aliases import EstimatorSpec
from stages.pseudo_depth.weight_files import PICKLED_PATTERNS, SHARD_INDEX, find_pickled_weights, find_weights

_LOADED_PATTERNS = ("config.json", "preprocessor_config.json", "model*.safetensors", SHARD_INDEX)


def download_snapshot(spec: EstimatorSpec, *, pickled: bool = False) -> tuple[EstimatorSpec, Path]:
    """Return a Hub estimator at the commit it came from, and its folder in the local Hub cache.

    What the cache lacks is downloaded.

    Args:
        spec: which repository, at which commit.
        pickled: also take pickled weights; only ``pipeline fetch`` asks for that.

    Raises:
        UserError: when neither cache nor Hub can be had, or the repository is unknown or closed.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import RepositoryNotFoundError

    assert spec.hub_id is not None
    patterns = [*_LOADED_PATTERNS, *(PICKLED_PATTERNS if pickled else ())]
    cached = _find_cached(spec, patterns, pickled=pickled)
    if cached is not None and spec.revision is not None:
        return spec, cached  # a commit never changes: what is in the cache needs no look at the network
    if find_hub_problem() is not None:
        if cached is None:
            raise _unreachable(spec)
        return _pin(spec, cached)
    try:
        folder = Path(snapshot_download(spec.hub_id, revision=spec.revision, allow_patterns=patterns))
    except RepositoryNotFoundError as error:
        raise UserError(
            f"the Hugging Face Hub has no open repository {spec.hub_id!r}; check the id with: pipeline estimators"
        ) from error
    except Exception as error:  # the Hub client lets exceptions of whichever HTTP library it uses through
        raise _unreachable(spec) from error
    if not (folder / "config.json").is_file():
        raise _unreachable(spec)  # offline, the client returns what an interrupted download left
    return _pin(spec, folder)


def is_cached(spec: EstimatorSpec) -> bool:
    """Whether a Hub estimator opens without network."""
    return _find_cached(spec, list(_LOADED_PATTERNS), pickled=False) is not None


def _pin(spec: EstimatorSpec, snapshot: Path) -> tuple[EstimatorSpec, Path]:
    """Note the commit that a folder of the Hub cache stands for; its last part is the commit's hash."""
    commit = snapshot.name if snapshot.parent.name == "snapshots" else None
    return replace(spec, revision=spec.revision or commit), snapshot


def _find_cached(spec: EstimatorSpec, patterns: list[str], *, pickled: bool) -> Path | None:
    """Return the repository's folder in the Hub cache when it is whole; no network call."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    assert spec.hub_id is not None
    try:
        folder = Path(
            snapshot_download(spec.hub_id, revision=spec.revision, allow_patterns=patterns, local_files_only=True)
        )
    except LocalEntryNotFoundError:
        return None
    if not (folder / "config.json").is_file():
        return None
    if not (pickled and find_pickled_weights(folder)):
        try:
            find_weights(folder)
        except UserError:
            return None
    return folder


def _unreachable(spec: EstimatorSpec) -> UserError:
    return UserError(
        f"estimator {spec.alias!r} ({spec.hub_id}) is not on this machine and the Hugging Face Hub cannot be reached; "
        f"on a connected machine run: pipeline fetch {spec.alias} --out FOLDER, copy the folder here and give its path "
        "as the estimator; or use the estimator that comes along: --estimator bundled"
    )


def convert_pickled_weights(pickled: list[Path], out_file: Path) -> None:
    """Write the tensors of pickled weight files as one safetensors file; the pickles stay.

    Raises:
        UserError: a file holds more than tensors.
    """
    tensors: dict[str, torch.Tensor] = {}
    for path in pickled:
        tensors |= _open_pickled_weights(path)
    # a copy each: safetensors refuses tensors that share memory, and views would carry their whole storage
    save_tensors(out_file, {name: tensor.clone() for name, tensor in tensors.items()}, {"format": "pt"})


def _open_pickled_weights(path: Path) -> dict[str, torch.Tensor]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises anything from UnpicklingError to RuntimeError and EOFError
        raise UserError(
            f"{path} is not a plain file of tensors and was not opened ({error.__class__.__name__})"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise UserError(
            f"{path} holds more than a table of tensors and was not converted; get safetensors from its publisher"
        )
    return state

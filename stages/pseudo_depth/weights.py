"""Weights as files: fetch them from the Hub, turn pickles into safetensors.

Only safetensors are ever loaded. Pickled weights are opened in exactly one place, ``convert_pickled_weights``, which
``pipeline fetch`` calls with ``weights_only=True``.
"""

from __future__ import annotations

from pathlib import Path

import torch

from data_cache.errors import UserError
from data_cache.files import atomic_file
from stages.networks.hub import find_hub_problem
from stages.networks.tensor_files import save_tensors
from stages.pseudo_depth.aliases import EstimatorSpec
from stages.pseudo_depth.model_folder import (
    PICKLED_PATTERNS,
    SHARD_INDEX,
    WEIGHTS_FILE,
    find_pickled_weights,
    find_weights,
    hash_files,
)

_LOADED_PATTERNS = ("config.json", "preprocessor_config.json", "model*.safetensors", SHARD_INDEX)


def download_snapshot(spec: EstimatorSpec, *, pickled: bool = False) -> Path:
    """Return the folder of a Hub estimator in the local Hub cache, downloading what is not there yet.

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
        return cached  # a commit never changes: what is in the cache needs no look at the network
    if find_hub_problem() is not None:
        if cached is not None:
            return cached
        raise _unreachable(spec)
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
    return folder


def _find_cached(spec: EstimatorSpec, patterns: list[str], *, pickled: bool) -> Path | None:
    """Return the repository's folder in the Hub cache when it is whole; no network call."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    assert spec.hub_id is not None
    try:
        folder = snapshot_download(spec.hub_id, revision=spec.revision, allow_patterns=patterns, local_files_only=True)
    except LocalEntryNotFoundError:
        return None
    return Path(folder) if _is_complete(Path(folder), pickled=pickled) else None


def _is_complete(folder: Path, *, pickled: bool) -> bool:
    if not (folder / "config.json").is_file():
        return False
    if pickled and find_pickled_weights(folder):
        return True
    try:
        return bool(find_weights(folder))
    except UserError:
        return False


def _unreachable(spec: EstimatorSpec) -> UserError:
    return UserError(
        f"estimator {spec.alias!r} ({spec.hub_id}) is not on this machine and the Hugging Face Hub cannot be reached; "
        f"on a connected machine run: pipeline fetch {spec.alias} --out FOLDER, copy the folder here and give its path "
        "as the estimator; or use the estimator that comes along: --estimator bundled"
    )


def convert_pickled_weights(folder: Path, *, expected_sha256: str | None = None) -> None:
    """Turn a folder's pickled weights into ``model.safetensors`` and remove the pickles; does nothing without pickles.

    Args:
        folder: a model folder; a safetensors file that is already there wins over the pickles.
        expected_sha256: hash the pickled file must have before it is opened.

    Raises:
        UserError: when the hash differs or the file holds more than tensors.
    """
    pickled = find_pickled_weights(folder)
    if not pickled:
        return
    if not (folder / WEIGHTS_FILE).is_file() and not (folder / SHARD_INDEX).is_file():
        if expected_sha256 is not None and (found := hash_files(pickled)) != expected_sha256:
            raise UserError(
                f"{pickled[0]} has SHA-256 {found}, expected {expected_sha256}; delete the folder and fetch again"
            )
        tensors: dict[str, torch.Tensor] = {}
        for path in pickled:
            tensors |= _open_pickled_weights(path)
        with atomic_file(folder / WEIGHTS_FILE) as temporary:
            # a copy each: safetensors refuses tensors that share memory, and views would carry their whole storage
            save_tensors(temporary, {name: tensor.clone() for name, tensor in tensors.items()}, {"format": "pt"})
    for path in (*pickled, *folder.glob("*.bin.index.json")):
        path.unlink()


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

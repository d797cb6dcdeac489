"""Which files of a model folder hold its weights: safetensors of that folder and nothing else. Imports no torch."""

from __future__ import annotations

import hashlib
from pathlib import Path

from data_cache.errors import UserError
from data_cache.records import Record, read_record

WEIGHTS_FILE = "model.safetensors"
SHARD_INDEX = "model.safetensors.index.json"
PICKLED_PATTERNS = ("pytorch_model.bin", "pytorch_model-*.bin")
"""What transformers calls pickled weights. Other pickles are none: optimizer.pt, training_args.bin."""

FETCH_AGAIN = "fetch the estimator again, or copy the whole folder from where it came"


class _ShardIndex(Record):
    """The part of ``model.safetensors.index.json`` that says where a tensor is."""

    VERSION_KEY = ""  # not our file: it has no version of ours

    weight_map: dict[str, str]


def find_weights(folder: Path) -> list[Path]:
    """Return the safetensors files of a model folder, in order; none lies outside it.

    A link is followed inside the folder only, and from a snapshot of the Hub's cache to that repository's blobs.

    Raises:
        UserError: there are none, or only pickled ones; or the shard index is damaged, or names a file that is missing,
            no safetensors, or elsewhere.
    """
    single, index = folder / WEIGHTS_FILE, folder / SHARD_INDEX
    if single.is_file():
        paths = [single]
    elif index.is_file():
        paths = sorted({folder / name for name in read_shard_map(index).values()})
    else:
        if pickled := find_pickled_weights(folder):
            names = ", ".join(path.name for path in pickled)
            raise UserError(
                f"{folder} holds pickled weights only ({names}), which can run code when opened; turn them into "
                f"{WEIGHTS_FILE} once with: pipeline fetch {folder}"
            )
        raise UserError(
            f"{folder} holds no weights ({WEIGHTS_FILE} is missing); "
            f"point to a folder that has config.json and {WEIGHTS_FILE}"
        )
    for path in paths:
        _check_lies_in(path, folder)
    return paths


def read_shard_map(index: Path) -> dict[str, str]:
    """Return the file name of each tensor that a shard index lists.

    Raises:
        UserError: it is damaged, or names anything but safetensors files beside it.
    """
    shard_map = read_record(index, _ShardIndex, FETCH_AGAIN).weight_map
    for name in sorted(set(shard_map.values())):
        if Path(name).name != name or "\\" in name or not name.endswith(".safetensors"):
            raise UserError(
                f"{index} names {name!r} as a file of weights; it may name .safetensors files beside it and nothing "
                f"else, since a pickle can run code when opened; {FETCH_AGAIN}"
            )
        if "\0" in name or len(name.encode()) > 255 or not (index.parent / name).is_file():
            raise UserError(f"{index.parent} lacks the weights {name!r} that {SHARD_INDEX} names; {FETCH_AGAIN}")
    if not shard_map:
        raise UserError(f"{index} names no weights at all; {FETCH_AGAIN}")
    return shard_map


def find_pickled_weights(folder: Path) -> list[Path]:
    """Return the pickled weight files of a model folder."""
    return sorted(path for pattern in PICKLED_PATTERNS for path in folder.glob(pattern) if path.is_file())


def hash_files(paths: list[Path]) -> str:
    """Return the SHA-256 of the files' bytes, one after another."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def _check_lies_in(path: Path, folder: Path) -> None:
    root, target = folder.resolve(), path.resolve()
    # the Hub's cache: models--owner--name/snapshots/<commit>/model.safetensors -> ../../blobs/<hash>
    blobs = root.parent.parent / "blobs"
    if target.is_relative_to(root) or (root.parent.name == "snapshots" and target.parent == blobs):
        return
    raise UserError(
        f"{path} is a link to {target}, outside the estimator's folder; put a copy of that file in its place"
    )

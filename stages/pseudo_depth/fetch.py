"""Bring weights to a folder, for a machine without network: estimators from the Hub, encoders for segmentation."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from data_cache.errors import UserError, unknown_name
from data_cache.files import atomic_file, atomic_folder
from data_cache.sample import DepthKind
from stages.pseudo_depth.aliases import ESTIMATORS, EstimatorSpec, is_hub_id, undescribed
from stages.pseudo_depth.estimator_network import check_family
from stages.pseudo_depth.estimators import check_licence
from stages.pseudo_depth.model_folder import (
    CONFIG_FILE,
    PREPROCESSOR_FILE,
    SPEC_FILE,
    describe_folder,
    find_model_folder,
    name_of_folder,
    read_spec,
    write_spec,
)
from stages.pseudo_depth.weight_files import SHARD_INDEX, WEIGHTS_FILE, find_pickled_weights, find_weights, hash_files
from stages.pseudo_depth.weights import convert_pickled_weights, download_snapshot


def fetch_estimator(
    name: str,
    folder: Path,
    *,
    kind: DepthKind | None = None,
    accept_noncommercial: bool = False,
    progress: Callable[[str], None] | None = None,
) -> list[Path]:
    """Make a folder from which the estimator opens without network, with safetensors and what its numbers mean.

    The folder appears whole or not at all. Nothing is overwritten and nothing removed, not even converted pickles.

    Args:
        name: an alias, a Hub id ``owner/name``, or an existing local folder, whose pickled weights are converted.
        folder: becomes the model folder; the same estimator there is left as it is. For a local folder it may be that
            folder itself, which gets ``model.safetensors`` and ``estimator.json`` beside what it holds.
        kind: what the numbers mean; needed only where nothing says it.
        accept_noncommercial: fetch weights whose licence forbids commercial use.
        progress: notes in words what is being done.

    Returns:
        The files the estimator consists of.

    Raises:
        UserError: unknown name, licence not accepted, no network, damaged or unsafe weights, or the folder holds
            something else.
    """
    info = progress or (lambda _: None)
    local = None if name in ESTIMATORS else find_model_folder(name)
    if local is None and (folder / SPEC_FILE).is_file():
        return _keep(folder, name)
    spec, source = _bring(name, local, folder, accept_noncommercial, info)
    _check_published_hash(spec, source)
    if name not in ESTIMATORS:
        described = describe_folder(source, alias=spec.alias, kind=kind)
        spec = replace(described, hub_id=spec.hub_id, revision=spec.revision)
    pickled = [] if _has_safetensors(source) else find_pickled_weights(source)
    weights = [] if pickled else find_weights(source)
    if pickled:
        info(f"turning pickled weights into safetensors ({', '.join(path.name for path in pickled)})")
    if source.resolve() == folder.resolve():
        if pickled:
            with atomic_file(folder / WEIGHTS_FILE) as temporary:
                convert_pickled_weights(pickled, temporary)
        if not (folder / SPEC_FILE).is_file():
            _write_spec(spec, folder)
        return _list_files(folder)
    if folder.exists() and not (folder / SPEC_FILE).is_file() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UserError(f"{folder} exists already and is no fetched estimator; choose another --out")
    info(f"copying {name} to {folder}")
    with atomic_folder(folder) as fresh:
        for path in (source / CONFIG_FILE, source / PREPROCESSOR_FILE, *weights):
            shutil.copyfile(path, fresh / path.name)  # the files themselves: the Hub's cache holds links
        if len(weights) > 1 or (weights and weights[0].name != WEIGHTS_FILE):
            shutil.copyfile(source / SHARD_INDEX, fresh / SHARD_INDEX)
        if pickled:
            convert_pickled_weights(pickled, fresh / WEIGHTS_FILE)
        _write_spec(spec, fresh)
        if (folder / SPEC_FILE).is_file():
            return _keep(folder, name, hash_files(find_weights(fresh)))
    return _list_files(folder)


def _keep(folder: Path, name: str, sha256: str | None = None) -> list[Path]:
    """Return the files of an estimator that was fetched before; UserError when it is another than the one asked for."""
    spec, found = read_spec(folder / SPEC_FILE), hash_files(find_weights(folder))
    named = sha256 is not None or name in (spec.alias, spec.hub_id)
    if not named or {found, sha256 or found, spec.weights_sha256 or found} != {found}:
        raise UserError(
            f"{folder} holds another estimator than {name!r}, or was changed since it was fetched; choose another "
            "--out, or remove that folder"
        )
    return _list_files(folder)


def _has_safetensors(folder: Path) -> bool:
    return (folder / WEIGHTS_FILE).is_file() or (folder / SHARD_INDEX).is_file()


def _write_spec(spec: EstimatorSpec, folder: Path) -> None:
    write_spec(replace(spec, weights_sha256=hash_files(find_weights(folder))), folder)


def _bring(
    name: str, local: Path | None, folder: Path, accept_noncommercial: bool, info: Callable[[str], None]
) -> tuple[EstimatorSpec, Path]:
    """Return what is known about the name, and where its files lie now."""
    if name == "bundled":
        raise UserError("the bundled estimator comes with this package; there is nothing to fetch")
    if local is not None:
        check_family(local)
        return undescribed(name_of_folder(folder)), local
    if name in ESTIMATORS:
        spec = ESTIMATORS[name]
        check_licence(spec, accepted=accept_noncommercial)
    elif is_hub_id(name):
        spec = undescribed(name, name)
    else:
        raise unknown_name("estimator", name, ESTIMATORS)
    info(f"downloading {spec.hub_id}" + (f" at {spec.revision[:8]}" if spec.revision else ", newest commit"))
    found, snapshot = download_snapshot(spec, pickled=True)
    check_family(snapshot)
    return found, snapshot


def _check_published_hash(spec: EstimatorSpec, source: Path) -> None:
    """Check the weights against the table; pickled ones before they are opened."""
    single = source / WEIGHTS_FILE
    weights = [single] if single.is_file() else find_pickled_weights(source)
    if spec.weights_sha256 is not None and weights and (found := hash_files(weights)) != spec.weights_sha256:
        raise UserError(
            f"{weights[0]} has SHA-256 {found}, expected {spec.weights_sha256}; delete {source}, then fetch again"
        )


def _list_files(folder: Path) -> list[Path]:
    index = [folder / SHARD_INDEX] if not (folder / WEIGHTS_FILE).is_file() else []
    named = (CONFIG_FILE, SPEC_FILE, PREPROCESSOR_FILE)
    return sorted([*(folder / name for name in named), *find_weights(folder), *index])

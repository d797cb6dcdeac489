"""Bring weights to a folder, for a machine without network: estimators from the Hub, encoders for segmentation."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from data_cache.errors import UserError, unknown_name
from data_cache.files import atomic_file
from data_cache.sample import DepthKind
from stages.pseudo_depth.aliases import ESTIMATORS, EstimatorSpec, is_hub_id, undescribed
from stages.pseudo_depth.estimators import check_licence
from stages.pseudo_depth.model_folder import (
    SPEC_FILE,
    WEIGHTS_FILE,
    describe_folder,
    find_pickled_weights,
    find_weights,
    hash_files,
    write_spec,
)
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

    Args:
        name: an alias, a Hub id ``owner/name``, or an existing local folder whose pickled weights are to be converted.
        folder: becomes the model folder; a complete one is left as it is. For a local folder it may be the same.
        kind: what the numbers mean; needed only where nothing says it.
        accept_noncommercial: fetch weights whose licence forbids commercial use.
        progress: notes in words what is being done.

    Returns:
        The files of the folder.

    Raises:
        UserError: unknown name, licence not accepted, no network, damaged or unsafe weights.
    """
    info = progress or (lambda _: None)
    if (folder / SPEC_FILE).is_file() and not find_pickled_weights(folder):
        find_weights(folder)
        return _list_files(folder)
    spec, snapshot = _bring(name, folder, accept_noncommercial, info)
    if snapshot.resolve() != folder.resolve():
        info(f"copying {name} to {folder}")
        _copy_snapshot(snapshot, folder)
    _check_published_hash(spec, folder, snapshot)
    if find_pickled_weights(folder):
        info("turning pickled weights into safetensors")
        convert_pickled_weights(folder)
    if name not in ESTIMATORS:
        described = describe_folder(folder, alias=spec.alias, kind=kind)
        spec = replace(described, hub_id=spec.hub_id, revision=spec.revision)
    write_spec(replace(spec, weights_sha256=hash_files(find_weights(folder))), folder)
    return _list_files(folder)


def _bring(
    name: str, folder: Path, accept_noncommercial: bool, info: Callable[[str], None]
) -> tuple[EstimatorSpec, Path]:
    """Return what is known about the name, and where its files lie now."""
    if name == "bundled":
        raise UserError("the bundled estimator comes with this package; there is nothing to fetch")
    local = Path(name).expanduser()
    if name in ESTIMATORS:
        spec = ESTIMATORS[name]
        check_licence(spec, accepted=accept_noncommercial)
    elif (local / "config.json").is_file():
        return undescribed(folder.resolve().name), local
    elif is_hub_id(name):
        spec = undescribed(name, name)
    else:
        raise unknown_name("estimator", name, ESTIMATORS)
    info(f"downloading {spec.hub_id}" + (f" at {spec.revision[:8]}" if spec.revision else ", newest commit"))
    return download_snapshot(spec, pickled=True)


def _check_published_hash(spec: EstimatorSpec, folder: Path, snapshot: Path) -> None:
    """Check the weights against the table; pickled ones before they are opened."""
    single = folder / WEIGHTS_FILE
    weights = [single] if single.is_file() else find_pickled_weights(folder)
    if spec.weights_sha256 is not None and weights and (found := hash_files(weights)) != spec.weights_sha256:
        raise UserError(
            f"{weights[0]} has SHA-256 {found}, expected {spec.weights_sha256}; delete {folder} and {snapshot}, "
            "then fetch again"
        )


def _copy_snapshot(snapshot: Path, folder: Path) -> None:
    """Copy the files themselves (the Hub cache holds links); weights last and by rename, so they are whole."""
    files = [path for path in snapshot.iterdir() if path.is_file()]
    for path in sorted(files, key=lambda path: path.suffix != ".json"):
        with atomic_file(folder / path.name) as temporary:
            shutil.copyfile(path, temporary)


def _list_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_file())

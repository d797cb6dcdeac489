"""Bring weights to a folder, for a machine without network: estimators from the Hub, encoders for segmentation."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from data_cache.errors import UserError, unknown_name
from data_cache.files import atomic_file
from data_cache.sample import DepthKind
from stages.pseudo_depth.aliases import ESTIMATORS, EstimatorSpec
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


class FetchedFile(NamedTuple):
    """One file of a fetched folder."""

    path: Path
    bytes: int


def fetch_estimator(
    name: str,
    folder: Path,
    *,
    kind: DepthKind | None = None,
    accept_noncommercial: bool = False,
    progress: Callable[[str], None] | None = None,
) -> list[FetchedFile]:
    """Make a folder from which the estimator opens without network, with safetensors and what its numbers mean.

    Args:
        name: an alias, a Hub id ``owner/name``, or an existing local folder whose pickled weights are to be converted.
        folder: becomes the model folder; a complete one is left as it is. For a local folder it may be the same.
        kind: what the numbers mean; needed only where nothing says it.
        accept_noncommercial: fetch weights whose licence forbids commercial use.
        progress: told in words what is being done.

    Returns:
        The files of the folder.

    Raises:
        UserError: unknown name, licence not accepted, no network, damaged or unsafe weights.
    """
    say = progress or (lambda _: None)
    if (folder / SPEC_FILE).is_file() and not find_pickled_weights(folder):
        find_weights(folder)
        return _list_files(folder)
    spec, snapshot = _bring(name, accept_noncommercial, say)
    expected = spec.weights_sha256 if spec is not None else None
    if spec is not None:
        _check_published_hash(spec, snapshot)
    if snapshot.resolve() != folder.resolve():
        say(f"copying {name} to {folder}")
        _copy_snapshot(snapshot, folder)
    if find_pickled_weights(folder):
        say("turning pickled weights into safetensors")
        convert_pickled_weights(folder, expected_sha256=expected)
    find_weights(folder)
    if spec is None or name not in ESTIMATORS:
        hub_id, revision = (spec.hub_id, spec.revision) if spec is not None else (None, None)
        described = describe_folder(folder, alias=name if spec is not None else folder.resolve().name, kind=kind)
        spec = replace(described, hub_id=hub_id, revision=revision)
    write_spec(replace(spec, weights_sha256=hash_files(find_weights(folder))), folder)
    return _list_files(folder)


def _bring(name: str, accept_noncommercial: bool, say: Callable[[str], None]) -> tuple[EstimatorSpec | None, Path]:
    """Return what is known about the name, None for a local folder, and the folder that holds its files."""
    if name == "bundled":
        raise UserError("the bundled estimator comes with this package; there is nothing to fetch")
    local = Path(name).expanduser()
    if name not in ESTIMATORS and (local / "config.json").is_file():
        return None, local
    if name in ESTIMATORS:
        spec = ESTIMATORS[name]
        check_licence(spec, accepted=accept_noncommercial)
    elif name.count("/") == 1 and not name.startswith((".", "/", "~")):
        spec = EstimatorSpec(name, name, None, DepthKind.RELATIVE, 1, 1, "unknown; see the repository's card")
    else:
        raise unknown_name("estimator", name, ESTIMATORS)
    say(f"downloading {spec.hub_id}" + (f" at {spec.revision[:8]}" if spec.revision else ", newest commit"))
    snapshot = download_snapshot(spec, pickled=True)
    commit = snapshot.name if snapshot.parent.name == "snapshots" else None
    return replace(spec, revision=spec.revision or commit), snapshot


def _check_published_hash(spec: EstimatorSpec, snapshot: Path) -> None:
    """Check a single safetensors file against the table; a pickled one is checked before it is opened."""
    weights = snapshot / WEIGHTS_FILE
    if spec.weights_sha256 is None or not weights.is_file() or find_pickled_weights(snapshot):
        return
    found = hash_files([weights])
    if found != spec.weights_sha256:
        raise UserError(
            f"{weights} has SHA-256 {found}, expected {spec.weights_sha256}; delete {snapshot} and fetch again"
        )


def _copy_snapshot(snapshot: Path, folder: Path) -> None:
    """Copy the files themselves (the Hub cache holds links); weights last and by rename, so they are whole."""
    files = [path for path in snapshot.iterdir() if path.is_file()]
    for path in sorted(files, key=lambda path: path.suffix != ".json"):
        with atomic_file(folder / path.name) as temporary:
            shutil.copyfile(path, temporary)


def _list_files(folder: Path) -> list[FetchedFile]:
    return [FetchedFile(path, path.stat().st_size) for path in sorted(folder.iterdir()) if path.is_file()]

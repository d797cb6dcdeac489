"""Find damaged maps of a depth store, and drop exactly those, so that labelling again makes them anew."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from data_cache.depth_file import (
    MapFile,
    OtherSchema,
    build_map_file,
    check_same_store,
    explaining_damage,
    find_link,
    open_file,
    read_image_ids,
    read_indexed_shards,
    read_map,
    read_provenance,
    read_records,
    rebuild_index,
)
from data_cache.depth_map import MapRecord, Provenance
from data_cache.errors import UserError
from data_cache.files import hold_folder
from data_cache.store_folder import (
    INDEX,
    StoreFiles,
    list_store_files,
    publish,
    remove_leftovers,
)


class BadMap(NamedTuple):
    """One thing wrong with a store."""

    file: str
    image_id: str
    """Empty when the file as a whole is bad and nothing tells which images it held."""
    reason: str


class RepairReport(NamedTuple):
    """What repairing a store took."""

    dropped: tuple[BadMap, ...]
    kept: int
    """Images still stored."""


def verify_store(folder: Path, deep: bool = True) -> list[BadMap]:
    """List what is wrong with a store; empty when all is well. Changes nothing.

    Args:
        folder: of the store.
        deep: also read every map and compare its checksum, at disk speed; else only open every file.

    Raises:
        UserError: there is no store, or it is of another version of the format.
    """
    listed = list_store_files(folder) if folder.is_dir() else None
    if listed is None or not (listed.names or (folder / INDEX).exists()):
        raise UserError(f"no depth store in {folder}; make one with: pipeline pseudo-depth")
    provenance = _find_provenance(folder, listed)
    held: dict[str, set[str]] = {}
    bad: list[BadMap] = []
    unreadable: dict[str, str] = {}
    for name in listed.names:
        try:
            held[name], damaged = _verify_file(folder / name, provenance, deep)
        except OtherSchema:
            raise
        except UserError as error:
            unreadable[name] = _cause(error)
        except FileNotFoundError:  # a running writer merged this batch meanwhile
            continue
        else:
            bad += damaged
    return bad + _verify_index(folder, held, unreadable)


def repair_store(folder: Path) -> RepairReport:
    """Drop every damaged map and make the index anew; the rest of each shard is kept, unpacked by nobody.

    Killed at any instant, it leaves a store that can be repaired again.

    Raises:
        UserError: there is no store, or a writer is at work on it.
    """
    bad = verify_store(folder)
    provenance = _find_provenance(folder, list_store_files(folder))
    with hold_folder(folder, "repairing a depth store"):
        remove_leftovers(folder)
        if bad:
            # Without an index the store is read from its files, so nothing points at a map that is going to be dropped.
            (folder / INDEX).unlink(missing_ok=True)
        listed = list_store_files(folder)
        for name in sorted({found.file for found in bad} & set(listed.names)):
            _drop(folder / name, provenance)
        rebuild_index(folder)
        return RepairReport(tuple(bad), _count_images(folder))


def _find_provenance(folder: Path, listed: StoreFiles) -> Provenance | None:
    """Return what the first readable file says of the store, the index before all others."""
    for name in (INDEX, *listed.names):
        try:
            with explaining_damage(folder / name), open_file(folder / name) as file:
                return read_provenance(file)
        except OtherSchema:
            raise
        except (UserError, FileNotFoundError):
            continue
    return None


def _verify_file(path: Path, provenance: Provenance | None, deep: bool) -> tuple[set[str], list[BadMap]]:
    """Return the images of a readable file and its damaged maps; UserError when it cannot be read."""
    bad: list[BadMap] = []
    with explaining_damage(path), open_file(path) as file:
        if provenance is not None:
            check_same_store(file, provenance)
        read_provenance(file)
        image_ids = read_image_ids(file)
        records = _read_records(file, path, bad)
        if records.keys() != set(image_ids) and not bad:
            bad.append(BadMap(path.name, "", "its list of maps is not that of its maps"))
        for image_id in image_ids if deep else ():
            try:
                with explaining_damage(path):
                    found = read_map(file, image_id)
                    if image_id in records and found.checksum != records[image_id].checksum:
                        raise ValueError(f"image {image_id!r} has two different checksums")
            except UserError as error:
                bad.append(BadMap(path.name, image_id, _cause(error)))
    return set(image_ids), bad


def _read_records(file: MapFile, path: Path, bad: list[BadMap]) -> dict[str, MapRecord]:
    """Return a file's list of maps; a damaged one is made anew from the maps when the file is repaired."""
    try:
        with explaining_damage(path):
            return read_records(file)
    except UserError as error:
        bad.append(BadMap(path.name, "", f"its list of maps {_cause(error)}"))
        return {}


def _verify_index(folder: Path, held: dict[str, set[str]], unreadable: dict[str, str]) -> list[BadMap]:
    """Compare the index with what the files hold; it also tells which images an unreadable file held."""
    links: dict[str, str] = {}
    bad = []
    try:
        with explaining_damage(folder / INDEX), open_file(folder / INDEX) as index:
            links = {image_id: find_link(index, image_id) or "" for image_id in read_image_ids(index)}
            read_indexed_shards(index)
    except FileNotFoundError:
        if any(name.startswith("shard") for name in held):
            bad.append(BadMap(INDEX, "", "is missing"))
    except UserError as error:
        bad.append(BadMap(INDEX, "", _cause(error)))
    for image_id, name in links.items():
        if name in unreadable:
            bad.append(BadMap(name, image_id, unreadable[name]))
        elif image_id not in held.get(name, ()):
            bad.append(BadMap(INDEX, image_id, f"links to {name}, which {'lacks it' if name in held else 'is gone'}"))
    indexed = set(links.values())
    return bad + [BadMap(name, "", reason) for name, reason in unreadable.items() if name not in indexed]


def _drop(path: Path, provenance: Provenance | None) -> None:
    """Rewrite a file without its damaged maps; remove it when none is left or it is bad as a whole."""
    good: set[str] = set()
    try:
        image_ids, bad = _verify_file(path, provenance, deep=True)
        good = image_ids - {found.image_id for found in bad}
    except UserError:
        pass
    if good and provenance is not None:
        publish(path, build_map_file(provenance, (), [(path, sorted(good))]))
    else:
        path.unlink()


def _count_images(folder: Path) -> int:
    image_ids: set[str] = set()
    for name in list_store_files(folder).names:
        with open_file(folder / name) as file:
            image_ids.update(read_image_ids(file))
    return len(image_ids)


def _cause(error: UserError) -> str:
    cause = error.__cause__
    return f"cannot be read ({str(cause) or type(cause).__name__})"

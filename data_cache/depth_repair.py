"""Find damaged maps of a depth store, and drop exactly those, so that labelling again makes them anew."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import NamedTuple

from data_cache.depth_file import (
    NOT_DAMAGED,
    MapFile,
    describe_damage,
    explaining_damage,
    open_file,
    read_image_ids,
    read_indexed_shards,
    read_links,
    read_map,
    read_num_images,
    read_provenance,
    read_records,
)
from data_cache.depth_file_build import build_map_file, rebuild_index
from data_cache.depth_map import MapRecord, Provenance
from data_cache.errors import UserError
from data_cache.files import hold_folder
from data_cache.store_folder import INDEX, StoreFiles, list_store_files, publish, remove_leftovers


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


def verify_store(folder: Path) -> list[BadMap]:
    """List what is wrong with a store; empty when all is well. Reads every map, at disk speed, and changes nothing.

    Raises:
        UserError: there is no store, it is of another version of the format, or what unpacks its maps is missing.
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
            held[name], damaged = _verify_file(folder / name, provenance)
        except NOT_DAMAGED:
            raise
        except UserError as error:
            unreadable[name] = _cause(error)
        except FileNotFoundError:  # a running writer merged this batch meanwhile
            continue
        else:
            bad += damaged
    return bad + _verify_index(folder, provenance, held, unreadable)


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
            _remove(folder / INDEX)
        listed = list_store_files(folder)
        for name in sorted({found.file for found in bad} & set(listed.names)):
            _drop(folder / name, provenance)
        rebuild_index(folder)
        return RepairReport(tuple(bad), _count_images(folder))


def _find_provenance(folder: Path, listed: StoreFiles) -> Provenance | None:
    """Return whose store it is: that of the folder's name where a file has it, else that of most files."""
    found: Counter[str] = Counter()
    made: dict[str, Provenance] = {}
    for name in (*listed.names, INDEX):
        try:
            with explaining_damage(folder / name), open_file(folder / name) as file:
                provenance = read_provenance(file)
        except NOT_DAMAGED:
            raise
        except (UserError, FileNotFoundError):
            continue
        if folder.name.endswith(f"-{provenance.key()}"):
            return provenance
        found[provenance.fingerprint()] += 1
        made.setdefault(provenance.fingerprint(), provenance)
    return made[found.most_common(1)[0][0]] if found else None


def _verify_file(path: Path, provenance: Provenance | None) -> tuple[set[str], list[BadMap]]:
    """Return the images of a readable file and its damaged maps; UserError when it cannot be read."""
    bad: list[BadMap] = []
    with explaining_damage(path), open_file(path) as file:
        read_provenance(file, provenance)
        image_ids = read_image_ids(file)
        records = _read_records(file, path, bad)
        sound = records.keys() == set(image_ids)
        for image_id in image_ids:
            try:
                with explaining_damage(path):
                    # NaN equals nothing, its text itself
                    sound &= repr(read_map(file, image_id).record) == repr(records.get(image_id))
            except NOT_DAMAGED:
                raise
            except UserError as error:
                bad.append(BadMap(path.name, image_id, _cause(error)))
        if not sound and not bad:
            bad.append(BadMap(path.name, "", "its list of maps is not that of its maps"))
    return set(image_ids), bad


def _read_records(file: MapFile, path: Path, bad: list[BadMap]) -> dict[str, MapRecord]:
    """Return a file's list of maps; a damaged one is made anew from the maps when the file is repaired."""
    try:
        with explaining_damage(path):
            return read_records(file)
    except UserError as error:
        bad.append(BadMap(path.name, "", f"its list of maps {_cause(error)}"))
        return {}


def _verify_index(
    folder: Path, provenance: Provenance | None, held: dict[str, set[str]], unreadable: dict[str, str]
) -> list[BadMap]:
    """Compare the index with what the files hold; it also tells which images an unreadable file held."""
    links: dict[str, str] = {}
    bad = []
    try:
        with explaining_damage(folder / INDEX), open_file(folder / INDEX) as index:
            read_provenance(index, provenance)
            shards = read_indexed_shards(index)
            links = read_links(index)
            missing = set().union(*(held.get(name, ()) for name in shards)) - links.keys()
            if missing:
                raise ValueError(f"it lacks {len(missing)} images of its shards, such as {min(missing)!r}")
            if read_num_images(index) != len(links):
                raise ValueError(f"it counts {read_num_images(index)} images and has {len(links)}")
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
        image_ids, bad = _verify_file(path, provenance)
        good = image_ids - {found.image_id for found in bad}
    except UserError:
        pass
    if good and provenance is not None:
        publish(path, build_map_file(provenance, (), [(path, sorted(good))]))
    else:
        _remove(path)


def _remove(path: Path) -> None:
    """Remove a file of a store, or a pipe or link in its place; what a folder holds is somebody's."""
    if path.is_dir() and not path.is_symlink():
        raise UserError(f"{path} is a folder where a file of the depth store belongs; move it away and repair again")
    path.unlink(missing_ok=True)


def _count_images(folder: Path) -> int:
    image_ids: set[str] = set()
    for name in list_store_files(folder).names:
        with open_file(folder / name) as file:
            image_ids.update(read_image_ids(file))
    return len(image_ids)


def _cause(error: UserError) -> str:
    return f"cannot be read ({describe_damage(error.__cause__)})" if error.__cause__ else str(error)

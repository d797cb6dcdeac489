"""One HDF5 file of a depth store: the layout of shards, batches and the index, and how they are read.

``index.h5`` holds an external link per image, so ``h5py.File("index.h5")["depth/0001TP_006690"]`` is that image's map
for any HDF5 program. File attributes carry the provenance, those of a map its statistics, source size and checksums.
h5py is imported here, in ``depth_file_build`` and ``map_facts``. HDF5 never writes to the disk itself: files are built
in memory and published whole (``store_folder.publish``), because an HDF5 file killed before a flush does not open again
and a full disk leaves the library in an undefined state.

What is read is checked before it is believed. Numbers and facts of a map have a checksum, HDF5's own structures have
one too in the layout of HDF5 1.10 (damaged ones of the older layout can crash the library), texts and records go
through strict models. The texts of file attributes lie in a heap without checksums, which ``_check_heaps`` looks at.
"""

from __future__ import annotations

import json
import math
import os
import shlex
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeAlias

import h5py
import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, TypeAdapter, ValidationError

from data_cache.content import check_regular
from data_cache.depth_map import DepthMap, MapRecord, Provenance, read_stored_name, stored_name
from data_cache.errors import UserError
from data_cache.escaping import printable_text
from data_cache.map_facts import MapFacts, read_facts
from data_cache.records import explain_invalid
from data_cache.store_folder import INDEX, is_map_file

SCHEMA_VERSION = 3
"""1 held no records: its stores were of one set of images, and are made anew. 2 is read: it has another layout of HDF5,
no checksum of the facts beside the numbers, and percent signs of image ids as they are."""
_READABLE_VERSIONS = (2, 3)
_LARGEST_MAP_PX = 1 << 28
_BEST_COMPRESSION = 1100
"""deflate reaches 1032; Blosc2, which stores equal numbers as one, has no limit."""
_BLOSC2 = 32026
"""Number of the filter as registered with the HDF Group."""
_REMEMBERED = 8192
"""Maps whose facts are remembered: 15 MB in every process."""
_HEAD_BYTES = 1 << 16
"""Where the texts of a shard's attributes begin, which are written before its maps."""
_HEAP = b"GCOL\1\0\0\0"
TEXT_FIELDS = {field.name for field in fields(Provenance) if field.type == "str"} | {"kind"}
_PROVENANCE = TypeAdapter(Provenance)
_RECORDS = TypeAdapter(dict[str, MapRecord], config=ConfigDict(strict=True))
_NAMES = TypeAdapter(list[str], config=ConfigDict(strict=True))

MapFile: TypeAlias = h5py.File
"""An open file of a store."""


class OtherSchema(UserError):
    """A file of a store was written by another version of this program."""

    def __init__(self, path: Path, version: int) -> None:
        writer, remedy = (
            ("an earlier", "remove its folder and label again with: pipeline pseudo-depth")
            if version < SCHEMA_VERSION
            else ("a later", "update this program, or label into another work directory")
        )
        super().__init__(
            f"{path} was written by {writer} version of this program (format {version}, this one reads "
            f"{SCHEMA_VERSION}); {remedy}"
        )


class MissingPlugin(UserError):
    """A map is sound, but what unpacks it is not installed."""


NOT_DAMAGED = (OtherSchema, MissingPlugin)
"""Errors that say nothing against a file."""


def open_file(path: Path) -> MapFile:
    """Open one file of a store for reading; without lock, so that it works on network disks and beside a writer."""
    if path.is_symlink() and not path.exists():
        raise ValueError("it is a link to nothing")
    check_regular(path, "file")
    with path.open("rb") as file:
        _check_heaps(file.read(-1 if path.name == INDEX else _HEAD_BYTES))
    return h5py.File(path, "r", locking=False, rdcc_nbytes=0)


def read_records(file: MapFile) -> dict[str, MapRecord]:
    """Return the records of a shard's or batch's maps; one read, where their attributes would be one read a map."""
    dataset = file["records"]
    if not isinstance(dataset, h5py.Dataset) or dataset.dtype != np.uint8 or dataset.ndim != 1:
        raise ValueError("its list of maps is no text")
    if dataset.size > dataset.id.get_storage_size():
        raise ValueError("its list of maps claims more than the file holds")
    records = _RECORDS.validate_json(dataset[()].tobytes())
    return {read_stored_name(name): record for name, record in records.items()}


def read_image_ids(file: MapFile) -> list[str]:
    """List the images of an open shard or batch, slashes and all.

    Raises:
        ValueError: it holds anything but maps of its own.
    """
    found = _list_links(file)
    if any(kind != h5py.h5l.TYPE_HARD for _, kind in found):
        raise ValueError("it links to maps elsewhere")
    return [read_stored_name(name.decode()) for name, _ in found if _is_dataset(file, name)]


def read_links(index: MapFile) -> dict[str, str]:
    """Return the shard of every image that an open index links to.

    Raises:
        ValueError: it holds anything but links to maps in this store.
    """
    links = {}
    found = _list_links(index)
    group = _find_depth(index)
    for name, kind in found:
        if kind == h5py.h5l.TYPE_HARD and not _is_dataset(index, name):
            continue
        image_id = read_stored_name(name.decode())
        if kind != h5py.h5l.TYPE_EXTERNAL:
            raise ValueError(f"image {image_id!r} is no link to a shard")
        links[image_id] = _check_link(image_id, *map(os.fsdecode, group.id.links.get_val(name)))
    return links


def find_link(index: MapFile, image_id: str) -> str | None:
    """Return the shard that an open index names for an image, or None.

    Raises:
        ValueError: it links to something else.
    """
    name = stored_name(image_id)
    try:
        link = _find_depth(index).get(name, getlink=True)
    except RuntimeError:  # what h5py raises for "a/b" where "a" is an image
        return None
    if not isinstance(link, h5py.ExternalLink):
        return None
    return _check_link(image_id, link.filename, link.path)


def _check_link(image_id: str, file: str, path: str) -> str:
    if not is_map_file(file) or path != f"depth/{stored_name(image_id)}":
        target = f"{path!r} of {file!r}"
        raise ValueError(f"it links image {image_id!r} to {target}, which is no map of that image in this store")
    return file


def read_indexed_shards(index: MapFile) -> list[str]:
    """Return the names of the shards an open index covers."""
    names = _NAMES.validate_json(_read_text(index, "shards"))
    if foreign := [name for name in names if not is_map_file(name)]:
        raise ValueError(f"it covers {foreign[0]!r}, which is no shard")
    return names


def read_num_images(index: MapFile) -> int:
    """Return how many images an open index covers."""
    return _read_whole_number(index, "images")


def check_same_store(file: MapFile, provenance: Provenance) -> None:
    """Refuse a file that came from another store, by the fingerprint it names; ``read_provenance`` reads all of it.

    Raises:
        ValueError: naming whose it is.
        UserError: it is of another version of the format.
    """
    _check_version(file)
    if _read_text(file, "fingerprint") != provenance.fingerprint():
        estimator = _read_text(file, "estimator")
        raise ValueError(f"it is of another store, by estimator {estimator!r} or other settings of it")


def read_provenance(file: MapFile, store: Provenance | None = None) -> Provenance:
    """Read the provenance of an open file; KeyError or ValueError when it is no file of a store, or not of ``store``.

    Raises:
        UserError: it is of another version of the format.
    """
    _check_version(file)
    values: dict[str, Any] = {}
    for field in fields(Provenance):
        text = _read_text(file, field.name)
        values[field.name] = text if field.name in TEXT_FIELDS else json.loads(text)
    provenance = _PROVENANCE.validate_json(json.dumps(values))
    if provenance.fingerprint() != _read_text(file, "fingerprint"):
        raise ValueError("what it says of the estimator is not what was written: its fingerprint is another")
    if store is not None:
        check_same_store(file, store)
    return provenance


def read_map(file: MapFile, image_id: str, remembered: dict[tuple[str, str], MapFacts] | None = None) -> DepthMap:
    """Read one map with its attributes; low-level calls, which take a third of the time of the high-level ones.

    Args:
        remembered: facts by file and image, which take longer to read than the numbers of a small map; added to.

    Raises:
        ValueError: it is no map, or its numbers or what is written beside them are not those that were stored.
    """
    dataset, known = open_map(file, image_id), {} if remembered is None else remembered
    values, key = _read_values(dataset, image_id), (file.filename, image_id)
    crc32, facts = zlib.crc32(values.data), known.get(key)
    if facts is None or facts.crc32 != crc32:
        facts = read_facts(dataset)
        if facts.facts_crc32 not in (facts.compute_crc32(image_id), None):
            raise ValueError(
                f"what is written beside the map of image {image_id!r} is not what was stored (facts_crc32)"
            )
        if len(known) < _REMEMBERED:
            known[key] = facts
    if facts.crc32 != crc32:
        raise ValueError(f"the numbers of image {image_id!r} are not those that were stored (crc32)")
    return DepthMap(values, facts.stats, facts.source_size, facts.record())


@contextmanager
def explaining_damage(path: Path) -> Iterator[None]:
    """Turn what HDF5 raises on a damaged or foreign file into an error that names the repair."""
    try:
        yield
    except (OSError, KeyError, ValueError, TypeError, RuntimeError, SystemError) as error:
        if isinstance(error, FileNotFoundError | PermissionError):
            raise
        raise UserError(
            f"{path} cannot be read ({describe_damage(error)}); it is damaged or no file of a depth store. "
            f"Drop what is damaged with: pipeline cache repair {shlex.quote(str(path.parent))}, then label again"
        ) from error


def describe_damage(error: BaseException) -> str:
    """Return what is wrong with a file, in words for a person."""
    if isinstance(error, ValidationError):
        return explain_invalid(error)
    text = error.args[0] if isinstance(error, KeyError) and error.args else error
    return printable_text(" ".join(str(text).split())) or type(error).__name__


def _check_version(file: MapFile) -> None:
    version = _read_whole_number(file, "schema_version")
    if version not in _READABLE_VERSIONS:
        raise OtherSchema(Path(file.filename), version)


def _read_text(file: MapFile, name: str) -> str:
    value = file.attrs[name]
    if not isinstance(value, str):
        raise ValueError(f"its attribute {name} is no text")
    return value


def _read_whole_number(file: MapFile, name: str) -> int:
    value = file.attrs[name]
    if not isinstance(value, np.integer) or value < 0:
        raise ValueError(f"its attribute {name} is no whole number of at least 0")
    return int(value)


def _check_heaps(content: bytes) -> None:
    """Refuse a heap of texts whose sizes lead astray: HDF5 would follow them, for ever or out of its memory."""
    start = content.find(_HEAP)
    while start >= 0:
        place, end = start + 16, start + int.from_bytes(content[start + 8 : start + 16], "little")
        if end < place:
            raise ValueError("its texts are damaged")
        while place + 16 <= end <= len(content):
            number, size = content[place : place + 2], int.from_bytes(content[place + 8 : place + 16], "little")
            step = size if number == b"\0\0" else 16 + -(-size // 8) * 8  # object 0 is free space, its head included
            if not 0 < step <= end - place:
                raise ValueError("its texts are damaged")
            place += step
        start = content.find(_HEAP, end)


def _list_links(file: MapFile) -> list[tuple[bytes, int]]:
    """Return name and type of everything below ``depth``, in groups too."""
    found: list[tuple[bytes, int]] = []
    group = _find_depth(file)  # a name of its own, or it would be closed before it is visited
    group.id.links.visit(lambda name, link: found.append((name, link.type)), info=True)
    return found


def _is_dataset(file: MapFile, name: bytes) -> bool:
    return bool(h5py.h5o.get_info(_find_depth(file).id, name).type == h5py.h5o.TYPE_DATASET)


def _find_depth(file: MapFile) -> h5py.Group:
    group = file["depth"]
    if not isinstance(group, h5py.Group):
        raise ValueError("it has no group of maps")
    return group


def open_map(file: MapFile, image_id: str) -> Any:
    """Open a map without reading it; ValueError when it lies elsewhere."""
    path = f"depth/{stored_name(image_id)}".encode()
    if file.id.links.get_info(path).type != h5py.h5l.TYPE_HARD:
        raise ValueError(f"image {image_id!r} is a link to a map elsewhere")
    dataset = h5py.h5d.open(file.id, path)
    properties = dataset.get_create_plist()
    if properties.get_layout() == h5py.h5d.VIRTUAL or properties.get_external_count():
        raise ValueError(f"the map of image {image_id!r} lies in other files")
    return dataset


def _read_values(dataset: Any, image_id: str) -> NDArray[np.float16]:
    shape, pixels = dataset.shape, math.prod(dataset.shape)
    if len(shape) != 2 or not pixels or dataset.dtype != np.float16:
        raise ValueError(f"image {image_id!r} has {dataset.dtype} of shape {shape} where a float16 map belongs")
    unlikely = 2 * pixels > _BEST_COMPRESSION * dataset.get_storage_size() and not _is_blosc(dataset)
    if pixels > _LARGEST_MAP_PX or unlikely:
        raise ValueError(f"image {image_id!r} claims a map of {shape[0]} x {shape[1]} px, more than the file holds")
    values = np.empty(shape, np.float16)
    try:
        dataset.read(h5py.h5s.ALL, h5py.h5s.ALL, values)
    except OSError:
        if not _is_blosc(dataset):
            raise
        load_blosc(f"the map of image {image_id!r}")
        dataset.read(h5py.h5s.ALL, h5py.h5s.ALL, values)
    return values


def load_blosc(what: str) -> Any:
    """Make HDF5 know Blosc2, and return the package that does so.

    Args:
        what: needs it, for the message.

    Raises:
        MissingPlugin: it is not installed.
    """
    try:
        import hdf5plugin
    except ImportError as problem:
        raise MissingPlugin(
            f"{what} is compressed by Blosc2, which needs the package hdf5plugin: pip install "
            "'pseudo-depth-pipeline[blosc]'"
        ) from problem
    return hdf5plugin


def _is_blosc(dataset: Any) -> bool:
    properties = dataset.get_create_plist()
    return _BLOSC2 in (properties.get_filter(number)[0] for number in range(properties.get_nfilters()))

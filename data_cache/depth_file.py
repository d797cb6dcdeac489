"""One HDF5 file of a depth store: the layout of shards, batches and the index, and the only place that imports h5py.

``index.h5`` holds an external link per image, so ``h5py.File("index.h5")["depth/0001TP_006690"]`` is that image's map
for any HDF5 program. File attributes carry the provenance, those of a map its statistics, source size and checksums.
HDF5 never writes to the disk itself: files are built in memory and published whole (``store_folder.publish``), because
an HDF5 file killed before a flush does not open again and a full disk leaves the library in an undefined state.
"""

from __future__ import annotations

import io
import json
import math
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import h5py
import numpy as np
from numpy.typing import NDArray

from data_cache.depth_map import STAT_NAMES, DepthMap, DepthStats, MapRecord, Provenance
from data_cache.errors import UserError
from data_cache.sample import DepthKind
from data_cache.store_folder import INDEX, is_map_file, list_store_files, publish

SCHEMA_VERSION = 2
"""1 held no records: its stores were of one set of images, and are made anew."""
CODECS: dict[str, dict[str, Any]] = {
    "lzf": {"compression": "lzf", "shuffle": True},
    "gzip": {"compression": "gzip", "compression_opts": 1, "shuffle": True},
    "none": {},
}
_WHOLE_CHUNK_BYTES = 1 << 20
"""Larger maps get chunks of about (256, 256), so that a crop need not unpack all of it."""
_LARGEST_MAP_PX = 1 << 28
_BEST_COMPRESSION = 1100
"""deflate, the best of the codecs, reaches 1032."""
_TEXT_FIELDS = {field.name for field in fields(Provenance) if field.type == "str"} | {"kind"}


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


class StoredMap(NamedTuple):
    """A map ready to be written."""

    image_id: str
    values: NDArray[np.float16]
    stats: DepthStats
    source_size: tuple[int, int]
    record: MapRecord

    def attributes(self) -> dict[str, np.generic | NDArray[np.int64]]:
        """Return what is written beside the numbers."""
        checksums = {"checksum": self.record.checksum, "depth_checksum": self.record.depth_checksum}
        return {
            "source_size": np.array(self.source_size, np.int64),
            "crc32": np.uint32(self.record.crc32),
            **{name: np.bytes_(value) for name, value in checksums.items() if value},
            **{name: np.float64(value) for name, value in asdict(self.stats).items()},
        }


def open_file(path: Path) -> MapFile:
    """Open one file of a store for reading; without lock, so that it works on network disks and beside a writer."""
    return h5py.File(path, "r", locking=False, rdcc_nbytes=0)


def build_map_file(
    provenance: Provenance, maps: Iterable[StoredMap], sources: Iterable[tuple[Path, Sequence[str]]] = ()
) -> memoryview:
    """Return the bytes of a file holding the given maps.

    Args:
        provenance: written to the file's attributes.
        maps: new maps, compressed by the provenance's codec.
        sources: (file, image ids) pairs whose maps are copied as they are, without unpacking.
    """
    image = io.BytesIO()
    records: dict[str, MapRecord] = {}
    with h5py.File(image, "w") as file:
        group = _start_file(file, provenance)
        for path, image_ids in sources:
            with open_file(path) as source:
                for image_id in image_ids:
                    source.copy(source["depth"][image_id], group, name=image_id)
                    records[image_id] = _read_record(source, image_id)
        for stored in maps:
            chunks = _choose_chunks(stored.values.shape, stored.values.nbytes)
            dataset = group.create_dataset(
                stored.image_id, data=stored.values, chunks=chunks, **CODECS[provenance.codec]
            )
            for name, value in stored.attributes().items():
                _write_attribute(dataset.id, name, value)
            records[stored.image_id] = stored.record
        file["records"] = np.frombuffer(json.dumps(records).encode(), np.uint8)
    return image.getbuffer()


def read_records(file: MapFile) -> dict[str, MapRecord]:
    """Return the records of a shard's or batch's maps; one read, where their attributes would be one read a map."""
    return {image_id: MapRecord(*record) for image_id, record in json.loads(file["records"][()].tobytes()).items()}


def read_image_ids(file: MapFile) -> list[str]:
    """List the images of an open file, slashes and all."""
    image_ids: list[str] = []
    group = file["depth"].id

    def visit(name: bytes, link: Any) -> None:
        if link.type == h5py.h5l.TYPE_EXTERNAL or h5py.h5o.get_info(group, name).type == h5py.h5o.TYPE_DATASET:
            image_ids.append(name.decode())

    group.links.visit(visit, info=True)
    return image_ids


def find_link(index: MapFile, image_id: str) -> str | None:
    """Return the shard that an open index names for an image, or None."""
    try:
        link = index["depth"].get(image_id, getlink=True) if image_id else None
    except RuntimeError:  # what h5py raises for "/" and for "a/b" where "a" is an image
        return None
    if not isinstance(link, h5py.ExternalLink):
        return None
    if not is_map_file(link.filename):
        raise ValueError(f"the index links image {image_id!r} to {link.filename!r}, which is no file of this store")
    return str(link.filename)


def read_indexed_shards(index: MapFile) -> list[str]:
    """Return the names of the shards an open index covers."""
    return list(json.loads(index.attrs["shards"]))


def read_num_images(index: MapFile) -> int:
    """Return how many images an open index covers."""
    return int(index.attrs["images"])


def check_same_store(file: MapFile, provenance: Provenance) -> None:
    """Refuse a file that came from another store.

    Raises:
        ValueError: naming whose it is.
    """
    found = file.attrs["fingerprint"]
    if found != provenance.fingerprint():
        raise ValueError(f"it is of another store, by estimator {file.attrs['estimator']!r} or other settings of it")


def read_provenance(file: MapFile) -> Provenance:
    """Read the provenance of an open file; KeyError, TypeError or ValueError when it is no file of a store.

    Raises:
        UserError: it is of another version of the format.
    """
    version = int(file.attrs["schema_version"])
    if version != SCHEMA_VERSION:
        raise OtherSchema(Path(file.filename), version)
    values: dict[str, Any] = {}
    for field in fields(Provenance):
        text = file.attrs[field.name]
        value = text if field.name in _TEXT_FIELDS else json.loads(text)
        values[field.name] = tuple(value) if isinstance(value, list) else value
    return Provenance(**values | {"kind": DepthKind(values["kind"])})


def read_map(file: MapFile, image_id: str) -> DepthMap:
    """Read one map with its attributes; low-level calls, which take a third of the time of the high-level ones.

    Raises:
        ValueError: it is no map, or its numbers are not those that were stored.
    """
    dataset, values = _read_values(file, image_id)
    crc32 = int(_read_attribute(dataset, "crc32"))
    if crc32 != zlib.crc32(values.data):
        raise ValueError(f"the numbers of image {image_id!r} are not those that were stored (crc32)")
    stats = DepthStats(*(float(_read_attribute(dataset, name)) for name in STAT_NAMES))
    height, width = _read_attribute(dataset, "source_size").tolist()
    return DepthMap(widen(values), stats, (height, width), _read_text(dataset, "checksum"), crc32)


def publish_index(
    folder: Path, provenance: Provenance, shards: Sequence[str], links: dict[str, str], *, extend: bool
) -> None:
    """Write ``index.h5``.

    Args:
        shards: names of all shards the new index covers.
        links: image id -> shard.
        extend: add the links to the present index, in time that hardly grows with its size; else start afresh.
    """
    image = io.BytesIO((folder / INDEX).read_bytes() if extend else b"")
    with h5py.File(image, "r+" if extend else "w") as file:
        group = file["depth"] if extend else _start_file(file, provenance)
        images = int(file.attrs.get("images", 0)) + len(links)
        for image_id, shard in links.items():
            if extend and group.get(image_id, getlink=True) is not None:
                del group[image_id]
                images -= 1
            group[image_id] = h5py.ExternalLink(shard, f"depth/{image_id}")
        file.attrs["images"] = images
        file.attrs["shards"] = json.dumps(list(shards))
    publish(folder / INDEX, image.getbuffer())


def rebuild_index(folder: Path) -> None:
    """Make the index anew from the shards; where two hold an image, the later one counts.

    Raises:
        UserError: a shard cannot be read.
    """
    shards = list_store_files(folder).shards
    links: dict[str, str] = {}
    provenance: Provenance | None = None
    for shard in shards:
        with explaining_damage(folder / shard), open_file(folder / shard) as file:
            provenance = provenance or read_provenance(file)
            check_same_store(file, provenance)
            links.update(dict.fromkeys(read_image_ids(file), shard))
    if provenance is None:
        (folder / INDEX).unlink(missing_ok=True)
    else:
        publish_index(folder, provenance, shards, links, extend=False)


@contextmanager
def explaining_damage(path: Path) -> Iterator[None]:
    """Turn what HDF5 raises on a damaged or foreign file into an error that names the repair."""
    try:
        yield
    except (OSError, KeyError, ValueError, TypeError, RuntimeError) as error:
        if isinstance(error, FileNotFoundError | PermissionError):
            raise
        raise UserError(
            f"{path} cannot be read ({str(error) or type(error).__name__}); it is damaged or no file of a depth store. "
            "Drop what is damaged with: pipeline cache repair, then label again"
        ) from error


def _start_file(file: MapFile, provenance: Provenance) -> h5py.Group:
    file.attrs["schema_version"] = SCHEMA_VERSION
    file.attrs["fingerprint"] = provenance.fingerprint()
    for field in fields(Provenance):
        value = getattr(provenance, field.name)
        file.attrs[field.name] = str(value) if field.name in _TEXT_FIELDS else json.dumps(value)
    return file.create_group("depth")


def _choose_chunks(shape: tuple[int, ...], num_bytes: int) -> tuple[int, ...]:
    """Return the whole map, or for a large one the chunk near (256, 256) that tiles it with the least waste."""
    if num_bytes <= _WHOLE_CHUNK_BYTES:
        return shape
    return tuple(math.ceil(side / max(1, round(side / 256))) for side in shape)


def _write_attribute(dataset: Any, name: str, value: np.generic | NDArray[np.int64]) -> None:
    """Write one attribute; by hand, because ``attrs[name] = value`` takes seven times as long."""
    array = np.asarray(value)
    space = h5py.h5s.create_simple(array.shape) if array.shape else h5py.h5s.create(h5py.h5s.SCALAR)
    h5py.h5a.create(dataset, name.encode(), h5py.h5t.py_create(array.dtype), space).write(array)


def _read_values(file: MapFile, image_id: str) -> tuple[Any, NDArray[np.float16]]:
    dataset = h5py.h5d.open(file.id, f"depth/{image_id}".encode())
    shape, pixels = dataset.shape, math.prod(dataset.shape)
    if len(shape) != 2 or dataset.dtype != np.float16:
        raise ValueError(f"image {image_id!r} has {dataset.dtype} of shape {shape} where a float16 map belongs")
    if pixels > _LARGEST_MAP_PX or 2 * pixels > _BEST_COMPRESSION * dataset.get_storage_size():
        raise ValueError(f"image {image_id!r} claims a map of {shape[0]} x {shape[1]} px, more than the file holds")
    values = np.empty(shape, np.float16)
    dataset.read(h5py.h5s.ALL, h5py.h5s.ALL, values)
    return dataset, values


def _read_record(file: MapFile, image_id: str) -> MapRecord:
    dataset = h5py.h5d.open(file.id, f"depth/{image_id}".encode())
    has_depth = h5py.h5a.exists(dataset, b"depth_checksum")
    fitness = (float(_read_attribute(dataset, name)) for name in ("std", "valid_share", "row_correlation"))
    return MapRecord(
        _read_text(dataset, "checksum"),
        _read_text(dataset, "depth_checksum") if has_depth else "",
        int(_read_attribute(dataset, "crc32")),
        *fitness,
    )


def _read_attribute(dataset: Any, name: str) -> NDArray[Any]:
    attribute = h5py.h5a.open(dataset, name.encode())
    value = np.empty(attribute.shape, attribute.dtype)
    attribute.read(value)
    return value


def _read_text(dataset: Any, name: str) -> str:
    return str(_read_attribute(dataset, name).item().decode())


def widen(values: NDArray[np.float16]) -> NDArray[np.float32]:
    """Convert float16 to float32 exactly, six times as fast as ``astype``: shift the bits, then repair the exponent."""
    bits = values.view(np.int16).astype(np.int32)
    bits <<= 13
    bits &= np.int32(-0x70000001)  # 0x8fffffff: drops the copies of the sign that the widening made
    wide = bits.view(np.float32)
    wide *= np.float32(2.0**112)
    # infinity and nan do not survive that: they come out as 2**16 and above
    return wide if wide.min() > -(2.0**16) and wide.max() < 2.0**16 else values.astype(np.float32)

"""Building the files of a depth store: a shard, a batch, the index. Their layout is described in ``depth_file``."""

from __future__ import annotations

import io
import json
import math
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
from numpy.typing import NDArray

from data_cache.depth_file import (
    SCHEMA_VERSION,
    TEXT_FIELDS,
    MapFile,
    explaining_damage,
    load_blosc,
    open_file,
    open_map,
    read_image_ids,
    read_num_images,
    read_provenance,
)
from data_cache.depth_map import MapRecord, Provenance, stored_name
from data_cache.map_facts import MapFacts, read_facts, write_facts
from data_cache.store_folder import INDEX, list_store_files, publish

_LAYOUT = ("v110", "v110")
_ATTRIBUTES_BESIDE_MAP = 64
"""So many stay in the header of a map, which takes a fifth of the place of HDF5's structures for many attributes."""
CODECS: dict[str, Callable[[], Mapping[str, Any]]] = {
    "lzf": lambda: {"compression": "lzf", "shuffle": True},
    "gzip": lambda: {"compression": "gzip", "compression_opts": 1, "shuffle": True},
    "blosc": lambda: _describe_blosc(),
    "none": dict,
}
"""What h5py is asked for. Of ways to shuffle, that of bytes unpacks twice as fast as that of bits."""
_WHOLE_CHUNK_BYTES = 1 << 20
"""Larger maps get chunks of about (256, 256), so that a crop need not unpack all of it."""


class StoredMap(NamedTuple):
    """A map ready to be written."""

    image_id: str
    values: NDArray[np.float16]
    facts: MapFacts
    packed: bytes | None = None
    """The values as they will lie in the file, where they were packed beforehand."""


def pack_values(values: NDArray[np.float16], codec: str) -> bytes | None:
    """Return a map as HDF5 would pack it, None where that is left to HDF5, which does one at a time.

    Several threads may pack at once: zlib lets go of the interpreter's lock.
    """
    if codec != "gzip" or _choose_chunks(values.shape, values.nbytes) != values.shape:
        return None
    shuffled = np.ascontiguousarray(values.view(np.uint8).reshape(-1, values.itemsize).T)
    return zlib.compress(shuffled.data, CODECS[codec]()["compression_opts"])


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
    codec = CODECS[provenance.codec]()
    with h5py.File(image, "w", libver=_LAYOUT) as file:
        group = _start_file(file, provenance)
        for path, image_ids in sources:
            with open_file(path) as source:
                for image_id in image_ids:
                    name = stored_name(image_id)
                    source.copy(source["depth"][name], group, name=name)
                    records[name] = read_facts(open_map(source, image_id)).record()
        for stored in maps:
            name = stored_name(stored.image_id)
            chunks = _choose_chunks(stored.values.shape, stored.values.nbytes)
            layout = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
            layout.set_attr_phase_change(_ATTRIBUTES_BESIDE_MAP, _ATTRIBUTES_BESIDE_MAP // 2)
            dataset = group.create_dataset(
                name, shape=stored.values.shape, dtype=stored.values.dtype, chunks=chunks, dcpl=layout, **codec
            )
            if stored.packed is None:
                dataset[...] = stored.values
            else:
                dataset.id.write_direct_chunk((0, 0), stored.packed)
            write_facts(dataset.id, stored.facts, stored.image_id)
            records[name] = stored.facts.record()
        file["records"] = np.frombuffer(json.dumps(records).encode(), np.uint8)
    return image.getbuffer()


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
    with h5py.File(image, "r+" if extend else "w", libver=_LAYOUT) as file:
        group = file["depth"] if extend else _start_file(file, provenance)
        images = (read_num_images(file) if extend else 0) + len(links)
        for image_id, shard in links.items():
            name = stored_name(image_id)
            if extend and group.get(name, getlink=True) is not None:
                del group[name]
                images -= 1
            group[name] = h5py.ExternalLink(shard, f"depth/{name}")
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
            provenance = read_provenance(file, provenance)
            links.update(dict.fromkeys(read_image_ids(file), shard))
    if provenance is None:
        (folder / INDEX).unlink(missing_ok=True)
    else:
        publish_index(folder, provenance, shards, links, extend=False)


def _start_file(file: MapFile, provenance: Provenance) -> h5py.Group:
    file.attrs["schema_version"] = SCHEMA_VERSION
    file.attrs["fingerprint"] = provenance.fingerprint()
    for field in fields(Provenance):
        value = getattr(provenance, field.name)
        file.attrs[field.name] = str(value) if field.name in TEXT_FIELDS else json.dumps(value)
    return file.create_group("depth")


def _describe_blosc() -> Mapping[str, Any]:
    plugin = load_blosc("a new map")
    described: Mapping[str, Any] = plugin.Blosc2(cname="zstd", clevel=1, filters=plugin.Blosc2.SHUFFLE)
    return described


def _choose_chunks(shape: tuple[int, ...], num_bytes: int) -> tuple[int, ...]:
    """Return the whole map, or for a large one the chunk near (256, 256) that tiles it with the least waste."""
    if num_bytes <= _WHOLE_CHUNK_BYTES:
        return shape
    return tuple(math.ceil(side / max(1, round(side / 256))) for side in shape)

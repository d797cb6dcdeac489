"""The facts of a map in a depth store, which lie beside its numbers in attributes of HDF5.

They are read and written by low-level calls: ``attrs[name] = value`` takes seven times as long.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import asdict
from typing import Annotated, Any

import h5py
import numpy as np
from pydantic import BaseModel, ConfigDict, Field, PositiveInt

from data_cache.depth_map import STAT_NAMES, DepthStats, MapRecord

_LARGEST_ATTRIBUTE_BYTES = 1 << 12
_Crc32 = Annotated[int, Field(ge=0, lt=1 << 32)]


class MapFacts(BaseModel):
    """What is written beside the numbers of a map."""

    model_config = ConfigDict(strict=True, frozen=True)

    source_size: tuple[PositiveInt, PositiveInt]
    checksum: str
    depth_checksum: str
    crc32: _Crc32
    """Of the numbers."""
    facts_crc32: _Crc32 | None = None
    """Of the rest and the image's id; None in stores of version 2, and before it is written."""
    stats: DepthStats

    def compute_crc32(self, image_id: str) -> int:
        """Return what ``facts_crc32`` should be."""
        stats = (getattr(self.stats, name) for name in STAT_NAMES)
        facts = (image_id, *stats, *self.source_size, self.checksum, self.depth_checksum, self.crc32)
        return zlib.crc32(ascii(facts).encode())

    def record(self) -> MapRecord:
        """Return what the store remembers of the map."""
        fitness = self.stats.std, self.stats.valid_share, self.stats.row_correlation
        return MapRecord(self.checksum, self.depth_checksum, self.crc32, *fitness)


def write_facts(dataset: Any, facts: MapFacts, image_id: str) -> None:
    """Write the facts of an image's map; ``dataset`` is the map's low-level handle."""
    checksums = {"checksum": facts.checksum, "depth_checksum": facts.depth_checksum}
    attributes = {
        "source_size": np.array(facts.source_size, np.int64),
        "crc32": np.uint32(facts.crc32),
        "facts_crc32": np.uint32(facts.compute_crc32(image_id)),
        **{name: np.bytes_(value) for name, value in checksums.items() if value},
        **{name: np.float64(value) for name, value in asdict(facts.stats).items()},
    }
    for name, value in attributes.items():
        array = np.asarray(value)
        space = h5py.h5s.create_simple(array.shape) if array.shape else h5py.h5s.create(h5py.h5s.SCALAR)
        h5py.h5a.create(dataset, name.encode(), h5py.h5t.py_create(array.dtype), space).write(array)


def read_facts(dataset: Any) -> MapFacts:
    """Read what is written beside the numbers of a map; ``dataset`` is of ``open_map``."""
    size = _read_attribute(dataset, "source_size")
    return MapFacts(
        source_size=tuple(size) if isinstance(size, list) else size,
        checksum=_read_attribute(dataset, "checksum"),
        depth_checksum=_read_attribute(dataset, "depth_checksum", ""),
        crc32=_read_attribute(dataset, "crc32"),
        facts_crc32=_read_attribute(dataset, "facts_crc32", None),
        stats=DepthStats(**{name: _read_number(dataset, name) for name in STAT_NAMES}),
    )


def _read_number(dataset: Any, name: str) -> float:
    """Return an attribute that is one number; HDF5 and h5py refuse what is anything else."""
    value = np.empty((), np.float64)
    h5py.h5a.open(dataset, name.encode()).read(value)
    return float(value)


def _read_attribute(dataset: Any, name: str, *otherwise: Any) -> Any:
    """Return an attribute of a map as Python's own number, text or list of these; None where it is none of them.

    Args:
        otherwise: what an attribute counts as that is missing; KeyError without.
    """
    if otherwise and not h5py.h5a.exists(dataset, name.encode()):
        return otherwise[0]
    attribute = h5py.h5a.open(dataset, name.encode())
    dtype = attribute.dtype
    if dtype.kind not in "iufS" or dtype.itemsize * math.prod(attribute.shape) > _LARGEST_ATTRIBUTE_BYTES:
        return None
    value = np.empty(attribute.shape, dtype)
    attribute.read(value)
    found = value.tolist()
    return found.decode() if isinstance(found, bytes) else found

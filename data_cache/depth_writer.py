"""Writing a depth store so that a crash at any instant loses at most the batch in flight."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Set
from contextlib import ExitStack
from dataclasses import fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_cache.depth_file import (
    explaining_damage,
    open_file,
    read_indexed_shards,
    read_num_images,
    read_provenance,
    read_records,
)
from data_cache.depth_file_build import CODECS, StoredMap, build_map_file, pack_values, publish_index, rebuild_index
from data_cache.depth_map import DESCRIPTIVE, MapRecord, Provenance, UnfitMap, compute_depth_stats, to_float16
from data_cache.errors import UserError, unknown_name
from data_cache.files import hold_folder
from data_cache.map_facts import MapFacts
from data_cache.ranks import is_speaker, rank, wait_for_all, world_size
from data_cache.store_folder import (
    INDEX,
    batch_name,
    list_store_files,
    number_of,
    publish,
    remove_leftovers,
    shard_name,
)

_SHARD_BYTES = 64 << 20
"""A shard is closed at this size even when it holds fewer maps: it is built in memory."""


class DepthStoreWriter:
    """Adds maps to a store, one job at a time; continues where a finished or killed one stopped.

    A map is known by its image's id and checksum. A new map of an image that has changed is added beside the old one,
    and becomes the one the index links to; the old one stays for whoever still has the old image, such as another
    dataset with the same names.

    ``commit`` after each labelled batch makes it durable as a small file; once ``shard_size`` maps have gathered, and
    on closing, they are merged into a shard. Killed at any instant, the store opens, holds each committed map once and
    loses only what was not committed.

    Ranks of a job write together, each into shards of its own: all open the store, each adds its images, all close it,
    and only then is what they wrote brought into the index. The speaker holds the lock for all of them.
    """

    def __init__(self, folder: Path, provenance: Provenance, *, shard_size: int = 256, together: bool = False):
        """Open a store for writing, making it when it is new.

        Args:
            shard_size: maps per shard, at least 1.
            together: all ranks of this process's job open it, at the same point of the program.

        Raises:
            UserError: another writer is at work, the store was made otherwise, or a shard is damaged.
        """
        if shard_size < 1:
            raise ValueError(f"shard_size is {shard_size}, must be at least 1")
        self.folder = folder
        self.provenance = provenance
        if provenance.codec not in CODECS:
            raise unknown_name("codec", provenance.codec, CODECS)
        CODECS[provenance.codec]()  # needs a package that may be missing
        self._shard_size = shard_size
        self._pending: list[StoredMap] = []
        self._together = together
        self._step = world_size() if together else 1
        with ExitStack() as stack:
            if not together or is_speaker():
                stack.enter_context(hold_folder(folder, "writing a depth store"))
                self._recover()
            if together:
                wait_for_all()
                self._read()  # what the speaker has left
                self._next_shard += rank()
                wait_for_all()  # before the first writes
            self._held = stack.pop_all()

    def __enter__(self) -> DepthStoreWriter:
        return self

    def __exit__(self, problem: type[BaseException] | None, *_: object) -> None:
        try:
            self._merge_rest()
            if self._together and problem is None:
                wait_for_all()
                if is_speaker():
                    rebuild_index(self.folder)
                wait_for_all()
        finally:
            self._held.close()

    @property
    def image_ids(self) -> Set[str]:
        """Images stored or added so far."""
        return self._records.keys()

    def find(self, image_id: str, checksum: str, depth_checksum: str = "") -> MapRecord | None:
        """Return the record of the map of this very image, taken from this very ground-truth depth if from any."""
        made_from = (checksum, depth_checksum)
        found = [one for one in self._records.get(image_id, ()) if (one.checksum, one.depth_checksum) == made_from]
        return found[-1] if found else None

    def prepare(
        self,
        image_id: str,
        raw: NDArray[np.floating],
        source_size: tuple[int, int],
        checksum: str,
        depth_checksum: str = "",
    ) -> StoredMap:
        """Return a map ready for ``add``: the work on it that several threads may do at once.

        Args:
            raw: (h, w) at the estimator's output resolution, in its unit; non-finite where unknown.
            source_size: (H, W) of the image, px.
            checksum: of the image, see ``Sources``.
            depth_checksum: of the ground-truth depth that the map was taken from.

        Raises:
            UnfitMap: numbers the format cannot hold.
        """
        values = to_float16(image_id, raw)
        facts = MapFacts(
            source_size=source_size,
            checksum=checksum,
            depth_checksum=depth_checksum,
            crc32=zlib.crc32(values.data),
            stats=compute_depth_stats(values, self.provenance.kind, self.provenance.max_depth_m),
        )
        return StoredMap(image_id, values, facts, pack_values(values, self.provenance.codec))

    def add(self, stored: StoredMap) -> MapRecord:
        """Add a map that ``prepare`` has made ready; durable after the next ``commit``.

        Returns:
            What the store remembers of it.

        Raises:
            UnfitMap: its image's id is the folder of another, or the other way round.
            UserError: no disk space left.
        """
        image_id, facts = stored.image_id, stored.facts
        self._check_new(image_id, facts.checksum, facts.depth_checksum)
        if image_id in self._unmerged:  # a file holds one map of an image
            self._merge()
        self._pending.append(stored)
        self._unmerged.add(image_id)
        self._records.setdefault(image_id, []).append(facts.record())
        self._groups.update(_parents(image_id))
        if self._loose_maps + len(self._pending) >= self._shard_size:
            self.commit()
        return facts.record()

    def commit(self) -> None:
        """Make everything added so far survive a crash.

        Raises:
            UserError: no disk space left.
        """
        if not self._pending:
            return
        waiting = sum(image.values.nbytes for image in self._pending) + self._loose_bytes
        if self._loose_maps + len(self._pending) >= self._shard_size or waiting >= _SHARD_BYTES:
            self._merge()
            return
        name = batch_name(self._next_shard, self._next_batch)
        content = build_map_file(self.provenance, self._pending)
        publish(self.folder / name, content)
        self._batches[name] = [image.image_id for image in self._pending]
        self._next_batch += 1
        self._loose_bytes += len(content)
        self._pending = []

    def close(self) -> None:
        """Commit, merge the batches into a last shard and let others write."""
        self.__exit__(None)

    def _merge_rest(self) -> None:
        if self._pending or self._batches:
            self._merge()

    @property
    def _loose_maps(self) -> int:
        return sum(map(len, self._batches.values()))

    def expect(self, image_ids: Iterable[str]) -> None:
        """Keep the names free that other ranks will add images under; theirs, and the folders in them."""
        self._expected.update(image_ids)
        self._groups.update(parent for image_id in self._expected for parent in _parents(image_id))

    def _read(self) -> None:
        """Learn what is in the store, and where this writer goes on."""
        listed = list_store_files(self.folder)
        self._shards = list(listed.shards)
        self._next_shard, self._next_batch = listed.next_shard, listed.next_batch
        self._batches: dict[str, list[str]] = {}
        self._loose_bytes = 0
        self._records: dict[str, list[MapRecord]] = {}
        for name in listed.names:
            with explaining_damage(self.folder / name), open_file(self.folder / name) as file:
                self._check_same(read_provenance(file))
                records = read_records(file)
            for image_id, record in records.items():
                self._records.setdefault(image_id, []).append(record)
            if name in listed.batches:
                self._batches[name] = list(records)
                self._loose_bytes += (self.folder / name).stat().st_size
        self._unmerged = {image_id for image_ids in self._batches.values() for image_id in image_ids}
        self._groups = {parent for image_id in self._records for parent in _parents(image_id)}
        self._expected = set[str]()

    def _recover(self) -> None:
        """Take up what earlier writers left: finish interrupted merges, take over the loose batches."""
        remove_leftovers(self.folder)
        self._read()
        if self._indexed_shards() != self._shards:
            rebuild_index(self.folder)
        indexed, going_on, loose = self._shards, self._next_shard, self._batches
        for number in sorted(set(map(number_of, loose))):
            # A lone writer goes on with the last; others, of ranks that wrote beside it, keep shards of their own:
            # a batch must not be in a shard of another number while it still counts itself.
            self._batches = {name: image_ids for name, image_ids in loose.items() if number_of(name) == number}
            if number != going_on or self._together:
                self._next_shard = number
                self._merge()
        if self._shards != indexed:
            self._read()

    def _indexed_shards(self) -> list[str]:
        try:
            with explaining_damage(self.folder / INDEX), open_file(self.folder / INDEX) as file:
                read_num_images(file)
                return read_indexed_shards(file)
        except (UserError, FileNotFoundError):  # missing or damaged: it is made anew from the shards
            return []

    def _check_same(self, found: Provenance) -> None:
        if found.fingerprint() == self.provenance.fingerprint():
            return
        differing = [
            f"{field.name} {getattr(found, field.name)!r} instead of {getattr(self.provenance, field.name)!r}"
            for field in fields(Provenance)
            if field.name not in DESCRIPTIVE and getattr(found, field.name) != getattr(self.provenance, field.name)
        ]
        raise UserError(
            f"{self.folder} was made otherwise ({'; '.join(differing)}) and one store never mixes; "
            "label into another folder or remove this one"
        )

    def _check_new(self, image_id: str, checksum: str, depth_checksum: str) -> None:
        if self.find(image_id, checksum, depth_checksum) is not None:
            raise ValueError(f"{self.folder} already holds depth for image {image_id!r}")
        taken = any(parent in self._records or parent in self._expected for parent in _parents(image_id))
        if taken or image_id in self._groups:
            raise UnfitMap(
                f"image id {image_id!r} cannot be stored beside the others in {self.folder}: one id is the folder of "
                "another (like 'street' and 'street/01'). Rename one of the images"
            )

    def _merge(self) -> None:
        """Publish a shard of all loose batches and pending maps; the moment it exists, the batches no longer count."""
        shard = shard_name(self._next_shard)
        if (self.folder / shard).exists():
            raise UserError(
                f"{self.folder / shard} has come from elsewhere meanwhile; label again when nobody else does"
            )
        sources = [(self.folder / name, image_ids) for name, image_ids in self._batches.items()]
        links = [image_id for image_ids in self._batches.values() for image_id in image_ids]
        links += [image.image_id for image in self._pending]
        publish(self.folder / shard, build_map_file(self.provenance, self._pending, sources))
        self._pending, self._unmerged = [], set()
        merged, self._batches = self._batches, {}
        self._shards = sorted([*self._shards, shard], key=number_of)
        if not self._together:
            extend = len(self._shards) > 1
            publish_index(self.folder, self.provenance, self._shards, dict.fromkeys(links, shard), extend=extend)
        for name in merged:
            (self.folder / name).unlink()
        self._next_shard, self._next_batch, self._loose_bytes = self._next_shard + self._step, 0, 0


def _parents(image_id: str) -> list[str]:
    """Return the HDF5 groups an id with slashes lies in: "a/b/c" -> ["a", "a/b"]."""
    names = image_id.split("/")
    return ["/".join(names[:depth]) for depth in range(1, len(names))]

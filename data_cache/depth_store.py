"""Find a depth store and read its maps by image id.

Writing is in ``depth_writer``, verifying and repairing in ``depth_repair``, the layout of a file in ``depth_file``.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_cache.depth_file import (
    MapFile,
    OtherSchema,
    check_same_store,
    explaining_damage,
    find_link,
    open_file,
    read_image_ids,
    read_indexed_shards,
    read_links,
    read_map,
    read_num_images,
    read_provenance,
    read_records,
)
from data_cache.depth_map import DepthMap, MapRecord, Provenance, label_command
from data_cache.errors import UserError
from data_cache.map_facts import MapFacts
from data_cache.store_folder import INDEX, dataset_folder, folder_name, list_store_files, matching_folders

_OPEN_FILES = 12
"""Shards a reader keeps open; more cost memory in every worker."""
_ATTEMPTS = 5
"""A reader that loses the race against a writer's merge this often is not racing."""


class NoDepthStore(UserError):
    """Nobody has labelled this split with this estimator yet."""


class _OpenFiles:
    """What one process has open of a store: the index, the latest shards, and where maps not indexed yet are."""

    def __init__(self, folder: Path) -> None:
        self.pid = os.getpid()
        self._folder = folder
        self._files: dict[str, MapFile] = {}  # last the one used last
        self.facts: dict[tuple[str, str], MapFacts] = {}
        listed = list_store_files(folder) if folder.is_dir() else None
        if listed is None or not listed.names:
            raise NoDepthStore(
                f"no depth store in {folder}: the folder {'is missing' if listed is None else 'holds no map'}; "
                "make one with: pipeline pseudo-depth"
            )
        self.names = listed.names
        self.index: MapFile | None = None
        indexed: list[str] = []
        if (folder / INDEX).exists():
            with explaining_damage(folder / INDEX):
                self.index = open_file(folder / INDEX)
                indexed = read_indexed_shards(self.index)
                self.provenance = read_provenance(self.index)
        else:
            with explaining_damage(folder / self.names[0]), open_file(folder / self.names[0]) as first:
                self.provenance = read_provenance(first)
        self.loose: dict[str, str] = {}
        """Image id -> file, for files that a writer, running or killed, has not brought into the index."""
        for name in self.names:
            if name not in indexed:
                with explaining_damage(folder / name):
                    self.loose.update(dict.fromkeys(read_image_ids(self.open(name)), name))

    def open(self, name: str) -> MapFile:
        """Return an open shard or batch, closing the one unused longest when there are many."""
        file = self._files.pop(name, None)
        if file is None:
            while len(self._files) >= _OPEN_FILES:
                self._files.pop(next(iter(self._files))).close()
            file = open_file(self._folder / name)
            check_same_store(file, self.provenance)
        self._files[name] = file
        return file

    def find(self, image_id: str) -> str | None:
        """Return the file that holds an image, or None."""
        if image_id in self.loose or self.index is None:
            return self.loose.get(image_id)
        return find_link(self.index, image_id)

    def close(self) -> None:
        for file in (*self._files.values(), self.index):
            if file is not None:
                file.close()


class DepthStore:
    """Read access to the pseudo depth of one dataset split; safe to hand to DataLoader workers of any start method.

    Nothing is listed on opening, so a store of 100,000 images opens as fast as one of ten. Files are opened without
    lock, once per process.
    """

    def __init__(self, folder: Path) -> None:
        """Open the store in ``folder``.

        Raises:
            UserError: there is no store, or its index is damaged.
        """
        self.folder = folder
        self._files: _OpenFiles | None = None
        self.provenance = self._open().provenance

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_files": None}

    @property
    def image_ids(self) -> tuple[str, ...]:
        """All images, sorted; listed anew each time."""
        files = self._open()
        with explaining_damage(self.folder / INDEX):
            indexed = read_links(files.index) if files.index else {}
        return tuple(sorted(files.loose.keys() | indexed.keys()))

    def __getitem__(self, image_id: str) -> NDArray[np.float32]:
        """Return the (h, w) depth of an image at the estimator's resolution, in the unit that ``provenance`` names.

        Raises:
            UserError: as ``read``, which returns the map with its statistics and the size of its image.
        """
        return self.read(image_id).raw

    def __contains__(self, image_id: object) -> bool:
        return isinstance(image_id, str) and self._open().find(image_id) is not None

    def __iter__(self) -> Iterator[str]:
        return iter(self.image_ids)

    def __len__(self) -> int:
        files = self._open()
        if files.index is None:
            return len(files.loose)
        with explaining_damage(self.folder / INDEX):
            return read_num_images(files.index) + sum(find_link(files.index, name) is None for name in files.loose)

    def read(self, image_id: str, name: str | None = None) -> DepthMap:
        """Read one map.

        Args:
            name: of the file, where an image has several maps; None reads the newest.

        Raises:
            UserError: the store lacks the image, or the map is damaged.
        """
        try:
            return self._read(image_id, name)
        except FileNotFoundError:  # a writer has just merged the batch this process knew
            self.close()
        try:
            return self._read(image_id)
        except FileNotFoundError as error:
            raise UserError(
                f"{self.folder} has lost the shard with the depth of image {image_id!r} ({error}); "
                f"repair the store with: pipeline cache repair {shlex.quote(str(self.folder))}, then label again"
            ) from error

    def records(self) -> dict[str, list[tuple[str, MapRecord]]]:
        """Return the file and the record of every map by image, the newest last; reads a little of every file.

        Raises:
            UserError: a file is damaged, or of another store.
        """
        held: dict[str, list[tuple[str, MapRecord]]] = {}
        files = self._open()
        if files.index is not None:
            with explaining_damage(self.folder / INDEX):
                read_links(files.index)
        for name in files.names:
            with explaining_damage(self.folder / name):
                file = files.open(name)
                read_provenance(file)
                for image_id, record in read_records(file).items():
                    held.setdefault(image_id, []).append((name, record))
        return held

    def close(self) -> None:
        """Close this process's files; reading opens them again."""
        if self._files is not None and self._files.pid == os.getpid():
            self._files.close()
        self._files = None

    def _open(self) -> _OpenFiles:
        # Files opened before a fork belong to the parent: a child opens its own and leaves those alone.
        for attempt in range(_ATTEMPTS):
            if self._files is not None and self._files.pid == os.getpid():
                break
            try:
                self._files = _OpenFiles(self.folder)
            except FileNotFoundError:  # a batch was merged between listing and opening
                if attempt == _ATTEMPTS - 1:
                    raise
        assert self._files is not None
        return self._files

    def _read(self, image_id: str, name: str | None = None) -> DepthMap:
        files = self._open()
        with explaining_damage(self.folder / INDEX):
            name = name or files.find(image_id)
        if name is None:
            raise UserError(
                f"{self.folder} has no depth for image {image_id!r} ({len(self)} images stored); "
                f"add it with: {self.provenance.label_command()}"
            )
        with explaining_damage(self.folder / name):
            return read_map(files.open(name), image_id, files.facts)


def find_store(
    depth_root: Path,
    dataset: str,
    split: str,
    estimator: str,
    *,
    made_by: Callable[[Provenance], bool] | None = None,
    command: str | None = None,
) -> Path:
    """Return the folder of the store made from a dataset split by an estimator.

    Args:
        made_by: accept only stores whose provenance it accepts, beyond the estimator's name.
        command: the command line that makes the store, for messages; None names dataset, split and estimator.

    Raises:
        NoDepthStore: there is none.
        UserError: there are several, or only such as were made otherwise or by another version of the program.
    """
    command = command or label_command(dataset, split, estimator)
    made: dict[Path, Provenance] = {}
    outdated: OtherSchema | None = None
    for folder in matching_folders(depth_root, dataset, split, estimator):
        try:
            made[folder] = DepthStore(folder).provenance
        except OtherSchema as problem:
            outdated = problem
        except NoDepthStore:  # labelling failed before its first map
            continue
    if not made:
        raise outdated or NoDepthStore(
            f"no depth store for {dataset} {split} by {estimator} in {depth_root}; make it with: {command}"
        )
    found = [folder for folder in made if made_by is None or made_by(made[folder])]
    if not found:
        raise UserError(
            f"the depth store {next(iter(made))} was made with other weights, input size, precision or depth options "
            f"than {estimator} has now; label with these with: {command}"
        )
    if len(found) > 1:
        raise UserError(
            f"{len(found)} depth stores fit {dataset} {split} by {estimator}: {', '.join(f.name for f in found)} in "
            f"{dataset_folder(depth_root, dataset)}; they differ in settings of the estimator. Remove those that are "
            "not meant"
        )
    return found[0]


def store_folder(depth_root: Path, provenance: Provenance) -> Path:
    """Return where the store of that provenance belongs: ``<dataset>/<split>-<estimator>-<hash8>``."""
    parent = dataset_folder(depth_root, provenance.dataset)
    return parent / folder_name(provenance.split, provenance.estimator, provenance.key())

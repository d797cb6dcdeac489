"""proof.json on disk: what was proven, and of which files, so that others are never taken for them."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from data_cache.errors import Notice, UserError
from data_cache.records import Record, read_record

PROOF_FILE = "proof.json"
EXPORT_AGAIN = "export the run again with: pipeline export"

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class BeforeAfter(Record):
    """A number of the network as trained, and without its depth branch."""

    before: int
    after: int


class Latency(Record):
    """Medians in ms."""

    before: float
    after: float
    device: str


class ProvenSize(Record):
    """How far a file was from the network on images of one size."""

    batch: int
    height: int
    width: int
    max_abs_difference: float
    argmax_agreement: float
    share_beyond_tolerance: float = 0.0
    """Proofs from before it was allowed do not tell it."""


class ProvenImage(Record):
    """How far a file was from the network on one real image."""

    image: str
    height: int
    width: int
    max_abs_difference: float | None = None
    """None of a file that answers labels."""
    argmax_agreement: float


class ProvenFormat(Record):
    """A written format."""

    sizes: tuple[ProvenSize, ...]
    images: tuple[ProvenImage, ...] = ()
    """Proofs from before there were some, or of a machine without the data, have none."""


class Proof(Record):
    """proof.json, as far as programs read it."""

    VERSION = 2

    format: int = 1
    export_key: str
    """Of the weights and settings it was made from."""
    files: dict[str, Sha256] | None = None
    """Name → content of every file beside it; None in what version 1 wrote."""
    max_abs_difference: dict[str, float | None]
    formats: dict[str, ProvenFormat]
    input_size: tuple[int, int] | None = None
    """(height, width) for which it was made; the oldest do not tell it."""
    parameters: BeforeAfter
    flops: BeforeAfter
    latency_ms: Latency

    @model_validator(mode="after")
    def _check_files(self) -> Proof:
        if self.format >= 2 and self.files is None:
            raise ValueError("files is missing")
        return self


def read_proof(folder: Path) -> Proof:
    """Return what an export's proof says.

    Raises:
        UserError: it is missing or damaged.
    """
    return read_record(folder / PROOF_FILE, Proof, EXPORT_AGAIN)


def hash_files(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file of a folder by name, as ``sha256sum`` prints it."""
    return {path.name: _hash(path) for path in sorted(folder.iterdir())}


def find_damaged(folder: Path, files: Mapping[str, str]) -> list[str]:
    """Return the names of files that are missing or hold something else than they did."""
    return [
        name
        for name, content in files.items()
        if Path(name).name != name or not (folder / name).is_file() or _hash(folder / name) != content
    ]


def check_files(folder: Path, names: Iterable[str]) -> None:
    """Refuse files of an export that are not those its proof is of.

    Raises:
        UserError: naming the files.
    """
    files = read_proof(folder).files
    if files is None:
        warnings.warn(
            f"the files in {folder} are believed unchecked: the older version that wrote them did not note their "
            f"content; to be sure of them, {EXPORT_AGAIN}",
            Notice,
            stacklevel=2,
        )
        return
    if damaged := find_damaged(folder, {name: files.get(name, "") for name in names}):
        raise UserError(
            f"{', '.join(damaged)} in {folder} is missing or not the one that {PROOF_FILE} is of (cut off, altered, or "
            f"exchanged for another); {EXPORT_AGAIN}"
        )


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

"""One command in several processes, as torchrun starts them: they join, one of them speaks, and all end together.

Which commands share their work is said here. Of every other one rank 0 does all, and the others end at once.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

from data_cache.errors import UserError
from data_cache.files import make_folder
from data_cache.leftovers import name_temporary
from data_cache.ranks import (
    World,
    broadcast_object,
    check_alike,
    claim_last_word,
    find_last_status,
    gather_over_ranks,
    is_speaker,
    join,
    leave,
    local_world_size,
    rank,
    take_leave,
    world_size,
)
from pipeline.interruption import start_answering

SHARED_COMMANDS = frozenset({"run", "table", "pseudo-depth", "evaluate", "teach"})


def join_job(words: Sequence[str]) -> None:
    """Become one of the processes that torchrun started, if it did; only rank 0 has a stdout from then on.

    Args:
        words: of the command line.

    Raises:
        UserError: the others are not found, or run another program or command.
    """
    join(World.from_environment())
    if world_size() == 1:
        return
    if not is_speaker():
        sys.stdout = open(os.devnull, "w", encoding="utf8")  # noqa: SIM115, PTH123 - for as long as the process lives
    check_alike(
        {
            "command": " ".join(words),
            "program": _hash_program(),
            "Python": platform.python_version(),
            "torch": metadata.version("torch"),
        }
    )


def share_or_stand_back(command: str | None) -> bool:
    """Return whether this process has a part in a command; of one that cannot be shared, rank 0 has all."""
    if world_size() == 1 or command in SHARED_COMMANDS:
        return True
    has_part = is_speaker()
    leave()
    return has_part


def check_shared_folder(folder: Path) -> None:
    """Raise a UserError on all ranks when one that is on another machine has another work directory there."""
    if world_size() == local_world_size():
        return
    token = name_temporary(folder / "token")
    if is_speaker():
        make_folder(folder)
        token.touch()
    seen = gather_over_ranks((folder / broadcast_object(token.name)).exists())
    token.unlink(missing_ok=True)
    if not all(seen):
        raise UserError(
            f"work directory {folder.absolute()} of rank {seen.index(False)} is not that of rank 0; name one that all "
            "machines share, with --workdir"
        )


def check_batch(num_images: int, what: str = "images") -> None:
    """Raise a UserError when the smallest batch has not one image (or what people call it) for every rank."""
    if num_images < world_size():
        raise UserError(
            f"{world_size()} processes share the {what} of every batch, but one batch has {num_images}; start at most "
            f"{num_images} (torchrun --nproc-per-node), or raise --batch-size, to not more than the images of the split"
        )


@contextmanager
def ending_together() -> Iterator[None]:
    """End this process where the block fails with a bug: of a job's processes only the first of them shows it."""
    try:
        yield
    except Exception:
        if world_size() == 1:
            raise
        start_answering()
        if claim_last_word(1):
            sys.stderr.write(f"rank {rank()} of {world_size()}:\n{traceback.format_exc()}")
        end_job(1)


def end_job(status: int) -> None:
    """End a process that is in a job, with the status of the first that ended; does nothing for other ones."""
    if world_size() == 1:
        return
    start_answering()  # torchrun ends the others as soon as it sees that one has ended
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    status = find_last_status() or status
    take_leave()
    # In order it would wait for the others, which wait for this one; and where all have done their parts, Python might
    # abort, because a thread of gloo lets go of a tensor while the interpreter ends.
    os._exit(status)


def _hash_program() -> str:
    """Return 12 hex digits over the source code of this program."""
    house, digest = Path(__file__).parent.parent, hashlib.blake2b(digest_size=6)
    for package in ("data_cache", "stages", "pipeline"):
        for path in sorted((house / package).rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()

"""Where artifacts live."""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from data_cache.content import ContentHashes
from data_cache.errors import UserError, nearest
from data_cache.files import atomic_file
from data_cache.leftovers import remove_abandoned

ENVIRONMENT_VARIABLE = "PIPELINE_WORKDIR"
LISTED_RUNS = 20
"""Names that an error message lists."""


@lru_cache(maxsize=4)
def _recall_hashes(file: Path) -> ContentHashes:
    """Return the hashes that a file remembers, loaded once: of 100,000 files that takes a second."""
    return ContentHashes(file)


@dataclass(frozen=True)
class Workspace:
    """The work directory: depth stores, trained nodes, runs, exports, drawn scenes."""

    root: Path

    @classmethod
    def choose(cls, option: str | Path | None) -> Workspace:
        """Return the work directory of ``--workdir``, else of the environment, else ``./artifacts``."""
        return cls(Path(option or os.environ.get(ENVIRONMENT_VARIABLE) or "artifacts").expanduser())

    @property
    def depth(self) -> Path:
        """Depth stores, one folder per dataset."""
        return self.root / "depth"

    @property
    def runs(self) -> Path:
        """One folder per run."""
        return self.root / "runs"

    @property
    def exports(self) -> Path:
        """Where ``export`` writes when no folder is named."""
        return self.root / "exports"

    @property
    def estimators(self) -> Path:
        """Where ``fetch`` puts estimators and encoder weights."""
        return self.root / "estimators"

    def content_hashes(self) -> ContentHashes:
        """Return what is remembered of the contents of data files, so that they are read once."""
        remove_abandoned(self.root)
        return _recall_hashes(self.root.absolute() / "content-hashes.json")

    def check_output(self, out: Path, option: str) -> None:
        """Raise a UserError when results would go among the records of runs, nodes or depth stores."""
        for room in (self.depth, self.runs, self.root / "nodes"):
            if Path(os.path.realpath(out)).is_relative_to(os.path.realpath(room)):
                raise UserError(f"{option} {out} lies in {room}, which this program keeps; name another place")

    def find_token(self) -> Path:
        """Return a file whose random content tells whether another machine sees the same work directory."""
        token = self.root / "token"
        if not token.exists():
            with atomic_file(token) as temporary:
                temporary.write_text(secrets.token_hex(16), encoding="ascii")
        return token

    def node(self, key: str) -> NodeFolder:
        """Return the folder of one trained node."""
        return NodeFolder(self.root / "nodes" / key)

    def finished_runs(self) -> list[Path]:
        """Return the folders of finished runs; last the one that was asked for last, see ``mark_newest``."""
        found = sorted(self.runs.glob("*/run.json"), key=lambda path: (path.stat().st_mtime_ns, path.parent.name))
        return [path.parent for path in found]

    def mark_newest(self, run: Path) -> None:
        """Make a finished run the newest: asking for it again is what ``export`` then goes by."""
        with contextlib.suppress(OSError):  # not the owner's: then the order stays
            now = time.time_ns()  # the file system's own clock may tick too coarsely to tell two runs apart
            os.utime(run / "run.json", ns=(now, now))

    def find_run(self, reference: str) -> Path:
        """Return the folder of a run.

        Args:
            reference: a run's folder, its name, or the beginning of its name or of the id that the name ends with.

        Raises:
            UserError: no such run, or several whose names or ids begin so.
        """
        runs = self.finished_runs()
        if (Path(reference) / "run.json").is_file():
            return Path(reference)
        matches = [run for run in runs if run.name.startswith(reference)]
        matches = matches or [run for run in runs if run.name.rpartition("-")[2].startswith(reference)]
        exact = [run for run in matches if run.name == reference]
        if len(exact or matches) == 1:
            return (exact or matches)[0]
        names = [run.name for run in (matches or runs)]
        listing = "\n  ".join(names[-LISTED_RUNS:]) or "none"
        if len(names) > LISTED_RUNS:
            listing += f"\n  and {len(names) - LISTED_RUNS} older ones"
        exports = [str(proof.parent) for proof in Path(reference).parent.glob("*/proof.json")]
        problem = "matches several runs" if matches else f"is no run{nearest(reference, [*names, *exports])}"
        raise UserError(f"{reference!r} {problem}; runs in {self.runs}:\n  {listing}")


@dataclass(frozen=True)
class NodeFolder:
    """One training node on disk: finished exactly when ``node.json`` and the weights exist."""

    path: Path

    @property
    def weights(self) -> Path:
        """The network's whole state after the phase, all parts and buffers."""
        return self.path / "weights.safetensors"

    @property
    def record(self) -> Path:
        """Facts of the finished phase."""
        return self.path / "node.json"

    @property
    def metrics(self) -> Path:
        """One line per logged step."""
        return self.path / "metrics.jsonl"

    @property
    def checkpoint(self) -> Path:
        """State in the middle of the phase; gone once it is finished."""
        return self.path / "checkpoint"

    @property
    def finished(self) -> bool:
        """Whether the phase ran to its end, and its weights were not removed since; whether they are sound is open."""
        return self.record.exists() and self.weights.exists()

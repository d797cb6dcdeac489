"""What is killed: commands on a small drawn dataset, and what they leave in the work directory when undisturbed."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_cache.depth_repair import verify_store
from data_cache.depth_store import DepthStore
from data_cache.leftovers import is_temporary

RECIPE = """
[data]
dataset = "scenes"
crop = [64, 64]
options = { size = [64, 64], counts = { train = 12, val = 4, test = 4 } }

[depth]
estimator = %s
kind = "relative"
batch_size = 2

[network]
name = "unet"
encoder = "tu-test_resnet"
encoder_weights = "none"
decoder_channels = [8, 8, 8, 8, 8]

[training]
iterations = 3
batch_size = 4
precision = "float32"
log_every = 1
checkpoint_minutes = 1e-9
ema_decay = 0.9

[schedule]
name = "depth-first-direct"
copy_weights = true

[evaluation]
panels = 1
"""

VOLATILE = {
    "seconds", "images_per_second", "resumed_from", "started_at", "finished_at", "reused", "latency_ms", "command",
    "written_at", "created_at", "elapsed_s", "README.md", "workers", "cached_images", "wait_share",
}  # fmt: skip
"""Keys of records that tell how a command went, not what came of it; the hash of the card, which shows latencies."""
UNCOMPARED = {"report.html", "README.md"}
"""A page that shows the time, and a card that shows latencies; their existence is compared."""


@dataclass(frozen=True)
class Job:
    """A command that is killed."""

    name: str
    words: tuple[str, ...]
    before: tuple[tuple[str, ...], ...] = ()
    """Commands that are done beforehand, undisturbed."""
    chain: int = 1
    """Kills in a row before the command is let through."""
    share: float = 0.3
    """Kills compared with those while labelling."""


LABEL = ("pseudo-depth", "--split", "train", "--split", "val")
TRAIN = ("run",)
JOBS = (
    Job("labelling", LABEL, (("pseudo-depth", "--split", "train", "--estimator", "dataset"),), chain=2, share=1.0),
    Job("training", TRAIN, (LABEL,), chain=2),
    Job("training, 2 loader workers", (*TRAIN, "--workers", "2"), (LABEL,), chain=2),
    Job("tabling", ("table", "schedules", "--seeds", "0", "--iterations", "1"), (LABEL,), chain=8),
    Job("exporting", ("export", "--formats", "safetensors", "--no-benchmark"), (LABEL, TRAIN)),
    Job("drawing scenes", ("pseudo-depth", "--split", "train", "--estimator", "dataset")),
)
RECIPE_COMMANDS = ("pseudo-depth", "run", "table")


def take_snapshot(work: Path) -> dict[str, Any]:
    """Return what a work directory holds, file by file; of depth stores map by map, whatever files they lie in."""
    found: dict[str, Any] = {}
    for path in sorted(work.rglob("*")):
        name = path.relative_to(work).as_posix()
        if path.name == "content-hashes.json":  # a memory that is made anew when it is gone
            continue
        if is_temporary(path):
            found[name] = "temporary"
        elif path.is_dir() or path.name.endswith(".lock") or path.suffix == ".h5":
            continue  # an empty folder does no harm, a lock file is held or not, and maps are compared below
        elif path.name in UNCOMPARED:
            found[name] = "there"
        elif path.suffix in (".json", ".jsonl"):
            found[name] = _read_facts(path, work)
        else:
            found[name] = hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()
    for index in sorted(work.glob("depth/*/*/index.h5")):
        store = DepthStore(index.parent)
        name = index.parent.relative_to(work).as_posix()
        found[name] = [str(problem) for problem in verify_store(index.parent)]
        found |= {f"{name}/{one}": store.read(one).raw.tobytes().hex()[:4000] for one in store.image_ids}
    return found


def describe_difference(found: dict[str, Any], expected: dict[str, Any]) -> str:
    """Return the names at which two snapshots differ, "" for none."""
    names = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
    kinds = [
        f"{name} is left over" if name not in expected
        else f"{name} is missing" if name not in found
        else f"{name} differs{_locate(found[name], expected[name])}"
        for name in names[:6]
    ]  # fmt: skip
    return "; ".join(kinds)


def _locate(found: Any, expected: Any) -> str:
    """Return the place in a record where it differs, and how."""
    if isinstance(found, dict) and isinstance(expected, dict) and found.keys() == expected.keys():
        return next(f".{key}{_locate(found[key], expected[key])}" for key in found if found[key] != expected[key])
    if isinstance(found, list) and isinstance(expected, list) and len(found) == len(expected):
        pairs = enumerate(zip(found, expected, strict=True))
        return next(f"[{place}]{_locate(*pair)}" for place, pair in pairs if pair[0] != pair[1])
    return f" ({str(found)[:80]} instead of {str(expected)[:80]})"


def _read_facts(path: Path, work: Path) -> Any:
    text = path.read_text(encoding="utf8").replace(str(work), "WORK")
    lines = text.splitlines() if path.suffix == ".jsonl" else [text]
    return [_without_volatile(json.loads(line)) for line in lines]


def _without_volatile(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_volatile(item) for key, item in value.items() if key not in VOLATILE}
    if isinstance(value, list):
        return [_without_volatile(item) for item in value]
    return value

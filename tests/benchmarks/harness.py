"""What all benchmarks share: sides that take turns, goals as ratios, lines with their spread, a table and JSON."""

from __future__ import annotations

import json
import platform
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from data_cache.errors import UserError
from pipeline.threads import count_usable_cpus
from stages.export.machine import describe_cpu
from stages.export.turns import Spread, Turns, take_turns
from stages.networks.precision import resolve_dtype

VERSIONS = ("torch", "torchvision", "transformers", "segmentation-models-pytorch", "onnxruntime", "h5py", "numpy")
BFLOAT16_CPU = resolve_dtype("auto", "cpu") == "bfloat16"
"""Whether this CPU multiplies bfloat16; goals differ where it does not."""

Side = Callable[[], object]


def alternate(sides: Sequence[Side], passes: int, *, warm_up: int = 1, device: torch.device | None = None) -> Turns:
    """Time sides in turns.

    Args:
        passes: timed turns.
        warm_up: turns before that, which do not count.
        device: waited for before and after each side, where it works on its own.
    """

    def time_one(side: Side) -> float:
        wait_for(device)
        started_at = time.perf_counter()
        side()
        wait_for(device)
        return time.perf_counter() - started_at

    return take_turns([partial(time_one, side) for side in sides], passes, warm_up=warm_up)


def wait_for(device: torch.device | None) -> None:
    """Return when a GPU has done what it was given."""
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)


@dataclass(frozen=True)
class Goal:
    """What a ratio should be: at least, at most, or between."""

    at_least: float | None = None
    at_most: float | None = None

    def is_met(self, value: float) -> bool:
        """Whether a value lies within."""
        return (self.at_least is None or value >= self.at_least) and (self.at_most is None or value <= self.at_most)

    def __str__(self) -> str:
        if self.at_least is not None and self.at_most is not None:
            return f"{self.at_least:g} – {self.at_most:g}"
        return f"≥ {self.at_least:g}" if self.at_least is not None else f"≤ {self.at_most:g}"

    def describe_miss(self, value: float) -> str:
        """Return by how much a value misses, in per cent of the bound."""
        bound = self.at_least if self.at_least is not None and value < self.at_least else self.at_most
        share = abs(value / bound - 1) if bound else 1.0
        return f"missed by {share:.0%}" if share >= 0.01 else f"missed by {share:.1%}"


@dataclass(frozen=True)
class Line:
    """One line of the table."""

    what: str
    found: Spread
    goal: Goal | None = None
    """None where nothing is promised."""
    detail: str = ""
    """What the ratio was made of, in units."""
    why: str = ""
    """Where the time goes; said when the goal is missed."""

    @property
    def met(self) -> bool:
        """Whether the median meets the goal."""
        return self.goal is None or self.goal.is_met(self.found.median)

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return {
            "what": self.what,
            "goal": str(self.goal) if self.goal else None,
            "found": self.found.median,
            "low": self.found.low,
            "high": self.found.high,
            "met": self.met,
            "missed": "" if self.goal is None or self.met else self.goal.describe_miss(self.found.median),
            "why": "" if self.met else self.why,
            "detail": self.detail,
        }


def describe_machine(device: torch.device | None = None) -> dict[str, Any]:
    """Return what figures depend on: machine, versions, date."""
    gpu = torch.cuda.get_device_name(device) if device is not None and device.type == "cuda" else None
    return {
        "machine": {
            "cpu": describe_cpu()["cpu"],
            "cores": count_usable_cpus(),
            "threads": torch.get_num_threads(),
            "bfloat16": BFLOAT16_CPU,
            "gpu": gpu,
            "system": f"{platform.system()} {platform.machine()}",
        },
        "versions": {"python": platform.python_version()} | {name: version(name) for name in VERSIONS},
        "date": datetime.now(UTC).date().isoformat(),
    }


def format_number(value: float) -> str:
    """Return the digits that count: more of them where ratios are near 1, and are held against bounds near it."""
    if value >= 100:
        return f"{value:.0f}"
    if value >= 0.1:
        return f"{value:.3f}" if 0.9 <= value <= 1.1 else f"{value:.2f}"
    return f"{value:.2g}"


def show(line: Line) -> None:
    """Print a line for people."""
    found, facts = line.found, line.to_json()
    spread = "" if found.low == found.high else f" ({format_number(found.low)} – {format_number(found.high)})"
    print(f"{line.what}: {format_number(found.median)}{spread}" + (f", goal {line.goal}" if line.goal else ""))
    for remark in (facts["detail"], facts["missed"] and f"{facts['missed']}: {facts['why']}".rstrip(": ")):
        if remark:
            print(f"    {remark}")


def run_benches(benches: Iterable[tuple[str, Callable[[], Iterable[Line]]]], facts: dict[str, Any]) -> dict[str, Any]:
    """Run benches one after another, print their lines as they come, and return everything for a file.

    A bench that fails is named under ``failed``, and costs the others nothing.

    Args:
        facts: what ``describe_machine`` said, and the command.
    """
    started_at = time.perf_counter()
    lines: list[dict[str, Any]] = []
    failed: dict[str, str] = {}
    for name, bench in benches:
        began_at = time.perf_counter()
        print(f"\n{name}", flush=True)
        try:
            for line in bench():
                show(line)
                lines.append({"bench": name} | line.to_json())
        except (UserError, RuntimeError, subprocess.CalledProcessError) as problem:
            failed[name] = " ".join(str(problem).split())[:300]
            print(f"    FAILED: {failed[name]}")
        print(f"    [{time.perf_counter() - began_at:.0f} s]")
    missed = [line["what"] for line in lines if not line["met"]]
    seconds = time.perf_counter() - started_at
    print(f"\n{len(lines)} lines in {seconds:.0f} s; missed: {'; '.join(missed) or 'none'}")
    return facts | {"seconds": round(seconds), "failed": failed, "lines": lines}


def write_figures(path: Path, facts: dict[str, Any]) -> None:
    """Write what ``run_benches`` returned."""
    path.write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n", encoding="utf8")

"""A process of its own for one written file: runs it when told to, and tells how long that took and what it needed.

``python -m stages.export.bench_worker FOLDER FORMAT HEIGHT WIDTH THREADS``: each line of stdin is one turn, the end of
stdin ends it. Only what the runtime needs is imported; the memory that the others take stands in for no file's own.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stages.export.formats import EXPORT_FORMATS, INPUT_NAME, STANDALONE_SUFFIXES

_STATUS = Path("/proc/self/status")
_THREADS = Path("/proc/self/task")
_BETWEEN_LOOKS_S, _QUIET_LOOKS, _LONGEST_WAIT_S, _PAUSE_S = 0.005, 3, 2.0, 0.1


def main(words: list[str]) -> None:
    """Answer on stdout with a line of JSON for each run, and one more at the end; all else goes to stderr."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # runtimes print
    folder, name, (height, width, threads) = Path(words[0]), words[1], map(int, words[2:])
    open_run = _find_runtime(name, threads)
    before_mb = read_memory("VmRSS")
    run = open_run(folder, (height, width))
    run()
    wait_until_idle()
    answers.write("{}\n")
    for _ in sys.stdin:
        run()  # finds in caches what the turns of others left there; the next one finds its own
        started_at = time.perf_counter()
        run()
        elapsed_s = time.perf_counter() - started_at
        wait_until_idle()
        answers.write(json.dumps({"seconds": elapsed_s}) + "\n")
    answers.write(json.dumps({"before_mb": before_mb, "peak_mb": read_memory("VmHWM")}) + "\n")


def wait_until_idle() -> None:
    """Return when the other threads of this process have gone to sleep; where Linux tells it not, after a while.

    Runtimes have theirs spin after a run for the sake of a next one, onnxruntime 1.31 for 45 ms: they would take a core
    from whoever has the next turn, who then needs up to three times as long.
    """
    if not _THREADS.exists():
        time.sleep(_PAUSE_S)
        return
    deadline, quiet_looks = time.perf_counter() + _LONGEST_WAIT_S, 0
    while quiet_looks < _QUIET_LOOKS and time.perf_counter() < deadline:
        time.sleep(_BETWEEN_LOOKS_S)
        quiet_looks = 0 if _is_busy() else quiet_looks + 1


def _is_busy() -> bool:
    """Whether a thread besides this one runs, or would if a CPU were free."""
    own = str(threading.get_native_id())
    others = (task / "stat" for task in _THREADS.iterdir() if task.name != own)
    with contextlib.suppress(OSError):  # one that has just ended
        return any(stat.read_text(errors="replace").rpartition(")")[2].split()[0] == "R" for stat in others)
    return True


def read_memory(what: str) -> float | None:
    """Return what this process holds now (``VmRSS``) or held at most (``VmHWM``), MB; None where Linux tells it not."""
    if not _STATUS.exists():
        return None
    lines = _STATUS.read_text(encoding="ascii").splitlines()
    return next((int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith(f"{what}:")), None)


def _find_runtime(name: str, threads: int) -> Callable[[Path, tuple[int, int]], Callable[[], object]]:
    """Import what runs a format; return what opens its file and makes a function of it that runs one drawn image."""
    import numpy as np

    row = EXPORT_FORMATS[name]
    file = row.files[0]
    suffix = Path(file).suffix
    draw = np.random.default_rng(0)

    def draw_image(size: tuple[int, int]) -> Any:
        if row.labels_bytes:
            return draw.integers(0, 256, (1, *size, 3), dtype=np.uint8)
        return draw.standard_normal((1, 3, *size), dtype=np.float32)

    if suffix not in STANDALONE_SUFFIXES:
        return _find_torch(name, threads, draw_image)
    if suffix == ".onnx":
        import onnxruntime  # noqa: F401

        from stages.export.runtimes import start_onnx

        def open_onnx(folder: Path, size: tuple[int, int]) -> Callable[[], object]:
            session, image = start_onnx(folder / file, threads), draw_image(size)
            key = session.get_inputs()[0].name
            return lambda: session.run(None, {key: image})

        return open_onnx
    import openvino  # noqa: F401

    from stages.export.runtimes import compile_openvino

    def open_openvino(folder: Path, size: tuple[int, int]) -> Callable[[], object]:
        compiled, image = compile_openvino(folder / file, threads), draw_image(size)
        return lambda: compiled({INPUT_NAME: image})

    return open_openvino


def _find_torch(
    name: str, threads: int, draw_image: Callable[[tuple[int, int]], Any]
) -> Callable[[Path, tuple[int, int]], Callable[[], object]]:
    import torch

    torch.set_num_threads(threads)
    module = EXPORT_FORMATS[name].load()
    if name == "safetensors":
        from stages.networks import NETWORKS

        NETWORKS["unet"].load()  # brings smp and timm, of which networks are built

    def open_torch(folder: Path, size: tuple[int, int]) -> Callable[[], object]:
        segment, image = module.open_folder(folder), torch.from_numpy(draw_image(size))
        return lambda: segment(image)

    return open_torch


if __name__ == "__main__":
    main(sys.argv[1:])

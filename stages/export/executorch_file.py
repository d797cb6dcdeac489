"""model.pte: a program of ExecuTorch for phones and boards, with XNNPACK's kernels where they know the operator."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data_cache.errors import UserError, say_reason
from data_cache.sample import SMALLEST_INPUT_PX
from stages.export.formats import EXECUTORCH_FILE, INPUT_NAME
from stages.export.job import ExportJob, SegmentationFunction, build_exporter_error, quiet_libraries
from stages.export.proof_file import EXPORT_AGAIN

_METADATA = "preprocess"
"""Method of the program that returns the content of preprocess.json."""


def check(_job: ExportJob) -> None:
    """Import what writes programs, which it does with some versions of torch alone.

    Raises:
        UserError: not with this one.
    """
    with quiet_libraries():
        try:
            import executorch.backends.xnnpack.partition.xnnpack_partitioner
            import executorch.exir  # noqa: F401
        except (ImportError, AttributeError) as error:
            raise _does_not_fit(error) from error


def write(job: ExportJob) -> dict[str, Any]:
    """Write model.pte, which takes one image at a time."""
    largest = choose_largest_px(job.input_size)
    sides = {2: "height", 3: "width"} if job.dynamic else {}
    axes = {axis: torch.export.Dim(name, min=SMALLEST_INPUT_PX, max=largest) for axis, name in sides.items()}
    with quiet_libraries():
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower

        try:
            program = torch.export.export(
                job.build_portable(),
                (torch.zeros(1, 3, *job.input_size),),
                dynamic_shapes={INPUT_NAME: axes},
                prefer_deferred_runtime_asserts_over_guards=True,
            )
            lowered = to_edge_transform_and_lower(
                program,
                partitioner=[XnnpackPartitioner()],
                constant_methods={_METADATA: json.dumps(dict(job.preprocess))},
            )
            content = lowered.to_executorch().buffer
        except Exception as error:  # its exceptions have no common class of their own
            raise build_exporter_error("executorch", job, error) from error
    (job.folder / EXECUTORCH_FILE).write_bytes(content)
    size = {"largest_side_px": largest} if job.dynamic else {}
    return {"dynamic_batch": False, "dynamic_size": job.dynamic, **size}


def choose_largest_px(input_size: tuple[int, int]) -> int:
    """Return the longest side that a program is made for: its memory is laid out for it beforehand."""
    return max(input_size) * 5 // 4 + SMALLEST_INPUT_PX


def open_folder(folder: Path) -> SegmentationFunction:
    """Open model.pte with ExecuTorch."""
    return open_file(folder / EXECUTORCH_FILE)


def open_file(path: Path) -> SegmentationFunction:
    """Open a program with ExecuTorch; images run one by one.

    Raises:
        UserError: ExecuTorch cannot open it.
    """
    method = _load(path).load_method("forward")
    if method is None:
        raise UserError(f"{path} has no method forward; {EXPORT_AGAIN}")
    sizes = tuple(method.metadata.input_tensor_meta(0).sizes())

    def segment(images: Tensor) -> Tensor:
        if any(side > most for side, most in zip(images.shape[-2:], sizes[-2:], strict=True)):
            taken = f"{images.shape[-2]}x{images.shape[-1]} px"
            raise UserError(f"{path} takes images of up to {sizes[-2]}x{sizes[-1]} px, not {taken}; label it in tiles")
        return torch.cat([method.execute([image.contiguous()])[0].clone() for image in images.split(1)])

    return segment


def read_metadata(path: Path) -> dict[str, Any]:
    """Return the content of preprocess.json that the file carries; {} where it carries none.

    Raises:
        UserError: ExecuTorch cannot open it, or what it carries is damaged.
    """
    program = _load(path)
    if _METADATA not in program.method_names:
        return {}
    method = program.load_method(_METADATA)
    assert method is not None
    try:
        return json.loads(method.execute([])[0])
    except ValueError as error:
        raise UserError(f"what {path} says of itself is damaged ({error}); {EXPORT_AGAIN}") from error


def _load(path: Path) -> Any:
    with quiet_libraries():
        try:
            from executorch.extension.pybindings import portable_lib
            from executorch.runtime import Runtime
        except (ImportError, AttributeError) as error:
            raise _does_not_fit(error) from error
        # its one pool is for all programs, and may be made anew only while none of them runs
        if portable_lib._threadpool_get_thread_count() != torch.get_num_threads():
            portable_lib._unsafe_reset_threadpool(torch.get_num_threads())
        try:
            return Runtime.get().load_program(path)
        except Exception as error:  # likewise
            raise UserError(f"ExecuTorch cannot open {path} ({say_reason(error)}); {EXPORT_AGAIN}") from error


def _does_not_fit(error: Exception) -> UserError:
    return UserError(
        f"executorch {version('executorch')} does not work with torch {torch.__version__} ({error}); install versions "
        "that belong together, or leave 'executorch' out of the formats"
    )

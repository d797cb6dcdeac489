"""model.pt2: a program of torch.export, which needs torch but none of this project's code."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import torch

from data_cache.errors import UserError, say_reason
from stages.export.formats import PT2_FILE
from stages.export.job import (
    TRACED_BATCH,
    ExportJob,
    SegmentationFunction,
    build_exporter_error,
    quiet_libraries,
    without_gradient,
)
from stages.export.proof_file import EXPORT_AGAIN

_METADATA = "preprocess.json"


def write(job: ExportJob) -> dict[str, Any]:
    """Write model.pt2."""
    images = torch.zeros(TRACED_BATCH, 3, *job.input_size)
    try:
        with quiet_libraries(), torch.no_grad():
            program = torch.export.export(
                job.build_portable(),
                (images,),
                dynamic_shapes=job.build_dynamic_shapes(dynamic_batch=True),
                # Odd sizes take other branches of shape arithmetic; checked when run, they need not hold for all sizes.
                prefer_deferred_runtime_asserts_over_guards=True,
            )
            content = io.BytesIO()  # torch's own writer ends the process where the disk is full
            torch.export.save(program, content, extra_files={_METADATA: json.dumps(dict(job.preprocess))})
    except RuntimeError as error:  # of which all that says no is a kind
        raise build_exporter_error("pt2", job, error) from error
    (job.folder / PT2_FILE).write_bytes(content.getbuffer())
    return {"dynamic_batch": True, "dynamic_size": job.dynamic}


def open_folder(folder: Path) -> SegmentationFunction:
    """Open model.pt2 with torch.export."""
    return open_file(folder / PT2_FILE)


def open_file(path: Path) -> SegmentationFunction:
    """Open a program of torch.export.

    Raises:
        UserError: it is none.
    """
    return without_gradient(_load(path).module())


def read_metadata(path: Path) -> dict[str, Any]:
    """Return the content of preprocess.json that the file carries; {} where it carries none.

    Raises:
        UserError: it is no program of torch.export.
    """
    found = {_METADATA: ""}
    _load(path, found)
    return json.loads(found[_METADATA] or "{}")


def _load(path: Path, extra_files: dict[str, str] | None = None) -> torch.export.ExportedProgram:
    try:
        with quiet_libraries():
            return torch.export.load(path, extra_files=extra_files)
    except (RuntimeError, ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"torch.export cannot open {path} ({say_reason(error)}); {EXPORT_AGAIN}") from error

"""model.pt2: a program of torch.export, which needs torch but none of this project's code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from stages.export.formats import PT2_FILE
from stages.export.job import (
    TRACED_BATCH,
    ExportJob,
    SegmentationFunction,
    build_exporter_error,
    quiet_libraries,
    without_gradient,
)


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
            torch.export.save(program, job.folder / PT2_FILE)
    except (torch._dynamo.exc.UserError, torch._dynamo.exc.Unsupported) as error:
        raise build_exporter_error("pt2", job, error) from error
    return {"dynamic_batch": True, "dynamic_size": job.dynamic}


def open_folder(folder: Path) -> SegmentationFunction:
    """Open model.pt2 with torch.export."""
    with quiet_libraries():
        return without_gradient(torch.export.load(folder / PT2_FILE).module())

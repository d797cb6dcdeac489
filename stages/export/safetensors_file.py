"""config.json and model.safetensors: the weights as they are, opened by this project's own loader."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stages.export.job import ExportJob, SegmentationFunction, without_gradient
from stages.export.strip import load_exported, write_weights
from stages.networks import segmentation_only


def write(job: ExportJob) -> dict[str, Any]:
    """Write config.json and model.safetensors."""
    write_weights(job.network, job.folder)
    return {}


def open_folder(folder: Path) -> SegmentationFunction:
    """Open the folder as a network of this project."""
    return without_gradient(segmentation_only(load_exported(folder)))

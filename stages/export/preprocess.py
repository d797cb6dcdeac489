"""preprocess.json: what a program must do to an image before the model, and how to read the answer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field

from data_cache.files import write_json
from data_cache.records import Record, read_record
from data_cache.sample import IGNORE_INDEX, SMALLEST_INPUT_PX
from stages.export.formats import EXPORT_FORMATS, INPUT_NAME, OUTPUT_NAME
from stages.export.job import ExportJob
from stages.export.proof_file import EXPORT_AGAIN

PREPROCESS_FILE = "preprocess.json"

Palette = Sequence[tuple[int, int, int]]

_Mean = Annotated[float, Field(ge=-1000, le=1000)]
_Std = Annotated[float, Field(gt=1e-6, le=1000)]


class Preprocess(Record):
    """preprocess.json, as far as this program reads it."""

    mean: tuple[_Mean, _Mean, _Mean]
    std: tuple[_Std, _Std, _Std]
    class_names: tuple[str, ...] = Field(min_length=1)


def read_preprocess(folder: Path) -> Preprocess:
    """Return what an export says about its input.

    Raises:
        UserError: it is missing or damaged.
    """
    return read_record(folder / PREPROCESS_FILE, Preprocess, EXPORT_AGAIN)


def write_preprocess(job: ExportJob, *, class_names: Sequence[str], palette: Palette) -> None:
    """Write preprocess.json into the job's folder."""
    size_rule = {
        "input_size": list(job.input_size),
        "resize": "bilinear, antialiased, to input_size; resize the logits back bilinearly before the argmax",
        "fixed_size_formats": [name for name, row in EXPORT_FORMATS.items() if row.fixed_size and not job.dynamic],
        "other_sizes": f"formats not listed as fixed take any size of at least {SMALLEST_INPUT_PX} px a side as it is",
        "smallest_side_px": SMALLEST_INPUT_PX,
    }
    content = {
        "format": Preprocess.VERSION,
        "mean": list(job.network.normalisation.mean),
        "std": list(job.network.normalisation.std),
        "input_range": [0, 1],
        "formula": "(rgb / 255 - mean) / std",
        "channel_order": "RGB",
        "layout": "NCHW",
        "dtype": "float32",
        "input_name": INPUT_NAME,
        "output_name": OUTPUT_NAME,
        "size_rule": size_rule,
        "class_names": list(class_names),
        "palette": [list(colour) for colour in palette],
        "ignore_index": IGNORE_INDEX,
    }
    write_json(job.folder / PREPROCESS_FILE, content)

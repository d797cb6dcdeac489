"""preprocess.json: what a program must do to an image before the model, and how to read the answer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, model_validator

from data_cache.records import Record, parse_record, read_record
from data_cache.sample import IGNORE_INDEX, SMALLEST_INPUT_PX
from data_cache.size_rule import SizeRule
from stages.export.formats import INPUT_NAME, OUTPUT_NAME
from stages.export.proof_file import EXPORT_AGAIN
from stages.networks.interface import Normalisation

PREPROCESS_FILE = "preprocess.json"

Palette = Sequence[tuple[int, int, int]]

_Mean = Annotated[float, Field(ge=-1000, le=1000)]
_Std = Annotated[float, Field(gt=1e-6, le=1000)]
_Byte = Annotated[int, Field(ge=0, le=255)]


class Preprocess(Record):
    """preprocess.json, as far as this program reads it; files that carry metadata hold the same."""

    VERSION = 2

    format: int = 1
    mean: tuple[_Mean, _Mean, _Mean]
    std: tuple[_Std, _Std, _Std]
    class_names: tuple[str, ...] = Field(min_length=1, max_length=65535)
    palette: tuple[tuple[_Byte, _Byte, _Byte], ...]
    size_rule: SizeRule | dict[str, Any]

    @model_validator(mode="after")
    def _check_parts(self) -> Preprocess:
        if len(self.palette) != len(self.class_names):
            raise ValueError(f"{len(self.palette)} colours for {len(self.class_names)} classes")
        if self.format >= 2 and self.rule is None:
            raise ValueError(f"size_rule {self.size_rule} is neither of kind original nor fixed with an input_size")
        return self

    @property
    def rule(self) -> SizeRule | None:
        """At what size images enter; None in version 1, whose formats obeyed no one rule."""
        return self.size_rule if isinstance(self.size_rule, SizeRule) else None

    @property
    def normalisation(self) -> Normalisation:
        """What the encoder expects subtracted and divided."""
        return Normalisation(self.mean, self.std)


def read_preprocess(folder: Path) -> Preprocess:
    """Return what an export says about its input.

    Raises:
        UserError: it is missing or damaged.
    """
    return read_record(folder / PREPROCESS_FILE, Preprocess, EXPORT_AGAIN)


def parse_preprocess(content: dict[str, Any], file: Path) -> Preprocess:
    """Return what a file's own metadata says about its input.

    Raises:
        UserError: it is damaged.
    """
    return parse_record(content, Preprocess, f"what {file} says of itself", EXPORT_AGAIN)


def describe_preprocess(
    normalisation: Normalisation, rule: SizeRule, *, class_names: Sequence[str], palette: Palette
) -> dict[str, Any]:
    """Return the content of preprocess.json."""
    filtered = "as float32 by Pillow's BILINEAR filter (antialiased), not rounded,"
    size_rule = rule.model_dump(mode="json") | {
        "smallest_side_px": SMALLEST_INPUT_PX,
        "orientation": "turn the image upright by its EXIF orientation first",
        "resize": f"to input_size {filtered}"
        if rule.input_size
        else f"none; an image with a side below {SMALLEST_INPUT_PX} px is enlarged {filtered} until that side has "
        f"{SMALLEST_INPUT_PX}",
        "answer": "resize the logits to the upright image's size bilinearly (half-pixel centres, no antialiasing), "
        "then take the class of the largest",
    }
    return {
        "format": Preprocess.VERSION,
        "mean": list(normalisation.mean),
        "std": list(normalisation.std),
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

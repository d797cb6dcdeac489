"""The formats in which a network is shipped, as a table. Imports no torch, so that the command line can show it.

To add a format: a module with ``write`` and ``open_folder`` beside the others, and a line in ``EXPORT_FORMATS``. It is
then an answer to ``--formats``, proven like the others, and on the card.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, cast

from data_cache.errors import UserError, unknown_name

if TYPE_CHECKING:
    from stages.export.job import ExportJob, SegmentationFunction

CONFIG_FILE = "config.json"
ORIGIN_FILE = "origin.json"
"""The record of the run that was exported."""
WEIGHTS_FILE = "model.safetensors"
ONNX_FILE = "model.onnx"
PT2_FILE = "model.pt2"
INPUT_NAME = "images"
OUTPUT_NAME = "seg_logits"


class FormatModule(Protocol):
    """What the module of a format has."""

    def write(self, job: ExportJob) -> dict[str, Any]:
        """Write the files into the job's folder and return facts about them for proof.json."""
        ...

    def open_folder(self, folder: Path) -> SegmentationFunction:
        """Open the written folder with the library that users of the format have."""
        ...


class ExportFormat(NamedTuple):
    """One way to ship the network."""

    about: str
    """A few words for help."""
    module: str
    """A ``FormatModule``, imported when it is used."""
    files: tuple[str, ...]
    max_difference: float
    """Largest difference of a logit to the network's, relative to the largest logit, with which it may be shipped."""
    min_agreement: float
    """Smallest share of pixels whose most likely class is the network's."""
    fixed_size: bool
    """Whether it takes images of one size only, unless it was made dynamic."""
    usage: str
    """Python that makes ``seg_logits`` of ``images``, for the card."""

    def load(self) -> FormatModule:
        """Import the format's module."""
        return cast("FormatModule", import_module(self.module))


EXPORT_FORMATS = {
    "safetensors": ExportFormat(
        "the weights, opened by smp where it has the architecture",
        "stages.export.safetensors_file",
        (CONFIG_FILE, WEIGHTS_FILE),
        max_difference=0.0,  # the same weights in the same runtime, so rounding excuses nothing
        min_agreement=1.0,
        fixed_size=False,
        usage="""\
from pathlib import Path

from stages.export.safetensors_file import load_exported

seg_logits = load_exported(Path("this-folder"))(images).seg_logits""",
    ),
    "onnx": ExportFormat(
        "a graph for any ONNX runtime",
        "stages.export.onnx_file",
        (ONNX_FILE,),
        max_difference=1e-3,
        min_agreement=0.999,
        fixed_size=True,
        usage=f"""\
import onnxruntime

session = onnxruntime.InferenceSession("this-folder/{ONNX_FILE}")
seg_logits = session.run(["{OUTPUT_NAME}"], {{"{INPUT_NAME}": images.numpy()}})[0]""",
    ),
    "pt2": ExportFormat(
        "a program of torch.export",
        "stages.export.pt2_file",
        (PT2_FILE,),
        max_difference=1e-3,
        min_agreement=0.999,
        fixed_size=True,
        usage=f"""\
import torch

seg_logits = torch.export.load("this-folder/{PT2_FILE}").module()(images)""",
    ),
}
"""Name → how to write, open and judge it."""
DEFAULT_FORMATS = ("safetensors", "onnx")


def parse_formats(text: str) -> tuple[str, ...]:
    """Return the formats of a comma-separated list, each once.

    Raises:
        UserError: a name is unknown, or there is none.
    """
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    check_formats(names)
    if not names:
        raise UserError(f"no export format given; choose from {', '.join(EXPORT_FORMATS)}")
    return names


def check_formats(names: tuple[str, ...]) -> None:
    """Raise UserError for a name that is not in the table."""
    for name in names:
        if name not in EXPORT_FORMATS:
            raise unknown_name("export format", name, EXPORT_FORMATS)


def describe_formats() -> str:
    """Return the table's names and what they are, in one sentence for help."""
    return "; ".join(f"{name}: {row.about}" for name, row in EXPORT_FORMATS.items())

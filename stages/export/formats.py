"""The formats in which a network is shipped, as a table. Imports no torch, so that the command line can show it.

To add a format: a module with ``write`` and ``open_folder`` beside the others, and a line in ``EXPORT_FORMATS``. It is
then an answer to ``--formats``, proven like the others, and on the card.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, cast

from data_cache.errors import UserError, unknown_name

if TYPE_CHECKING:
    from stages.export.job import ExportJob, LabelFunction, SegmentationFunction

CONFIG_FILE = "config.json"
ORIGIN_FILE = "origin.json"
"""The record of the run that was exported."""
WEIGHTS_FILE = "model.safetensors"
ONNX_FILE = "model.onnx"
EMBEDDED_FILE = "model-embedded.onnx"
ONNX_FP16_FILE = "model-fp16.onnx"
ONNX_INT8_FILE = "model-int8.onnx"
OPENVINO_FILE = "model.xml"
OPENVINO_INT8_FILE = "model-int8.xml"
EXECUTORCH_FILE = "model.pte"
PT2_FILE = "model.pt2"
PREDICT_FILE = "predict.py"
"""A script that labels images with nothing but a runtime, for folders with a format of ``STANDALONE_SUFFIXES``."""
STANDALONE_SUFFIXES = (".onnx", ".xml")
INPUT_NAME = "images"
OUTPUT_NAME = "seg_logits"


class Requirement(NamedTuple):
    """What must be installed besides the project itself."""

    extra: str
    """Name in ``pip install '.[extra]'``."""
    packages: tuple[str, ...]
    """As they are imported."""


class FormatModule(Protocol):
    """What the module of a format has.

    Where one file says everything, the module has ``open_file(path)``, too, and ``read_metadata(path)``, which returns
    the content of preprocess.json that the writer put into the file ({} where there is none). Where more must be there
    than packages, it has ``check(job)``, which raises UserError before anything is computed.
    """

    def write(self, job: ExportJob) -> dict[str, Any]:
        """Write the files into the job's folder and return facts about them for proof.json."""
        ...

    def open_folder(self, folder: Path) -> SegmentationFunction:
        """Open the written folder with the library that users of the format have."""
        ...

    def open_labels(self, folder: Path) -> LabelFunction:
        """Open it likewise, where the row says ``labels_bytes``."""
        ...


class Usage(NamedTuple):
    """How a format is run without this project, for the card."""

    imports: str
    """What is imported besides numpy and Pillow."""
    labels: str
    """Expression that makes ``labels`` (H, W) of ``images``, a normalised float32 array (1, 3, H, W); of ``photo``, an
    upright RGB image of Pillow's, where the row says ``labels_bytes``."""


class ExportFormat(NamedTuple):
    """One way to ship the network."""

    about: str
    """A few words for help."""
    module: str
    """A ``FormatModule``, imported when it is used."""
    files: tuple[str, ...]
    max_difference: float | None
    """Largest difference of a logit to the network's, relative to the largest logit, with which it may be shipped; None
    for numbers of fewer bits, which are judged by the classes of real images alone."""
    min_agreement: float
    """Smallest share of pixels whose most likely class is the network's."""
    usage: Usage
    requires: Requirement | None = None
    """None for what comes with the project."""
    derived_from: str | None = None
    """Format whose files its writer reads, and which is therefore written too, before it."""
    labels_bytes: bool = False
    """Whether it takes the bytes of an image and answers labels; its module has ``open_labels`` instead."""

    def load(self) -> FormatModule:
        """Import the format's module."""
        return cast("FormatModule", import_module(self.module))


def _run_onnx(file: str) -> Usage:
    run = f'onnxruntime.InferenceSession("{file}").run(None, {{"{INPUT_NAME}": images}})'
    return Usage("onnxruntime", f"{run}[0][0].argmax(0)")


def _run_openvino(file: str) -> Usage:
    # Newer processors would take bfloat16 and answer otherwise.
    run = f'openvino.compile_model("{file}", "CPU", {{"INFERENCE_PRECISION_HINT": "f32"}})'
    return Usage("openvino", f"{run}(images)[0][0].argmax(0)")


def _few_bits(bits: int, files: tuple[str, ...], usage: Usage, *, derived_from: str, module: str) -> ExportFormat:
    gain = "where the score allows" if bits == 8 else "half the size"
    return ExportFormat(
        f"the same with numbers of {bits} bits, {gain}",
        f"stages.export.{module}",
        files,
        max_difference=None,
        min_agreement=0.9 if bits == 8 else 0.99,
        usage=usage,
        requires=Requirement("openvino", ("openvino", "nncf")) if bits == 8 else None,
        derived_from=derived_from,
    )


EXPORT_FORMATS = {
    "safetensors": ExportFormat(
        "the weights, opened by smp where it has the architecture",
        "stages.export.safetensors_file",
        (CONFIG_FILE, WEIGHTS_FILE),
        max_difference=0.0,  # the same weights in the same runtime, so rounding excuses nothing
        min_agreement=1.0,
        usage=Usage(
            "pathlib, torch, stages.export.safetensors_file as exported",
            'exported.load_exported(pathlib.Path("."))(torch.from_numpy(images)).seg_logits[0].argmax(0).numpy()',
        ),
    ),
    "onnx": ExportFormat(
        "a graph for any ONNX runtime",
        "stages.export.onnx_file",
        (ONNX_FILE,),
        max_difference=1e-3,
        min_agreement=0.999,
        usage=_run_onnx(ONNX_FILE),
    ),
    "onnx-fp16": _few_bits(16, (ONNX_FP16_FILE,), _run_onnx(ONNX_FP16_FILE), derived_from="onnx", module="onnx_fp16"),
    "onnx-int8": _few_bits(8, (ONNX_INT8_FILE,), _run_onnx(ONNX_INT8_FILE), derived_from="onnx", module="onnx_int8"),
    "openvino": ExportFormat(
        "a graph for OpenVINO",
        "stages.export.openvino_file",
        (OPENVINO_FILE, "model.bin"),
        max_difference=1e-3,
        min_agreement=0.999,
        usage=_run_openvino(OPENVINO_FILE),
        requires=Requirement("openvino", ("openvino",)),
        derived_from="onnx",
    ),
    "openvino-int8": _few_bits(
        8,
        (OPENVINO_INT8_FILE, "model-int8.bin"),
        _run_openvino(OPENVINO_INT8_FILE),
        derived_from="openvino",
        module="openvino_int8",
    ),
    "onnx-embedded": ExportFormat(
        "from an image's bytes to labels of its size, all in one graph",
        "stages.export.embedded_file",
        (EMBEDDED_FILE,),
        max_difference=None,
        min_agreement=0.999,
        usage=Usage(
            "onnxruntime",
            f'onnxruntime.InferenceSession("{EMBEDDED_FILE}").run(None, {{"image": numpy.array(photo)[None]}})[0][0]',
        ),
        derived_from="onnx",
        labels_bytes=True,
    ),
    "executorch": ExportFormat(
        "a program for phones and boards",
        "stages.export.executorch_file",
        (EXECUTORCH_FILE,),
        max_difference=1e-3,
        min_agreement=0.999,
        usage=Usage(
            "torch, executorch.runtime",
            f'executorch.runtime.Runtime.get().load_program("{EXECUTORCH_FILE}").load_method("forward")'
            ".execute([torch.from_numpy(images)])[0][0].argmax(0).numpy()",
        ),
        requires=Requirement("executorch", ("executorch",)),
    ),
    "pt2": ExportFormat(
        "a program of torch.export",
        "stages.export.pt2_file",
        (PT2_FILE,),
        max_difference=1e-3,
        min_agreement=0.999,
        usage=Usage(
            "torch",
            f'torch.export.load("{PT2_FILE}").module()(torch.from_numpy(images))[0].argmax(0).numpy()',
        ),
    ),
}
"""Name → how to write, open and judge it."""
SINGLE_FILE_SUFFIXES = (".onnx", ".xml", ".pt2", ".pte")
"""Of files that are opened by their own name."""
DEFAULT_FORMATS = ("safetensors", "onnx")
SMP_USAGE = Usage(
    "torch, segmentation_models_pytorch as smp",
    'smp.from_pretrained(".").eval()(torch.from_numpy(images))[0].argmax(0).numpy()',
)
"""Of ``safetensors`` where smp has the architecture."""
DEFAULT_MAX_DROP = 0.01
"""Of macro mIoU, that numbers of 8 bits may cost."""


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


def check_formats(names: Iterable[str]) -> None:
    """Raise UserError for a name that is not in the table, or whose packages are not installed."""
    for name in names:
        if name not in EXPORT_FORMATS:
            raise unknown_name("export format", name, EXPORT_FORMATS)
        if wanted := EXPORT_FORMATS[name].requires:
            missing = [package for package in wanted.packages if find_spec(package) is None]
            if missing:
                raise UserError(
                    f"format {name!r} needs {', '.join(missing)}, which is not installed; install it with: "
                    f"pip install '.[{wanted.extra}]'"
                )


def complete_formats(names: Iterable[str]) -> tuple[str, ...]:
    """Return formats in the order in which they are written: the weights, and each behind the one it is made from."""
    ordered: dict[str, None] = {}

    def add(name: str) -> None:
        if base := EXPORT_FORMATS[name].derived_from:
            add(base)
        ordered.setdefault(name)

    for name in ("safetensors", *names):
        add(name)
    return tuple(ordered)


def runs_alone(names: Iterable[str]) -> bool:
    """Whether the script that needs nothing but a runtime can run one of these formats."""
    return any(Path(EXPORT_FORMATS[name].files[0]).suffix in STANDALONE_SUFFIXES for name in names)


def find_format(file: Path) -> str | None:
    """Return the format whose file has this name, or else this suffix; None where none has."""
    by_name = [name for name, row in EXPORT_FORMATS.items() if file.name in row.files]
    suffix = file.suffix.lower()
    by_suffix = [name for name, row in EXPORT_FORMATS.items() if suffix == Path(row.files[0]).suffix]
    return next(iter((*by_name, *(by_suffix if suffix in SINGLE_FILE_SUFFIXES else ()))), None)


def describe_formats() -> str:
    """Return the table's names and what they are, in one sentence for help."""
    return "; ".join(f"{name}: {row.about}" for name, row in EXPORT_FORMATS.items())

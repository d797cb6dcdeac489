"""`pipeline benchmark`: what running each file of an export costs on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.options import GivenPath

if TYPE_CHECKING:
    from rich.console import RenderableType

    from pipeline.session import Result, Session
    from stages.export.preprocess import Preprocess
    from stages.export.proof_file import Proof

LARGEST_THREADS = 4096


@click.command()
@click.argument("folder", metavar="EXPORT", type=GivenPath())
@click.option(
    "--threads",
    type=click.IntRange(1, LARGEST_THREADS),
    show_default="OMP_NUM_THREADS, else all CPUs",
    help="For each format.",
)
@click.option(
    "--input-size",
    type=click.IntRange(64, 16384),
    nargs=2,
    metavar="H W",
    help="Size of the image; default that of the data, or the one size that the export takes.",
)
@click.pass_obj
def benchmark(session: Session, folder: Path, threads: int | None, input_size: tuple[int, int] | None) -> None:
    """Measure latency and memory of every format of an export: processes of their own that take turns."""
    session.show(measure_export(session, folder, threads=threads, input_size=input_size))


def measure_export(
    session: Session,
    folder: Path,
    *,
    threads: int | None = None,
    input_size: tuple[int, int] | None = None,
    passes: int | None = None,
) -> Result:
    """Measure the formats of an export that this machine has the runtimes of; the others are named.

    Args:
        folder: an export.
        threads: for each format; None takes what this process may use.
        input_size: (height, width) of the image; None takes that of the data.
        passes: timed turns; None takes as many as a quarter of a minute allows.

    Returns:
        ``export``, ``rows`` (see ``measure_formats``), ``input_size``, ``threads``, ``parameters``, ``macs``,
        ``machine``, ``versions``, ``left_out``: format → why.
    """
    from data_cache.errors import UserError
    from pipeline.session import Result
    from pipeline.threads import share_threads
    from stages.export.bench import describe_file, measure_formats
    from stages.export.machine import RUNTIMES, describe_cpu, find_versions
    from stages.export.preprocess import PREPROCESS_FILE, read_preprocess
    from stages.export.proof import count_macs, draw_images
    from stages.export.proof_file import check_files, read_proof
    from stages.export.safetensors_file import load_exported

    if not folder.is_dir():
        raise UserError(f"{folder} is no folder; give an export, which 'pipeline export' writes")
    proven, preprocess = read_proof(folder), read_preprocess(folder)
    size, left_out = _choose_size(folder, proven, preprocess, input_size), _find_missing(proven)
    names = [name for name in proven.formats if name not in left_out]
    files = {name: describe_file(name, folder) for name in names}
    check_files(folder, [PREPROCESS_FILE, *(file for each in files.values() for file in each["files"])])
    threads = threads or int(share_threads(1))
    session.console.info(f"{', '.join(names)} take turns on images of {size[0]}x{size[1]} px")
    measured = measure_formats(folder, names, size, threads=threads, passes=passes)
    facts = {
        "export": str(folder),
        "rows": [files[name] | measured[name] for name in names],
        "input_size": list(size),
        "threads": threads,
        "parameters": proven.parameters.after,
        "macs": count_macs(load_exported(folder), draw_images(1, size)),
        "machine": describe_cpu(),
        "versions": find_versions(RUNTIMES),
        "left_out": left_out,
    }
    return Result(facts, _render(facts))


def _choose_size(
    folder: Path, proven: Proof, preprocess: Preprocess, wanted: tuple[int, int] | None
) -> tuple[int, int]:
    from data_cache.errors import UserError

    rule = preprocess.rule
    fixed = rule.input_size if rule is not None else None
    if wanted and fixed and wanted != fixed:
        raise UserError(
            f"{folder} takes {rule}, whatever they are; drop --input-size, or export the run with: --input-size "
            f"{wanted[0]} {wanted[1]}"
        )
    found = wanted or fixed or proven.input_size
    if found is None:
        raise UserError(f"{folder} is of an older version, which does not say for which size it is; add --input-size")
    return found


def _find_missing(proven: Proof) -> dict[str, str]:
    """Return the formats that cannot run here, and why."""
    from data_cache.errors import UserError
    from stages.export.formats import check_formats

    missing = {}
    for name in proven.formats:
        try:
            check_formats([name])
        except UserError as problem:
            missing[name] = str(problem)
    return missing


def _render(facts: dict[str, Any]) -> RenderableType:
    from rich.console import Group

    from pipeline.console import plain_table
    from stages.export.machine import describe_vnni

    rows = []
    for row in facts["rows"]:
        latency, ratio, base = row["latency_ms"], row["ratio_to_pytorch"], row["ratio_to_base"]
        rows.append(
            [
                row["format"],
                f"{row['bytes'] / 1e6:.2f}",
                f"{latency['median']:g} ({latency['low']:g} – {latency['high']:g})",
                f"{ratio['median']:.2f} ({ratio['low']:.2f} – {ratio['high']:.2f})" if ratio else "–",
                f"{base['median']:.2f} ({row['base']})" if base else "–",
                "–" if row["memory_mb"] is None else f"{row['memory_mb']:.0f}",
                "–" if row["process_mb"] is None else f"{row['process_mb']:.0f}",
            ]
        )
    height, width = facts["input_size"]
    machine = f"{facts['machine']['cpu']} {describe_vnni(facts['machine'])}, {facts['threads']} threads"
    columns = ["format", "MB", "latency, ms", "of PyTorch's", "of float's", "memory, MB", "process, MB"]
    table = plain_table(f"{facts['export']}, image of {height}x{width} px, {machine}", columns, rows)
    passes = facts["rows"][0]["passes"] if facts["rows"] else 0
    notes = [
        f"{facts['parameters']:,} parameters, {facts['macs']:,} MACs; medians (quartiles) of {passes} turns; memory is "
        "what opening and running a file added at most to a process that had loaded its runtime, process all of it",
        *(f"{name} is left out: {why}" for name, why in facts["left_out"].items()),
    ]
    return Group(table, *notes)

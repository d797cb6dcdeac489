"""Export: strip the depth branch, write the formats, prove them, and publish the folder in one move."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from data_cache.errors import UserError
from data_cache.files import check_space, read_json, write_json
from data_cache.metrics import HEADLINE
from data_cache.outputs import hold_result, replace_folder
from data_cache.sample import SMALLEST_INPUT_PX
from data_cache.size_rule import ORIGINAL, SizeRule, fixed_size
from stages.export import standalone
from stages.export.card import CardFacts, render_card
from stages.export.fold import fold_batchnorm
from stages.export.formats import (
    DEFAULT_FORMATS,
    DEFAULT_MAX_DROP,
    EXPORT_FORMATS,
    ONNX_FILE,
    ORIGIN_FILE,
    PREDICT_FILE,
    check_formats,
    complete_formats,
    runs_alone,
)
from stages.export.job import CannotExport, ExportJob, ProofImage, ScoreLabels, SegmentationFunction, without_gradient
from stages.export.preprocess import PREPROCESS_FILE, Palette, describe_preprocess
from stages.export.proof import build_reference, compute_proof
from stages.export.proof_file import PROOF_FILE, Proof, find_damaged, hash_files, read_proof
from stages.export.safetensors_file import OpensWithSmp
from stages.networks import segmentation_only, strip_depth
from stages.networks.interface import Network

EXPORT_VERSION = 4
"""Raise it when the written files change their meaning; finished exports are then written anew."""

CARD_FILE = "README.md"
_LARGE_ONNX_FILE = f"{ONNX_FILE}.data"
"""Weights too large for a graph; this file is in no table."""
OPSETS = range(18, 24)
"""ONNX operator sets that torch's exporter writes and current runtimes read."""

LARGEST_INPUT_PX = 16384


class Score(Protocol):
    """Returns the metrics of a function on the reported split under a size rule, by name."""

    def __call__(self, segment: SegmentationFunction, *, rule: SizeRule) -> Mapping[str, float]: ...


@dataclass(frozen=True)
class ExportReport:
    """What an export left behind.

    Args:
        out: the folder.
        files: names of its files, sorted.
        proof: content of proof.json.
        reused: whether the same export lay there already and nothing was written.
    """

    out: Path
    files: tuple[str, ...]
    proof: dict[str, Any]
    reused: bool = False


def export_network(
    network: Network,
    out: Path,
    *,
    input_size: tuple[int, int],
    class_names: Sequence[str],
    palette: Palette,
    card_facts: CardFacts,
    formats: Sequence[str] = DEFAULT_FORMATS,
    opset: int = 20,
    dynamic: bool | None = None,
    fold: bool = False,
    samples: Sequence[ProofImage] = (),
    calibration: Callable[[SizeRule], Iterator[Tensor]] | None = None,
    score: Score | None = None,
    score_labels: ScoreLabels | None = None,
    max_drop: float = DEFAULT_MAX_DROP,
    force: bool = False,
    benchmark: bool = False,
    overwrite: bool = False,
    records: Mapping[str, Mapping[str, Any]] | None = None,
    latency_repeats: int = 5,
    progress: Callable[[str], None] | None = None,
) -> ExportReport:
    """Write a stripped, proven, self-describing copy of a trained network.

    Args:
        network: as trained; it is not changed.
        out: folder to write. It appears complete or not at all.
        input_size: height and width in pixels of typical images; where images are resized, they are to these.
        class_names: one per class.
        palette: one RGB colour per class.
        card_facts: what the card says about the training.
        formats: names in ``EXPORT_FORMATS``; the weights (``safetensors``) are always written.
        opset: ONNX operator set.
        dynamic: whether images enter at their own size, in every format alike; proven at four sizes. None: where every
            format can carry the network to any size, else they are resized to ``input_size``.
        fold: whether batch norm is folded into convolutions before tracing; the weights (``safetensors``) keep it.
        samples: real images of the reported split, to compare the files on.
        calibration: yields normalised training images as a size rule has them enter; for numbers of few bits.
        score: returns the metrics of a function on the reported split under a size rule; likewise, and for the card
            where that rule is not the one that the card's metrics are of.
        score_labels: returns what each file's labels score on images of that split.
        max_drop: how much of that numbers of 8 bits may cost.
        force: whether files of few bits that cost more, or answer otherwise more often, are published all the same.
        benchmark: whether each file's latency and memory are measured, in processes of their own.
        overwrite: whether another export in ``out`` may be replaced; what else lies there stays.
        records: name → content of JSON files that go with it; they alone do not make it another export.
        latency_repeats: timed runs of the network with and without its depth branch.
        progress: takes a line on what is being done.

    Returns:
        The folder, its files and the proof; ``reused`` when the same export lay there.

    Raises:
        UserError: for impossible arguments, a folder in use, too little disk, or a file that does not pass its proof.
    """
    info = progress or (lambda _: None)
    check_formats(formats)
    formats = complete_formats(formats)
    _check_arguments(network, input_size, class_names, palette, opset)
    full = build_reference(network)
    stripped = build_reference(strip_depth(full))
    settings = {
        "version": EXPORT_VERSION,
        "network": asdict(stripped.spec.without_pretrained()),
        "input_size": input_size,
        "class_names": tuple(class_names),
        "palette": tuple(map(tuple, palette)),
        "card": asdict(replace(card_facts, export_command="")),
        "formats": formats,
        "opset": opset,
        "dynamic": dynamic,
        "max_drop": max_drop,
        "force": force,
        "fold": fold,
        "benchmark": benchmark,
    }
    key = _compute_key(stripped, settings)
    with contextlib.ExitStack() as stack:
        place = stack.enter_context(hold_result(out, _list_own, info))
        if finished := _find_finished(out, key, info, overwrite=overwrite):
            return finished
        _check_disk(stripped, out, len(formats))
        folder = stack.enter_context(replace_folder(place, _list_files(formats, records or {}), _list_own))
        draft = ExportJob(
            stripped, folder, input_size, ORIGINAL, opset, {}, samples, max_drop=max_drop, force=force,
            score_labels=score_labels,
        )  # fmt: skip
        describe = partial(describe_preprocess, stripped.normalisation, class_names=class_names, palette=palette)
        jobs = [
            _obey_rule(draft, rule, describe(rule), calibration, score) for rule in _list_rules(input_size, dynamic)
        ]
        for name in formats:
            if check := getattr(EXPORT_FORMATS[name].load(), "check", None):
                check(jobs[0])
        folded = fold_batchnorm(segmentation_only(stripped), torch.zeros(1, 3, *input_size)) if fold else None
        jobs = [replace(job, folded=folded and folded.module) for job in jobs]
        prove = partial(compute_proof, full, passes=latency_repeats, benchmark=benchmark)
        job, proof = _write_by_first_rule(jobs, formats, prove, info)
        if folded is not None:
            proof["batch_norm"] = {"folded": list(folded.folded), "left": list(folded.left)}
        _write_about(job, _rescore(card_facts, job, score, info), proof, records or {})
        proof = {"format": Proof.VERSION, "export_key": key, "files": hash_files(folder)} | proof
        write_json(folder / PROOF_FILE, proof)
        files = tuple(sorted(path.name for path in folder.iterdir()))
    return ExportReport(out, files, proof)


def _list_files(formats: Sequence[str], records: Mapping[str, object]) -> list[str]:
    """Return the names of what will be written."""
    names = {CARD_FILE, PROOF_FILE, PREPROCESS_FILE, *records}
    names |= {PREDICT_FILE} if runs_alone(formats) else set()
    return sorted(names.union(name for format_name in formats for name in EXPORT_FORMATS[format_name].files))


def _obey_rule(
    job: ExportJob,
    rule: SizeRule,
    preprocess: Mapping[str, Any],
    calibration: Callable[[SizeRule], Iterator[Tensor]] | None,
    score: Score | None,
) -> ExportJob:
    """Return the job with images that enter by a rule, in whatever it reads and writes."""
    return replace(
        job,
        size_rule=rule,
        preprocess=preprocess,
        calibration=None if calibration is None else partial(calibration, rule),
        score=None if score is None else lambda segment: score(segment, rule=rule)[HEADLINE],
    )


def _write_about(
    job: ExportJob, facts: CardFacts, proof: Mapping[str, Any], records: Mapping[str, Mapping[str, Any]]
) -> None:
    """Write the card and the records that go with it."""
    card = render_card(
        facts,
        proof,
        job.preprocess,
        network=_describe_network(job.network),
        opens_with_smp=isinstance(job.network, OpensWithSmp),
    )
    (job.folder / CARD_FILE).write_text(card, encoding="utf-8")
    for name, content in records.items():
        write_json(job.folder / name, content)


def _list_rules(input_size: tuple[int, int], dynamic: bool | None) -> tuple[SizeRule, ...]:
    """Return the rules that may hold, the preferred one first."""
    fixed = fixed_size(input_size)
    return {True: (ORIGINAL,), False: (fixed,), None: (ORIGINAL, fixed)}[dynamic]


def _rescore(facts: CardFacts, job: ExportJob, score: Score | None, info: Callable[[str], None]) -> CardFacts:
    """Return the facts with the scores of what ships, where the run's are of another size rule."""
    if score is None or not facts.metrics or facts.scored_on in ("", str(job.size_rule)):
        return facts
    info(f"scoring it with {job.size_rule}, because its run was scored with {facts.scored_on}")
    metrics = score(without_gradient(segmentation_only(job.network)), rule=job.size_rule)
    return replace(facts, metrics=metrics, scored_on=str(job.size_rule), rescored=True)


def _write_by_first_rule(
    jobs: Sequence[ExportJob], formats: Sequence[str], prove: Callable[..., dict[str, Any]], info: Callable[[str], None]
) -> tuple[ExportJob, dict[str, Any]]:
    """Write and prove by the first rule that every format can carry; return its job and the proof."""
    why = ""
    for job in jobs:
        try:
            proof = _write_files(job, formats, prove, info)
        except CannotExport as problem:
            if job is jobs[-1]:
                raise
            why = problem.reason
            info(f"images will be resized to {job.input_size[0]}x{job.input_size[1]} px in every format: {why}")
            for path in job.folder.iterdir():
                path.unlink()
            continue
        proof["size_rule"]["why"] = why
        return job, proof
    raise AssertionError("there is a rule")


def _write_files(
    job: ExportJob, formats: Sequence[str], prove: Callable[..., dict[str, Any]], info: Callable[[str], None]
) -> dict[str, Any]:
    facts: dict[str, dict[str, Any]] = {}
    for name in formats:
        info(f"writing {name}")
        facts[name] = EXPORT_FORMATS[name].load().write(job)
    write_json(job.folder / PREPROCESS_FILE, dict(job.preprocess))
    if runs_alone(formats):
        shutil.copyfile(standalone.__file__, job.folder / PREDICT_FILE)
    info("proving")
    return prove(job, format_facts=facts)


def _list_own(folder: Path) -> list[str]:
    """Return the names of files that an export wrote, proof.json last; all that ever could be without a proof."""
    try:
        proof = read_json(folder / PROOF_FILE)
    except UserError:
        proof = {}
    written, files = proof.get("formats"), proof.get("files")
    known = {PROOF_FILE, CARD_FILE, PREPROCESS_FILE, ORIGIN_FILE, _LARGE_ONNX_FILE}
    if isinstance(files, dict) and PREDICT_FILE in files:  # older versions wrote none: there it is somebody's own
        known.add(PREDICT_FILE)
    for name, entry in EXPORT_FORMATS.items():
        if not isinstance(written, dict) or name in written:
            known.update(entry.files)
    found = [name for name in known if (folder / name).is_file()]
    return sorted(found, key=lambda name: (name == PROOF_FILE, name))


def _find_finished(out: Path, key: str, info: Callable[[str], None], *, overwrite: bool) -> ExportReport | None:
    """Return the report of the same export when ``out`` holds it undamaged, None when ``out`` may be written."""
    if not out.exists():
        return None
    if not out.is_dir():
        raise UserError(f"cannot export to {out}: a file of that name exists; give another --out")
    if not any(out.iterdir()):
        return None
    if not (out / PROOF_FILE).exists():
        raise UserError(
            f"cannot export to {out}: it holds files that are no export and would be lost; give another --out"
        )
    try:
        proof = read_proof(out)
    except UserError as problem:
        if overwrite:
            return None
        raise UserError(f"{problem}; give another --out, or --overwrite to replace what lies there") from problem
    if proof.export_key != key:
        if overwrite:
            return None
        raise UserError(f"{out} holds another export; give another --out, or --overwrite to replace it")
    if proof.files is None:
        info(f"{out} was written by an older version, which did not tell what its files hold; it is written anew")
        return None
    damaged = find_damaged(out, proof.files)
    card_edited = CARD_FILE in damaged and (out / CARD_FILE).exists()
    if not damaged or (card_edited and len(damaged) == 1):  # people may write into the card
        return ExportReport(out, tuple(sorted(_list_own(out))), read_json(out / PROOF_FILE), reused=True)
    if card_edited and not overwrite:
        raise UserError(
            f"{', '.join(damaged)} in {out} is missing or not as it was exported, and writing the export anew would "
            f"replace your {CARD_FILE}; move that away, give another --out, or give --overwrite"
        )
    info(f"{', '.join(damaged)} in {out} is missing or not as it was exported; the export is written anew")
    return None


def _check_arguments(
    network: Network,
    input_size: tuple[int, int],
    class_names: Sequence[str],
    palette: Palette,
    opset: int,
) -> None:
    height, width = (min(max(side, SMALLEST_INPUT_PX), LARGEST_INPUT_PX) for side in input_size)
    if input_size != (height, width):
        raise UserError(
            f"cannot export for images of {input_size[0]}x{input_size[1]} px; a side has {SMALLEST_INPUT_PX} to "
            f"{LARGEST_INPUT_PX} px: use {height}x{width}"
        )
    if len(class_names) != network.num_classes or len(palette) != network.num_classes:
        raise UserError(
            f"the network has {network.num_classes} classes, but {len(class_names)} names and {len(palette)} colours "
            "were given; give one of each per class"
        )
    if opset not in OPSETS:
        raise UserError(f"cannot write ONNX opset {opset}; possible: {OPSETS.start} to {OPSETS.stop - 1}")


def _check_disk(stripped: Network, out: Path, num_formats: int) -> None:
    weights_bytes = sum(value.numel() * value.element_size() for value in stripped.state_dict().values())
    needed = weights_bytes * (num_formats + 1)  # one more for what exporters write beside
    check_space(out, needed, "the files of the export")


def _compute_key(stripped: Network, settings: dict[str, Any]) -> str:
    """Return 16 hex digits of what decides the content of the folder: the weights and the settings."""
    digest = hashlib.blake2b(json.dumps(settings, sort_keys=True).encode(), digest_size=8)
    for name, value in sorted(stripped.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _describe_network(network: Network) -> str:
    options = ", ".join(
        f"{name}={network.spec.options[name]}" for name in ("architecture", "encoder") if name in network.spec.options
    )
    return f"{network.spec.name}({options})" if options else network.spec.name

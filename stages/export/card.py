"""README.md of an export: what the model is, what it was taught by, and under which licences that leaves it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from data_cache.escaping import markdown_text
from data_cache.metrics import METRICS
from data_cache.size_rule import SizeRule
from stages.export.formats import EXPORT_FORMATS


@dataclass(frozen=True)
class LicenceLink:
    """One thing that the weights were made from.

    Args:
        role: for example ``depth teacher``, ``encoder weights``, ``training images``.
        name: Hub id, dataset name or file name.
        licence: SPDX name, or ``unknown`` when no statement was found.
        revision: commit or hash, where there is one.
        noncommercial: whether the licence forbids commercial use.
        note: anything a reader should know besides.
    """

    role: str
    name: str
    licence: str
    revision: str = ""
    noncommercial: bool = False
    note: str = ""


@dataclass(frozen=True)
class CardFacts:
    """What the card says that the network itself does not know.

    Args:
        run: name of the run that was exported.
        dataset: name of the training data.
        schedule: name of the schedule.
        steps: its steps in order, in words.
        metrics: name → value.
        split: split on which the metrics were computed.
        licences: everything the weights were made from, the depth teacher first.
        command: the command that trained the run.
        scored_on: at what size images entered for the metrics, as ``str(SizeRule)``.
    """

    run: str
    dataset: str
    schedule: str
    steps: tuple[str, ...] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)
    split: str = ""
    licences: tuple[LicenceLink, ...] = ()
    command: str = ""
    scored_on: str = ""


def render_card(
    facts: CardFacts,
    proof: Mapping[str, Any],
    *,
    network: str,
    class_names: Sequence[str],
    opens_with_smp: bool,
) -> str:
    """Return the Markdown text of the card."""
    sections = [
        f"# {markdown_text(facts.run)}",
        f"Semantic segmentation into {len(class_names)} classes by `{network}`, trained on "
        f"{markdown_text(facts.dataset)} with depth maps as a second target. The depth branch is gone: the model is as "
        "large and as fast as one that never saw depth.",
        "## Use\n\n" + _render_use(proof, opens_with_smp),
        "## Classes\n\n" + ", ".join(f"{index} {markdown_text(name)}" for index, name in enumerate(class_names)),
        "## Training\n\n" + _render_training(facts),
        "## Scores\n\n" + _render_metrics(facts, proof["size_rule"]),
        "## Licences\n\n" + _render_licences(facts.licences),
        "## Proof\n\n" + _render_proof(proof),
    ]
    return "\n\n".join(sections) + "\n"


SMP_USAGE = """\
import segmentation_models_pytorch as smp

seg_logits = smp.from_pretrained("this-folder").eval()(images)"""


def _render_use(proof: Mapping[str, Any], opens_with_smp: bool) -> str:
    usages = {name: EXPORT_FORMATS[name].usage for name in proof["formats"]}
    if opens_with_smp:
        usages["safetensors"] = SMP_USAGE
    lines = [
        f"Images are RGB, upright and normalised as `preprocess.json` says. {_render_size_rule(proof['size_rule'])}"
    ]
    for name, usage in usages.items():
        files = ", ".join(f"`{file}`" for file in EXPORT_FORMATS[name].files)
        lines += ["", f"{files}:", "", "```python", usage, "```"]
    return "\n".join(lines)


def _render_size_rule(rule: Mapping[str, Any]) -> str:
    if rule["kind"] == "original":
        return "They enter at their own size, in every format."
    height, width = rule["input_size"]
    why = f" Any size is not possible: {markdown_text(rule['why'])}." if rule["why"] else ""
    return f"They are resized to {height}x{width} px in every format, and the answers back to theirs.{why}"


def _render_training(facts: CardFacts) -> str:
    lines = [f"Schedule {markdown_text(facts.schedule)}" + (":" if facts.steps else ".")]
    lines += ["", *(f"{number}. {markdown_text(step)}" for number, step in enumerate(facts.steps, 1))]
    lines += ["", "```", facts.command, "```"] if facts.command else []
    return "\n".join(lines)


def _render_metrics(facts: CardFacts, size_rule: Mapping[str, Any]) -> str:
    if not facts.metrics:
        return "None were recorded for this run."
    rows = [
        f"| {name} | {facts.metrics[name]:.4f} | {markdown_text(metric.explain())} |"
        for name, metric in METRICS.items()
        if name in facts.metrics
    ]
    heading = f"On split {markdown_text(facts.split)} of {markdown_text(facts.dataset)}.\n\n" if facts.split else ""
    rule = str(SizeRule.model_validate(size_rule, strict=False))
    if facts.scored_on not in ("", rule):
        heading += (
            f"Scored with {facts.scored_on}, but this export takes {rule}: `pipeline evaluate` on it tells its own.\n\n"
        )
    return heading + "\n".join(["| metric | value | what it is |", "|---|---:|---|", *rows])


def _render_licences(licences: Sequence[LicenceLink]) -> str:
    if not licences:
        return "Nothing was recorded about what the weights were made from."
    rows = [
        f"| {markdown_text(link.role)} | {markdown_text(link.name)}{' @' + link.revision if link.revision else ''} | "
        f"{markdown_text(link.licence)}{' (non-commercial)' if link.noncommercial else ''} | "
        f"{markdown_text(link.note)} |"
        for link in licences
    ]
    table = "\n".join(["| made from | name | licence | note |", "|---|---|---|---|", *rows])
    return "\n\n".join([table, _conclude_licences(licences)])


def _conclude_licences(licences: Sequence[LicenceLink]) -> str:
    forbidding = [markdown_text(link.name) for link in licences if link.noncommercial]
    silent = [markdown_text(link.name) for link in licences if link.licence.lower() == "unknown"]
    conclusions = []
    if forbidding:
        conclusions.append(
            f"**Not for commercial use**: {', '.join(forbidding)} may not be used so, and this model learnt from it, "
            "although none of those weights are in this folder."
        )
    if silent:
        names = ", ".join(silent)
        conclusions.append(f"No licence statement was found for {names}: ask its authors before you rely on it.")
    return " ".join(conclusions) or "None of these forbids commercial use; keep their notices."


def _render_proof(proof: Mapping[str, Any]) -> str:
    differences = proof["max_abs_difference"]
    rows = [
        f"| {what} | {proof[key]['before']:,} | {proof[key]['after']:,} |"
        for what, key in (("parameters", "parameters"), ("FLOPs", "flops"), ("latency, ms (CPU)", "latency_ms"))
    ]
    lines = [
        f"Largest difference of a logit with and without the depth branch: {differences['stripped_vs_full']:g}. "
        "All numbers are in `proof.json`.",
        "",
        "| | with depth branch | as shipped |",
        "|---|---|---|",
        *rows,
    ]
    for name, facts in proof["formats"].items():
        if EXPORT_FORMATS[name].labels_bytes:
            agreement = min(case["argmax_agreement"] for case in facts["images"])
            lines += ["", f"`{name}`: at least {agreement:.3%} of an image's pixels keep their class."]
            continue
        worst = max(case["max_abs_difference"] for case in facts["sizes"])
        agreement = min(case["argmax_agreement"] for case in facts["sizes"])
        beyond = max(case.get("share_beyond_tolerance", 0.0) for case in facts["sizes"])
        moved = f" ({beyond:.2%} of them beyond the tolerance, moved by rounding)" if beyond else ""
        lines += ["", f"`{name}`: logits within {worst:.2g}{moved}, {agreement:.3%} of pixels keep their class."]
        if scores := facts.get("miou_macro"):
            lines[-1] += " " + _render_cost(scores, facts["layers_in_float"], facts["layers"])
    return "\n".join(lines)


def _render_cost(scores: Mapping[str, float], in_float: Sequence[str], num_layers: int) -> str:
    """Say what numbers of 8 bits cost, and where they were not used."""
    drop, limit = scores["drop"], scores["max_drop"]
    judged = f"**more than the limit of {limit:g}, published all the same**" if drop > limit else f"limit {limit:g}"
    layers = f": {', '.join(f'`{name}`' for name in in_float)}" if in_float else ""
    return (
        f"Macro mIoU on val: {scores['before']:.4f} in float, {scores['after']:.4f} with numbers of 8 bits (drop "
        f"{drop:.4f}, {judged}). Left in float: {len(in_float)} of {num_layers} layers{layers}."
    )

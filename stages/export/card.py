"""README.md of an export: what the model is, how its files are run, what it was taught by and under which licences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from data_cache.escaping import markdown_text
from data_cache.metrics import HEADLINE, METRICS
from data_cache.size_rule import SizeRule
from stages.export.formats import EXPORT_FORMATS, PREDICT_FILE, SMP_USAGE, Usage, runs_alone
from stages.export.hub import LicenceLink, describe_metadata
from stages.export.machine import describe_vnni


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
        export_command: the command that exported it.
        rescored: whether the metrics are of this export because the run's own are of another size rule.
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
    export_command: str = ""
    rescored: bool = False


def render_card(
    facts: CardFacts, proof: Mapping[str, Any], preprocess: Mapping[str, Any], *, network: str, opens_with_smp: bool
) -> str:
    """Return the Markdown text of the card.

    Args:
        proof: content of proof.json.
        preprocess: content of preprocess.json.
        network: its architecture in words.
        opens_with_smp: whether segmentation_models_pytorch has it.
    """
    metadata = describe_metadata(
        run=facts.run,
        dataset=facts.dataset,
        split=facts.split,
        miou=facts.metrics.get(HEADLINE),
        licences=facts.licences,
        formats=list(proof["formats"]),
        network=network,
        opens_with_smp=opens_with_smp,
    )
    sections = [
        f"---\n{metadata}\n---",
        f"# {markdown_text(facts.run)}",
        f"Semantic segmentation into {len(preprocess['class_names'])} classes by `{network}`, trained on "
        f"{markdown_text(facts.dataset)}{_WITH_DEPTH if any(map(_is_teacher, facts.licences)) else ''}. The depth "
        "branch is gone: the model is as large and as fast as one that never had it.",
        "## Use\n\n" + _render_use(proof, preprocess, opens_with_smp),
        "## Classes\n\n" + _render_classes(preprocess),
        "## Formats\n\n" + render_formats(proof),
        "## Network\n\n" + render_networks(proof),
        "## Training\n\n" + _render_training(facts),
        "## Scores\n\n" + _render_metrics(facts, proof["size_rule"]),
        "## Licences\n\n" + _render_licences(facts.licences),
        "## Proof\n\n" + _render_proof(proof),
    ]
    return "\n\n".join(sections) + "\n"


_WITH_DEPTH = " with depth maps as a second target"


def _is_teacher(link: LicenceLink) -> bool:
    return link.role == "depth teacher"


def _render_use(proof: Mapping[str, Any], preprocess: Mapping[str, Any], opens_with_smp: bool) -> str:
    usages = {name: EXPORT_FORMATS[name].usage for name in proof["formats"]}
    if opens_with_smp:
        usages["safetensors"] = SMP_USAGE
    said = [
        f"Images are RGB and upright. {_render_size_rule(proof['size_rule'])} Each piece below runs in this folder."
    ]
    if any(not EXPORT_FORMATS[name].labels_bytes for name in usages):
        said.append("`labels` has the size at which the image enters.")
    if runs_alone(usages):
        said.append(
            f"`python {PREDICT_FILE} photo.jpg --out DIR` does all of it, and brings labels back to the image's own "
            "size; it needs a runtime, numpy and Pillow."
        )
    lines = [" ".join(said)]
    for name, usage in usages.items():
        row = EXPORT_FORMATS[name]
        files = ", ".join(f"`{file}`" for file in row.files)
        bytes_in = " takes the bytes of an image of any size and answers labels of its size" if row.labels_bytes else ""
        lines += ["", f"{files}{bytes_in}:", "", "```python", *show_usage(usage, preprocess, row.labels_bytes), "```"]
    return "\n".join(lines)


def show_usage(usage: Usage, preprocess: Mapping[str, Any], takes_bytes: bool) -> list[str]:
    """Return at most five lines of Python that label photo.jpg in the folder of an export.

    Args:
        preprocess: content of preprocess.json.
        takes_bytes: whether the format takes the image as it is.
    """
    size, pixels = preprocess["size_rule"]["input_size"], "photo"
    if size is not None:
        resized = f'band.convert("F").resize(({size[1]}, {size[0]}), Image.Resampling.BILINEAR)'
        pixels = f"numpy.stack([{resized} for band in photo.split()], 2)"
    lines = [
        f"import numpy, {usage.imports}",
        "from PIL import Image, ImageOps",
        'photo = ImageOps.exif_transpose(Image.open("photo.jpg")).convert("RGB")',
    ]
    if not takes_bytes:
        mean, std = (list(preprocess[name]) for name in ("mean", "std"))
        normalised = f"((numpy.asarray({pixels}) / 255 - {mean}) / {std})"
        lines.append(f'images = {normalised}.transpose(2, 0, 1)[None].astype("float32", order="C")')
    return [*lines, f"labels = {usage.labels}"]


def _render_size_rule(rule: Mapping[str, Any]) -> str:
    if rule["kind"] == "original":
        return "They enter at their own size, in every format; a side below 64 px is enlarged to 64."
    height, width = rule["input_size"]
    why = f" Any size is not possible: {markdown_text(rule['why'])}." if rule["why"] else ""
    return f"They are resized to {height}x{width} px in every format, and the answers back to theirs.{why}"


def _render_classes(preprocess: Mapping[str, Any]) -> str:
    rows = [
        f"| {index} | {markdown_text(name)} | `#{red:02x}{green:02x}{blue:02x}` | {red}, {green}, {blue} |"
        for index, (name, (red, green, blue)) in enumerate(
            zip(preprocess["class_names"], preprocess["palette"], strict=True)
        )
    ]
    return "\n".join(["| id | class | colour | red, green, blue |", "|---:|---|---|---|", *rows])


def render_formats(proof: Mapping[str, Any]) -> str:
    """Return the table of formats of a proof in Markdown, with what is to be known to read it."""
    table, (height, width) = proof["table"], proof["input_size"]
    rows = [
        f"| {row['format']} | {', '.join(f'`{file}`' for file in row['files'])} | {' | '.join(describe_row(row))} |"
        for row in table
    ]
    lines = ["| format | files | " + " | ".join(ROW_HEADINGS) + " |", "|---|---|" + "---:|" * len(ROW_HEADINGS), *rows]
    scores = [row["score"] for row in table if row["score"]]
    if scores:
        score = scores[0]
        lines += [
            "",
            f"Macro mIoU of the labels that each file gives on {score['images']} of the {score['of']} images of split "
            f"{markdown_text(score['split'])}; the drop is to `safetensors`, the network itself in PyTorch. Pixels "
            "that agree with it: of the images in `proof.json`.",
        ]
    measured = [row for row in table if "latency_ms" in row]
    if not measured:
        return "\n".join(
            [*lines, "", "Latency and memory were not measured: `pipeline benchmark` on this folder does."]
        )
    lines += [
        "",
        f"Latency of one image of {height}x{width} px: median (quartiles) of {measured[0]['passes']} runs in turns, "
        f"on {markdown_text(proof['machine']['cpu'])} {describe_vnni(proof['machine'])}; beside it its ratio to "
        "PyTorch's, and to that of the float file of the same runtime. Memory: what opening and running the file added "
        "at most to a process that had loaded its runtime.",
    ]
    return "\n".join(lines)


NOT_MEASURED = "–"
ROW_HEADINGS = (
    "MB", "mIoU", "drop", "pixels that agree", "latency, ms", "of PyTorch's", "of float's",
    "memory, MB", "threads",
)  # fmt: skip


def describe_row(row: Mapping[str, Any]) -> list[str]:
    """Return the cells of a format's row under ``ROW_HEADINGS``; a dash is what was not measured."""
    names = ("latency_ms", "ratio_to_pytorch", "ratio_to_base", "memory_mb", "score")
    latency, ratio, of_float, memory, score = (row.get(name) for name in names)
    return [
        f"{row['bytes'] / 1e6:.2f}",
        f"{score['miou_macro']:.4f}" if score else NOT_MEASURED,
        f"{round(row['drop'], 4) + 0.0:.4f}" if score else NOT_MEASURED,  # no negative 0
        f"{row['argmax_agreement']:.3%}" if "argmax_agreement" in row else NOT_MEASURED,
        f"{latency['median']:g} ({latency['low']:g} – {latency['high']:g})" if latency else NOT_MEASURED,
        f"{ratio['median']:.2f}" if ratio else NOT_MEASURED,
        f"{of_float['median']:.2f}" if of_float else NOT_MEASURED,
        NOT_MEASURED if memory is None else f"{memory:.0f}",
        str(row.get("threads", NOT_MEASURED)),
    ]


def render_networks(proof: Mapping[str, Any]) -> str:
    """Return the table of a proof's networks, with the depth branch and without, in Markdown."""
    height, width = proof["input_size"]
    names = {"full": "with depth branch", "stripped": "as shipped", "plain": "built without depth branch"}
    rows = [
        f"| {names[name]} | {found['parameters']:,} | {found['macs']:,} | {found['latency_ms']['median']:g} "
        f"({found['latency_ms']['low']:g} – {found['latency_ms']['high']:g}) |"
        for name, found in proof["networks"].items()
    ]
    heading = f"| | parameters | MACs, {height}x{width} px | latency in PyTorch, ms |"
    note = (
        "MACs are multiply-adds of convolutions and matrix products; one is two floating-point operations (FLOPs), "
        "which `proof.json` tells, too."
    )
    return "\n".join([heading, "|---|---:|---:|---:|", *rows, "", note])


def _render_training(facts: CardFacts) -> str:
    lines = [f"Schedule {markdown_text(facts.schedule)}" + (":" if facts.steps else ".")]
    lines += ["", *(f"{number}. {markdown_text(step)}" for number, step in enumerate(facts.steps, 1))]
    if commands := [command for command in (facts.command, facts.export_command) if command]:
        lines += ["", "```", *commands, "```"]
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
    if facts.rescored:
        heading += f"Scored with {rule}, as this export takes them; its run was scored otherwise.\n\n"
    elif facts.scored_on not in ("", rule):
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
    difference = proof["max_abs_difference"]["stripped_vs_full"]
    lines = [f"Largest difference of a logit with and without the depth branch: {difference:g}."]
    for name, facts in proof["formats"].items():
        if EXPORT_FORMATS[name].labels_bytes:
            agreement = min(case["argmax_agreement"] for case in facts["images"])
            lines += ["", f"`{name}`: at least {agreement:.3%} of an image's pixels keep their class."]
            continue
        worst = max(case["max_abs_difference"] for case in facts["sizes"])
        agreement = min(case["argmax_agreement"] for case in facts["sizes"])
        beyond = max(case.get("share_beyond_tolerance", 0.0) for case in facts["sizes"])
        moved = f" ({beyond:.2%} of them beyond the tolerance, moved by rounding)" if beyond else ""
        drawn = f"on drawn noise logits within {worst:.2g}{moved}, {agreement:.3%} of pixels keep their class"
        lines += ["", f"`{name}`: {drawn}."]
        if scores := facts.get("miou_macro"):
            lines[-1] += " " + _render_cost(scores, facts["layers_in_float"], facts["layers"])
    versions = ", ".join(f"{name} {number}" for name, number in proof["versions"].items())
    return "\n".join([*lines, "", f"All numbers are in `proof.json`. Made with {versions}."])


def _render_cost(scores: Mapping[str, float], in_float: Sequence[str], num_layers: int) -> str:
    """Say what numbers of 8 bits cost, and where they were not used."""
    drop, limit = scores["drop"], scores["max_drop"]
    judged = f"**more than the limit of {limit:g}, published all the same**" if drop > limit else f"limit {limit:g}"
    layers = f": {', '.join(f'`{name}`' for name in in_float)}" if in_float else ""
    return (
        f"Macro mIoU on all of val: {scores['before']:.4f} in float, {scores['after']:.4f} with numbers of 8 bits "
        f"(drop {drop:.4f}, {judged}). Left in float: {len(in_float)} of {num_layers} layers{layers}."
    )

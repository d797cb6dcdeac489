"""`make results`: the tables of docs/results.md, made from finished runs, so that no figure is typed by hand.

What a block of the page shows is kept in ``docs/results/<block>.json``; one of them stands in README, too, in short. A
test holds both against these files. README's picture is of the demo's run.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from data_cache.errors import UserError
from data_cache.escaping import markdown_text
from data_cache.files import atomic_file, read_json, write_json
from data_cache.images import open_image
from data_cache.metrics import explain_metrics
from pipeline.experiment.config import load_config
from pipeline.experiment.devices import find_device
from pipeline.experiment.expand import expand_rows, make_plan
from pipeline.experiment.tables import find_table
from pipeline.experiment.tabulate import freshen, tabulate
from pipeline.session import Session
from stages.comparison.answer import find_answer
from stages.comparison.certainty import HOW_TO_READ_DIFFERENCES, HOW_TO_READ_IMAGES
from stages.comparison.formats import FORMATS
from stages.comparison.identity import join_values, show_value
from stages.comparison.notes import HOW_TO_READ_MEANS
from stages.comparison.record import RUN_FILE, RunRecord, TrainedRun, read_run
from stages.comparison.statistics import compare_paired
from stages.comparison.table import Table
from stages.export.card import render_formats, render_networks
from stages.export.formats import ORIGIN_FILE
from stages.export.proof_file import PROOF_FILE, read_proof

ROOT = Path(__file__).parent.parent
README, PAGE, FIGURES = Path("README.md"), Path("docs") / "results.md", Path("docs") / "results"
PICTURE = Path("docs") / "demo.png"
PICTURED, PICTURED_PANEL = "depth-first+copy", "01-*.png"
"""Row of the demo, and its panel: an image, its truth and maps, and what the network makes of them."""
DEMO_CARD = Path("pipeline") / "recipes" / "demo.toml"
END = "<!-- end -->"
DEMO = "demo"
SHORTENED, IN_SHORT = "schedules", "in short"
"""The block that README shows, and what it is called there."""
PLAIN = ("seg-only", "seg-only-long")
"""Rows of it that train no depth and decay once."""
_KEPT = (
    "name", "label", "seeds", "total_steps", "metrics", "intervals", "by_seed", "baseline", "difference",
)  # fmt: skip
"""What the figures of a row are, of all that ``compare --format json`` says."""
SAID_ONCE = (HOW_TO_READ_MEANS, HOW_TO_READ_DIFFERENCES, HOW_TO_READ_IMAGES)
"""Notes that the page has above all blocks, and no block repeats."""
SURROUNDINGS = ("threads", "python", "torch", "torchvision")


class Block(NamedTuple):
    """A marked place of the page, and the runs whose table it shows."""

    name: str
    title: str
    table: str
    """Name of a table, or its file in this repository."""
    recipe: str
    seeds: tuple[int, ...] = (0, 1, 2)
    estimator: str = "bundled"
    """Whose depth the runs learned, as far as they did."""
    rows: tuple[str, ...] = ()
    """Those of the table; none is all."""
    more_labels: tuple[tuple[str, ...], ...] = ()
    """Of other labellings that rows read, what they change in the first."""
    needs_data: bool = False
    """Whether somebody must say where the images lie."""
    formats: tuple[str, ...] = ()
    """Of an export of the recipe's one run; the block then shows their table, and ``table`` is empty."""

    @property
    def commands(self) -> list[list[str]]:
        """The words, behind ``pipeline``, that make the runs."""
        if self.name == DEMO:
            return [["demo"]]
        root = ["--data-root", "DIR"] if self.needs_data else []
        seeds = ["--seeds", ",".join(map(str, self.seeds))]
        teacher = ["--estimator", self.estimator] if self.estimator != "bundled" else []
        common = ["--recipe", self.recipe, *root, *teacher]
        if self.formats:
            exporting = ["export", "--formats", ",".join(self.formats), "--overwrite"]
            return [["pseudo-depth", *common], ["run", *common], exporting]
        labels = [["pseudo-depth", *common, *change] for change in ((), *self.more_labels)]
        return [*labels, ["table", self.table, *common, *seeds]]

    @property
    def place(self) -> str:
        """The table's name, or where its file lies."""
        return str(ROOT / self.table) if self.table.endswith(".toml") else self.table


# fmt: off
BLOCKS = (
    Block(DEMO, "", "schedules", "demo", (0,), rows=("seg-only", "depth-first+copy")),
    Block("schedules", "The schedules on drawn scenes", "schedules", "demo"),
    Block("label-fraction", "Few masks, many images: drawn scenes, bundled teacher", "label-fraction", "demo"),
    Block(
        "label-fraction-exact", "Few masks, many images: drawn scenes, exact depth", "label-fraction", "demo",
        estimator="dataset",
    ),
    Block(
        "where", "Where depth could help: drawn scenes, 10 masks", "docs/tables/where-depth-could-help.toml", "demo",
        more_labels=(("--estimator", "dataset"), ("--set", "depth.input_size=42")),
    ),
    Block(
        "camvid", "CamVid: real images, all masks and an eighth of them", "docs/tables/camvid-few-masks.toml",
        "camvid-small", needs_data=True,
    ),
    Block(
        "edge", "A small network in every format: CamVid", "", "edge", (0,), needs_data=True,
        formats=(
            "safetensors", "onnx", "onnx-fp16", "onnx-int8", "onnx-embedded", "openvino", "openvino-int8", "pt2",
            "executorch",
        ),
    ),
)
# fmt: on


def gather(block: Block, session: Session, data_root: str | None) -> Table:
    """Return the table of a block's runs in the work directory: those that its commands would make, and no others.

    Raises:
        UserError: not every row has every seed, or one has several runs of other settings.
    """
    root = data_root if block.needs_data else None
    config = load_config(block.recipe, {"data.root": root, "depth.estimator": block.estimator})
    rows = expand_rows(config, block.place, block.seeds, session, find_device("auto"))
    runs = make_plan([row for row in rows if not block.rows or row.name in block.rows], session, reuse=True).runs
    folders = [session.workspace.runs / run.name for run in runs]
    missing = [run for run, folder in zip(runs, folders, strict=True) if not (folder / RUN_FILE).exists()]
    if missing:
        first = f"{missing[0].row} with seed {missing[0].config.seed} first"
        raise UserError(f"{len(missing)} of {len(runs)} runs are missing, {first}")
    records = freshen([RunRecord.from_json(folder) for folder in folders], session)
    table = tabulate(records, find_table(block.place))
    if len(table.rows) != len(names := {run.row for run in runs}):
        raise UserError(f"the runs make {len(table.rows)} rows in the place of {len(names)}: their settings differ")
    return table


def describe(block: Block, table: Table) -> dict[str, Any]:
    """Return what is kept of a block: figures, unrounded, and the lines that show them."""
    spent: dict[str, float] = {}
    for run in (run for row in table.rows for run in row.runs):
        assert run.folder is not None
        record = read_run(run.folder / RUN_FILE)
        nodes = record.nodes if isinstance(record, TrainedRun) else ()
        spent |= {node: phase.elapsed_s for node, phase in zip(nodes, run.phases, strict=True)}
    environments = [run.environment for row in table.rows for run in row.runs]
    return {
        "title": block.title,
        "commands": [f"pipeline {shlex.join(words)}" for words in block.commands],
        "seeds": list(block.seeds),
        "trainings": len(spent),
        "hours": round(sum(spent.values()) / 3600, 2),
        "environment": {
            name: join_values(sorted(show_value(each.get(name)) for each in environments)) for name in SURROUNDINGS
        },
        "date": datetime.now(UTC).date().isoformat(),
        "answer": find_answer(table).text,
        "rows": [{key: row[key] for key in _KEPT} for row in table.to_json()["rows"]],
        "lines": _show_plain(table) if block.name == DEMO else _show_markdown(table),
    }


def find_export(block: Block, session: Session) -> Path:
    """Return the newest export of a block's recipe in the work directory that has its formats.

    Raises:
        UserError: there is none.
    """
    proofs = sorted(session.workspace.exports.glob(f"*/{PROOF_FILE}"), key=lambda path: path.stat().st_mtime)
    for proof in reversed(proofs):
        proven, origin = read_proof(proof.parent), read_json(proof.parent / ORIGIN_FILE)
        if origin["recipe"] == Path(block.recipe).stem and set(block.formats) <= proven.formats.keys():
            return proof.parent
    raise UserError(f"no export in {session.workspace.exports} is of recipe {block.recipe!r} in all of its formats")


def describe_export(block: Block, export: Path, session: Session) -> dict[str, Any]:
    """Return what is kept of an export: the table of its formats, and the lines that show it.

    Raises:
        UserError: its run is not in the work directory.
    """
    proof, origin = read_json(export / PROOF_FILE), read_json(export / ORIGIN_FILE)
    phases = RunRecord.from_json(session.workspace.runs / origin["run"]).phases
    versions = ("torch", "onnxruntime", "openvino", "nncf")
    return {
        "title": block.title,
        "commands": [f"pipeline {shlex.join(words)}" for words in block.commands],
        "hours": round(sum(phase.elapsed_s for phase in phases) / 3600, 2),
        "environment": {name: proof["versions"][name] for name in versions if name in proof["versions"]},
        "date": datetime.now(UTC).date().isoformat(),
        "networks": proof["networks"],
        "rows": proof["table"],
        "lines": [*render_networks(proof).splitlines(), "", *render_formats(proof).splitlines()],
    }


def _show_markdown(table: Table) -> list[str]:
    """Return a table as ``compare`` writes it, without what each metric is, which `pipeline compare --help` says, and
    without what is said once for all."""
    lines = FORMATS["markdown"](table).splitlines()
    once = {f"- {markdown_text(note)}" for note in SAID_ONCE}
    return [line for line in lines[: len(lines) - len(explain_metrics(table.main_metrics))] if line not in once]


def _show_plain(table: Table) -> list[str]:
    lines = FORMATS["text"](table).splitlines()
    return lines[: lines.index("", 2)]


def show_block(figures: Mapping[str, Any]) -> list[str]:
    """Return the lines of a block of the page: the demo's table, or title, commands, cost, answer and table."""
    if not figures["title"]:
        return ["```", *figures["lines"], "```"]
    environment = ", ".join(f"{name} {value}" for name, value in figures["environment"].items())
    spent = f"{figures['trainings']} trainings" if "trainings" in figures else "Trained"
    answer = [f"**{markdown_text(figures['answer'])}**", ""] if "answer" in figures else []
    return [
        f"## {figures['title']}", "", "```", *figures["commands"], "```", "",
        f"{spent} in {figures['hours']:.1f} h, {figures['date']}; {environment}.", "",
        *answer, *figures["lines"],
    ]  # fmt: skip


def show_short(figures: Mapping[str, Any]) -> list[str]:
    """Return the lines of README's table: every row's headline, and what it is to as many steps of plain training."""
    scores = {
        row["name"]: {int(seed): score for seed, score in row["by_seed"]["miou_macro"].items()}
        for row in figures["rows"]
    }
    plain_rows = {row["total_steps"]: row["name"] for row in figures["rows"] if row["name"] in PLAIN}
    lines = ["| row | steps | macro mIoU | against plain training of as many steps |", "|---|---:|---:|---:|"]
    for row in sorted(figures["rows"], key=lambda row: row["total_steps"]):
        name, plain = row["name"], plain_rows.get(row["total_steps"])
        against = compare_paired(scores[name], scores[plain]) if plain and plain != name else None
        difference = f"{against.mean:+.3f} ± {against.half_width:.3f}" if against and against.half_width else "–"
        mean = f"{row['metrics']['miou_macro']:.3f} ± {row['intervals']['miou_macro']:.3f}"
        lines.append(f"| `{name}` | {row['total_steps']} | {mean} | {difference} |")
    seeds = ", ".join(map(str, figures["seeds"]))
    setting = "Drawn scenes, U-Net with ResNet-18 from random weights, bundled teacher"
    return [*lines, "", f"{setting}; seeds {seeds}, ± is half of a 95 % interval over them; {figures['date']}."]


def find_block(text: str, name: str, page: Path = PAGE) -> tuple[int, int]:
    """Return where a block of a page begins and ends, markers left out.

    Raises:
        UserError: there is none of that name.
    """
    begin = f"<!-- results: {name} -->\n"
    start = text.find(begin)
    end = text.find(END, start)
    if start < 0 or end < 0:
        raise UserError(f"{page} has no block {begin.strip()} … {END}; put it back where the table is to stand")
    return start + len(begin), end


def write_block(block: Block, figures: Mapping[str, Any], root: Path) -> None:
    """Keep a block's figures, and bring the page, README and the demo's card up to them."""
    write_json(root / FIGURES / f"{block.name}.json", dict(figures))
    _replace(root, PAGE, block.name, show_block(figures))
    if block.name == SHORTENED:
        _replace(root, README, IN_SHORT, show_short(figures))
    if block.name == DEMO:
        card = (root / DEMO_CARD).read_text(encoding="utf8")
        card = re.sub(r"(?m)^expected = .*$", lambda _: f"expected = {json.dumps(show_demo(figures))}", card)
        (root / DEMO_CARD).write_text(card, encoding="utf8")


def _replace(root: Path, page: Path, name: str, lines: Sequence[str]) -> None:
    text = (root / page).read_text(encoding="utf8")
    start, end = find_block(text, name, page)
    (root / page).write_text(text[:start] + "\n".join([*lines, ""]) + text[end:], encoding="utf8")


def draw_picture(table: Table, root: Path) -> None:
    """Write README's picture: a panel of a table's run, in 256 colours.

    Raises:
        UserError: the run has no such panel.
    """
    run = next(run for row in table.rows if row.name == PICTURED for run in row.runs)
    assert run.folder is not None
    folder = run.folder / "panels"
    panels = sorted(folder.glob(PICTURED_PANEL))
    if not panels:
        raise UserError(f"{folder} has no {PICTURED_PANEL}; train the demo with evaluation.panels of 2 or more")
    words = {"missing": "report on it again", "broken": "report on it again"}
    with open_image(panels[0], "panel", **words) as panel, atomic_file(root / PICTURE) as temporary:
        panel.convert("RGB").quantize(256).save(temporary, format="PNG", optimize=True)


def show_demo(figures: Mapping[str, Any]) -> str:
    """Return the score that the demo's card promises."""
    scores = {row["name"]: f"{row['metrics']['miou_macro']:.3f}" for row in figures["rows"]}
    return f"macro mIoU {scores['depth-first+copy']} on scenes val, seg-only {scores['seg-only']} (one seed)"


def run_commands(block: Block, session: Session, data_root: str | None, more: Sequence[str]) -> None:
    """Train what a block shows; what is finished is not done again.

    Raises:
        UserError: a command failed.
    """
    for words in block.commands:
        instead = {"DIR": data_root or ""} | ({block.table: block.place} if block.table else {})
        command = [*(instead.get(word, word) for word in words), *(more if words[0] == "table" else ())]
        session.console.info(f"pipeline {shlex.join(command)}")
        program = [sys.executable, "-m", "pipeline", "--workdir", str(session.workspace.root)]
        done = subprocess.run([*program, *command], stdout=sys.stderr, check=False)
        if done.returncode:
            raise UserError(f"pipeline {words[0]} ended with status {done.returncode}; repeat the call to go on")


def main(arguments: Sequence[str] | None = None, root: Path = ROOT) -> int:
    """Write every block whose runs are in the work directory; name the others. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.results", description=__doc__)
    parser.add_argument("blocks", nargs="*", metavar="BLOCK", help=", ".join(block.name for block in BLOCKS))
    parser.add_argument("--workdir", help="where the runs are; default ./artifacts")
    parser.add_argument("--data-root", help="where CamVid lies, for the block that needs it")
    parser.add_argument("--run", action="store_true", help="train what is missing; takes hours")
    parser.add_argument("--jobs", default="1", help="processes that train at once")
    asked = parser.parse_args(arguments)
    if unknown := set(asked.blocks).difference(block.name for block in BLOCKS):
        parser.error(f"there is no block {', '.join(sorted(unknown))}")
    session = Session.start(asked.workdir)
    for block in (block for block in BLOCKS if block.name in asked.blocks or not asked.blocks):
        try:
            if asked.run and (asked.data_root or not block.needs_data):
                run_commands(block, session, asked.data_root, ("--jobs", asked.jobs))
            if block.formats:
                figures = describe_export(block, find_export(block, session), session)
            else:
                table = gather(block, session, asked.data_root)
                figures = describe(block, table)
                if block.name == DEMO:
                    draw_picture(table, root)
            write_block(block, figures, root)
            session.console.info(f"{block.name}: written")
        except UserError as problem:
            session.console.info(f"{block.name}: stays as it is; {problem}")
            if asked.run:
                return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

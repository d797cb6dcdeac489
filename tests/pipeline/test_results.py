"""The tables of results hold the figures that were measured, and `make results` writes them from runs."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data_cache.errors import UserError
from pipeline import results
from pipeline.commands import COMMANDS
from pipeline.experiment.tables import find_table
from pipeline.results import (
    BLOCKS,
    DEMO_CARD,
    FIGURES,
    IN_SHORT,
    PAGE,
    PICTURE,
    README,
    ROOT,
    SHORTENED,
    Block,
    draw_picture,
    find_block,
    gather,
    show_block,
    show_demo,
    show_short,
)
from pipeline.session import Session
from stages.comparison.table import Table
from stages.export.formats import complete_formats

MEASURED = sorted((ROOT / FIGURES).glob("*.json"))
TINY = Path(__file__).parent / "tiny.toml"


def read_block(root: Path, name: str, page: Path = PAGE) -> list[str]:
    text = (root / page).read_text(encoding="utf8")
    start, end = find_block(text, name)
    return text[start:end].splitlines()


def test_every_block_has_its_place_and_only_blocks_have_figures() -> None:
    text = (ROOT / PAGE).read_text(encoding="utf8")
    assert re.findall(r"<!-- results: (.+) -->", text) == [block.name for block in BLOCKS]
    assert re.findall(r"<!-- results: (.+) -->", (ROOT / README).read_text(encoding="utf8")) == [IN_SHORT]
    assert {path.stem for path in MEASURED} <= {block.name for block in BLOCKS}


@pytest.mark.parametrize("path", MEASURED, ids=lambda path: path.stem)
def test_the_docs_show_what_was_measured(path: Path) -> None:
    figures = json.loads(path.read_text(encoding="utf8"))
    assert read_block(ROOT, path.stem) == show_block(figures), "run: make results"
    check_lines(figures)
    if path.stem == SHORTENED:
        shown = show_short(figures)
        assert read_block(ROOT, IN_SHORT, README) == shown
        prose = re.sub(
            r"<!-- results: .*?<!-- end -->", "", (ROOT / README).read_text(encoding="utf8"), flags=re.DOTALL
        )
        said = re.findall(r"\b0\.\d{3}\b", prose)
        assert said and set(said) <= set(re.findall(r"\b0\.\d{3}\b", "\n".join(shown))), "scores that its table lacks"
    if path.stem == "demo":
        assert (
            1000 < (ROOT / PICTURE).stat().st_size < 150_000
            and f"]({PICTURE.as_posix()})" in (ROOT / README).read_text()
        )
        assert f"expected = {json.dumps(show_demo(figures))}" in (ROOT / DEMO_CARD).read_text(encoding="utf8")


def test_how_tables_are_read_is_said_once() -> None:
    text = " ".join((ROOT / PAGE).read_text(encoding="utf8").split())
    assert [text.count(note) for note in results.SAID_ONCE] == [1, 1, 1]


def check_lines(figures: dict[str, Any]) -> None:
    """Compute what the lines show of each row anew from its runs, or from an export's own proof."""
    for row in figures["rows"]:
        if "format" in row:
            (line,) = (line for line in figures["lines"] if line.startswith(f"| {row['format']} | "))
            assert f"| {row['bytes'] / 1e6:.2f} | {row['score']['miou_macro']:.4f} |" in line
            continue
        assert sorted(map(int, row["by_seed"]["miou_macro"])) == figures["seeds"]
        for metric, of_seeds in row["by_seed"].items():
            assert row["metrics"][metric] == pytest.approx(fmean(of_seeds.values()))
        label = re.escape(row["label"])
        (line,) = (line for line in figures["lines"] if re.match(rf"\| {label} \||{label}  ", line))
        assert f"{fmean(row['by_seed']['miou_macro'].values()):.3f}" in line
        assert str(row["total_steps"]) in line


@pytest.fixture
def house(tmp_path: Path) -> Path:
    """A folder with what the generator changes."""
    for path in (README, PAGE, DEMO_CARD):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, tmp_path / path)
    return tmp_path


def test_blocks_are_written_from_runs_and_others_stay(
    house: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], call: Callable[..., Any]
) -> None:
    rows = ("seg-only", "depth-first+copy")
    blocks = (
        Block("schedules", "Two rows", "schedules", str(TINY), (0, 1), "dataset", rows),
        Block("label-fraction", "Three seeds", "schedules", str(TINY), (0, 1, 2), "dataset", rows),
    )
    monkeypatch.setattr(results, "BLOCKS", blocks)
    work = house / "work"
    assert call("--workdir", work, "pseudo-depth", "--recipe", TINY).status == 0
    for row in rows:
        for seed in (0, 1):
            assert call("--workdir", work, "run", "--recipe", TINY, "--schedule", row, "--seed", seed).status == 0
    record = next((work / "runs").glob("*/run.json"))
    found = json.loads(record.read_text())
    threads = found["environment"]["threads"]
    record.write_text(json.dumps(found | {"environment": found["environment"] | {"threads": threads + 1}}))
    others = ("--recipe", TINY, "--schedule", "seg-only", "--iterations", 1)
    other = call("--workdir", work, "run", *others)
    assert other.status == 0, "a run of a block's name, but not of its settings"
    before = read_block(house, "label-fraction")
    assert results.main(["--workdir", str(work)], house) == 0
    assert "label-fraction: stays as it is; 2 of 6 runs are missing" in capsys.readouterr().err
    assert read_block(house, "label-fraction") == before
    figures = json.loads((house / FIGURES / "schedules.json").read_text())
    check_lines(figures)
    lines = read_block(house, "schedules")
    assert lines == show_block(figures) and lines[0] == "## Two rows"
    of_block = [path for path in (work / "runs").iterdir() if path.name != Path(other.json["folder"]).name]
    shown = call("--workdir", work, "compare", *of_block, "--format", "markdown", as_json=False).stdout.splitlines()
    assert set(filter(lambda line: line.startswith("| "), shown)) <= set(lines), "as `compare` writes it"
    assert not any(note in "\n".join(lines) for note in results.SAID_ONCE)
    assert figures["environment"]["threads"] == f"{threads} / {threads + 1}", "of all runs"
    assert figures["trainings"] == 8 and figures["hours"] >= 0, "each phase once"
    check_picture(house, gather(blocks[0], Session.start(str(work)), None))
    written = (house / PAGE).read_text(encoding="utf8")
    assert results.main(["schedules", "--workdir", str(work)], house) == 0
    assert (house / PAGE).read_text(encoding="utf8") == written


def check_picture(house: Path, table: Table) -> None:
    """One of several panels is README's picture, as it is but for its number of colours."""
    (run, *_) = next(row.runs for row in table.rows if row.name == "depth-first+copy")
    assert run.folder is not None
    with pytest.raises(UserError, match=r"panels has no 01-.*evaluation.panels of 2"):
        draw_picture(table, house)
    (panel,) = (run.folder / "panels").glob("00-*.png")
    shutil.copy(panel, panel.with_name("01-other.png"))
    draw_picture(table, house)
    with Image.open(panel) as before, Image.open(house / PICTURE) as after:
        assert after.size == before.size
        assert np.abs(np.asarray(before, int) - np.asarray(after.convert("RGB"), int)).mean() < 8


def test_an_export_s_formats_are_shown_as_its_proof_tells_them(
    house: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], call: Callable[..., Any]
) -> None:
    block = Block("edge", "Two formats", "", str(TINY), (0,), "dataset", formats=("safetensors", "onnx"))
    monkeypatch.setattr(results, "BLOCKS", (block,))
    work = house / "work"
    assert call("--workdir", work, "run", "--recipe", TINY, "--schedule", "seg-only", "--iterations", 1).status == 0
    assert call("--workdir", work, "export", "--formats", "safetensors", "--no-benchmark").status == 0
    assert results.main(["--workdir", str(work)], house) == 0
    assert "edge: stays as it is; no export in" in capsys.readouterr().err, "it lacks a format"
    proof = call("--workdir", work, "export", "--no-benchmark", "--overwrite").json["proof"]
    assert results.main(["--workdir", str(work)], house) == 0
    figures = json.loads((house / FIGURES / "edge.json").read_text())
    assert read_block(house, "edge") == show_block(figures)
    assert figures["rows"] == proof["table"] and figures["networks"] == proof["networks"]
    check_lines(figures)


def test_every_block_is_of_commands_and_a_table_that_there_are() -> None:
    for block in BLOCKS:
        for words in block.commands:
            assert words[0] in [command.name for command in COMMANDS]
        if block.formats:
            assert complete_formats(block.formats) == block.formats
            continue
        table = find_table(block.place)
        assert (set(block.rows) <= set(table.order) and table.seeds in (None, block.seeds)) or block.rows

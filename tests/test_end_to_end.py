"""The whole way, through the command line only: label, train a table, compare, export, open elsewhere."""

from __future__ import annotations

import io
import json
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

from pipeline.cli import main

TINY = Path(__file__).parent / "pipeline" / "tiny.toml"
pytestmark = pytest.mark.slow


def call(work: Path, *words: str | Path) -> dict[str, Any]:
    """Run a command in this process, to which starting costs nothing any more, and return its JSON."""
    with redirect_stdout(io.StringIO()) as answer, pytest.raises(SystemExit) as ended:
        main(["--workdir", str(work), "--json", "--quiet", *map(str, words)])
    assert not ended.value.code, answer.getvalue()
    return json.loads(answer.getvalue())


def tensors(work: Path, key: str) -> dict[str, bytes]:
    return {name: value.tobytes() for name, value in load_file(work / "nodes" / key / "weights.safetensors").items()}


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """All rows, trained with shared beginnings."""
    work = tmp_path_factory.mktemp("table")
    call(work, "pseudo-depth", "--recipe", TINY)
    return work, call(work, "table", "schedules", "--recipe", TINY, "--seeds", "0")


def test_the_table_trains_what_its_rows_share_once_and_then_nothing(table: tuple[Path, dict[str, Any]]) -> None:
    work, first = table
    assert (first["trained"], first["reused"], first["unshared"]) == (24, 0, 34)
    assert len(first["rows"]) == 15 and first["rows"][0]["name"] == "seg-only"
    again = call(work, "table", "schedules", "--recipe", TINY, "--seeds", "0")
    assert (again["trained"], again["reused"]) == (0, 24)
    assert [row["metrics"] for row in again["rows"]] == [row["metrics"] for row in first["rows"]]


@pytest.mark.parametrize("row", ["depth-first+copy", "seg-first"])
def test_a_shared_run_is_the_same_bits_as_one_trained_alone(
    table: tuple[Path, dict[str, Any]], tmp_path: Path, row: str
) -> None:
    work, _ = table
    call(tmp_path, "pseudo-depth", "--recipe", TINY)
    alone = call(tmp_path, "run", "--recipe", TINY, "--schedule", row, "--no-reuse")
    shared = call(work, "run", "--recipe", TINY, "--schedule", row)
    assert all(phase["reused"] for phase in shared["phases"]) and not any(phase["reused"] for phase in alone["phases"])
    assert alone["metrics"] == shared["metrics"]
    for mine, theirs in zip(alone["phases"], shared["phases"], strict=True):
        assert mine["key"] != theirs["key"], "declining to share trains in a place of its own"
        assert tensors(tmp_path, mine["key"]) == tensors(work, theirs["key"])


def test_the_demo_prints_where_everything_is(tmp_path: Path) -> None:
    shown = call(tmp_path, "demo", "--recipe", TINY)
    assert [run["schedule"] for run in shown["runs"]] == ["depth-first+copy", "seg-only"]
    assert {row["name"] for row in shown["rows"]} == {"depth-first+copy", "seg-only"}
    assert shown["export"]["proof"]["max_abs_difference"]["stripped_vs_full"] == 0
    rows = {row["format"]: row for row in shown["export"]["proof"]["table"]}
    for name, row in rows.items():
        assert 0 < row["latency_ms"]["low"] <= row["latency_ms"]["median"] <= row["latency_ms"]["high"]
        assert row["ratio_to_pytorch"]["median"] == 1 or name != "safetensors"
        assert 5 <= row["passes"] <= 30 and row["threads"] >= 1 and 0 < row["memory_mb"] < row["process_mb"]
    assert rows["onnx"]["process_mb"] < rows["safetensors"]["process_mb"] / 2, "torch is no part of what ONNX needs"
    assert Path(shown["report"]).is_file() and Path(shown["export"]["out"]).is_dir()
    assert shown["seconds"] > 0

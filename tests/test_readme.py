"""The tables of the docs that come from code are what the code says.

Rewrite them with ``make docs``, or ``python -m tests.test_readme``. The measured column stays as it is, unless it
is measured anew with ``pipeline --json table networks --recipe scenes-small > TABLE.json`` and the file is named.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from pipeline.commands.networks import LISTED_CLASSES, list_networks
from pipeline.commands.schedules import list_schedules
from stages.networks import NETWORKS
from tests.bad_input.__main__ import PAGE, page_lines
from tests.bad_input.cases import all_cases
from tests.benchmarks.harness import format_number

KILLS = Path(__file__).parent / "crash" / "figures.json"
BENCHES = Path(__file__).parent / "benchmarks"
SPEEDS = BENCHES / "figures.json"
DOCS = Path(__file__).parent.parent / "docs"
CHANCE = 0.07
"""Macro mIoU that no constant or random answer reaches on scenes: 8 classes, the most frequent of which has a third."""


def schedule_lines() -> Iterator[str]:
    yield "| row | steps | from | paper mIoU |"
    yield "|---|---|---|---:|"
    for row in list_schedules().json["schedules"]:
        yield f"| `{row['name']}` | {' · '.join(row['steps'])} | {row['origin']} | {row['paper'].get('miou', '')} |"


@cache
def network_facts() -> list[dict[str, Any]]:
    return list_networks().json["networks"]


def network_lines(measured: Mapping[str, str]) -> Iterator[str]:
    """Yield the table of networks; ``measured`` has the last column."""
    yield f"| name | paper | what | parameters, {LISTED_CLASSES} classes | with depth branch | copied | macro mIoU |"
    yield "|---|---|---|---:|---:|---|---:|"
    for fact in network_facts():
        copied = f"{fact['copied']} tensors" if fact["copied"] else "none"
        if fact["copied_with"]:
            option, value = next(iter(fact["copied_with"].items()))
            copied += f"; {fact['copied_with']['copied']} with `{option}={value}`"
        cells = [f"`{fact['name']}`", fact["paper"], fact["summary"], f"{fact['parameters']:,}"]
        cells += [f"{fact['parameters_with_depth']:,}", copied, measured.get(fact["name"], "")]
        yield f"| {' | '.join(cells)} |"


def reliability_lines() -> Iterator[str]:
    """Yield how many kills the last ``make test-crash`` survived, and how many bad inputs are tried."""
    measured = json.loads(KILLS.read_text(encoding="utf8"))
    rows = measured["rows"]
    ways = list(dict.fromkeys(row["how"] for row in rows))
    yield f"| killed while | {' | '.join(ways)} | continued | same bits in the end |"
    yield f"|---|{'---:|' * (len(ways) + 2)}"
    for what in [*dict.fromkeys(row["what"] for row in rows), "all"]:
        of_it = [row for row in rows if what in (row["what"], "all")]
        counts = [sum(row["kills"] for row in of_it if row["how"] == way) for way in ways]
        ends = [f"{sum(row[end] for row in of_it)} of {sum(counts)}" for end in ("recovered", "identical")]
        yield f"| {what} | {' | '.join(map(str, counts))} | {' | '.join(ends)} |"
    yield ""
    yield f"`make test-crash`, {measured['seconds']:.0f} s on {measured['machine']}."
    yield ""
    yield "| bad input | cases | refused with one message | legitimate, and read right |"
    yield "|---|---:|---:|---:|"
    cases = all_cases()
    for heading in [*dict.fromkeys(heading for heading, _ in cases), "all"]:
        exits = [case.exit for kind, case in cases if heading in (kind, "all")]
        yield f"| {heading} | {len(exits)} | {sum(map(bool, exits))} | {exits.count(0)} |"
    yield ""
    left = sum(case.exhaustive for _, case in cases)
    yield f"`pytest tests/bad_input`; {left} that start Ray are left to `make test-all`. Row by row in"
    yield "[bad input](bad-input.md)."


def speed_lines() -> Iterator[str]:
    """Yield what the last ``make bench`` found: medians of ratios, with their quartiles."""
    measured = json.loads(SPEEDS.read_text(encoding="utf8"))
    yield "| what | goal | found | of |"
    yield "|---|---:|---:|---|"
    for line in measured["lines"]:
        found, low, high = (format_number(line[key]) for key in ("found", "low", "high"))
        spread = "" if low == high else f" ({low} – {high})"
        missed = f"; **{line['missed']}**: {line['why']}".removesuffix(": ") if line["missed"] else ""
        yield f"| {line['what']} | {line['goal'] or ''} | {found}{spread} | {line['detail']}{missed} |"
    for bench, reason in measured["failed"].items():
        yield f"| {bench} |  |  | failed: {reason} |"
    machine, versions = measured["machine"], measured["versions"]
    names = ", ".join(f"{name} {number}" for name, number in versions.items())
    bfloat16 = "with" if machine["bfloat16"] else "without"
    yield ""
    yield (
        f"`{measured['command']}`, {measured['seconds']} s on {measured['date']}: {machine['cpu']}, "
        f"{machine['cores']} cores {bfloat16} bfloat16, {machine['system']}; {names}."
    )


def measured_before() -> dict[str, str]:
    """Return name and macro mIoU of every row that the page of networks has."""
    text = (DOCS / "networks.md").read_text(encoding="utf8")
    start, end = block(text, "networks")
    return dict(re.findall(r"^\| `([\w-]+)` \|.*\| (0\.\d+) \|$", text[start:end], re.MULTILINE))


def measured_in_table(path: Path) -> dict[str, str]:
    """Return the same of the rows that ``pipeline --json table networks`` printed."""
    rows = json.loads(path.read_text(encoding="utf8"))["rows"]
    return {row["name"].removesuffix("-depth-first"): f"{row['metrics']['miou_macro']:.3f}" for row in rows}


def block(text: str, name: str) -> tuple[int, int]:
    """Return where a generated block of a page begins and ends, markers left out."""
    start = text.index(f"<!-- {name} -->") + len(f"<!-- {name} -->\n")
    return start, text.index(f"<!-- /{name} -->")


def blocks(measured: Mapping[str, str]) -> dict[str, Iterator[str]]:
    """Return what every generated block should say, line by line as it is asked for; its page has its name."""
    return {
        "schedules": schedule_lines(),
        "networks": network_lines(measured),
        "reliability": reliability_lines(),
        "speed": speed_lines(),
    }


@pytest.mark.parametrize("name", ["schedules", "networks", "reliability", "speed"])
def test_the_docs_say_what_the_code_says(name: str) -> None:
    text = (DOCS / f"{name}.md").read_text(encoding="utf8")
    start, end = block(text, name)
    expected = list(blocks(measured_before())[name])
    assert text[start:end].splitlines() == expected, "run: make docs"


def test_the_page_of_bad_inputs_has_every_case() -> None:
    assert PAGE.read_text(encoding="utf8").splitlines() == list(page_lines()), "run: make docs"


def test_every_benchmark_was_measured_at_full_size() -> None:
    measured = json.loads(SPEEDS.read_text(encoding="utf8"))
    there_are = {path.stem.removeprefix("bench_") for path in BENCHES.glob("bench_*.py")}
    assert {line["bench"] for line in measured["lines"]} | set(measured["failed"]) == there_are
    assert "--small" not in measured["command"]


def test_every_network_was_measured_and_learnt_something() -> None:
    measured = measured_before()
    assert set(measured) == set(NETWORKS)
    assert all(CHANCE < float(value) < 1 for value in measured.values())


if __name__ == "__main__":
    figures = measured_in_table(Path(sys.argv[1])) if sys.argv[1:] else measured_before()
    for marker, lines in blocks(figures).items():
        page = DOCS / f"{marker}.md"
        written = page.read_text(encoding="utf8")
        first, last = block(written, marker)
        page.write_text(written[:first] + "\n".join([*lines, ""]) + written[last:], encoding="utf8")

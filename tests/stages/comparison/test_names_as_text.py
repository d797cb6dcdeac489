"""Names of classes, rows and data sets stand in every output as they were given, and do nothing there."""

from __future__ import annotations

import csv
import html
import io
import re
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

from data_cache.escaping import csv_text, latex_text, markdown_text, printable_text, width_of
from data_cache.metrics import HEADLINE
from stages.comparison.figures import draw_classes, draw_losses, draw_scores
from stages.comparison.formats import render_csv, render_latex, render_markdown, render_text
from stages.comparison.losses import LossCurves, PhaseSpan
from stages.comparison.record import ClassRecord, PhaseRecord, RunRecord
from stages.comparison.report import write_report
from stages.comparison.table import Table, build_table

NAMES = (
    "[bold]street[/bold]", "[/red]", "$a^2$ and $", "도로 · 道路", "=HYPERLINK(1)", "-2+3", "@cmd", "__init__ *so* `x`",
    "50 % & #1 \\end{tabular} ~^|", "<script>alert(1)</script>", "&lt;", "a|b", "_hidden",
    "![x](y) <b>", "＝1+1", "- item", "12. item", "*star", "a ±0.5",
)  # fmt: skip
ESCAPES = "red\x1b[31m\u202etxt\nnext\ttab"
SHOWN = r"red\x1b[31m\u202etxt\nnext\ttab"


def make_table(*names: str) -> Table:
    phases = (PhaseRecord(names[0], 10, 1.0, False),)
    classes = tuple(ClassRecord(name, 0.5, 0.5, 10) for name in names)
    return build_table(
        RunRecord(name, 0, "unet", "scenes", "demo", {HEADLINE: 0.5}, phases, 10, classes, identity=None)
        for name in names
    )


def test_control_characters_are_written_out() -> None:
    assert printable_text(ESCAPES) == SHOWN and printable_text("도로\u3000·") == "도로\u3000·"
    table = make_table(ESCAPES, "plain")
    for render in (render_text, render_markdown, render_csv, render_latex):
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", render(table)), render
    assert len(render_csv(table).splitlines()) == 3


def test_text_shows_the_names() -> None:
    text = render_text(make_table(*NAMES), width=1000)
    assert [name for name in NAMES if not re.search(rf"^{re.escape(name)}  ", text, re.MULTILINE)] == []


def test_text_columns_stay_in_line_with_wide_letters() -> None:
    lines = render_text(make_table("도로", "road", "e\u0301tage")).splitlines()
    start = next(place for place, line in enumerate(lines) if line.startswith("─"))
    assert len({width_of(line) for line in lines[start : start + 4]}) == 1


@pytest.mark.parametrize("name", NAMES)
def test_markdown_shows_the_name(name: str) -> None:
    page = MarkdownIt("commonmark").enable("table").render(render_markdown(make_table(name, "plain")))
    cells = [html.unescape(cell) for cell in re.findall(r"<td>(.*?)</td>", page)]
    assert cells[0] == name
    assert "$" not in re.sub(r"\\\$", "", markdown_text(name)), "GitHub would set what is between as a formula"
    alone = MarkdownIt("commonmark").render(markdown_text(name))
    assert html.unescape(alone) == f"<p>{name}</p>\n", "no list or heading where it begins a line"


def test_csv_has_no_formulas() -> None:
    lines = list(csv.DictReader(io.StringIO(render_csv(make_table(*NAMES)))))
    assert [line["name"].removeprefix("'") for line in lines] == list(NAMES)
    assert not any(
        cell[:1] in tuple("=+-@＝＋－＠") for line in lines for cell in (line["name"], line["label"]) if cell
    )
    assert csv_text("depth-first+copy") == "depth-first+copy"


def test_latex_has_no_commands_of_the_names() -> None:
    body = render_latex(make_table(*NAMES)).partition(r"\toprule")[2]
    assert latex_text(r"\end{x}") == r"\textbackslash{}end\{x\}"
    assert body.count(r"\end{") == 1 and body.count(r"\\") == len(NAMES) + 1
    assert not re.search(r"(\\\\|rule)\s*[\[*]", body), "\\\\[ and \\\\* would take what follows for an option"
    for letter in "%#":
        assert all(before == "\\" for before in re.findall(f"(.){letter}", body))


def test_the_page_shows_the_names_and_no_markup_of_theirs(tmp_path: Path) -> None:
    page = write_report(make_table(*NAMES, ESCAPES), tmp_path / "r.html").read_text()
    cells = [html.unescape(cell) for cell in re.findall(r"<td[^>]*>([^<]*)<", page)]
    assert {*NAMES, SHOWN} <= set(cells)
    assert page.count("<script") == 1 and "alert(1)</script" not in page and "\x1b" not in page


def test_figures_show_the_names() -> None:
    curves = LossCurves((PhaseSpan("$p$_", 0, 10),), {"_term$": ((1.0, 0.5), (2.0, 0.4))})
    classes = draw_classes(NAMES, [(name, dict.fromkeys(NAMES, 0.5)) for name in ("_row", "$r$")])
    scores, losses = draw_scores(make_table(*NAMES, ESCAPES)), draw_losses({"_$run$": curves})
    shown = {text: set(map(html.unescape, re.findall(r">([^<]+)<", text))) for text in (classes, scores, losses)}
    assert {*NAMES, "_row", "$r$"} <= shown[classes]
    assert {*NAMES, SHOWN} <= shown[scores]
    assert {"_$run$", "$p$_", "_term$ loss"} <= shown[losses]
    assert not any("<script" in text or "\x1b" in text for text in shown)

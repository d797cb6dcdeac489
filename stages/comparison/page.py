"""The look of the report: one HTML page with its style inside and nothing from outside."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from data_cache.escaping import html_text
from data_cache.outputs import SEAL

STYLE = """
:root { --ink: #1f2430; --muted: #6b7382; --rule: #e3e6eb; --wash: #f6f7f9; --accent: #2f6db5; }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; color: var(--ink); background: #fff; font: 15px/1.55 -apple-system, "Segoe UI", Inter, Roboto,
  "Helvetica Neue", Arial, "DejaVu Sans", sans-serif; }
main { max-width: 1144px; margin: 0 auto; padding: 56px 32px 96px; }
header { border-bottom: 1px solid var(--rule); padding-bottom: 24px; margin-bottom: 8px; }
h1 { font-size: 30px; line-height: 1.2; font-weight: 650; letter-spacing: -0.015em; margin: 0 0 6px; }
h2 { font-size: 19px; font-weight: 650; letter-spacing: -0.01em; margin: 52px 0 4px; }
h3 { font-size: 14px; font-weight: 600; margin: 24px 0 6px; }
p { margin: 6px 0 14px; max-width: 74ch; }
.facts, .lead, .hint { color: var(--muted); }
.facts { margin: 0; } .hint { font-size: 13.5px; }
.answer { font-size: 17px; line-height: 1.5; margin: 24px 0 0; max-width: 66ch; }
.scroll { overflow-x: auto; margin: 14px 0; }
table { border-collapse: collapse; width: 100%; font-size: 13px; font-variant-numeric: tabular-nums; }
th { font-weight: 550; color: var(--muted); text-align: right; vertical-align: bottom; padding: 4px 8px;
  line-height: 1.3; border-bottom: 1px solid #c5cad3; }
td { text-align: right; padding: 6px 8px; border-bottom: 1px solid var(--rule); white-space: nowrap; }
tr:first-child th:first-child, td:first-child { text-align: left; padding-left: 0; }
td.text, th.text { text-align: left; }
th.headline { color: var(--ink); } td.headline { font-weight: 650; background: var(--wash); }
tr.baseline td:first-child::after { content: "baseline"; color: var(--muted); font-size: 11.5px; margin-left: 8px;
  border: 1px solid var(--rule); border-radius: 3px; padding: 0 4px; }
.spread { color: var(--muted); font-weight: 400; font-size: 11.5px; margin-left: 2px; }
.absent, td.paper { color: var(--muted); }
.up { color: #22724d; } .down { color: #a8412f; } .even { color: var(--muted); }
.notes { font-size: 13px; color: var(--muted); padding-left: 18px; margin: 10px 0 0; max-width: 96ch; }
.notes li { margin: 3px 0; }
figure { margin: 14px 0; } figure svg { width: 100%; height: auto; display: block; }
figure svg text { font-family: inherit !important; }
figure img { max-width: 100%; height: auto; display: block; }
.heat td { text-align: center; border: 2px solid #fff; padding: 5px 6px; min-width: 52px; }
.heat td:first-child { text-align: left; } .heat th { text-align: center; border: 0; }
.heat th:first-child { text-align: left; }
.budget { display: grid; grid-template-columns: max-content 1fr max-content; gap: 5px 14px; align-items: center;
  font-size: 13px; margin: 14px 0; font-variant-numeric: tabular-nums; }
.budget .bar { display: flex; height: 18px; }
.budget .bar span { background: #b9c9de; border-right: 2px solid #fff; font-size: 11px; line-height: 18px;
  overflow: hidden; padding-left: 6px; color: #24405f; white-space: nowrap; }
.budget .bar span.depth { background: #efcfb3; color: #6d3b12; }
.budget .bar span.joint { background: #c6dccf; color: #1f4e39; }
.budget .total { color: var(--muted); text-align: right; }
pre { background: var(--wash); border: 1px solid var(--rule); border-radius: 5px; padding: 12px 14px; font: 12.5px/1.6
  ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; overflow-x: auto; margin: 10px 0; }
@media print {
  main { padding: 0; max-width: none; }
  h2 { break-after: avoid; }
  figure, table { break-inside: avoid; }
}
"""

PHASE_KINDS = ("depth", "joint")
"""Phases that have a colour of their own in the style."""


class Cell(NamedTuple):
    """One cell of a table, as HTML, with its class and style."""

    html: str
    kind: str = ""
    style: str = ""


def build_table_element(
    heads: Sequence[Cell], rows: Sequence[Sequence[Cell]], *, kind: str = "", row_kinds: Sequence[str] = ()
) -> str:
    """Return a table that scrolls by itself where the window is narrow; ``row_kinds`` are the classes of the rows."""
    kinds = row_kinds or [""] * len(rows)
    body = "".join(_build_row("td", cells, of_row) for cells, of_row in zip(rows, kinds, strict=True))
    return (
        f'<div class="scroll"><table{_attribute("class", kind)}><thead>{_build_row("th", heads)}</thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _build_row(tag: str, cells: Sequence[Cell], kind: str = "") -> str:
    content = "".join(
        f"<{tag}{_attribute('class', cell.kind)}{_attribute('style', cell.style)}>{cell.html}</{tag}>" for cell in cells
    )
    return f"<tr{_attribute('class', kind)}>{content}</tr>"


def _attribute(name: str, value: str) -> str:
    return f' {name}="{html_text(value)}"' if value else ""


def build_page(title: str, facts: str, sections: list[str]) -> str:
    """Return a whole HTML document; title and facts are plain text, sections are HTML."""
    return "\n".join(
        (
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            f'<meta name="viewport" content="width=device-width, initial-scale=1">\n{SEAL}',
            f"<title>{html_text(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>",
            f'<header><h1>{html_text(title)}</h1><p class="facts">{html_text(facts)}</p></header>',
            *sections,
            "</main>\n</body>\n</html>\n",
        )
    )


def build_section(title: str, hint: str, *content: str) -> str:
    """Return a section under a heading and one explaining sentence; title and hint are plain text."""
    explained = f'<p class="hint">{html_text(hint)}</p>' if hint else ""
    return f"<section><h2>{html_text(title)}</h2>{explained}{''.join(content)}</section>"


def build_figure(content: str, label: str) -> str:
    """Return a figure that is also described in words for those who cannot see it."""
    return f'<figure role="img" aria-label="{html_text(label)}">{content}</figure>'

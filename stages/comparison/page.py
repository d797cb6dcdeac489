"""The form of the report: one HTML page with style and script inside it, which may load nothing from outside."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from typing import NamedTuple

from data_cache.escaping import html_text
from data_cache.outputs import SEAL
from stages.comparison.style import SCRIPT, STYLE


class Cell(NamedTuple):
    """One cell of a table, as HTML, with its class, style, and what it is sorted by where that is not its text."""

    html: str
    kind: str = ""
    style: str = ""
    sort: str | None = None


class Section(NamedTuple):
    """A part of the page under a heading."""

    title: str
    html: str


def build_table_element(
    heads: Sequence[Cell], rows: Sequence[Sequence[Cell]], *, kind: str = "", row_kinds: Sequence[str] = ()
) -> str:
    """Return a table that scrolls by itself where the window is narrow; ``row_kinds`` are the classes of the rows."""
    kinds = row_kinds or [""] * len(rows)
    body = "".join(_build_row("td", cells, of_row) for cells, of_row in zip(rows, kinds, strict=True))
    return (
        f'<div class="scroll" tabindex="0" role="group" aria-label="table, scrolls sideways">'
        f"<table{_attribute('class', kind)}><thead>{_build_row('th', heads)}</thead><tbody>{body}</tbody></table></div>"
    )


def _build_row(tag: str, cells: Sequence[Cell], kind: str = "") -> str:
    content = "".join(
        f"<{tag}{_attribute('class', cell.kind)}{_attribute('style', cell.style)}"
        f"{'' if cell.sort is None else _attribute('data-sort', cell.sort, even_empty=True)}>{cell.html}</{tag}>"
        for cell in cells
    )
    return f"<tr{_attribute('class', kind)}>{content}</tr>"


def _attribute(name: str, value: str, *, even_empty: bool = False) -> str:
    return f' {name}="{html_text(value)}"' if value or even_empty else ""


def build_page(
    title: str, opening: str, sections: Sequence[Section], *, style: str = STYLE, script: str = SCRIPT
) -> str:
    """Return a whole HTML document; the title is plain text, opening and sections are HTML.

    Browsers let the page show what is in it, and run this one script; whatever a name may hold.
    """
    trusted = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{trusted}'"
    ids = [re.sub(r"[^a-z]+", "-", section.title.lower()).strip("-") for section in sections]
    links = "".join(f'<a href="#{name}">{html_text(at.title)}</a>' for name, at in zip(ids, sections, strict=True))
    return "\n".join(
        (
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
            f'<meta name="viewport" content="width=device-width, initial-scale=1">\n{SEAL}',
            f"<title>{html_text(title)}</title>\n<style>{style}</style>\n</head>\n<body>\n<main>",
            f"<header><h1>{html_text(title)}</h1>{opening}<nav>{links}</nav></header>",
            *(
                f'<section id="{name}"><h2>{html_text(section.title)}</h2>{section.html}</section>'
                for name, section in zip(ids, sections, strict=True)
            ),
            f"</main>\n<script>{script}</script>\n</body>\n</html>\n",
        )
    )


def build_section(title: str, hint: str, *content: str) -> Section:
    """Return a section with one explaining sentence; title and hint are plain text."""
    return Section(title, (f'<p class="hint">{html_text(hint)}</p>' if hint else "") + "".join(content))


def build_figure(content: str, caption: str) -> str:
    """Return a figure under its caption, which is plain text."""
    return f"<figure><figcaption>{html_text(caption)}</figcaption>{content}</figure>"


def build_details(summary: str, *content: str) -> str:
    """Return what is shown when a reader asks for it; the summary is plain text."""
    return f"<details><summary>{html_text(summary)}</summary>{''.join(content)}</details>"


def build_list(lines: Sequence[str]) -> str:
    """Return sentences of plain text as a list of notes; nothing where there is none."""
    items = "".join(f"<li>{html_text(line)}.</li>" for line in lines)
    return f'<ul class="notes">{items}</ul>' if items else ""


def embed_image(data: bytes, words: str, *, kind: str = "") -> str:
    """Return a PNG or JPEG inside the page, described in words."""
    form = "png" if data.startswith(b"\x89PNG") else "jpeg"
    source = f"data:image/{form};base64,{base64.b64encode(data).decode('ascii')}"
    return f'<img{_attribute("class", kind)} alt="{html_text(words)}" src="{source}">'

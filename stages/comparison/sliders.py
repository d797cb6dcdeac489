"""One self-contained page of photographs, each with a slider between it and what a model sees in it.

Imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from data_cache.escaping import html_text
from stages.comparison.page import Section, build_list, build_page, build_section, embed_image
from stages.comparison.style import STYLE

LARGEST_PAGE = 200
"""Slides of one page; browsers keep all of its pictures in memory."""
LEAST_SHARE = 0.001
"""Smaller shares of an image are not listed beside it."""

_STYLE = """
.slides { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 500px), 1fr)); gap: 36px 32px; }
.slides figure { margin: 0; min-width: 0; } .slides figcaption { margin-bottom: 8px; }
.slides figcaption b { color: var(--ink); font-weight: 600; }
.compare { --at: 50%; position: relative; overflow: hidden; border-radius: 6px; background: var(--wash); }
.compare img { display: block; width: 100%; height: auto; }
.compare .seen { position: absolute; inset: 0; height: 100%; clip-path: inset(0 0 0 var(--at)); }
.compare::before { content: ""; position: absolute; z-index: 1; top: 0; bottom: 0; left: var(--at); width: 2px;
  margin-left: -1px; background: #fff; box-shadow: 0 0 0 1px rgba(20, 24, 30, 0.45); pointer-events: none; }
.compare::after { content: "↔"; position: absolute; z-index: 1; top: 50%; left: var(--at); width: 34px; height: 34px;
  margin: -17px 0 0 -17px; border-radius: 50%; background: #fff; color: #1b212c; text-align: center; line-height: 33px;
  box-shadow: 0 0 0 1px rgba(20, 24, 30, 0.45); pointer-events: none; }
.compare input { position: absolute; z-index: 2; inset: 0; width: 100%; height: 100%; margin: 0; opacity: 0;
  cursor: ew-resize; touch-action: pan-y; }
.compare:has(input:focus-visible) { outline: 3px solid var(--s1); outline-offset: 2px; }
.compare span { position: absolute; bottom: 8px; padding: 1px 8px; border-radius: 4px; font-size: 0.75rem; color: #fff;
  background: rgba(20, 24, 30, 0.72); pointer-events: none; }
.compare .left { left: 8px; } .compare .right { right: 8px; }
.stack { display: flex; height: 8px; margin: 10px 0 0; border-radius: 4px; overflow: hidden; background: var(--faint); }
.stack i { background: var(--s); }
.legend b { font-weight: 500; font-variant-numeric: tabular-nums; color: var(--muted); margin-left: 6px; }
@media print { .compare input, .compare::after { display: none; } }
"""
_SCRIPT = """
for (const input of document.querySelectorAll(".compare input")) {
  const show = () => {
    input.parentElement.style.setProperty("--at", input.value + "%");
    input.setAttribute("aria-valuetext", input.value + " percent photograph");
  };
  input.addEventListener("input", show);
  show();
}
"""
"""Without it every slider stands in the middle."""


class Slide(NamedTuple):
    """A photograph and the same tinted by class."""

    name: str
    about: str
    """In small print: its size, a frame's moment."""
    photo: bytes
    """PNG or JPEG."""
    seen: bytes
    """Of the same size."""
    shares: Mapping[str, float]
    """Class → share of the pixels."""


def build_sliders(
    slides: Sequence[Slide],
    *,
    title: str,
    facts: str,
    colours: Mapping[str, tuple[int, int, int]],
    failures: Sequence[str] = (),
    notes: Sequence[str] = (),
) -> str:
    """Return the whole page; all words are plain text.

    Args:
        facts: a sentence on where the predictions come from.
        colours: class → the colour that it has in the pictures.
        failures: a sentence for each image that is missing.
        notes: sentences on what else a reader should know.
    """
    mean = {name: sum(slide.shares[name] for slide in slides) / max(len(slides), 1) for name in colours}
    opening = f'<p class="facts">{html_text(facts)}</p>{_build_legend(mean, colours)}{build_list(notes)}'
    figures = "".join(_build_slide(slide, colours) for slide in slides)
    hint = "Drag, or focus a picture and press the arrow keys: photograph on the left, classes on the right."
    sections = [build_section("Pictures", hint, f'<div class="slides">{figures}</div>')]
    if failures:
        sections.append(Section("Not predicted", build_list(failures)))
    return build_page(title, opening, sections, style=STYLE + _STYLE, script=_SCRIPT)


def _build_slide(slide: Slide, colours: Mapping[str, tuple[int, int, int]]) -> str:
    name = html_text(slide.name)
    shares = dict(sorted(slide.shares.items(), key=lambda pair: -pair[1]))
    parts = "".join(f'<i style="--s:{_css(colours[each])};flex:{share:.4f}"></i>' for each, share in shares.items())
    return (
        f"<figure><figcaption><b>{name}</b> {html_text(slide.about)}</figcaption>"
        f'<div class="compare">{embed_image(slide.photo, slide.name)}'
        f"{embed_image(slide.seen, f'{slide.name}, tinted by class', kind='seen')}"
        '<span class="left">photo</span><span class="right">classes</span>'
        f'<input type="range" min="0" max="100" value="50" aria-label="{name}: photograph or classes"></div>'
        f'<div class="stack" aria-hidden="true">{parts}</div>'
        f"{_build_legend({each: share for each, share in shares.items() if share >= LEAST_SHARE}, colours)}</figure>"
    )


def _build_legend(shares: Mapping[str, float], colours: Mapping[str, tuple[int, int, int]]) -> str:
    items = "".join(
        f'<li><i class="chip colour" style="--s:{_css(colours[name])}"></i>{html_text(name)}<b>{share:.1%}</b></li>'
        for name, share in shares.items()
    )
    return f'<ul class="legend">{items}</ul>'


def _css(colour: tuple[int, int, int]) -> str:
    return f"rgb({colour[0]},{colour[1]},{colour[2]})"

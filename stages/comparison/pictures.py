"""What the report shows that is no number of a table: images, depth maps, proofs of exports. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from data_cache.escaping import html_text
from stages.comparison.page import Section, build_details, build_section, embed_image


class Picture(NamedTuple):
    """A small image and the words under it."""

    caption: str
    data: bytes
    """PNG or JPEG."""
    is_labels: bool = False
    """Whether its colours are classes, so that it is enlarged without blending them."""


class Strip(NamedTuple):
    """Pictures of one image of the data."""

    title: str
    pictures: tuple[Picture, ...]


class Illustrations(NamedTuple):
    """What a report shows beside its table; where something is missing, the words say why."""

    strips: tuple[Strip, ...] = ()
    about_strips: str = ""
    legends: tuple[tuple[tuple[str, tuple[int, int, int]], ...], ...] = ()
    """What colours stand for: classes, and where two rows differ."""
    maps: tuple[Picture, ...] = ()
    """Images of a depth store beside their depth."""
    about_maps: str = ""
    proofs: Mapping[str, Sequence[tuple[str, str]]] = {}
    """Export → what was proven of it, and the finding."""


def build_image_section(shown: Illustrations) -> Section:
    """Return the best, median and worst images with what each row made of them."""
    chips = (
        "".join(
            f'<li><i class="chip colour" style="--s:rgb({red},{green},{blue})"></i>{html_text(name)}</li>'
            for name, (red, green, blue) in legend
        )
        for legend in shown.legends
    )
    legends = (f'<ul class="legend">{items}</ul>' for items in chips)
    strips = (f"<h3>{html_text(strip.title)}</h3>{_build_tiles(strip.pictures)}" for strip in shown.strips)
    return build_section("Images", shown.about_strips, *legends, *strips)


def build_store_section(shown: Illustrations) -> Section | None:
    """Return a contact sheet of the depth that was learned; None where there is none."""
    if not shown.about_maps:
        return None
    return build_section("Pseudo depth", shown.about_maps, _build_tiles(shown.maps, "tiles pairs"))


def build_proof_section(shown: Illustrations) -> Section | None:
    """Return what was proven of the exports of the runs; None where none was exported."""
    if not shown.proofs:
        return None
    lists = (
        build_details(name, "<dl>", *(f"<dt>{html_text(a)}</dt><dd>{html_text(b)}</dd>" for a, b in facts), "</dl>")
        for name, facts in shown.proofs.items()
    )
    hint = "Models without their depth branch, as proven when they were written."
    return build_section("Exports", hint, *lists)


def _build_tiles(pictures: Sequence[Picture], kind: str = "tiles") -> str:
    tiles = (
        f"<figure>{embed_image(picture.data, picture.caption, kind='labels' if picture.is_labels else '')}"
        f"<figcaption>{html_text(picture.caption)}</figcaption></figure>"
        for picture in pictures
    )
    return f'<div class="{kind}">{"".join(tiles)}</div>' if pictures else ""

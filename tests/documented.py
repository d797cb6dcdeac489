"""What README and the pages of docs say to type: the parser of their code blocks, inline code, links and headings."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
PAGES = (
    "README.md", "docs/own-data.md", "docs/teachers.md", "docs/schedules.md", "docs/commands.md", "docs/export.md",
    "docs/extending.md", "docs/networks.md", "docs/clusters.md", "docs/results.md", "docs/speed.md",
    "docs/reliability.md", "docs/house.md", "docs/bad-input.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md",
)  # fmt: skip
"""In the order in which their commands are run."""
PROGRAMS = ("pipeline", "make", "python", "pip", "pytest", "torchrun", "srun")
_FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)


class Command(NamedTuple):
    """A line that a page says to type."""

    page: str
    words: tuple[str, ...]

    def __str__(self) -> str:
        return shlex.join(self.words)


class Block(NamedTuple):
    """A fenced block of a page."""

    page: str
    language: str
    text: str

    @property
    def file(self) -> str | None:
        """Name of the file that the block shows, which its first line says as a comment."""
        found = re.match(r"# ([\w-]+\.\w+)\n", self.text)
        return found[1] if found else None

    def commands(self) -> Iterator[Command]:
        """Yield the lines that begin with a program; others are what a screen, a folder or a file shows."""
        for line in self.text.replace("\\\n", " ").splitlines():
            if line.split(" ")[0] in PROGRAMS:
                yield Command(self.page, tuple(shlex.split(line, comments=True)))


def read_page(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf8")


def find_blocks(page: str) -> list[Block]:
    """Return the fenced blocks of a page."""
    return [Block(page, language, text) for _, language, text in _FENCE.findall(read_page(page))]


def find_inline_commands(page: str) -> Iterator[Command]:
    """Yield what stands between backticks and begins with a program; … and words in brackets leave something open."""
    prose = " ".join(_FENCE.sub("", read_page(page)).split())
    for code in re.findall(r"`([^`]+)`", prose):
        if code.split(" ")[0] in PROGRAMS and " " in code and not re.search(r"…|\[\w|\\\|", code):
            yield Command(page, tuple(shlex.split(code)))


def find_links(page: str) -> list[str]:
    """Return the targets of a page's links and pictures that are no addresses."""
    prose = re.sub(r"`[^`\n]*`", "", _FENCE.sub("", read_page(page)))
    return [target for target in re.findall(r"\]\(([^)\s]+)\)", prose) if "://" not in target]


def find_anchors(page: str) -> set[str]:
    """Return what links to the headings of a page end with: small letters, hyphens for spaces, no punctuation."""
    headings = re.findall(r"^#+ (.+)$", _FENCE.sub("", read_page(page)), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}

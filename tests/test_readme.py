"""The README's tables are what the code says. Rewrite them with: python tests/test_readme.py"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from data_cache.errors import UserError
from pipeline.listing import list_schedules
from stages.networks import NETWORKS, build_network, count_parameters, network_options
from stages.networks.parts import Part
from stages.training.transfer import plan_copy

README = Path(__file__).parent.parent / "README.md"
NUM_CLASSES = 21


def schedule_lines() -> Iterator[str]:
    yield "| row | steps | from | paper mIoU |"
    yield "|---|---|---|---:|"
    for row in list_schedules().json["schedules"]:
        yield f"| `{row['name']}` | {' · '.join(row['steps'])} | {row['origin']} | {row['paper'].get('miou', '')} |"


def network_lines() -> Iterator[str]:
    yield f"| name | what | parameters, {NUM_CLASSES} classes, shipped | with depth branch | tensors a copy carries |"
    yield "|---|---|---:|---:|---:|"
    for name, entry in NETWORKS.items():
        options = {"encoder_weights": "none"} if "encoder_weights" in network_options(name) else {}
        with torch.device("meta"):
            full = build_network(name, NUM_CLASSES, **options)
            shipped = build_network(name, NUM_CLASSES, with_depth=False, **options)
        try:
            copied = str(len(plan_copy(full, Part.DEPTH_DECODER, Part.SEG_DECODER).copied))
        except UserError:
            copied = "none"
        counts = f"{count_parameters(shipped):,} | {count_parameters(full):,}"
        yield f"| `{name}` | {entry.summary} | {counts} | {copied} |"


BLOCKS = {"schedules": schedule_lines, "networks": network_lines}


def block(text: str, name: str) -> tuple[int, int]:
    """Return where a generated block of the README begins and ends, markers left out."""
    start = text.index(f"<!-- {name} -->") + len(f"<!-- {name} -->\n")
    return start, text.index(f"<!-- /{name} -->")


@pytest.mark.parametrize("name", BLOCKS)
def test_the_readme_says_what_the_code_says(name: str) -> None:
    text = README.read_text(encoding="utf8")
    start, end = block(text, name)
    assert text[start:end].splitlines() == list(BLOCKS[name]()), "run: python tests/test_readme.py"


if __name__ == "__main__":
    for marker, lines in BLOCKS.items():
        written = README.read_text(encoding="utf8")
        first, last = block(written, marker)
        README.write_text(written[:first] + "\n".join([*lines(), ""]) + written[last:], encoding="utf8")

"""All classes of bad input, in the order in which docs/bad-input.md shows them."""

from __future__ import annotations

import importlib
from pathlib import Path

from tests.bad_input.world import Case

CLASSES = {
    "images": "Images",
    "labels": "Labels",
    "own_files": "Folders that are looked at",
    "annotations": "Annotations of other tools",
    "pools": "Few masks, many images",
    "depth_stores": "Depth stores",
    "records": "Records and weights of our own",
    "exports": "Exports",
    "estimators": "Estimators and devices",
    "outputs": "Where results are written",
    "recipes": "Recipes and flags",
    "plugins": "Networks and datasets of others",
    "many_rows": "Many processes and machines",
    "names": "Names as text",
    "leftovers": "What killed processes leave behind",
}
"""Module beside this one → heading."""


def all_cases() -> list[tuple[str, Case]]:
    """Return heading and case of every class."""
    return [
        (heading, case)
        for module, heading in CLASSES.items()
        if (Path(__file__).parent / f"{module}.py").exists()
        for case in importlib.import_module(f"tests.bad_input.{module}").CASES
    ]

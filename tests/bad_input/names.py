"""Names of files, folders and classes that are no plain words: shown as they are, and doing nothing."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.bad_input.world import Answer, Case, World

Prepare = Callable[[World], Sequence[str | Path]]
NOT_UTF8 = os.fsdecode(b"caf\xe9 \xff")
ODD = "[red]$x$ \\ =1\n\x1b[31m"
CLASSES = ("[bold]street[/bold] $x^2$ \\input{a} _%", "=1+1 도로 \u202e\x1b[31m<b>")
UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u202e\ud800-\udfff]")
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii",
         "TERM": "dumb", "COLUMNS": "20", "NO_COLOR": "1"}  # fmt: skip


def _move(name: str, *words: str) -> Prepare:
    """Return a command on the data of the world, moved to a folder of this name."""

    def prepare(world: World) -> Sequence[str | Path]:
        moved = world.root / name
        world.data.rename(moved)
        return [words[0], "--recipe", world.recipe, "--data-root", moved, *words[1:]]

    return prepare


def _recipe(name: str) -> Prepare:
    return lambda world: ["plan", "--recipe", world.recipe.rename(world.root / f"{name}.toml")]


def _workdir(name: str) -> Prepare:
    def prepare(world: World) -> Sequence[str | Path]:
        return ["--workdir", world.work.rename(world.root / name), *world.with_recipe("run", "--schedule", "seg-only")]

    return prepare


def _classes(*words: str) -> Prepare:
    """Return a command after the classes, in the data and in what was trained on them, were called otherwise."""

    def prepare(world: World) -> Sequence[str | Path]:
        (world.data / "classes.txt").write_text("\n".join(CLASSES) + "\n")
        return [word.format(data=world.data, recipe=world.recipe) for word in words]

    return prepare


def _plain(_: World, answer: Answer) -> None:
    shown = answer.stdout + answer.stderr
    assert not UNPRINTABLE.search(shown), "nothing of a name is obeyed by a terminal"
    shown.encode()


def _class_names(world: World, answer: Answer) -> None:
    _plain(world, answer)
    assert list(answer.json["classes"]["train"]) == list(CLASSES)


def _record_is_json(world: World, answer: Answer) -> None:
    _plain(world, answer)
    record = json.loads((Path(answer.json["folder"]) / "run.json").read_bytes().decode())
    assert NOT_UTF8 in record["config"]["data"]["root"]


def _scored(world: World, answer: Answer) -> None:
    _plain(world, answer)
    per_class = json.loads((Path(answer.json["folder"]) / "run.json").read_text())["per_class"]
    assert [found["name"] for found in per_class] == list(CLASSES)
    assert (Path(answer.json["folder"]) / "panels").is_dir()


def _ascii(*words: str) -> Case:
    return Case(
        f"an ASCII terminal of 20 columns: {' '.join(words)}",
        lambda world: [word.format(data=world.data) for word in words],
        (),
        exit=0,
        check=lambda _, answer: (answer.stdout + answer.stderr).encode("ascii"),
        environment=ASCII,
    )


CASES = [
    # where data, recipe, work directory and results lie
    Case("data in a folder whose name is not UTF-8", _move(NOT_UTF8, "run", "--schedule", "seg-only"), (), exit=0,
         check=_record_is_json),
    Case("data in a folder called like markup and escapes", _move(ODD, "run", "--schedule", "seg-only"), (), exit=0,
         check=_plain),
    Case("a folder of data that is missing, called like markup", lambda _: ["datasets", "folder", "--data-root", ODD],
         ("[red]$x$", "no folder"), check=_plain),
    Case("a recipe whose name is not UTF-8", _recipe(NOT_UTF8), (), exit=0, check=_plain),
    Case("a recipe called like markup and escapes", _recipe(ODD), (), exit=0, check=_plain),
    Case("a missing recipe called like escapes", lambda _: ["plan", "--recipe", "\x1b[31m[/red].toml"],
         ("cannot read recipe", "[/red].toml"), check=_plain),
    Case("a work directory whose name is not UTF-8", _workdir(NOT_UTF8), (), exit=0, check=_plain),
    Case("a work directory called like markup and escapes", _workdir(ODD), (), exit=0, check=_plain),
    Case("a work directory that is a file", lambda world: ["--workdir", world.user / "notes.txt", *world.with_recipe(
        "plan", "--schedule", "seg-only")], ("notes.txt", "choose another place")),
    Case("a work directory in /proc", lambda _: ["--workdir", "/proc/work", "run"],
         ("/proc/work", "--workdir")),
    Case("a report into a folder whose name is not UTF-8",
         lambda world: ["report", "--out", world.root / NOT_UTF8 / "[red].html"], (), exit=0, check=_plain),
    Case("an export into a folder whose name is not UTF-8",
         lambda world: ["export", "--out", world.root / NOT_UTF8, "--formats", "safetensors", "--no-benchmark"],
         (), exit=0,
         check=_plain),
    Case("predictions into a folder whose name is not UTF-8",
         lambda world: ["predict", world.export, world.user / "photo.png", "--out", world.root / NOT_UTF8], (), exit=0,
         check=_plain),
    # classes
    Case("classes called like markup, LaTeX, formulas, CJK: doctor",
         _classes("datasets", "folder", "--data-root", "{data}"), (), exit=0, check=_class_names),
    Case("classes called like markup, LaTeX, formulas, CJK: training and panels",
         _classes("run", "--recipe", "{recipe}", "--schedule", "seg-only"), (), exit=0, check=_scored),
    # names that a person gives
    *(
        Case(f"an unknown {what} called like escapes and markup", lambda _, words=words: words, ("unknown",),
             check=_plain)
        for what, words in {
            "dataset": ["datasets", ODD],
            "table": ["table", ODD],
            "baseline": ["compare", "--baseline", ODD],
            "network": ["plan", "--network", ODD],
            "convention": ["evaluate", "any", "--conventions", ODD],
            "recipe": ["plan", "--recipe", ODD],
        }.items()
    ),
    Case("a run whose name is not UTF-8", lambda _: ["compare", NOT_UTF8], ("is no run", "seg-only"), check=_plain),
    Case("an image to predict whose name is not there, with escapes",
         lambda world: ["predict", world.export, ODD, "--out", world.root / "p"], ("[red]$x$",), check=_plain),
    # what a terminal has
    _ascii("compare"),
    _ascii("datasets", "folder", "--data-root", "{data}"),
    _ascii("recipes", "--keys"),
]  # fmt: skip

"""Commands in README and docs exist, those that need nothing but time and drawings are run, links lead somewhere."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

import click
import numpy as np
import pytest
from PIL import Image

from data_cache.errors import UserError
from pipeline.cli import cli
from tests.bad_input.world import Answer
from tests.data_cache.annotation_files import build_coco, draw_photo, write_labelme, write_photos
from tests.documented import PAGES, PROGRAMS, ROOT, Command, find_anchors, find_blocks, find_inline_commands, find_links
from tests.stages.evaluation.test_film import film

TINY = ROOT / "tests" / "pipeline" / "tiny.toml"
BLOCKS = [block for page in PAGES for block in find_blocks(page)]
COMMANDS = list({str(command): command for block in BLOCKS for command in block.commands()}.values())
INLINE = list({str(command): command for page in PAGES for command in find_inline_commands(page)}.values())
TARGETS = re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(encoding="utf8"), re.MULTILINE)
VARIABLES = {"RECIPE", "DATA_ROOT", "ARGS", "WORKDIR", "RUN", "PYTHON"}

NOT_RUN = {
    r"(make|torchrun|srun) .*": "installs, or starts several processes; tests/pipeline/test_job.py has those of a job",
    r"pipeline .*--recipe (camvid|camvid-small|edge) .*": "needs CamVid",
    r"pipeline (fetch|pseudo-depth) .*depth-anything-v2-small.*": "needs a network",
    r"pipeline advise .*": "measures encoders for half a minute; tests/pipeline/test_advise.py",
    r"pipeline table (fcn8s|mff|bisenet|label-fraction|docs/).*": "many trainings; tests/pipeline/test_plan.py",
    r"pipeline pseudo-depth .*--set depth.input_size=42": "needs the teacher's own size; only the table above reads it",
    r"pipeline table schedules --seeds 0,1,2": "many trainings; tests/pipeline/test_results.py trains some of them",
    r"pipeline table schedules --recipe demo --seeds 0,1,2": "the same",
    r"pipeline table schedules --jobs 2": "starts processes; tests/pipeline/test_many_rows.py",
    r"pipeline table schedules --wait": "the same",
    r"pipeline table schedules --on ray": "starts a cluster; tests/pipeline/test_on_ray.py",
    r"pipeline predict MODEL 0 --out live": "needs a camera; tests/stages/evaluation/test_film.py",
    r"pipeline export .*(int8|pt2|executorch).*": "compresses for minutes; tests/stages/export/test_quantisation.py",
    r"pipeline export --web page --overwrite": "needs ONNX Runtime Web from npm; tests/stages/export/test_web_page.py",
    r"pipeline export --embed-preprocess --overwrite": "tests/stages/export/test_embedded_file.py has it",
    r"pipeline export --push-to-hub OWNER/NAME --dry-run": "exports once more; tests/pipeline/test_commands.py",
    r"pipeline benchmark EXPORT --threads 2": "starts processes that take turns; tests/pipeline/test_commands.py",
}
"""Documented commands, as patterns, that this test does not run -> why, and where the same is tested."""
SMALL = {
    "export": "--no-benchmark",
    "export --out": "--formats safetensors",
    "select": "--budget 5 --by depth-map",
    "pseudo-depth --recipe plain.toml": "--set data.options.counts={train=8,val=4,test=4}",
    "run --recipe plain.toml": (
        "--set data.options.counts={train=8,val=4,test=4} --iterations 1 --batch-size 2 --encoder tu-test_resnet "
        "--set evaluation.panels=0"
    ),
    "run --recipe mine.toml": "--iterations 1 --encoder tu-test_resnet --set evaluation.panels=0",
    "run --network unet-classic": "--set network.width=4",
}
"""What is added to commands that begin so, or in the place of their own options."""
OF_RECIPES = ("run", "pseudo-depth", "plan", "table", "select", "cache preview")
"""Commands that take the demo's recipe where they name none."""


def parse(words: Sequence[str], command: click.Command = cli, parent: click.Context | None = None) -> click.Context:
    """Return the context of the last command that some words name, without calling any."""
    context = command.make_context(words[0], list(words[1:]), parent=parent)
    if isinstance(command, click.Group):
        rest = command.make_parser(context).parse_args(list(words[1:]))[1]
        if rest or not command.invoke_without_command:
            name, subcommand, rest = command.resolve_command(context, rest or [""])
            assert name and subcommand
            return parse([name, *rest], subcommand, context)
    return context


def check_words(words: Sequence[str]) -> None:
    """Raise what the command line would, or an AssertionError."""
    program, *rest = words
    if program == "pipeline" and len(rest) == 1:
        assert rest[0] in (*cli.commands, "--help"), "of which a page speaks, without saying what it takes"
    elif program == "pipeline" and rest[-1] != "--help":
        try:
            parse(words)
        except UserError as problem:
            assert "pip install '.[" in str(problem), "an extra that is not installed here"
    elif program == "make":
        assert rest[0] in TARGETS and {word.partition("=")[0] for word in rest[1:]} <= VARIABLES
    elif program in ("python", "torchrun"):
        if "-m" in rest:
            module = rest[rest.index("-m") + 1]
            assert find_spec(module), module
            if module == "pipeline" and rest[-1] != "…":
                parse(rest[rest.index("-m") + 1 :])
    elif program == "pytest":
        assert all((ROOT / word).exists() for word in rest)
    elif program == "pip":
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        assert rest[0] == "install" and set(re.findall(r"\w+", rest[1])) <= extras.keys()


def test_documented_commands_exist_with_their_options() -> None:
    problems = []
    for command in (*COMMANDS, *INLINE):
        try:
            check_words(command.words)
        except (click.ClickException, AssertionError) as problem:
            problems.append(f"{command.page}: {command}: {problem}")
    assert not problems


@pytest.mark.parametrize(
    "words", ["pipeline rum", "pipeline run --schedul x", "pipeline cache inf", "pipeline init --out a"]
)
def test_the_parser_sees_what_is_wrong(words: str) -> None:
    with pytest.raises((click.ClickException, AssertionError)):
        check_words(words.split())


def test_commands_are_found_and_none_is_excused_in_vain() -> None:
    assert (
        {"pipeline", "make", "python", "torchrun", "srun"} <= {command.words[0] for command in COMMANDS} <= {*PROGRAMS}
    )
    found = [str(command) for command in COMMANDS]
    assert len(found) > 50
    for pattern, reason in NOT_RUN.items():
        assert any(re.fullmatch(pattern, each) for each in found), f"nothing documented is like {pattern}"
        assert all((ROOT / named).exists() for named in re.findall(r"tests/[\w/]+\.py", reason)), reason


def test_links_lead_to_pages_and_headings() -> None:
    for page, target in ((each, target) for each in PAGES for target in find_links(each)):
        file, _, anchor = target.partition("#")
        goal = (ROOT / page).parent / file if file else ROOT / page
        assert goal.exists(), f"{page}: {target}"
        assert not anchor or anchor in find_anchors(goal.resolve().relative_to(ROOT).as_posix()), f"{page}: {target}"


def test_every_page_is_linked_from_readme() -> None:
    pages = {path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.md")}
    assert pages <= set(find_links("README.md")) and pages < set(PAGES)
    assert (ROOT / "README.md").stat().st_size < 12_000, "README stays short; pages of docs have room"


class Reader:
    """Somebody who types what the pages say, in a folder with photos of their own."""

    def __init__(self, folder: Path, call: Callable[..., Answer]) -> None:
        self.folder, self._call = folder, call
        self.work = folder / "work"

    def prepare(self) -> None:
        """Write what the pages take for granted."""
        for number in range(12):
            pixels, mask = draw_photo(number, size=(64, 80))
            for kind, picture in (("images", pixels), ("masks", mask)):
                (self.folder / "my-photos" / kind).mkdir(parents=True, exist_ok=True)
                Image.fromarray(picture).save(self.folder / "my-photos" / kind / f"{number:02d}.png")
            split = "train" if number < 8 else "val"
            for folder, picture in ((split, pixels), (f"{split}_masks", (mask > 0).astype(np.uint8))):
                (self.folder / "flat-data" / folder).mkdir(parents=True, exist_ok=True)
                Image.fromarray(picture).save(self.folder / "flat-data" / folder / f"{number}.png")
        masks = write_photos(self.folder / "photos", 10, size=(64, 80))
        write_labelme(self.folder / "photos", masks)
        (self.folder / "annotations.json").write_text(json.dumps(build_coco(masks)))
        for name in ("photo.jpg", "street.jpg", "folder/a.jpg", "more/b/c.png"):
            (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(draw_photo(1, size=(64, 80))[0]).save(self.folder / name)
        film(self.folder / "film.mp4")
        for block in BLOCKS:
            if block.file:
                (self.folder / block.file).write_text(block.text.replace("epochs = 10", "epochs = 1"))

    def type(self, command: Command) -> Answer:
        """Type a command, on a tiny recipe where it names a large one or none."""
        newest = {kind: sorted((self.work / kind).glob("*"), key=os.path.getmtime) for kind in ("runs", "exports")}
        places = {"RUN": newest["runs"], "MODEL": [*newest["runs"]], "EXPORT": newest["exports"]}
        places["DIR"] = [self.folder / "flat-data"]
        line = " ".join(command.words[1:])
        words = [re.sub(r"^[A-Z]{3,}", lambda name: str(places[name[0]].pop()), word) for word in command.words[1:]]
        words = [str(TINY) if word in ("demo", "scenes-small") else word for word in words]
        if line.startswith(OF_RECIPES) and "--recipe" not in words:
            words += ["--recipe", str(TINY)]
        for beginning, more in SMALL.items():
            words += more.split() if line.startswith(beginning) else []
        if command.words[0] == "python":
            done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False)
            return Answer(done.returncode, done.stdout, done.stderr)
        return self._call(*words, as_json=False)


@pytest.mark.exhaustive
def test_documented_commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Callable[..., Answer]) -> None:
    """One after another, as somebody would who reads the pages from top to bottom."""
    monkeypatch.chdir(tmp_path)
    reader = Reader(tmp_path, call)
    reader.prepare()
    typed = set()
    for block in BLOCKS:
        if block.language == "python":
            text = block.text.replace('"demo"', repr(str(TINY)))
            text = text.replace("export(run)", 'export(run, formats=("safetensors",), benchmark=False)')
            exec(compile(text, block.page, "exec"), {})
        for command in block.commands():
            line = str(command)
            if line in typed or any(re.fullmatch(pattern, line) for pattern in NOT_RUN):
                continue
            typed.add(line)
            answer = reader.type(command)
            assert answer.status == 0, f"{command.page}: {line}\n{answer.stderr}"

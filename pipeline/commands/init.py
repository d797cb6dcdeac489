"""`pipeline init`: look at a folder of images and masks, and write a recipe for it."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.options import GivenPath, overwrite_option

if TYPE_CHECKING:
    from rich.console import Group

    from data_cache.own_files.inspection import Inspection
    from pipeline.experiment.own_recipe import Weights
    from pipeline.experiment.sizing import Machine, Sizing
    from pipeline.session import Result, Session


@click.command()
@click.argument("folder", metavar="DIR", type=GivenPath())
@click.option("--out", required=True, type=GivenPath(), help="The recipe to write, for example mine.toml.")
@overwrite_option
@click.pass_context
def init(ctx: click.Context, folder: Path, out: Path, overwrite: bool) -> None:
    """Look at a folder of images and masks, and write a recipe for it; nothing in the folder is changed.

    Finds images and masks, what the masks' numbers or colours mean, splits, sizes and own depth maps, and says what it
    decided and why. Where nothing says which images are for validation it writes lists beside the recipe.
    """
    workdir = ctx.find_root().params.get("workdir")
    ctx.obj.show(write_recipe(ctx.obj, folder, out, overwrite=overwrite, workdir=workdir))


def write_recipe(
    session: Session, folder: Path, out: Path, *, overwrite: bool = False, workdir: Path | None = None
) -> Result:
    """Inspect a folder and write a recipe sized for this machine.

    Args:
        workdir: as it was given on the command line, for the commands that follow.

    Returns:
        ``recipe``, ``files``, ``found``, ``decided``, ``notes``, ``problems``, ``commands``.

    Raises:
        UserError: what lies there is no dataset, or something else lies at the place of a file.
    """
    from data_cache.errors import UserError
    from data_cache.outputs import Inputs, check_page, write_page
    from data_cache.own_files.inspection import inspect_folder
    from pipeline.experiment.config import load_config
    from pipeline.experiment.own_recipe import format_list, format_recipe
    from pipeline.experiment.sizing import choose_sizes
    from pipeline.session import Result

    if out.suffix != ".toml":
        raise UserError(
            f"--out {out} must end in .toml, by which recipes are known; for example {out.stem or 'mine'}.toml"
        )
    check_page(out, overwrite=overwrite, example="mine.toml")
    Inputs([folder / "any"]).check_outside(out, "--out")
    with session.console.progress(f"looking at {folder}", 100) as advance:
        found = inspect_folder(folder, lambda what, done, total: advance(100 * done // total, what))
    if not found.sizes:
        raise UserError(f"no image with a mask in {folder} can be read; the first problem: {found.problems[0]}")
    machine = describe_machine()
    sizing = choose_sizes(found.sizes, found.images["train"], machine)
    weights = find_weights(found, machine)
    texts = {out.with_suffix(f".{split}.txt"): format_list(split, names) for split, names in found.lists.items()}
    texts[out] = format_recipe(found, sizing, machine, weights, out)
    for path in texts:
        check_page(path, overwrite=overwrite, example="mine.toml")
    for path, text in texts.items():
        write_page(text, path, overwrite=overwrite, on_wait=session.console.info)
    load_config(str(out))
    _add_decisions(found, sizing, weights)
    facts = describe(found, out, list(texts), workdir)
    return Result(facts, render(facts), failed=bool(found.problems))


def describe_machine() -> Machine:
    """Return what will compute here."""
    from pipeline.experiment.devices import find_device
    from pipeline.experiment.sizing import Machine
    from pipeline.threads import count_usable_cpus

    if find_device("auto") == "cpu":
        return Machine(f"{count_usable_cpus()} CPU cores", None)
    import torch

    memory = torch.cuda.mem_get_info()[1]
    return Machine(f"{torch.cuda.get_device_name(0)} ({memory / 1e9:.0f} GB)", memory)


def find_weights(found: Inspection, machine: Machine) -> Weights:
    """Find out which pretrained weights are here, or can be fetched."""
    from data_cache.errors import UserError
    from pipeline.experiment.own_recipe import TEACHER, Weights, choose_depth, choose_encoder
    from stages.networks.encoder_weights import resolve_smp_weights
    from stages.networks.hub import find_hub_problem
    from stages.pseudo_depth.aliases import ESTIMATORS
    from stages.pseudo_depth.weights import is_cached

    problem = find_hub_problem()
    reason = None if problem is None or is_cached(ESTIMATORS[TEACHER]) else problem
    encoder, of_encoder = "imagenet", "features learned from photographs, which a few hundred images cannot teach"
    try:
        if problem is not None:
            resolve_smp_weights(choose_encoder(machine), encoder)
    except UserError:
        encoder, of_encoder = "none", (
            f"no pretrained weights are here and none can be fetched ({problem}); with a connection set "
            'encoder_weights = "imagenet", which learns far more from few images'
        )  # fmt: skip
    return Weights(*choose_depth(found, reason), encoder, of_encoder)


def _add_decisions(found: Inspection, sizing: Sizing, weights: Weights) -> None:
    found.decide("data.crop", f"{sizing.crop[1]} x {sizing.crop[0]} px", sizing.crop_reason)
    found.decide("training.epochs", f"{sizing.epochs}, batches of {sizing.batch_size}", sizing.epochs_reason)
    found.decide("depth.estimator", weights.estimator, weights.estimator_reason)
    found.decide("encoder_weights", weights.encoder, weights.encoder_reason)


def describe(found: Inspection, out: Path, files: list[Path], workdir: Path | None) -> dict[str, Any]:
    """Return what was found and decided, for programs."""
    begin, model = ["pipeline", *(["--workdir", str(workdir)] if workdir else [])], f"{out.with_suffix('')}-model"
    return {
        "recipe": str(out),
        "files": list(map(str, files)),
        "found": {
            "dataset": found.dataset,
            "root": str(found.root),
            "images": found.images,
            "masks": found.masks,
            "classes": list(found.classes),
            "shares": {name: round(share, 6) for name, share in found.shares.items()},
            "sizes": {f"{width} x {height}": count for (height, width), count in found.sizes.most_common(10)},
            "depth": None if found.depth is None else str(found.depth),
            "options": found.options,
        },
        "decided": [decision._asdict() for decision in found.decisions],
        "notes": found.notes,
        "problems": found.problems,
        "commands": [
            shlex.join([*begin, *words])
            for words in (
                ["datasets", "--recipe", str(out)],
                ["pseudo-depth", "--recipe", str(out)],
                ["run", "--recipe", str(out)],
                ["export", "--out", model],
                ["predict", model, str(found.example), "--out", f"{out.with_suffix('')}-predicted"],
            )
        ],
    }


def render(facts: dict[str, Any]) -> Group:
    """Show what was found and decided, for people."""
    from rich.console import Group
    from rich.text import Text

    from pipeline.console import plain_table

    found = facts["found"]
    rows = [[decision["what"], decision["value"], decision["why"]] for decision in facts["decided"]]
    shares = ", ".join(f"{name} {share:.1%}" for name, share in list(found["shares"].items())[:12])
    more = ", …" if len(found["shares"]) > 12 else ""
    return Group(
        plain_table(f"{found['root']}", ["what", "decided", "because"], rows),
        *([Text(f"\nlabelled pixels: {shares}{more}")] if shares else []),
        *(Text(f"note: {note}") for note in facts["notes"]),
        *(Text(f"problem: {problem}") for problem in facts["problems"]),
        Text(f"\nwritten: {', '.join(facts['files'])}"),
        Text("\nnext, once the problems are repaired" if facts["problems"] else "\nnext"),
        *(Text(f"  {command}", no_wrap=True, overflow="ignore") for command in facts["commands"]),  # to be copied
    )

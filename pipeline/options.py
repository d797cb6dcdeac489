"""Options that several commands share; those that set a key of a recipe are made from the settings' declarations."""

from __future__ import annotations

import functools
import math
import os
import re
import sys
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Union, get_args, get_origin

import click

from data_cache.escaping import encodable_text, quoted

if TYPE_CHECKING:
    from pipeline.experiment.config import RunConfig

Command = Callable[..., None]
EVERY_SECTION = ("data", "depth", "network", "training", "schedule", "seed")
"""Sections of a recipe that have flags, for a command that trains."""


class RecipeCommand(click.Command):
    """A command that works on a recipe: it takes the recipe's flags and hands its function the finished ``config``.

    The flags are made when they are first looked at, since the settings need pydantic and ``pipeline --help`` does not.

    Args:
        sections: of the recipe, whose flags the command takes; of two equal flags the later section's holds.
        without: flags of these sections that the command has no use for.
    """

    def __init__(
        self, *args: Any, sections: Sequence[str] = EVERY_SECTION, without: Sequence[str] = (), **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self._sections, self._without = sections, without

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Return the recipe's options in front of the command's own."""
        own = super().get_params(ctx)
        arguments = [parameter for parameter in own if isinstance(parameter, click.Argument)]
        return [*arguments, *self._recipe_options, *(each for each in own if each not in arguments)]

    @functools.cached_property
    def _recipe_options(self) -> list[click.Parameter]:
        chosen = {
            flag.flag: flag
            for flag in _recipe_flags()
            if flag.path.partition(".")[0] in self._sections and flag.flag not in self._without
        }
        return [
            click.Option(
                ["--recipe"], default="demo", show_default=True, help="Bundled recipe or path of a TOML file."
            ),
            *(flag.build() for flag in chosen.values()),
            click.Option(["--set", "assignments"], multiple=True, metavar="KEY=VALUE", help=_SET_HELP),
        ]

    def take_config(self, ctx: click.Context) -> RunConfig:
        """Return the recipe with its overrides, and take their words out of the context."""
        from pipeline.experiment.config import load_config

        given = {name: ctx.params.pop(name) for name in list(ctx.params) if name.startswith(_PREFIX)}
        overrides = {_to_path(name): value for name, value in given.items()}
        if overrides.get("seed") is not None and ctx.params.get("seeds"):
            raise click.UsageError(f"--seed {overrides['seed']} beside --seeds: give one of them")
        assignments, recipe, table = ctx.params.pop("assignments"), ctx.params.pop("recipe"), ctx.params.get("name")
        if table is not None and table.endswith(".toml"):
            from pipeline.experiment.own_tables import choose_recipe

            given_recipe = ctx.get_parameter_source("recipe") is click.core.ParameterSource.COMMANDLINE
            recipe = choose_recipe(Path(table), recipe, given=given_recipe)
        config = load_config(recipe, overrides, assignments)
        asked = [key for key, value in overrides.items() if value is not None]
        asked += [text.partition("=")[0].strip() for text in assignments]
        if "--estimator" not in self._without:
            from pipeline.experiment.config import check_estimator_asked

            check_estimator_asked(config, asked)
        if table is not None:
            from pipeline.experiment.tables import check_asked

            check_asked(table, config, asked)
        return config

    def invoke(self, ctx: click.Context) -> Any:
        """Call the command's function with the finished ``config``."""
        ctx.params["config"] = self.take_config(ctx)
        return super().invoke(ctx)


_PREFIX = "recipe_key_"
_SET_HELP = "Override any key of the recipe (see `pipeline recipes --keys`); none switches an optional one off."


class _Flag(NamedTuple):
    path: str
    flag: str
    annotation: Any
    help: str

    def build(self) -> click.Option:
        name = _PREFIX + self.path.replace(".", "__")
        kind = _find_click_type(self.annotation)
        if kind is bool:
            return click.Option([f"{self.flag}/--no-{self.flag[2:]}", name], default=None, help=self.help)
        return click.Option([self.flag, name], type=kind, help=self.help)


def _to_path(name: str) -> str:
    return name.removeprefix(_PREFIX).replace("__", ".")


def _recipe_flags() -> Iterator[_Flag]:
    from data_cache.settings import find_declaration
    from pipeline.experiment.config import iterate_keys

    for key in iterate_keys():
        declaration = find_declaration(key.field)
        if declaration is not None and declaration.flag is not None:
            help_text = (key.field.description or "").partition("\n\n")[0]
            yield _Flag(key.path, declaration.flag, key.field.annotation, help_text)
            if key.path == "network.name":  # not a field: networks have options of their own
                yield _Flag("network.encoder", "--encoder", str, "Encoder of the network.")


def find_paths(changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return changes of a recipe under dotted keys, of which those with flags may be called like these: ``lr``.

    Raises:
        UserError: a name without dots is no flag's.
    """
    from data_cache.errors import UserError, nearest

    paths = {flag.flag.removeprefix("--").replace("-", "_"): flag.path for flag in _recipe_flags()}
    for name in changes:
        if "." not in name and name not in paths:
            raise UserError(
                f"there is no argument {name!r}{nearest(name, paths)}; keys with flags are {', '.join(paths)}, "
                'all others are given by their path, as in **{"data.crop": (96, 128)}'
            )
    return {paths.get(name, name): value for name, value in changes.items() if value is not None}


def write_options(changes: Mapping[str, Any]) -> list[str]:
    """Return the words of a command line for changes under dotted keys."""
    from pipeline.experiment.toml_text import write_value

    flags, words = {flag.path: flag.flag for flag in _recipe_flags()}, list[str]()
    for key, value in changes.items():
        if key not in flags:
            words += ["--set", f"{key}={write_value(value)}"]
        elif isinstance(value, bool):
            words.append(flags[key] if value else f"--no-{flags[key].removeprefix('--')}")
        else:
            words += [flags[key], str(value)]
    return words


def _find_click_type(annotation: Any) -> Any:
    """Return click's type of a field: choices of a Literal, else its plain type, with or without None or words."""
    if get_origin(annotation) in (Union, types.UnionType):
        kinds = [each for each in get_args(annotation) if each is not type(None)]
        annotation = str if str in kinds else kinds[0]
        if len(kinds) > 1 and annotation is not str:
            return _NumberOr(get_args(kinds[1]))
    return click.Choice(get_args(annotation)) if get_origin(annotation) is Literal else annotation


class _NumberOr(click.ParamType):
    """A whole number, or a word in its place."""

    def __init__(self, words: Sequence[str]) -> None:
        self.words, self.name = words, "|".join(("integer", *words))

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the number or the word, or fail."""
        if value in self.words:
            return value
        try:
            return int(value)
        except ValueError:
            self.fail(f"{quoted(str(value))} is neither a whole number nor {' or '.join(self.words)}", param, ctx)


class _Share(click.FloatRange):
    """A range without NaN, which no comparison refuses."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the number, or fail."""
        if math.isnan(number := super().convert(value, param, ctx)):
            self.fail(f"{value} is not in the range {self._describe_range()}.", param, ctx)
        return number


class EncodableHelp(click.HelpFormatter):
    """Help in letters that stdout can write; click would write UTF-8 to a terminal that has only ASCII."""

    def getvalue(self) -> str:
        """Return the finished page."""
        return encodable_text(super().getvalue(), sys.stdout.encoding)


class LazyChoice(click.Choice):
    """Choices that are looked up in a table or a type when they are first needed.

    Args:
        find: returns them.
    """

    def __init__(self, find: Callable[[], Sequence[str]]) -> None:
        self._find, self.case_sensitive = find, True

    @functools.cached_property
    def choices(self) -> Sequence[str]:  # type: ignore[override]
        """What is possible."""
        return tuple(self._find())


def choices_of(path: str) -> LazyChoice:
    """Return the choices of a recipe's key."""

    def find() -> Sequence[str]:
        from pipeline.experiment.config import iterate_keys

        kinds = {key.path: key.field.annotation for key in iterate_keys()}
        found: click.Choice = _find_click_type(kinds[path])
        return found.choices

    return LazyChoice(find)


def stack(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Make several click options one decorator."""
    return lambda command: functools.reduce(lambda wrapped, option: option(wrapped), reversed(options), command)


class GivenPath(click.Path):
    """A file or folder that a person names: anything but nothing."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the path."""
        text = os.fspath(value)
        if not text.strip() or "\0" in text:
            what = "holds a NUL character" if text.strip() else "is empty"
            self.fail(f"{text!r} {what}; name a file or folder", param, ctx)
        return super().convert(value, param, ctx)


overwrite_option = click.option(
    "--overwrite", is_flag=True, help="Replace files in the way that this program did not write; never its inputs."
)
format_option = click.option(
    "--format", "format_name", help="Of an export folder: the format that runs, for example onnx; default safetensors."
)
device_option = click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, …")
no_reuse_option = click.option("--no-reuse", is_flag=True, help="Train every phase for each run alone.")
seeds_option = click.option(
    "--seeds",
    callback=lambda _ctx, _option, text: parse_seeds(text),
    help="Comma-separated, for example 0,1,2; default the recipe's one, or the table's own "
    "(schedules, fcn8s, label-fraction, depth-pays: 0,1,2).",
)
wait_option = click.option(
    "--wait", is_flag=True, help="Wait for phases, runs and depth stores that other processes are working on."
)
LARGEST_JOBS = 256
spread_options = stack(
    click.option(
        "--jobs",
        type=click.IntRange(1, LARGEST_JOBS),
        default=1,
        show_default=True,
        help="Train in so many processes at once; threads (and GPUs) are divided among them.",
    ),
    wait_option,
    click.option("--on", type=click.Choice(["ray"]), help="Train on the workers of a Ray cluster."),
    click.option(
        "--address",
        show_default="auto",
        help="Ray cluster: auto (this machine's, or $RAY_ADDRESS), host:port, or local for this machine alone.",
    ),
    click.option(
        "--gpus-per-training",
        type=_Share(0, 1),
        show_default="1 where the cluster has GPUs",
        help="GPU of each training on Ray, or its share of one.",
    ),
)
LARGEST_TILE_PX = 1 << 16
tile_options = stack(
    click.option("--tile", type=click.IntRange(max=LARGEST_TILE_PX), help="Run the network in tiles of this side, px."),
    click.option(
        "--margin",
        type=click.IntRange(max=LARGEST_TILE_PX),
        show_default="64",
        help="What the network sees around a tile, px; with --tile.",
    ),
)
paper_option = click.option(
    "--paper", is_flag=True, help="Show the papers' scores beside ours also where ours are of other data."
)
comparison_options = stack(
    click.option("--baseline", help="Row that differences are taken to; default the table's, else seg-only."),
    click.option(
        "--table", "of_table", metavar="NAME", help="Only runs of rows of this table, or TOML file, in its order."
    ),
    paper_option,
)


def parse_seeds(text: str | None) -> tuple[int, ...] | None:
    """Return the seeds of a comma-separated list; UserError when it is none."""
    from data_cache.errors import UserError

    if text is None:
        return None
    if not re.fullmatch(r"\s*-?[0-9]{1,40}\s*(,\s*-?[0-9]{1,40}\s*)*", text):
        raise UserError(f"--seeds {quoted(text)} is no list of whole numbers; write for example 0,1,2")
    seeds = tuple(map(int, text.split(",")))
    if min(seeds) < 0 or max(seeds) >= 2**63 or len(set(seeds)) < len(seeds):
        raise UserError(f"--seeds {quoted(text)} must be different numbers of at least 0 and below 2^63")
    return seeds


def choose_margin(tile: int | None, margin: int | None) -> int:
    """Return the margin asked for, or the usual one; UserError where there are no tiles that it could be around."""
    from data_cache.errors import UserError
    from stages.evaluation.tiling import DEFAULT_MARGIN_PX

    if tile is None and margin is not None:
        raise UserError(f"--margin {margin} is what a tile sees around itself, but no --tile is given; add --tile 512")
    return DEFAULT_MARGIN_PX if margin is None else margin

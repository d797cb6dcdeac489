"""What a recipe can say: the stages' settings side by side, read from TOML and overridden key by key.

Unknown keys are refused with the nearest name, and every problem is told in a recipe's words. Imports no torch.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
import warnings
from collections.abc import Iterable, Iterator, Mapping
from importlib import resources
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast, get_args

from pydantic import ValidationError, model_validator
from pydantic.fields import FieldInfo

from data_cache.errors import Notice, UserError, nearest, unknown_name
from data_cache.escaping import quoted
from data_cache.settings import DataSettings, Decides, Section, describe_settings, is_section, setting
from pipeline.experiment.toml_text import MAX_DEPTH, check_plain, parse_toml, read_recipe_file
from stages.evaluation.settings import EvaluationSettings
from stages.networks import NETWORKS, is_network_name
from stages.networks.settings import NetworkSettings
from stages.pseudo_depth.aliases import GROUND_TRUTH
from stages.pseudo_depth.settings import DepthSettings
from stages.training.schedule import Schedule
from stages.training.settings import LossSettings, MixSettings, ScheduleSettings, TrainingSettings

AnySection = TypeVar("AnySection", bound=Section)


class Card(Section):
    """What stands on top of a recipe, so that its cost and its promise are known before it runs."""

    paper: str = setting("", Decides.NOTHING)
    """Row or table of a paper this reproduces; empty for our own."""
    data: str = setting("", Decides.NOTHING)
    """Images it is written for."""
    hardware: str = setting("", Decides.NOTHING)
    """Machine it is written for."""
    time: str = setting("", Decides.NOTHING)
    """How long it takes there."""
    expected: str = setting("", Decides.NOTHING)
    """Measured score with its unit, or a plain statement that it was not measured."""
    command: str = setting("", Decides.NOTHING)
    """Command line that runs it."""


class RunConfig(Section):
    """A recipe, or what a table row or the command line made of it."""

    recipe: str = setting("", Decides.NOTHING)
    """Name or file of the recipe, as it was asked for."""
    card: Card = Card()
    seed: int = setting(0, Decides.FIRST_WEIGHTS, Decides.DATA, Decides.OPTIMISATION, ge=0, lt=2**63, flag="--seed")
    """Seed of initial weights, data order, augmentation and dropout."""
    data: DataSettings = DataSettings()
    depth: DepthSettings = DepthSettings()
    network: NetworkSettings = NetworkSettings()
    network_options: dict[str, dict[str, Any]] = setting({}, Decides.NOTHING)
    """Name of a network → options it gets whenever it is chosen: by the recipe, by --network, or by a table's row.

    Naming another network puts the options under ``network`` aside, which were written for the recipe's own. They count
    by what they put there.
    """
    row_changes: dict[str, dict[str, Any]] = setting({}, Decides.NOTHING)
    """Row of a table → what it changes in this recipe besides, under dotted keys; overrides of the recipe win."""
    training: TrainingSettings = TrainingSettings()
    loss: LossSettings = LossSettings()
    mix: MixSettings = MixSettings()
    schedule: ScheduleSettings = ScheduleSettings()
    evaluation: EvaluationSettings = EvaluationSettings()

    @model_validator(mode="after")
    def _check_names(self) -> RunConfig:
        for name in self.network_options:
            if not is_network_name(name):
                raise ValueError(f"network_options are for no network {name!r}{nearest(name, NETWORKS)}")
        return self

    def build_schedule(self) -> Schedule:
        """Return the schedule; UserError as ``ScheduleSettings.build``."""
        return self.schedule.build(self.loss)

    def describe(self, *kinds: Decides, needs_depth: bool = True) -> dict[str, Any]:
        """Return the settings that decide any of the kinds, under dotted keys.

        Args:
            needs_depth: without it what is said of depth is left out, because nothing reads it.
        """
        described = describe_settings(self, *kinds)
        return described if needs_depth else {k: v for k, v in described.items() if not k.startswith("depth.")}

    def resolved(self) -> dict[str, Any]:
        """Return everything as JSON-able data, except the card and options of networks that were not chosen."""
        return self.model_dump(mode="json", exclude={"card", "network_options", "row_changes"})

    def changed(self, changes: Mapping[str, Any], what: str = "table row") -> RunConfig:
        """Return this configuration with other values under dotted keys, checked like a recipe.

        Args:
            what: who asked for the changes, for messages.
        """
        tree = self.model_dump()
        _choose_network(tree, changes.get("network.name"))
        for key, value in changes.items():
            _assign(tree, key, value)
        return _validated(tree, what)


class Key(NamedTuple):
    """One key of a recipe."""

    path: str
    """Dotted, for example ``training.lr``."""
    field: FieldInfo


def iterate_keys() -> Iterator[Key]:
    """Yield every key of a recipe in the order of its sections."""
    yield from _iterate_section(RunConfig, "")


def _iterate_section(section: type[Section], prefix: str) -> Iterator[Key]:
    for name, field in section.model_fields.items():
        if is_section(field.annotation):
            yield from _iterate_section(cast(type[Section], field.annotation), f"{prefix}{name}.")
        else:
            yield Key(f"{prefix}{name}", field)


def content_hash(value: Any, length: int) -> str:
    """Return the first hex digits of the SHA-256 of canonical JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:length]


def recipe_names() -> list[str]:
    """Return the names of the bundled recipes."""
    folder = resources.files("pipeline") / "recipes"
    return sorted(Path(entry.name).stem for entry in folder.iterdir() if entry.name.endswith(".toml"))


def load_config(recipe: str, overrides: Mapping[str, Any] | None = None, assignments: Iterable[str] = ()) -> RunConfig:
    """Read a recipe and apply overrides.

    Args:
        recipe: bundled name or path of a TOML file.
        overrides: dotted key to value; None values are skipped, so unset flags can be passed as they are.
        assignments: ``key=value`` texts, the value in TOML notation (a bare word is a string); they win.

    Raises:
        UserError: listing every problem found, with the nearest known key for unknown ones.
    """
    what = f"recipe {recipe!r}"
    tree = _read_recipe(recipe)
    _validated(tree, what)  # by itself first: what follows relies on sections being sections
    given = {key: value for key, value in (overrides or {}).items() if value is not None}
    check_plain(given, "options")
    assigned = [_parse_assignment(text) for text in assignments]
    wanted = given | dict(assigned)
    tree["recipe"] = recipe
    _add_network_options(tree)
    _put_aside(tree, given, wanted)
    if tree.get("schedule", {}).get("steps") and str(given.get("schedule.name")).endswith(".toml"):
        del given["schedule.name"]  # which the file says now
    _choose_network(tree, wanted.get("network.name"))  # before options of it are set
    tree["row_changes"] = {
        row: _drop_overridden(flatten_changes(changes), wanted) for row, changes in tree.get("row_changes", {}).items()
    }
    for key, value in (*given.items(), *assigned):
        _assign(tree, key, value)
    config = _validated(tree, what)
    _check_counts(config, wanted)
    return config


def flatten_changes(changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row's changes under dotted keys: without quotes, TOML reads ``training.lr`` as a table in a table."""
    flat: dict[str, Any] = {}
    for name, value in changes.items():
        nested = name in RunConfig.model_fields and isinstance(value, dict)
        flat |= {f"{name}.{key}": inner for key, inner in _dotted_leaves(value)} if nested else {name: value}
    return flat


def _dotted_leaves(tree: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from ((f"{name}.{key}", inner) for key, inner in _dotted_leaves(value))
        else:
            yield name, value


def _drop_overridden(changes: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row's changes without those that are asked for now, as a key or a whole section, for every row."""
    asked = {*wanted, *(_EITHER[key] for key in wanted if key in _EITHER)}
    return {
        name: value for name, value in changes.items() if not any(f"{name}.".startswith(f"{key}.") for key in asked)
    }


_EITHER = {"training.epochs": "training.iterations", "training.iterations": "training.epochs"}
"""Keys of which only one can count → the other."""
_COUNTS_WITH = {
    "training.momentum": ("training.optimizer", "sgd"),
    "training.poly_power": ("training.lr_schedule", "poly"),
    "loss.gamma": ("loss.seg", "focal"),
    "loss.alpha": ("loss.seg", "focal"),
    "loss.tversky_beta": ("loss.seg", "tversky"),
    "loss.dwa_window": ("loss.weighting", "dwa"),
}
"""Key → the other key, and its only value with which the first changes anything."""


def _put_aside(tree: dict[str, Any], given: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Drop what a recipe says in the way of what is asked for now, and say so where that is not plain.

    Another schedule replaces own steps, another dataset the folder and options of the recipe's own.

    Raises:
        UserError: two things are asked for of which one would be ignored.
    """
    data, training, schedule = (tree.get(section, {}) for section in ("data", "training", "schedule"))
    if "dataset" in data and wanted.get("data.dataset", data["dataset"]) != data["dataset"]:
        tree["data"] = {key: value for key, value in data.items() if key not in ("root", "options")}
        weights = tree.get("loss", {}).get("class_weights")
        if isinstance(weights, list) and "loss.class_weights" not in wanted:
            raise UserError(
                f"the recipe's loss.class_weights are of the {len(weights)} classes of {data['dataset']!r}, and "
                f"{wanted['data.dataset']!r} has others; add: --set loss.class_weights=median-frequency (or none)"
            )
    if "schedule.name" in given:
        schedule = tree["schedule"] = _read_schedule(given["schedule.name"])
    lengths = {key for key in _EITHER if wanted.get(key) is not None}
    if lengths == _EITHER.keys() or (training.keys() >= {"epochs", "iterations"} and not lengths):
        raise UserError("--epochs and --iterations (training.epochs, training.iterations) both say how long to train; "
                        "give one of them")  # fmt: skip
    for key in lengths:
        asked, other = (name.removeprefix("training.") for name in (key, _EITHER[key]))
        if (dropped := training.pop(other, None)) is not None:
            warnings.warn(f"the recipe's {other} = {dropped} do not count, {asked} are asked for", Notice, stacklevel=3)
    phases = [step for step in schedule.get("steps", ()) if "phase" in step] if "schedule.steps" not in wanted else []
    for key in (*_EITHER, "training.lr"):
        name = "lr" if key == "training.lr" else "epochs"
        own = [str(phase["phase"]) for phase in phases if name in phase]
        if key in wanted and own and (name == "epochs" or len(own) == len(phases)):
            others = "" if len(own) == len(phases) else "; the other phases would take what is asked for"
            raise UserError(f"{key} is asked for, but {', '.join(own)} of schedule.steps say their own {name}, which "
                            f"would win{others}; change it there, or choose another --schedule")  # fmt: skip


def _read_schedule(name: str) -> dict[str, Any]:
    """Return what a file says of a schedule, named after it unless it has a name; nothing where no file is asked for.

    Raises:
        UserError: there is no such file, or it is no TOML or holds no steps.
    """
    path = Path(name)
    if path.suffix != ".toml":
        return {}
    tree = read_recipe_file(path)
    found = tree.get("schedule", tree)
    if not isinstance(found, dict) or not found.get("steps"):
        raise UserError(
            f"{path} holds no schedule: it needs steps as a recipe has them, each under [[steps]]: phase, trains, and "
            "weights of losses (seg, depth), or copy_from and copy_to"
        )
    return {"name": path.stem, **found}


def _check_counts(config: RunConfig, wanted: Mapping[str, Any]) -> None:
    """Refuse what is asked for now and would change nothing beside the rest."""
    for key, (other, needed) in _COUNTS_WITH.items():
        value = attrgetter(other)(config)
        if key in wanted and (needed not in value if isinstance(value, dict) else value != needed):
            raise UserError(
                f"{key} = {quoted(wanted[key])} would change nothing: it is read with {other} = {needed!r}, and that "
                f"is {value!r}; set both, or drop it"
            )


def check_estimator_asked(config: RunConfig, asked: Iterable[str]) -> None:
    """Raise UserError for settings of an estimator that are asked for now, where the data set's own depth is taken."""
    for key in ("depth.kind", "depth.input_size", "depth.precision"):
        if key in asked and config.depth.estimator == GROUND_TRUTH:
            raise UserError(
                f"{key} is asked for, but it is of an estimator, and depth.estimator is {GROUND_TRUTH!r}: the depth "
                "that the data set brings, which says itself what it is; drop it, or choose another --estimator"
            )


def _add_network_options(tree: dict[str, Any]) -> None:
    """Put what ``network_options`` say of the recipe's own network beneath what ``network`` says."""
    network, options = tree.get("network", {}), tree.get("network_options", {})
    name = network.get("name", NetworkSettings().name)
    tree["network"] = {**options.get(name, {}), "name": name, **network}


def _choose_network(tree: dict[str, Any], name: str | None) -> None:
    """Replace the network and its options by those of another name; nothing happens for the name it has."""
    network, options = tree.get("network", {}), tree.get("network_options", {})
    if not isinstance(name, str) or network.get("name") == name:
        return
    tree["network"] = {**options.get(name, {}), "name": name}


def _validated(tree: dict[str, Any], what: str) -> RunConfig:
    return validate(RunConfig, tree, what)


def validate(section: type[AnySection], tree: dict[str, Any], what: str) -> AnySection:
    """Return what a person wrote as settings; UserError lists every problem in a recipe's words."""
    try:
        return section.model_validate(_freeze(tree))
    except ValidationError as problem:
        raise UserError(f"{what}:\n" + "\n".join(_explain(problem, tree, section))) from problem


def _read_recipe(recipe: str) -> dict[str, Any]:
    path = Path(recipe)
    if path.suffix != ".toml":
        if recipe not in recipe_names():
            file = nearest(recipe, map(str, path.parent.glob("*.toml")))
            raise UserError(f"{unknown_name('recipe', recipe, recipe_names())}; or give the path of a .toml file{file}")
        path = Path(str(resources.files("pipeline") / "recipes" / f"{recipe}.toml"))
    tree = read_recipe_file(path)
    table = tree.pop("table", None)  # see ``own_tables``
    if table is not None and not tree:
        raise UserError(f"{path} holds a table and no recipe; its rows change one: pipeline table {path} --recipe NAME")
    if "recipe" in tree:
        raise UserError(f"recipe {path}: the key 'recipe' is kept for the name of the file; remove it")
    return tree


def _assign(tree: dict[str, Any], dotted: str, value: Any) -> None:
    *sections, last = dotted.split(".")
    for depth, name in enumerate(sections, 1):
        tree = tree.setdefault(name, {})
        if not isinstance(tree, dict):
            raise UserError(f"cannot set {dotted!r}: {'.'.join(sections[:depth])!r} is a value, not a section")
    tree[last] = value


def _parse_assignment(text: str) -> tuple[str, Any]:
    key, separator, value = text.partition("=")
    key = key.strip()
    if not separator:
        raise UserError(f"--set {quoted(text)} has no '='; write for example --set data.crop=[256,256]")
    if not all(parts := key.split(".")) or len(parts) > MAX_DEPTH or parts == ["recipe"]:
        raise UserError(f"--set {quoted(text)}: {quoted(key)} is no key; `pipeline recipes --keys` lists them")
    parsed = None if _is_switched_off(key, value.strip()) else _parse_value(value.strip(), f"--set {quoted(text)}")
    check_plain(parsed, f"--set {quoted(text)}", key)
    return key, parsed


def _is_switched_off(key: str, text: str) -> bool:
    """Whether a text says that a key is not to be given, which may be left out and is no choice called "none"."""
    field = next((each.field for each in iterate_keys() if each.path == key), None)
    optional = key.startswith("data.options.") or (field is not None and type(None) in get_args(field.annotation))
    return text == "none" and optional


def _parse_value(text: str, what: str) -> Any:
    """Return a TOML value; a text that is none stands for itself."""
    try:
        parsed = parse_toml(f"value = {text}", what)
    except tomllib.TOMLDecodeError:
        return text
    return parsed["value"] if parsed.keys() == {"value"} else text  # else it has lines of other keys


def _freeze(value: Any) -> Any:
    """Turn TOML's arrays into tuples, which strict validation asks for."""
    if isinstance(value, dict):
        return {key: _freeze(item) for key, item in value.items()}
    return tuple(_freeze(item) for item in value) if isinstance(value, list) else value


def _explain(problem: ValidationError, tree: dict[str, Any], root: type[Section]) -> list[str]:
    lines: list[str] = []
    for error in problem.errors():
        *sections, name = _find_keys(error["loc"], tree) or ["recipe"]
        where = ".".join((*sections, name))
        if error["type"] == "extra_forbidden":
            lines.append(_explain_unknown(where, name, _section_at(sections, root), error["input"]))
        elif error["type"] == "value_error":  # our own validators say what they found
            lines.append(f"  {where}: {error['msg'].removeprefix('Value error, ')}")
        else:
            wanted = _TOML_WORDS.get(error["type"], error["msg"])
            begun, found = f"  {where}: ", f", found {quoted(error['input'])}"
            if lines and lines[-1].startswith(begun) and lines[-1].endswith(found):  # one of several possible kinds
                wanted = f"{lines.pop()[len(begun) : -len(found)]} or {wanted.removeprefix('Input should be ')}"
            lines.append(f"{begun}{wanted}{found}")
    return lines


def _find_keys(location: Iterable[int | str], tree: Any) -> list[str]:
    """Return where in a recipe a problem is; of several possible kinds pydantic adds the kind to the place."""
    keys = []
    for part in location:
        known = tree if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list | tuple) else ()
        if part in known:
            tree = tree[part]
            keys.append(str(part))
    return keys


_TOML_WORDS = {
    "model_type": "Input should be a table",
    "dict_type": "Input should be a table",
    "tuple_type": "Input should be a list",
    "missing": "Input should be a longer list",
    "too_long": "Input should be a shorter list",
}
"""Type of a problem → what it is called in a recipe, where Python's word would puzzle."""


def _explain_unknown(where: str, name: str, section: type[Section], value: Any) -> str:
    if name in section.renamed:
        return f"  {where} is called {section.renamed[name]!r} now; write: {section.renamed[name]} = {quoted(value)}"
    if name in section.removed:
        return f"  {where} is gone: {section.removed[name]}"
    known = sorted(section.model_fields)
    return f"  unknown key {quoted(where)}{nearest(name, known)}; known here: {', '.join(known)}"


def _section_at(path: list[str], root: type[Section]) -> type[Section]:
    section = root
    for name in path:
        field = section.model_fields.get(name)
        of_list = get_args(field.annotation)[:1] if field is not None else ()
        found = next((kind for kind in (field and field.annotation, *of_list) if is_section(kind)), None)
        section = cast(type[Section], found) if found is not None else section  # a place in a list is no section
    return section

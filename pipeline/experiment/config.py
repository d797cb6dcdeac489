"""What a recipe can say: strict, frozen sections; unknown keys are refused with the nearest name."""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from data_cache.errors import UserError, nearest, unknown_name
from stages.networks import NETWORKS
from stages.networks.parts import NAMED_PARTS
from stages.training.encoder_policy import EncoderPolicy
from stages.training.schedule import CopyWeights, Part, Phase, Schedule
from stages.training.schedules import SCHEDULES, resolve_schedule

Size = tuple[int, int]
TransferMode = Literal["feature-extractor", "low-level-extractor", "fine-tune", "scratch"]
MEDIAN_FREQUENCY = "median-frequency"
Fraction = Field(ge=0.0, le=1.0)


class Section(BaseModel):
    """Common strictness: no coercion, no unknown keys, no mutation."""

    model_config = ConfigDict(
        strict=True, frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False
    )


class Card(Section):
    """What stands on top of a recipe, so that its cost and its promise are known before it runs."""

    paper: str = ""
    """Row or table of a paper this reproduces; empty for our own."""
    data: str = ""
    hardware: str = ""
    time: str = ""
    expected: str = ""
    """Measured score with its unit, or a plain statement that it was not measured."""
    command: str = ""


class DataConfig(Section):
    dataset: str = "scenes"
    """Name in the datasets table."""
    root: str | None = None
    """Folder of the dataset; drawn scenes need none."""
    options: dict[str, Any] = {}
    """Further arguments of the dataset (for scenes: size, counts, seed)."""
    crop: Size = (96, 128)
    """Height and width of training crops, px."""
    scale: tuple[float, float] = (1.0, 1.0)
    """Random scale range before cropping."""
    flip: float = Field(default=0.5, ge=0.0, le=1.0)
    """Probability of a horizontal flip."""
    jitter: float = Field(default=0.0, ge=0.0, le=1.0)
    """Strength of brightness, contrast and saturation jitter; 0 is off."""
    workers: int = Field(default=0, ge=0)
    """Loader processes; 0 loads in the training process. Results do not depend on it."""

    @model_validator(mode="after")
    def _check_ranges(self) -> DataConfig:
        if min(self.crop) < 32:
            raise ValueError(f"crop {list(self.crop)} must be at least 32 px a side")
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(f"scale {list(self.scale)} must be two positive numbers, the smaller first")
        return self


class DepthConfig(Section):
    estimator: str = "bundled"
    """Alias (see `pipeline estimators`), Hub id, local folder, or "dataset" for the dataset's ground-truth depth."""
    kind: Literal["relative", "metric"] | None = None
    """What the numbers of an estimator without an alias mean; an alias knows."""
    input_size: int | None = Field(default=None, ge=28)
    """Short side at which the estimator sees the image, px; None is the estimator's recommendation."""
    target: Literal["robust", "minmax", "zscore", "log", "metric"] = "robust"
    """Scaling of inverse depth at load time."""
    batch_size: int = Field(default=16, ge=1)
    precision: Literal["auto", "bfloat16", "float32"] = "auto"
    codec: Literal["lzf", "gzip", "none"] = "lzf"
    accept_noncommercial: bool = False
    """Set to use weights whose licence forbids commercial use; the export's card will name them."""


class NetworkConfig(BaseModel):
    """A name in the networks table; every further key is an argument of that network's constructor."""

    model_config = ConfigDict(strict=True, frozen=True, extra="allow", use_attribute_docstrings=True)

    name: str = "unet"

    @property
    def options(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return dict(self.model_extra or {})

    @property
    def label(self) -> str:
        """Short name for folders, for example ``unet-resnet18``."""
        words = [self.options.get("architecture", self.name), self.options.get("encoder", "")]
        return "-".join(str(word) for word in words if word)


class TrainingConfig(Section):
    epochs: int = Field(default=20, ge=1)
    """Passes over the training split per phase (with budget "total": for the whole schedule)."""
    iterations: int | None = Field(default=None, ge=1)
    """Steps per phase instead of epochs."""
    budget: Literal["phase", "total"] = "phase"
    """Whether each phase gets the epochs, as in the paper, or all phases of a schedule share them."""
    batch_size: int = Field(default=8, ge=1)
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    lr: float = Field(default=1e-4, gt=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    weight_decay: float = Field(default=0.0, ge=0)
    decay_norm_and_bias: bool = True
    """Whether weight decay also pulls on batch-norm weights and biases."""
    lr_schedule: Literal["constant", "poly", "cosine"] = "constant"
    poly_power: float = Field(default=0.9, gt=0)
    warmup_steps: int = Field(default=0, ge=0)
    lr_factors: dict[str, float] = {}
    """Part or branch name to factor on the learning rate, for example {"seg-head" = 10.0}."""
    encoder_policy: EncoderPolicy = "train"
    """What the encoder does in phases with one decoder; the always- ones hold in every phase."""
    transfer: TransferMode | None = None
    """How much of the encoder's pretraining is kept; sets encoder_policy and options of the network (transfer.py)."""
    clip_norm: float | None = Field(default=None, gt=0)
    ema_decay: float | None = Field(default=None, gt=0, lt=1)
    precision: Literal["auto", "bfloat16", "float32"] = "auto"
    compile: bool = False
    checkpoint_every: int = Field(default=200, ge=1)
    """Steps between checkpoints."""
    log_every: int = Field(default=10, ge=1)
    tensorboard: bool = False
    """Also write TensorBoard files (needs the extra of that name)."""

    @model_validator(mode="after")
    def _check_lr_factors(self) -> TrainingConfig:
        for name, factor in self.lr_factors.items():
            if name not in NAMED_PARTS:
                known = ", ".join(NAMED_PARTS)
                raise ValueError(f"lr_factors has no part {name!r}{nearest(name, NAMED_PARTS)}; known: {known}")
            if factor <= 0:
                raise ValueError(f"lr factor {factor} of {name} must be positive; to freeze, do not train the part")
        return self


class LossConfig(Section):
    seg: Literal["focal", "cross-entropy", "ohem"] = "focal"
    gamma: float = Field(default=2.0, ge=0)
    alpha: float = Field(default=1.0, gt=0)
    class_weights: tuple[float, ...] | Literal["median-frequency"] | None = None
    """One weight per class, or "median-frequency": computed from the training split before anything is trained."""
    depth: Literal["mse", "l1", "ssi"] = "mse"
    joint_focal: float = Field(default=0.85, ge=0)
    joint_mse: float = Field(default=0.15, ge=0)
    balance: Literal["fixed", "uncertainty", "dwa"] = "fixed"
    dwa_window: int = Field(default=100, ge=1)
    """Steps whose mean losses `dwa` compares."""


class StepConfig(Section):
    """One step of an own schedule: either a phase or a copy."""

    phase: str | None = None
    trains: tuple[str, ...] = ()
    """Part or branch names: encoder, seg-branch, depth-branch, everything, seg-decoder, …"""
    focal: float = 0.0
    mse: float = 0.0
    epochs: int | None = None
    lr: float | None = None
    copy_from: str | None = None
    copy_to: str | None = None

    def to_step(self) -> Phase | CopyWeights:
        """Return the step; ValueError when it is neither a phase nor a copy, or nonsense."""
        if self.copy_from and self.copy_to and not self.phase:
            return CopyWeights(Part.parse(self.copy_from), Part.parse(self.copy_to))
        if not self.phase or self.copy_from or self.copy_to:
            raise ValueError("a step needs either `phase` (with `trains` and losses) or `copy_from` and `copy_to`")
        trains = Part(0)
        for name in self.trains:
            trains |= Part.parse(name)
        return Phase(self.phase, trains, self.focal, self.mse, self.epochs, self.lr)


class ScheduleConfig(Section):
    name: str = "depth-first"
    """A row of `pipeline schedules`, or the name of the own steps below."""
    copy_weights: bool = False
    """Copy the first trained decoder onto the other after the first phase."""
    steps: tuple[StepConfig, ...] = ()
    """Own steps; empty for a named schedule."""


class EvaluationConfig(Section):
    split: str = "val"
    """Reported split; nothing is selected on it."""
    size: Literal["original", "recipe"] = "original"
    """Whether images enter at their own size or at the crop's size; labels keep their own either way."""
    batch_size: int = Field(default=8, ge=1)
    panels: int = Field(default=4, ge=0)
    """Qualitative panels written per run."""


class RunConfig(Section):
    """Everything that decides what a run is."""

    recipe: str = ""
    """Name or file of the recipe, as it was asked for."""
    card: Card = Card()
    seed: int = Field(default=0, ge=0, lt=2**63)
    data: DataConfig = DataConfig()
    depth: DepthConfig = DepthConfig()
    network: NetworkConfig = NetworkConfig()
    network_options: dict[str, dict[str, Any]] = {}
    """Name of a network → options it gets whenever it is chosen: by the recipe, by --network, or by a table's row.

    Naming another network puts the options under ``network`` aside, which were written for the recipe's own.
    """
    row_changes: dict[str, dict[str, Any]] = {}
    """Row of a table → what it changes in this recipe besides, under dotted keys; overrides of the recipe win."""
    training: TrainingConfig = TrainingConfig()
    loss: LossConfig = LossConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

    @model_validator(mode="after")
    def _check_names(self) -> RunConfig:
        for name in self.network_options:
            if name not in NETWORKS:
                raise ValueError(f"network_options are for no network {name!r}{nearest(name, NETWORKS)}")
        return self

    def build_schedule(self) -> Schedule:
        """Return the schedule with the recipe's joint weights.

        Raises:
            UserError: unknown name, nonsensical steps, or a copy that has nothing to copy.
        """
        wanted = self.schedule
        try:
            if wanted.steps:
                schedule = Schedule(wanted.name, tuple(step.to_step() for step in wanted.steps))
            else:
                schedule = named_schedule(wanted.name)
            if wanted.copy_weights:
                schedule = schedule.with_copy()
            return schedule if wanted.steps else schedule.with_loss_weights(self.loss.joint_focal, self.loss.joint_mse)
        except ValueError as problem:
            raise UserError(str(problem)) from problem

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

    def resolved(self) -> dict[str, Any]:
        """Return everything as JSON-able data, except the card and options of networks that were not chosen."""
        return self.model_dump(mode="json", exclude={"card", "network_options", "row_changes"})

    def content(self) -> dict[str, Any]:
        """Return what decides the result, as JSON-able data: what is resolved, but not where things lay or how fast.

        A transfer mode counts by what it set; left out unless given, it keeps the names of runs made before it was.
        """
        content = self.model_dump(mode="json", exclude={"card", "recipe", "network_options", "row_changes"})
        del content["training"]["transfer"]
        for section, names in _WITHOUT_EFFECT.items():
            fields = type(getattr(self, section)).model_fields
            content[section].update({name: fields[name].default for name in names})
        return content


_WITHOUT_EFFECT = {
    "data": ("root", "workers"),  # the data themselves count by their fingerprint
    "depth": ("batch_size", "codec", "accept_noncommercial"),
    "training": ("checkpoint_every", "log_every", "tensorboard"),
    "evaluation": ("batch_size",),
}
"""Section → keys that leave weights and scores as they are; they count as if nobody had set them."""


def named_schedule(name: str) -> Schedule:
    """Return a row of the schedule table; UserError names the nearest one."""
    try:
        return resolve_schedule(name)
    except KeyError:
        raise unknown_name("schedule", name, SCHEDULES) from None


def content_hash(value: Any, length: int) -> str:
    """Return the first hex digits of the SHA-256 of canonical JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:length]


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
    tree = {"recipe": recipe} | _read_recipe(recipe)
    _validated(tree, what)  # by itself first: what follows relies on sections being sections
    given = {key: value for key, value in (overrides or {}).items() if value is not None}
    assigned = [_parse_assignment(text) for text in assignments]
    _add_network_options(tree)
    wanted = given | dict(assigned)
    _choose_network(tree, wanted.get("network.name"))  # before options of it are set
    data = tree.get("data", {})
    if wanted.get("data.dataset", data.get("dataset")) != data.get("dataset"):
        data.pop("options", None)  # they were meant for the dataset that the recipe names
    for changes in tree.get("row_changes", {}).values():
        for name in [name for name in changes if any(f"{name}.".startswith(f"{key}.") for key in wanted)]:
            del changes[name]  # what is asked for now, a key or its whole section, holds for every row
    for key, value in (*given.items(), *assigned):
        _assign(tree, key, value)
    return _validated(tree, what)


def _add_network_options(tree: dict[str, Any]) -> None:
    """Put what ``network_options`` say of the recipe's own network beneath what ``network`` says."""
    network, options = tree.get("network", {}), tree.get("network_options", {})
    name = network.get("name", NetworkConfig().name)
    tree["network"] = {**options.get(name, {}), "name": name, **network}


def _choose_network(tree: dict[str, Any], name: str | None) -> None:
    """Replace the network and its options by those of another name; nothing happens for the name it has."""
    network, options = tree.get("network", {}), tree.get("network_options", {})
    if not isinstance(name, str) or network.get("name") == name:
        return
    tree["network"] = {**options.get(name, {}), "name": name}


def _validated(tree: dict[str, Any], what: str) -> RunConfig:
    try:
        return RunConfig.model_validate(_freeze(tree))
    except ValidationError as problem:
        raise UserError(f"{what}:\n" + "\n".join(_explain(problem))) from problem


def _read_recipe(recipe: str) -> dict[str, Any]:
    path = Path(recipe)
    if path.suffix != ".toml":
        if recipe not in recipe_names():
            raise UserError(f"{unknown_name('recipe', recipe, recipe_names())}; or give the path of a .toml file")
        path = Path(str(resources.files("pipeline") / "recipes" / f"{recipe}.toml"))
    try:
        return tomllib.loads(path.read_text(encoding="utf8"))
    except OSError as problem:
        raise UserError(f"cannot read recipe {path}: {problem.strerror}") from problem
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as problem:
        raise UserError(f"recipe {path} is not valid TOML: {problem}") from problem


def _assign(tree: dict[str, Any], dotted: str, value: Any) -> None:
    *sections, last = dotted.split(".")
    for depth, name in enumerate(sections, 1):
        tree = tree.setdefault(name, {})
        if not isinstance(tree, dict):
            raise UserError(f"cannot set {dotted!r}: {'.'.join(sections[:depth])!r} is a value, not a section")
    tree[last] = value


def _parse_assignment(text: str) -> tuple[str, Any]:
    key, separator, value = text.partition("=")
    if not separator:
        raise UserError(f"--set {text!r} has no '='; write for example --set data.crop=[256,256]")
    return key.strip(), _parse_value(value.strip())


def _parse_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _freeze(value: Any) -> Any:
    """Turn TOML's arrays into tuples, which strict validation asks for."""
    if isinstance(value, dict):
        return {key: _freeze(item) for key, item in value.items()}
    return tuple(_freeze(item) for item in value) if isinstance(value, list) else value


def _explain(problem: ValidationError) -> list[str]:
    lines: list[str] = []
    for error in problem.errors():
        # Where several kinds of value are possible, pydantic adds the kind to the place: "tuple[float, ...]".
        *sections, name = [str(part) for part in error["loc"] if "[" not in str(part)] or ["recipe"]
        where = ".".join((*sections, name))
        if error["type"] == "extra_forbidden":
            known = _known_keys(sections)
            lines.append(f"  unknown key {where!r}{nearest(name, known)}; known here: {', '.join(known)}")
        elif error["type"] == "value_error":  # our own validators say what they found
            lines.append(f"  {where}: {error['msg'].removeprefix('Value error, ')}")
        else:
            wanted = _TOML_WORDS.get(error["type"], error["msg"])
            begun, found = f"  {where}: ", f", found {error['input']!r}"
            if lines and lines[-1].startswith(begun) and lines[-1].endswith(found):  # one of several possible kinds
                wanted = f"{lines.pop()[len(begun) : -len(found)]} or {wanted.removeprefix('Input should be ')}"
            lines.append(f"{begun}{wanted}{found}")
    return lines


_TOML_WORDS = {
    "model_type": "Input should be a table",
    "dict_type": "Input should be a table",
    "tuple_type": "Input should be a list",
}
"""Type of a problem → what it is called in a recipe, where Python's word would puzzle."""


def _known_keys(sections: list[str]) -> list[str]:
    model: type[BaseModel] = RunConfig
    for section in sections:
        if section.isdigit():  # position in a list of steps
            model = StepConfig
            continue
        field = model.model_fields.get(section)
        if field is not None and isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            model = field.annotation
    return sorted(model.model_fields)

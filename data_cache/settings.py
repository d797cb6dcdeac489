"""What a setting is: a typed field that says what it decides. Each stage declares its own; a recipe composes them.

Node keys, run names, table rows and the key of an evaluation are derived from these declarations and from nothing else:
a field that declares nothing fails at import, so no setting can be forgotten by a key. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.fields import FieldInfo

Size = tuple[int, int]
"""(height, width), px."""
SMALLEST_CROP_PX = 32
LARGEST_CROP_PX = 16_384
LARGEST_SCALE = 16.0
"""Images are scaled by at most this, and by at least its reciprocal."""
LARGEST_BATCH = 65_536
"""Images; the bounds of settings are far beyond what is of use, and keep typing errors from machines."""

LabelledBy = Literal["random", "depth-features", "depth-map", "difficulty"]


class Decides(StrEnum):
    """What changes when a setting changes."""

    FIRST_WEIGHTS = "first weights"
    """The network before the first step."""
    DATA = "data"
    """Which samples a step sees, in which order, how augmented."""
    SEG_LOSS = "segmentation loss"
    """Only phases with a segmentation loss."""
    DEPTH_LOSS = "depth loss"
    """Only phases with a depth loss."""
    JOINT_LOSS = "joint loss"
    """Only phases with both."""
    POOL = "pool"
    """Only phases whose batches mix images with and without masks."""
    MIX = "mixed images"
    """Only phases that train on images laid over each other."""
    SELECTION = "selection"
    """Only phases with a segmentation loss whose weights, or whose end, are chosen by scores."""
    OPTIMISATION = "optimisation"
    """How gradients become weights, and for how long."""
    SCHEDULE = "schedule"
    """Which phases follow on which."""
    NUMERICS = "numerics"
    """Rounding."""
    SCORES = "scores"
    """What is measured on finished weights."""
    NOTHING = "nothing"
    """Neither weights nor scores."""


class Declaration(NamedTuple):
    """What a field says about itself besides type and default."""

    decides: tuple[Decides, ...]
    resolved: bool
    """Whether keys hold what the field comes to (steps, fingerprint, type of numbers) in place of its own value."""
    flag: str | None
    """Option of the command line that sets it."""
    late: bool
    """Whether it came when keys were in use already: they leave it out while it has its default."""


def setting(
    default: Any,
    *decides: Decides,
    resolved: bool = False,
    flag: str | None = None,
    late: bool = False,
    **constraints: Any,
) -> Any:
    """Return a field that declares what it decides.

    Args:
        default: value where the recipe is silent.
        decides: at least one; ``NOTHING`` stands alone.
        resolved: keys hold what the planner makes of it; a value such as "auto" must never be hashed.
        flag: option of the command line, for example ``--lr``; every other key is reached by ``--set``.
        late: keys leave it out while it has its default, so that those made before it came still hold.
        constraints: pydantic's, for example ``ge=1``.

    Raises:
        TypeError: it declares nothing, or something beside ``NOTHING``.
    """
    if not decides or (Decides.NOTHING in decides and len(decides) > 1):
        raise TypeError(
            f"a setting decides something or Decides.NOTHING alone, found {[str(each) for each in decides]}"
        )
    return Field(default, json_schema_extra={"declaration": Declaration(decides, resolved, flag, late)}, **constraints)  # type: ignore[dict-item]


def find_declaration(field: FieldInfo) -> Declaration | None:
    """Return what a field declares; None where nothing was declared."""
    extra = field.json_schema_extra
    found = extra.get("declaration") if isinstance(extra, dict) else None
    return found if isinstance(found, Declaration) else None


class Section(BaseModel):
    """Common strictness: no coercion, no unknown keys, no mutation, and no field without a declaration."""

    model_config = ConfigDict(
        strict=True, frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False
    )
    renamed: ClassVar[Mapping[str, str]] = {}
    """Key of older recipes → key that took its place."""
    removed: ClassVar[Mapping[str, str]] = {}
    """Key of older recipes → why it is gone."""

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        silent = [
            name
            for name, field in cls.model_fields.items()
            if not is_section(field.annotation) and find_declaration(field) is None
        ]
        if silent:
            raise TypeError(
                f"{cls.__module__}.{cls.__name__}.{', '.join(silent)}: say what it decides, for example "
                "setting(default, Decides.SEG_LOSS); Decides lists what is possible"
            )


def is_section(annotation: Any) -> bool:
    """Whether a field holds settings of its own."""
    return isinstance(annotation, type) and issubclass(annotation, Section)


def describe_settings(section: Section, *kinds: Decides) -> dict[str, Any]:
    """Return the settings that decide any of ``kinds``, as JSON-able data under dotted keys.

    Resolved settings are left out: whoever makes a key puts what they come to beside this.
    """
    values = section.model_dump(mode="json")
    described: dict[str, Any] = {}
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(value, Section):
            inner = describe_settings(value, *kinds)
            described |= {f"{name}.{key}": found for key, found in inner.items()}
        elif declares(field, *kinds) and not (is_late(field) and value == field.default):
            described[name] = values[name]
    described |= {name: values[name] for name in section.model_extra or {} if Decides.FIRST_WEIGHTS in kinds}
    return described


def is_late(field: FieldInfo) -> bool:
    """Whether keys leave a field out while it has its default."""
    declaration = find_declaration(field)
    return declaration is not None and declaration.late


def declares(field: FieldInfo, *kinds: Decides) -> bool:
    """Whether a field decides one of the kinds by its own value."""
    declaration = find_declaration(field)
    return declaration is not None and not declaration.resolved and not set(kinds).isdisjoint(declaration.decides)


Photometric = Literal["none", "colour", "strong"]


class AugmentationSettings(Section):
    """How training samples vary."""

    crop: Size = setting((96, 128), Decides.DATA, Decides.SCORES)
    """Height and width of training crops, px; smaller images are padded with void."""
    scale: tuple[float, float] = setting((1.0, 1.0), Decides.DATA)
    """Range of the random scale before cropping, drawn uniformly."""
    flip: float = setting(0.5, Decides.DATA, ge=0.0, le=1.0)
    """Probability of a horizontal flip."""
    jitter: float = setting(0.0, Decides.DATA, ge=0.0, le=1.0)
    """Strength of brightness, contrast and saturation jitter, each factor in [1 - jitter, 1 + jitter]; 0 is off."""
    photometric: Photometric = setting("none", Decides.DATA, late=True)
    """What else changes in light and colour: ``colour`` turns the hue by up to 18 degrees and makes a tenth of the
    images grey; ``strong`` turns by up to 36, makes a fifth grey, and stretches contrast, sharpens or blurs some."""

    @model_validator(mode="after")
    def _check_ranges(self) -> AugmentationSettings:
        if min(self.crop) < 1:
            raise ValueError(f"crop {list(self.crop)} must be at least 1 px a side")
        if max(self.crop) > LARGEST_CROP_PX:
            raise ValueError(f"crop {list(self.crop)} must be at most {LARGEST_CROP_PX} px a side")
        if not 1 / LARGEST_SCALE <= self.scale[0] <= self.scale[1] <= LARGEST_SCALE:
            raise ValueError(
                f"scale {list(self.scale)} must be two numbers from {1 / LARGEST_SCALE:g} to {LARGEST_SCALE:g}, "
                "the smaller first"
            )
        return self


class DataSettings(AugmentationSettings):
    """Which images, and how they are cut."""

    dataset: str = setting("scenes", Decides.DATA, Decides.SCORES, resolved=True, flag="--dataset")
    """Name of the dataset (see `pipeline datasets`), or package.module:Class of your own."""
    root: str | None = setting(None, Decides.DATA, Decides.SCORES, resolved=True, flag="--data-root")
    """Folder of the dataset; drawn scenes need none."""
    options: dict[str, Any] = setting({}, Decides.DATA, Decides.SCORES, resolved=True)
    """Further arguments of the dataset (for scenes: size, counts, seed)."""
    labelled_fraction: float | str = setting(1.0, Decides.DATA, resolved=True, flag="--labelled-fraction")
    """Share of the training images whose masks are used, as 0.125 or "1/8", or a file with their ids; the others are
    treated as if nobody had labelled them."""
    labelled_by: LabelledBy = setting("random", Decides.DATA, resolved=True)
    """How those of a share are chosen; random is by the run's seed (see `pipeline select`)."""
    unlabelled: Literal["pool", "allow", "ignore"] = setting("pool", Decides.DATA, resolved=True, flag="--unlabelled")
    """Whether phases that ask for all images read those that the dataset offers without masks; allow also takes
    training images whose mask is missing for such, and ignore reads none."""
    workers: Annotated[int, Field(ge=0, le=256)] | Literal["auto"] = setting("auto", Decides.NOTHING, flag="--workers")
    """Loader processes; 0 loads in the training process. auto is as many as a GPU's training has threads, and 0 on a
    CPU, where they would take time from the training."""
    cache_images: Literal["auto", "on", "off"] = setting("auto", Decides.NOTHING, flag="--cache-images")
    """Keep decoded images in memory after the first epoch: where all of them fit, as many as fit, or none."""
    cache_limit_gb: float | None = setting(None, Decides.NOTHING, ge=0.0, le=1e6)
    """Memory for decoded images, GB; half of what is free where it is not given."""

    @model_validator(mode="after")
    def _check_fraction(self) -> DataSettings:
        share = parse_share(self.labelled_fraction)
        if share is not None and not 0 < share <= 1:
            raise ValueError(f"labelled_fraction {self.labelled_fraction} must be above 0 and at most 1")
        return self

    @model_validator(mode="after")
    def _check_crop(self) -> DataSettings:
        if min(self.crop) < SMALLEST_CROP_PX:
            raise ValueError(f"crop {list(self.crop)} must be at least {SMALLEST_CROP_PX} px a side")
        return self


def parse_share(value: float | str) -> float | None:
    """Return the number that is meant by 0.125, "0.125" or "1/8"; None where the text is none, so names a file."""
    if not isinstance(value, str):
        return float(value)
    above, slash, below = value.partition("/")
    try:
        return float(above) / float(below) if slash else float(above)
    except (ValueError, ZeroDivisionError):
        return None

"""The recipe for somebody's own images: every key with the reason for its value. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from data_cache.errors import UserError
from data_cache.outputs import SCRIPT_SEAL
from data_cache.own_files.inspection import Inspection
from pipeline.experiment.sizing import Machine, Sizing
from pipeline.experiment.toml_text import write_value
from stages.pseudo_depth.aliases import GROUND_TRUTH

TEACHER = "depth-anything-v2-small"
"""The first choice among estimators that may be used for anything."""
SCHEDULE = "depth-first"


class Weights(NamedTuple):
    """Which pretrained weights can be had here."""

    estimator: str
    estimator_reason: str
    encoder: str
    """``imagenet`` or ``none``."""
    encoder_reason: str


def choose_encoder(machine: Machine) -> str:
    """Return the encoder of the network."""
    return "resnet18" if machine.gpu_bytes is None else "resnet50"


def format_recipe(found: Inspection, sizing: Sizing, machine: Machine, weights: Weights, out: Path) -> str:
    """Return the text of a recipe.

    Args:
        found: what is trained on.
        sizing: crop, batch and epochs.
        machine: what it is written for.
        weights: which can be had.
        out: where it will lie.

    Raises:
        UserError: the folder's name is no text.
    """
    try:
        str(found.root).encode()
    except UnicodeEncodeError as problem:
        raise UserError(f"the name of folder {found.root} is not UTF-8, as a recipe must be; rename it") from problem
    options = found.options | ({"lists": str(out.resolve().with_suffix(".{split}.txt"))} if found.lists else {})
    counts = ", ".join(f"{count} {split}" for split, count in found.images.items())
    lines = [
        f"# Own images: {found.root.name}. Written by `pipeline init`; every value can be changed.",
        SCRIPT_SEAL,
        "",
        "[card]",
        f"data     = {_toml(f'{counts}; {len(found.classes)} classes')}",
        f"hardware = {_toml(machine.name)}",
        'time     = "not measured"',
        'expected = "not measured"',
        f"command  = {_toml(f'pipeline run --recipe {out}')}",
        "",
        "[data]",
        f"dataset = {_toml(found.dataset)}",
        f"root = {_toml(str(found.root))}",
        *_comment(sizing.crop_reason),
        f"crop = {_toml(list(sizing.crop))}",
        f"scale = {_toml(list(sizing.scale))}",
        "# Mirrored at random: set it to 0 where left and right differ, as with writing.",
        "flip = 0.5",
        "jitter = 0.3",
        "",
        *(["[data.options]", *_format_options(found, options), ""] if options else []),
        "[depth]",
        *_comment(weights.estimator_reason),
        f"estimator = {_toml(weights.estimator)}",
        "",
        "[network]",
        'name = "unet"',
        f"encoder = {_toml(choose_encoder(machine))}",
        *_comment(weights.encoder_reason),
        f"encoder_weights = {_toml(weights.encoder)}",
        *(["decoder_channels = [128, 64, 32, 16, 16]"] if machine.gpu_bytes is None else []),
        "",
        "[training]",
        *_comment(f"{sizing.epochs_reason}; the schedule has three phases"),
        f"epochs = {sizing.epochs}",
        f"batch_size = {sizing.batch_size}",
        f"lr = {'1e-3' if weights.encoder == 'none' else '3e-4'}",
        'lr_schedule = "poly"',
        "",
        "[loss]",
        *_comment(_describe_balance(found)),
        'class_weights = "median-frequency"',
        "",
        "[schedule]",
        '# What it has to beat: pipeline run --schedule seg-only, or the whole table: pipeline table schedules',
        f"name = {_toml(SCHEDULE)}",
        "copy_weights = true",
        "",
        "[evaluation]",
        *(["# Images enter at the crop's size, here and in `pipeline predict`."] if sizing.at_crop_size else []),
        *(['size = "recipe"'] if sizing.at_crop_size else []),
        f"batch_size = {sizing.evaluation_batch}",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def format_list(split: str, names: tuple[str, ...]) -> str:
    """Return the text of a list of images."""
    return "\n".join([f"# Images of split {split}, by `pipeline init`.", SCRIPT_SEAL, *names]) + "\n"


def choose_depth(found: Inspection, reason: str | None) -> tuple[str, str]:
    """Return the estimator, and why.

    Args:
        found: the images.
        reason: why the usual teacher cannot be had; None if it can.
    """
    if found.depth is not None:
        return GROUND_TRUTH, "the depth maps that lie beside the images"
    if reason is None:
        return TEACHER, "the smallest good teacher that may be used for anything; others: pipeline estimators"
    return "bundled", (
        f"{TEACHER} is not here and cannot be fetched ({reason}). bundled is a miniature taught by drawings, NOT FIT "
        f'FOR PHOTOGRAPHS: it shows that everything runs, no more. With a connection set estimator = "{TEACHER}"'
    )


def _describe_balance(found: Inspection) -> str:
    if not found.shares:
        return "rare classes count as much as frequent ones"
    least, most = min(found.shares, key=found.shares.__getitem__), max(found.shares, key=found.shares.__getitem__)
    return (
        f"rare classes count as much as frequent ones: {most} has {found.shares[most]:.1%} of the labelled pixels, "
        f"{least} {found.shares[least]:.2%}"
    )


_OPTION_NOTES = {
    "images": "Where the files lie: {name} is the image's name, {split} the split's.",
    "lists": "Text files with the names of each split's images, one a line; move a line to move an image.",
    "split_names": "What stands for {split} in the paths above.",
    "classes": "Their names, in the order of their ids.",
    "ids": "The id of each class in the masks.",
    "first_id": "The id of the first class in the masks.",
    "void_ids": "Ids that are neither trained on nor scored.",
    "depth_kind": "What the depth maps hold: relative (large = near) or metric (large = far).",
}


def _format_options(found: Inspection, options: dict[str, Any]) -> list[str]:
    lines = []
    for name, value in options.items():
        if name == "classes":
            lines += _comment(next((f"{d.value}: {d.why}" for d in found.decisions if d.what == "masks are"), ""))
        lines += [f"# {_OPTION_NOTES[name]}"] if name in _OPTION_NOTES else []
        lines.append(f"{name} = {_toml(value)}")
    return lines


def _comment(text: str) -> list[str]:
    """Return a text as lines of comment."""
    import textwrap

    first = text.split(" ")[0]
    text = text[:1].upper() + text[1:] if first.isalpha() else text  # no name of an estimator
    return textwrap.wrap(text + ("" if text.endswith(".") else "."), 116, initial_indent="# ", subsequent_indent="# ")


def _toml(value: Any) -> str:
    """Return a value in TOML's notation; of a list of texts each on a line."""
    if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
        return "[\n" + "".join(f"  {write_value(item)},\n" for item in value) + "]"
    return write_value(value)

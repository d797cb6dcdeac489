"""`pipeline advise`: how to transfer, on which backbone, network and image size to begin, and what each costs.

Source of every rule: the segmentation lecture (transfer table, backbones, networks, input sizes of 200 to 600 px). Its
words on speed are replaced by measurements. Marked "ours" is what it leaves open.
"""

from __future__ import annotations

import platform
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import click

from data_cache.errors import UserError, unknown_name
from data_cache.files import write_json
from data_cache.sample import SMALLEST_INPUT_PX

if TYPE_CHECKING:
    from rich.console import Group

    from pipeline.session import Result, Session
    from stages.training.settings import TransferMode

Amount = Literal["small", "large"]
Similarity = Literal["similar", "different"]

SMALL_DATASET = 1000
"""Fewer training images than this are few. Ours; the lecture gives no number."""


class Transfer(NamedTuple):
    """One answer of the lecture's table."""

    mode: TransferMode
    reason: str


TRANSFERS: dict[tuple[Amount, Similarity], Transfer] = {
    ("small", "similar"): Transfer(
        "feature-extractor",
        "few images would overfit the encoder, and its features already fit what they show: train the decoder alone",
    ),
    ("small", "different"): Transfer(
        "low-level-extractor",
        "few images cannot retrain the late stages, whose features are of other objects: keep the early ones, frozen, "
        "and drop the rest",
    ),
    ("large", "similar"): Transfer(
        "fine-tune", "enough images to train every layer with little risk of overfitting, gently, for it fits already"
    ),
    ("large", "different"): Transfer(
        "fine-tune", "enough images to train every layer, and pretrained weights still are the better start"
    ),
}


class Target(NamedTuple):
    """Where the network is to run, and the encoders for it, the first choice first."""

    encoders: tuple[str, ...]
    reason: str


TARGETS: dict[str, Target] = {
    "accuracy": Target(("resnet50", "resnet101"), "the most used ones, more accurate than VGG16 and MobileNet"),
    "edge": Target(
        ("resnet18", "resnet34", "tu-resnet10t"),
        "for embedded use and for several models on one device: a smaller ResNet, or fewer stages of it "
        "(--set network.encoder_depth=4)",
    ),
    "cpu": Target(("mobilenet_v2",), "by far the quickest, for a CPU or a phone where some accuracy may go"),
}

SIZES = {"small-objects": 600, "balanced": 400, "fast": 256}
"""Presets, px; 600 and 400 are the lecture's, 256 ours."""
USUAL_SIZES_PX = (200, 600)
PSPNET_FROM_PX = 500

COSTS_FILE = "backbones.json"
"""In the work directory: the measurements, so that a second call does not measure."""

NETWORKS_FOR = (
    ("easy ones", "fcn8s: the lecture calls it light, but it has 134 million weights, unet on resnet18 14 million"),
    ("many, mostly small, thin or varied objects", f"unet; pspnet from {PSPNET_FROM_PX}x{PSPNET_FROM_PX} px"),
    ("few large objects", "fcn8s or segnet; unet and pspnet are more than it takes"),
    ("little memory", "segnet: it keeps the pooled positions instead of feature maps"),
)


@click.command()
@click.option("--images", type=int, required=True, help="Number of training images.")
@click.option(
    "--similarity",
    type=click.Choice(get_args(Similarity)),
    required=True,
    help="Of your images to those of the pretraining (ImageNet: photographs of single things).",
)
@click.option("--input-size", default="balanced", show_default=True, help="Pixels, or small-objects, balanced, fast.")
@click.option("--target", default="accuracy", show_default=True, help="Where it will run: accuracy, edge or cpu.")
@click.option("--small-below", default=SMALL_DATASET, show_default=True, help="Fewer images are few.")
@click.option("--remeasure", is_flag=True, help="Measure the encoders again.")
@click.pass_obj
def advise(
    session: Session,
    images: int,
    similarity: Similarity,
    input_size: str,
    target: str,
    small_below: int,
    remeasure: bool,
) -> None:
    """Say how to use pretrained weights, which encoder, network and image size to take, and what they cost here."""
    session.show(
        give_advice(
            session,
            images=images,
            similarity=similarity,
            target=target,
            input_size=input_size,
            small_below=small_below,
            remeasure=remeasure,
        )
    )


def recommend_transfer(images: int, similarity: Similarity, *, small_below: int = SMALL_DATASET) -> Transfer:
    """Return the lecture's answer for a number of training images and their likeness to the pretraining's.

    Raises:
        UserError: there are no images.
    """
    if images < 1:
        raise UserError(f"--images {images} leaves nothing to train on; give the number of training images")
    if small_below < 1:
        raise UserError(f"--small-below {small_below} calls no number of images small; it must be at least 1")
    return TRANSFERS["small" if images < small_below else "large", similarity]


def parse_input_size(text: str) -> int:
    """Return a side in pixels, given as a number or as the name of a preset.

    Raises:
        UserError: it is neither, or a size that no network takes.
    """
    from data_cache.settings import LARGEST_CROP_PX

    if not text.removeprefix("-").isdecimal():
        if text not in SIZES:
            raise unknown_name("input size (or a number of pixels)", text, SIZES)
        return SIZES[text]
    side_px = int(text) if len(text) < 10 else LARGEST_CROP_PX + 1
    if side_px < SMALLEST_INPUT_PX:
        raise UserError(f"--input-size {text} is too small; every network takes {SMALLEST_INPUT_PX} px or more")
    if side_px > LARGEST_CROP_PX:
        raise UserError(f"--input-size {text[:12]} is too large; at most {LARGEST_CROP_PX} px are trained on")
    return side_px


def warn_of_size(side_px: int) -> list[str]:
    """Return what speaks against an input size."""
    low, high = USUAL_SIZES_PX
    if side_px < low:
        return [f"{side_px} px is below the usual {low}-{high} px: small objects vanish in the strides"]
    if side_px > high:
        times = (side_px / SIZES["balanced"]) ** 2
        return [
            f"{side_px} px is above the usual {low}-{high} px: memory grows with its square, {times:.1f} times that of "
            f"{SIZES['balanced']} px; mind other models on the device"
        ]
    return []


def give_advice(
    session: Session,
    *,
    images: int,
    similarity: Similarity,
    target: str = "accuracy",
    input_size: str = "balanced",
    small_below: int = SMALL_DATASET,
    remeasure: bool = False,
) -> Result:
    """Put the lecture's rules and this machine's measurements together.

    Args:
        session: where measurements are kept, and how to speak.
        images: number of training images.
        similarity: of the images to those that the encoder was pretrained on.
        target: a key of ``TARGETS``.
        input_size: pixels, or a key of ``SIZES``.
        small_below: fewer images are few.
        remeasure: measure again although this machine was measured before.

    Raises:
        UserError: for values that are not possible.
    """
    from pipeline.session import Result

    if target not in TARGETS:
        raise unknown_name("target", target, TARGETS)
    side_px = parse_input_size(input_size)
    transfer = recommend_transfer(images, similarity, small_below=small_below)
    chosen = TARGETS[target]
    costs = _read_or_measure(session, remeasure=remeasure)
    command = (
        "pipeline run --recipe mine.toml "  # of `pipeline init`
        f"--transfer {transfer.mode} --network unet --encoder {chosen.encoders[0]} "
        f"--set network.encoder_weights=imagenet --set data.crop=[{side_px},{side_px}]"
    )
    facts = {
        "transfer": transfer.mode,
        "reason": transfer.reason,
        "amount": "small" if images < small_below else "large",
        "encoders": list(chosen.encoders),
        "encoders_reason": chosen.reason,
        "input_size": side_px,
        "warnings": warn_of_size(side_px),
        "networks": [{"for": purpose, "choose": choice} for purpose, choice in NETWORKS_FOR],
        "costs": costs["backbones"],
        "machine": costs["machine"],
        "command": command,
    }
    return Result(facts, _render(facts, images=images, similarity=similarity, target=target, small_below=small_below))


def _render(facts: dict[str, Any], *, images: int, similarity: str, target: str, small_below: int) -> Group:
    from rich.console import Group
    from rich.text import Text

    from pipeline.console import plain_table

    amount = f"{images:,} images, fewer than {small_below:,}" if facts["amount"] == "small" else f"{images:,} images"
    first = facts["encoders"][0]
    machine = facts["machine"]
    rows = [
        [cost["encoder"], cost["parameters"], f"{cost['milliseconds']:.1f}", "←" if cost["encoder"] == first else ""]
        for cost in facts["costs"]
    ]
    threads = f"{machine['threads']} thread{'' if machine['threads'] == 1 else 's'}"
    return Group(
        Text(f"transfer    {facts['transfer']} ({amount}, {similarity} to the pretraining)"),
        Text(f"            {facts['reason']}"),
        Text(f"encoder     {' or '.join(facts['encoders'])} (for {target})"),
        Text(f"            {facts['encoders_reason']}"),
        Text(f"input size  {facts['input_size']} px (presets: {_list_sizes()})"),
        *(Text(f"            warning: {warning}") for warning in facts["warnings"]),
        Text(f"command     {facts['command']}\n"),
        plain_table("Networks, by what the images show", ["images", "network"], [list(row) for row in NETWORKS_FOR]),
        Text(),
        plain_table(
            f"Encoders measured here: one image 256x256, float32, {threads}, torch {machine['torch']}",
            ["encoder", "parameters", "ms", "first choice"],
            rows,
        ),
    )


def _list_sizes() -> str:
    return ", ".join(f"{name} {side}" for name, side in SIZES.items())


def _read_or_measure(session: Session, *, remeasure: bool) -> dict[str, Any]:
    """Return machine and costs; measured once per machine, number of threads and version of torch."""
    from data_cache.records import read_record
    from pipeline.experiment.facts import MeasuredCosts
    from pipeline.experiment.tables import BACKBONES

    machine = _describe_machine()
    path = session.workspace.root / COSTS_FILE
    if path.is_file() and not remeasure:
        known = read_record(path, MeasuredCosts)
        if known.machine == machine and [cost.encoder for cost in known.backbones] == list(BACKBONES):
            return known.model_dump()
    from stages.networks.backbone_cost import REPEATS, measure_backbones

    with session.console.progress(f"measuring {len(BACKBONES)} encoders", REPEATS) as advance:
        costs = measure_backbones(BACKBONES, progress=advance)
    measured = {"machine": machine, "backbones": [asdict(cost) for cost in costs]}
    write_json(path, measured)
    return measured


def _describe_machine() -> dict[str, Any]:
    """Return what the times depend on."""
    import torch

    return {
        "host": platform.node(),
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }

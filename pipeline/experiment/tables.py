"""Tables of runs: which rows, what each changes in the recipe, and what the papers printed. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from data_cache.errors import UserError, nearest, unknown_name
from data_cache.metrics import HEADLINE
from data_cache.order import steps_per_epoch
from pipeline.experiment.config import RunConfig
from pipeline.experiment.own_tables import read_table
from pipeline.experiment.table_spec import PaperFigures, TableRow, TableSpec
from stages.comparison.row_name import name_control
from stages.networks import NETWORKS
from stages.training.schedules import PAPER_ROWS, TABLE_ROWS

SINGLE_TASK_METRICS = ("miou_macro", "boundary_f1", "miou_imagewise_macro", "pixel_acc")
BACKBONES = (
    "tu-resnet10t", "resnet18", "resnet34", "resnet50", "resnet101", "vgg16", "vgg16_bn", "mobilenet_v2",
    "tu-xception65",
)  # fmt: skip
"""Encoders of the segmentation lecture, its "ResNet 10" as timm's resnet10t, and Xception65 of the fusion paper."""


PLAIN, DEPTH = "seg-seg-seg", "depth-first+copy"
"""The schedule without depth that has three phases as those with it, and the one with depth that did best in the
paper."""
CONTROL_SOURCES = ("shuffled", "gray")
"""What the latter learns in place of depth in the table of schedules."""


def _schedule_row(name: str) -> TableRow:
    printed = PAPER_ROWS.get(name)
    controls = (PLAIN, *(name_control(name, source) for source in CONTROL_SOURCES)) if name == DEPTH else ()
    return TableRow(name, {"schedule": {"name": name}}, dict(printed._asdict()) if printed else {}, controls=controls)


def _control_row(name: str, source: str) -> TableRow:
    """Return a schedule's row that learns something else than the image's depth."""
    return TableRow(name_control(name, source), {"schedule": {"name": name}, "depth.source": source})


def _fraction_rows(fraction: str) -> Iterator[TableRow]:
    """Yield the rows with this share of the masks: without and with depth, and with the images that have no mask."""
    for schedule, pool in ((PLAIN, ""), (DEPTH, ""), ("joint", ""), (DEPTH, "+pool")):
        changes = {
            "schedule": {"name": schedule},
            "data.labelled_fraction": fraction,
            "data.unlabelled": "pool" if pool else "ignore",
        }
        whole = bool(pool) and fraction == "1"
        yield TableRow(f"{schedule}{pool}:{fraction}", changes, baseline=f"{PLAIN}:{fraction}", needs_own_pool=whole)


def _paying_rows(choice: str, labelled_by: str) -> Iterator[TableRow]:
    """Yield the ways to use images without masks, with the labelled ones chosen in one way.

    All learn by cross-entropy: by focal loss hardly a label becomes as certain as ``mix.confidence`` in a short
    training, so that nothing would be learned from mixed images, and rows with and without them would be the same.
    """
    shared = {"data.labelled_fraction": "1/16", "data.labelled_by": labelled_by, "loss.seg": "cross-entropy"}
    plain = {"schedule": {"name": PLAIN}, "data.unlabelled": "ignore"}
    first = None if choice == "random" else "plain:random"
    yield TableRow(f"plain:{choice}", {**plain, **shared}, baseline=first)
    for mix in ("none", "cut", "class", "depth"):
        name = "pool" if mix == "none" else f"pool+{mix}"
        without = {"none": (), "depth": ("pool", "pool+class", "pool+cut")}.get(mix, ("pool",))
        controls = tuple(f"{other}:{choice}" for other in without)
        changes = {"schedule": {"name": DEPTH, "mix": mix}, "data.unlabelled": "pool", **shared}
        yield TableRow(f"{name}:{choice}", changes, baseline=f"plain:{choice}", controls=controls)


def _single_task_row(
    name: str, network: str, changes: Mapping[str, Any] | None = None, *, miou: float | None = None, budget: int = 1
) -> TableRow:
    """Return a row that trains segmentation alone, on a network without depth branch."""
    seg_only = {"schedule": {"name": "seg-only"}, "network.with_depth": False}
    paper = {} if miou is None else {"miou": miou}
    return TableRow(name, {"network.name": network, **seg_only, **(changes or {})}, paper, budget)


def _fusion_row(name: str, *, entry: bool, middle: bool, dilated: bool = True, miou: float) -> TableRow:
    changes = {"network.entry": entry, "network.middle": middle, "network.dilated": dilated}
    return _single_task_row(name, "deeplabv3plus-mff", changes, miou=miou)


def _fcn_row(name: str, network: str, decay: float, *, miou: float | None = None, budget: int = 1) -> TableRow:
    changes = {"loss.seg": "cross-entropy", "training.optimizer": "adam", "training.weight_decay": decay}
    return _single_task_row(name, network, changes, miou=miou, budget=budget)


def _network_row(network: str) -> TableRow:
    changes = {"schedule": {"name": "depth-first+copy"}, "network.name": network}
    return TableRow(f"{network}-depth-first", changes)


SCHEDULES_PAPER = PaperFigures(
    "voc",
    "paper: scores as printed, on PASCAL VOC. Its mIoU is pixel-weighted (compare miou_micro_imagewise, not "
    "miou_macro) and its acc one-vs-rest binary accuracy (acc_binary, not pixel_acc); 0.9974 is a misprint, the other "
    "rows imply 0.9873",
)
FUSION_PAPER = PaperFigures(
    "cityscapes",
    "paper: mIoU as printed, on the validation split of Cityscapes at full size, one run each. It says that mIoU is "
    "the mean over images of each image's mIoU (compare miou_imagewise_macro); the level is that of pooled counts "
    "(miou_macro)",
)
FUSION_NOTE = (
    "fusion adds 11.6 million weights to the baseline and the row without dilation has 13.5 million less, so neither "
    "tells dilation from capacity"
)
FCN_PAPER = PaperFigures(
    "voc",
    "paper: mIoU as printed by the FCN-8s report, on the validation split of PASCAL VOC, one run each, after 20,000 "
    "iterations (exp3: 40,000); that it is a class mean over pooled counts is assumed. Of conv-vgg it shows images "
    "only; its claim of better borders is boundary_f1 here",
)
BACKBONES_NOTE = "no paper column: the segmentation lecture compares backbones in words; cost: pipeline advise"
DCSA_NOTE = "no paper column: the paper of deformable-convolution self-attention is a design without an experiment"
NETWORKS_NOTE = "no paper column: no paper trains these networks by the schedules of pseudo depth"
SHARED_EPOCHS = 1.5
"""Of the tables with few masks: all 15 rows of one seed in less than 25 minutes on two cores (recipe demo)."""
FRACTION_NOTE = (
    "no paper column; every row has the same number of steps, and all rows of a seed and a fraction the same masks. "
    "Rows without +pool read nothing but labelled images"
)
PAYS_NOTE = (
    "no paper column: Hoyer et al. 2021 report other networks, data and budgets; every row has the same number of "
    "steps and cross-entropy, since focal loss leaves labels of mixed images too uncertain. Rows with the pool read "
    "images without masks besides. A gain of pool+depth is credited to depth only where pool+class and pool+cut stay "
    "behind; of pool+class and pool+cut it may be the mixing's alone, which needs no depth"
)

# fmt: off
TABLES = {
    "schedules": TableSpec("Training schedules", "seg-only", (
        *(_schedule_row(name) for name in TABLE_ROWS),
        *(_control_row(DEPTH, source) for source in CONTROL_SOURCES),
    ), "", seeds=(0, 1, 2), paper=SCHEDULES_PAPER),
    "mff": TableSpec("Multi-path feature fusion in DeepLabV3+ (Park & Heo 2021, tables 1 and 2)", "mff-exit", (
        _fusion_row("mff-exit",      entry=False, middle=False, miou=0.77854),
        _fusion_row("mff-entry",     entry=True,  middle=False, miou=0.78918),
        _fusion_row("mff-middle",    entry=False, middle=True,  miou=0.78570),
        _fusion_row("mff-both",      entry=True,  middle=True,  miou=0.78990),
        _fusion_row("mff-undilated", entry=True,  middle=True,  dilated=False, miou=0.76440),
        _single_task_row("mff-unet", "unet-classic",            miou=0.57417),
    ), FUSION_NOTE, SINGLE_TASK_METRICS, paper=FUSION_PAPER),
    "bisenet": TableSpec("Multi-path feature fusion in BiSeNet (Park & Heo 2021, table 3)", "bisenet", (
        _single_task_row("bisenet",     "bisenet",     miou=0.65005),
        _single_task_row("bisenet-mff", "bisenet-mff", miou=0.66062),
    ), "", SINGLE_TASK_METRICS, paper=FUSION_PAPER),
    "fcn8s": TableSpec("FCN-8s against VGG16 without skips (FCN-8s report, experiments 1 to 3)", "conv-vgg", (
        _fcn_row("conv-vgg",   "conv-vgg", 1e-6),
        _fcn_row("fcn8s-exp1", "fcn8s",    1e-6, miou=0.5160),
        _fcn_row("fcn8s-exp2", "fcn8s",    1e-5, miou=0.5129),
        _fcn_row("fcn8s-exp3", "fcn8s",    1e-6, miou=0.5591, budget=2),
    ), "", SINGLE_TASK_METRICS, (HEADLINE, "boundary_f1"), seeds=(0, 1, 2), paper=FCN_PAPER),
    "backbones": TableSpec("Encoders under one U-Net", "backbone-resnet50", tuple(
        _single_task_row(f"backbone-{name.removeprefix('tu-')}", "unet", {"network.encoder": name})
        for name in BACKBONES
    ), BACKBONES_NOTE, SINGLE_TASK_METRICS),
    "dcsa": TableSpec("Deformable-convolution self-attention in a ResNet", "dcsa-without", (
        _single_task_row("dcsa-without",     "dcsa-resnet", {"network.place": "none"}),
        _single_task_row("dcsa-inside",      "dcsa-resnet", {"network.place": "inside"}),
        _single_task_row("dcsa-after-stage", "dcsa-resnet", {"network.place": "after_stage"}),
    ), DCSA_NOTE, SINGLE_TASK_METRICS),
    "label-fraction": TableSpec("Few masks and many images", f"{PLAIN}:1", tuple(
        row for fraction in ("1", "1/4", "1/8", "1/16") for row in _fraction_rows(fraction)
    ), FRACTION_NOTE, seeds=(0, 1, 2), shared_epochs=SHARED_EPOCHS),
    "depth-pays": TableSpec("Ways in which depth is said to pay, at 1/16 of the masks", "plain:random", (
        *_paying_rows("random", "random"), *_paying_rows("selected", "depth-features"),
    ), PAYS_NOTE, seeds=(0, 1, 2), shared_epochs=SHARED_EPOCHS),
    "networks": TableSpec("Every network by depth-first+copy", "unet-depth-first", tuple(
        _network_row(name) for name in NETWORKS
    ), NETWORKS_NOTE),
}
# fmt: on

_TABLE_OF_ROW = {row.name: (table, row) for table in TABLES.values() for row in table.rows}


def find_table(name: str) -> TableSpec:
    """Return a table by its name, or by the path of its TOML file; UserError names the nearest one."""
    if name.endswith(".toml"):
        return read_table(Path(name))
    if name not in TABLES:
        raise UserError(f"{unknown_name('table', name, TABLES)}; or give the path of a .toml file with [[table.rows]]")
    return TABLES[name]


def check_asked(table: str, config: RunConfig, asked: Iterable[str]) -> None:
    """Raise UserError for keys of a recipe that are asked for now, and that the rows of a table decide themselves."""
    spec = find_table(table)
    rows, decided = spec.rows, spec.decided
    networks = {row.changes.get("network.name", config.network.name) for row in rows}
    for key in asked:
        others = key.startswith("network.") and config.network.name not in networks
        if others or any(f"{key}.".startswith(f"{each}.") or f"{each}.".startswith(f"{key}.") for each in decided):
            raise UserError(
                f"{key} is asked for, but the rows of table {table!r} decide that themselves, so it would be ignored; "
                "drop it, or use `pipeline run` for one training"
            )


def tables_of(rows: Iterable[str]) -> list[TableSpec]:
    """Return the tables that the named rows belong to, each once; rows of nobody's table add none."""
    found = [_TABLE_OF_ROW[row][0] for row in rows if row in _TABLE_OF_ROW]
    return [table for table in TABLES.values() if table in found]


class TrainingSize(NamedTuple):
    """How much there is to train on."""

    images: int
    """In the training split, with masks or without."""
    own_pool: int
    """Images that the dataset brings without masks besides."""


Measure = Callable[[RunConfig], TrainingSize]


def table_rows(
    table: TableSpec, config: RunConfig, seeds: tuple[int, ...], measure: Measure | None = None
) -> list[tuple[str, RunConfig]]:
    """Return row name and configuration for every row and seed, seeds innermost.

    Args:
        measure: looks at the data of a row; only tables whose rows depend on how much there is need it.

    Raises:
        UserError: as ``check_row_changes``.
    """
    check_row_changes(config)
    found = []
    configured = [(row, [_configure(row, config, seed) for seed in seeds]) for row in table.rows]
    shares = table.shared_epochs is not None
    numbers = {len(each.build_schedule().phases) for _, of_seeds in configured for each in of_seeds if shares}
    for row, of_seeds in configured:
        for changed in of_seeds:
            if not (row.needs_own_pool or table.shared_epochs):
                found.append((row.name, changed))
                continue
            assert measure is not None, f"rows of {table.title} depend on how many images there are"
            size = measure(changed)
            if size.own_pool or not row.needs_own_pool:
                found.append((row.name, _share_budget(changed, table.shared_epochs, size.images, numbers)))
    return found


def _share_budget(config: RunConfig, factor: float | None, num_images: int, numbers: Collection[int]) -> RunConfig:
    """Return the recipe with so many times its budget in steps, for all phases together.

    Args:
        numbers: of phases that rows have; the budget can be divided by each, so that none has a step less.
    """
    if factor is None:
        return config
    training = config.training
    steps = training.iterations or training.epochs * steps_per_epoch(num_images, training.images_per_step)
    whole = math.lcm(*numbers)
    budget = max(1, round(factor * steps / whole)) * whole
    return config.changed({"training.iterations": budget, "training.budget": "total"})


def check_row_changes(config: RunConfig) -> None:
    """Raise UserError where the recipe changes a row that is in no table, or changes it to nonsense."""
    if unknown := [name for name in config.row_changes if name not in _TABLE_OF_ROW]:
        hints = ", ".join(f"{name!r}{nearest(name, _TABLE_OF_ROW)}" for name in unknown)
        raise UserError(f"the recipe's row_changes are for rows that no table has: {hints}")
    for name, changes in config.row_changes.items():
        config.changed({**_TABLE_OF_ROW[name][1].changes, **changes}, f"table row {name!r}")


def _configure(row: TableRow, config: RunConfig, seed: int) -> RunConfig:
    changes = {**row.changes, **config.row_changes.get(row.name, {}), "seed": seed}
    changed = config.changed(changes, f"table row {row.name!r}")
    training = changed.training
    if row.budget == 1:
        return changed
    what, amount = ("epochs", training.epochs) if training.iterations is None else ("iterations", training.iterations)
    return changed.changed({f"training.{what}": row.budget * amount})

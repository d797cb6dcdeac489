"""The rows of the schedule table; read each line left to right as time. Imports no torch.

Source: the pseudo-depth paper, tables 2 and 3; the joint weights 0.85 and 0.15 are its joint loss.
"""

from __future__ import annotations

from typing import NamedTuple

from stages.training.schedule import COPY_SUFFIX, DEPTH_BRANCH, ENCODER, EVERYTHING, SEG_BRANCH, Phase, Schedule

# fmt: off
DEPTH = Phase("depth", trains=ENCODER | DEPTH_BRANCH,            depth=1.00)
SEG   = Phase("seg",   trains=ENCODER | SEG_BRANCH,   seg=1.00)
SEG_2 = Phase("seg-2", trains=ENCODER | SEG_BRANCH,   seg=1.00)
SEG_3 = Phase("seg-3", trains=ENCODER | SEG_BRANCH,   seg=1.00)
JOINT = Phase("joint", trains=EVERYTHING,             seg=0.85,  depth=0.15)
LONG  = Phase("seg",   trains=ENCODER | SEG_BRANCH,   seg=1.00,  budget_factor=3)

SCHEDULES = {schedule.name: schedule for schedule in (
    Schedule("seg-only",           (SEG,)),
    Schedule("joint",              (JOINT,)),
    Schedule("seg-first",          (SEG, DEPTH, JOINT)),
    Schedule("seg-first-direct",   (SEG, JOINT)),
    Schedule("depth-first",        (DEPTH, SEG, JOINT)),
    Schedule("depth-first-direct", (DEPTH, JOINT)),
    Schedule("seg-seg-seg",        (SEG, SEG_2, SEG_3)),
    Schedule("seg-only-long",      (LONG,)),
    Schedule("depth-then-seg",     (DEPTH, SEG)),
)}
# fmt: on

CONTROLS = ("seg-seg-seg", "seg-only-long", "depth-then-seg")
"""Ours, not the paper's: the three-phase rows without depth, optimiser restarts and all; their budget in one long
decay; and depth as mere pre-training."""


class PaperRow(NamedTuple):
    """Scores as printed in the paper; its mIoU is pixel-weighted and its acc one-vs-rest binary accuracy."""

    miou: float
    iiou: float
    acc: float


# fmt: off
PAPER_ROWS = {
    "seg-only":                PaperRow(0.7703, 0.48,   0.986),
    "joint":                   PaperRow(0.6412, 0.15,   0.977),
    "seg-first+copy":          PaperRow(0.7297, 0.3759, 0.9840),
    "seg-first-direct+copy":   PaperRow(0.7481, 0.4231, 0.9852),
    "seg-first":               PaperRow(0.7380, 0.3945, 0.9845),
    "seg-first-direct":        PaperRow(0.7475, 0.4221, 0.9852),
    "depth-first+copy":        PaperRow(0.7789, 0.5052, 0.9974),  # printed so; the other rows imply 0.9873
    "depth-first-direct+copy": PaperRow(0.0136, 0.0061, 0.9103),
    "depth-first":             PaperRow(0.7737, 0.5012, 0.9870),
    "depth-first-direct":      PaperRow(0.0085, 0.0103, 0.9094),
}
# fmt: on
"""Row name → printed scores, in the order of tables 2 and 3."""
PAPER_TABLE_2 = ("seg-only", "joint", "depth-first+copy")
"""Rows of table 2, which cuts acc after three digits; the last stands in table 3, too."""

TABLE_ROWS = (*PAPER_ROWS, *CONTROLS)
"""The ten rows of the paper, then the controls."""


def split_name(name: str) -> tuple[str, bool]:
    """Split a row name into the schedule's name and whether ``+copy`` follows it."""
    base = name.removesuffix(COPY_SUFFIX)
    return base, base != name

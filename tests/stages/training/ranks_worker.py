"""What one of two ranks does for ``test_ranks.py``: train every case, and let rank 0 write what came of it."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from toy_network import ToyNetwork, build_toy, make_batch

from data_cache.errors import UserError
from data_cache.ranks import World, check_alike, gather_over_ranks, is_speaker, join, own_rows, rank
from data_cache.sample import IGNORE_INDEX, PackedBatch
from pipeline.job import end_job
from stages.pseudo_depth.depth_losses import metric_depth_loss, relative_depth_loss
from stages.training.loop import train_phase
from stages.training.schedule import Phase
from stages.training.schedules import DEPTH, JOINT, SEG
from stages.training.settings import LossSettings, TrainingSettings

STEPS = 4
BATCH = 5
"""Two rows for one rank, three for the other."""


class Case(NamedTuple):
    """One phase, and whatever is special about it."""

    phase: Phase = JOINT
    losses: LossSettings = LossSettings()
    settings: TrainingSettings = TrainingSettings(lr=1e-2)
    network: Mapping[str, Any] = MappingProxyType({})
    depth_loss: Any = None
    dtype: Any = "float32"
    labelled: int = 5
    """Rows of each batch that have any label."""


SGD = TrainingSettings(lr=1e-2, optimizer="sgd")
"""For what has no gradient but rounding, which Adam would blow up to full steps."""
CASES = {
    "focal and mse": Case(),
    "a frozen branch": Case(SEG),
    "no dropout": Case(network={"dropout": 0.0}),
    "auxiliary heads, weighted classes": Case(
        losses=LossSettings(seg="cross-entropy", class_weights=(0.5, 1.0, 2.0, 0.0)), network={"aux": True}
    ),
    "ohem, few hard": Case(SEG, LossSettings(seg="ohem"), network={"aux": True}),
    "l1": Case(DEPTH, LossSettings(depth="l1")),
    "ssi": Case(DEPTH, LossSettings(depth="ssi"), SGD),
    "uncertainty": Case(losses=LossSettings(weighting="uncertainty")),
    "dwa": Case(losses=LossSettings(weighting="dwa", dwa_window=1)),
    "shares, gradients looked at": Case(
        Phase("joint", JOINT.trains, seg=0.95, depth=0.05),
        LossSettings(balance="share"),
        settings=TrainingSettings(lr=1e-2, log_gradients_every=1),
    ),
    "average and clipping": Case(settings=TrainingSettings(lr=1e-2, ema_decay=0.9, clip_norm=0.05)),
    "decay of what gets no gradient": Case(
        SEG, settings=TrainingSettings(lr=1e-2, optimizer="adamw", weight_decay=0.1), network={"unused": True}
    ),
    "relative depth of a teacher": Case(DEPTH, settings=SGD, depth_loss=relative_depth_loss),
    "metric depth of a teacher": Case(DEPTH, depth_loss=metric_depth_loss),
    "two images with masks, three without": Case(labelled=2),
    "bfloat16": Case(dtype="bfloat16"),
    "two parts a step": Case(
        losses=LossSettings(weighting="uncertainty"), settings=TrainingSettings(lr=1e-2, accumulate=2, weight_decay=0.1)
    ),
}


def build_network(options: Mapping[str, Any]) -> ToyNetwork:
    """Return the toy network; ``unused`` gives its decoder a parameter that no loss depends on.

    As in networks that people use, convolutions before a batch norm have no bias.
    """
    options = dict(options)
    unused = options.pop("unused", False)
    network = build_toy(**options)
    network.seg_decoder[0].bias = network.depth_decoder[0].bias = None
    if unused:
        network.seg_decoder.register_parameter("idle", nn.Parameter(torch.ones(3, 3)))
    return network


def iterate_batches(labelled: int, parts: int, first_step: int) -> Iterator[PackedBatch]:
    """Yield this rank's rows of batches in which rows have unequal numbers of labelled and valid pixels."""
    for number in range(parts * first_step, parts * STEPS):
        batch = make_batch(number, size=BATCH, side=12)
        assert batch.inverse_depth is not None
        for row in range(BATCH):
            batch.seg_labels[row, : 2 * row] = IGNORE_INDEX
            batch.inverse_depth[row, :, row:] = torch.nan
        batch.seg_labels[labelled:] = IGNORE_INDEX
        rows = own_rows(labelled, BATCH)
        tensors = (part if part is None else part[rows] for part in batch.tensors)
        yield PackedBatch(batch.image_ids, *tensors, num_labelled=labelled)


def train(case: Case) -> dict[str, Tensor]:
    """Return the weights after the case's phase, and the losses and gradient norms of its steps."""
    network, told = build_network(case.network), []
    train_phase(
        network,
        case.phase,
        partial(iterate_batches, case.labelled, case.settings.accumulate),
        total_steps=STEPS,
        seed=7,
        key="case",
        settings=case.settings,
        losses=case.losses,
        device=torch.device("cpu"),
        dtype=case.dtype,
        depth_loss=case.depth_loss,
        on_step=lambda report: told.append(
            [report.total, *report.raw.values(), report.grad_norm, report.images, *(report.gradients or ())]
        ),
    )
    return {**network.state_dict(), "told": torch.tensor(told)}


def main(folder: Path) -> None:
    """Train all cases on this rank; rank 0 writes the results, and both say that their buffers are the same bits."""
    join(World.from_environment())
    torch.set_num_threads(1)
    for name, case in CASES.items():
        state = train(case)
        sums = gather_over_ranks({key: value.double().sum().item() for key, value in state.items()})
        assert sums[0] == sums[1], name
        if is_speaker():
            save_file({key: value.contiguous() for key, value in state.items()}, folder / f"{name}.safetensors")
    check_alike({"recipe": "the same"})
    with pytest.raises(UserError, match=r"rank 0 and rank 1 of this job are not alike \(recipe: of 0 and of 1\); "):
        check_alike({"recipe": f"of {rank()}", "program": "the same"})
    end_job(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

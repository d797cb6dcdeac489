"""What to change when a training step does not fit into memory."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch

from data_cache.errors import explaining_memory
from data_cache.sample import SMALLEST_INPUT_PX, PackedBatch
from stages.networks.precision import Dtype
from stages.training.schedule import Phase


def explaining_memory_of_step(
    phase: Phase, batch: PackedBatch, device: torch.device, dtype: Dtype
) -> AbstractContextManager[None]:
    """Return a context in which running out of memory is a UserError with the numbers of the step in it."""
    images, (height, width) = len(batch.image_ids), batch.images.shape[-2:]
    unlabelled = 0 if batch.num_labelled is None else images - batch.num_labelled
    labelled = images - unlabelled
    remedies = [f"lower --batch-size to {labelled // 2}"] if labelled > 1 else []
    remedies += ["lower training.unlabelled_share"] if unlabelled else []
    again = f", {unlabelled} of them once more, mixed," if phase.mix != "none" else ""
    halved = height // 2, width // 2
    remedies += [f"--set data.crop=[{halved[0]},{halved[1]}]"] if min(halved) >= SMALLEST_INPUT_PX else []
    remedies += ["--precision bfloat16 (float16 on GPUs without it)"] if dtype == "float32" else []
    return explaining_memory(
        f"{device} has too little memory for a training step of {images} images{again} of {height}x{width} px in "
        f"{dtype} (phase {phase.name!r}); {', or '.join(remedies)}"
    )

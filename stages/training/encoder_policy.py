"""What the encoder does while others learn: train, stand still, or move gently. Imports no torch."""

from __future__ import annotations

from typing import Literal

from data_cache.errors import UserError
from stages.training.schedule import ENCODER, Part, Phase

EncoderPolicy = Literal["train", "freeze", "low-lr", "always-freeze", "always-low-lr"]
"""``freeze`` and ``low-lr`` hold in phases with a single loss, the pseudo-depth paper's open question "does the encoder
train?"; the ``always-`` ones in every phase, as the segmentation lecture's transfer modes ask for."""

LOW_LR_FACTOR = 0.1  # ours; the lecture only says "fine adjustments"


def freezes_encoder(policy: EncoderPolicy, phase: Phase) -> bool:
    """Whether the encoder, batch-norm statistics included, stands still in this phase whatever the phase names."""
    return policy == "always-freeze" or (policy == "freeze" and not _has_both_losses(phase))


def parts_to_train(policy: EncoderPolicy, phase: Phase) -> Part:
    """Return the parts a phase really trains.

    Raises:
        UserError: the policy leaves nothing to train.
    """
    if not freezes_encoder(policy, phase):
        return phase.trains
    if not phase.trains & ~ENCODER:
        raise UserError(
            f"phase {phase.name!r} trains only the encoder, which encoder policy {policy!r} forbids; use encoder "
            "policy 'train' or 'low-lr', or drop the phase"
        )
    return phase.trains & ~ENCODER


def find_encoder_lr_factor(policy: EncoderPolicy, phase: Phase) -> float:
    """Return the factor on the encoder's learning rate in this phase."""
    gentle = policy == "always-low-lr" or (policy == "low-lr" and not _has_both_losses(phase))
    return LOW_LR_FACTOR if gentle else 1.0


def _has_both_losses(phase: Phase) -> bool:
    return phase.needs_seg and phase.needs_depth

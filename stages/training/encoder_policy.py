"""What the encoder does while others learn: train, be frozen, or learn gently. Imports no torch."""

from __future__ import annotations

from typing import Literal

from data_cache.errors import UserError
from stages.training.schedule import ENCODER, Part, Phase

EncoderPolicy = Literal["train", "freeze", "low-lr", "always-freeze", "always-low-lr"]
"""``freeze`` and ``low-lr`` hold in phases with a single loss, the pseudo-depth paper's open question "does the encoder
train?"; the ``always-`` ones in every phase, as the segmentation lecture's transfer modes ask for. They are about what
the encoder learnt before: its never pretrained modules (``Network.fresh_in_encoder``) train at the full rate."""

LOW_LR_FACTOR = 0.1  # ours; the lecture only says "fine adjustments"


def freezes_encoder(policy: EncoderPolicy, phase: Phase) -> bool:
    """Whether the encoder, batch-norm statistics included, is frozen in this phase whatever the phase names."""
    return policy == "always-freeze" or (policy == "freeze" and not _has_both_losses(phase))


def parts_to_train(policy: EncoderPolicy, phase: Phase) -> Part:
    """Return the parts a phase trains as a whole.

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


def trains_fresh_only(policy: EncoderPolicy, phase: Phase) -> bool:
    """Whether a phase trains of the encoder just the modules that were never pretrained."""
    return freezes_encoder(policy, phase) and ENCODER in phase.trains


def find_encoder_lr_factor(policy: EncoderPolicy, phase: Phase) -> float:
    """Return the factor on the learning rate of the encoder's pretrained modules in this phase."""
    gentle = policy == "always-low-lr" or (policy == "low-lr" and not _has_both_losses(phase))
    return LOW_LR_FACTOR if gentle else 1.0


def _has_both_losses(phase: Phase) -> bool:
    return phase.needs_seg and phase.needs_depth

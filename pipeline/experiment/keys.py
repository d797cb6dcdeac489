"""What the keys of trainings and scores hash: all that decides the outcome, and nothing else. Imports no torch."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path
from typing import Any

from data_cache.plugins import CODE
from data_cache.settings import Decides
from pipeline.experiment.config import RunConfig, content_hash
from pipeline.experiment.reading import Material, Scope, Selection
from stages.evaluation.settings import EVALUATION_VERSION
from stages.networks import identify_code
from stages.networks.settings import NetworkSettings
from stages.training.encoder_policy import find_encoder_lr_factor, freezes_encoder
from stages.training.schedule import Phase

TRAINING_VERSION = 4
"""Raised by hand when the meaning of a training changes, so that nodes trained before are no longer reused."""


MIXED_BATCHES_VERSION = 2
"""Likewise for phases alone whose batches hold images with masks and without."""


def describe_start(config: RunConfig, num_classes: int) -> dict[str, Any]:
    """Describe the state before the first step: seeded network, how images are cut, and what it computes in."""
    assert config.training.precision != "auto", "what is auto is resolved before it is hashed"
    return {
        "version": TRAINING_VERSION,
        "classes": num_classes,
        "network": describe_network(config.network),
        **config.describe(Decides.DATA, Decides.NUMERICS),
    }


def describe_network(network: NetworkSettings) -> dict[str, Any]:
    """Describe a network by what decides its first state, as JSON-able data; weights and code count by content."""
    code = identify_code(network.name)
    return describe_options(network) | ({} if code is None else {CODE: code})


def describe_options(network: NetworkSettings) -> dict[str, Any]:
    """Return a network's name and options, weights files by their content."""
    return {key: _hash_if_weights(value) for key, value in network.model_dump(mode="json").items()}


def _hash_if_weights(value: Any) -> Any:
    if isinstance(value, str) and value.endswith(".safetensors") and Path(value).is_file():
        state = Path(value).stat()
        return _hash_weights(Path(value), (state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino))
    return value


@lru_cache
def _hash_weights(path: Path, _state: tuple[int, ...]) -> str:
    """Return the hash of a weights file, computed once for each state of it: every row and seed asks."""
    with path.open("rb") as file:
        return f"sha256 {hashlib.file_digest(file, 'sha256').hexdigest()[:16]}"


def describe_phase(
    phase: Phase, scope: Scope, config: RunConfig, material: Material, selection: Selection | None = None
) -> dict[str, Any]:
    """Describe a phase by what decides its outcome, and by nothing else, so that equal work gets equal keys.

    Args:
        selection: on what weights are chosen, if they are.
    """
    policy = config.training.encoder_policy
    assert config.loss.class_weights != "median-frequency", "named weights become numbers before the plan is made"
    return {
        "trains": phase.trains.names(),
        "weights": [phase.seg, phase.depth],
        "encoder": [freezes_encoder(policy, phase), find_encoder_lr_factor(policy, phase)],
        "images": material.fingerprint,
        "depth": material.depth if phase.reads_depth else None,
        "mix": phase.mix,
        **({"mixed batches": MIXED_BATCHES_VERSION} if scope.masks and scope.pool else {}),
        **(
            {"selection": [selection.fingerprint, config.evaluation.size]}
            if selection and chooses_weights(phase, config)
            else {}
        ),
        **config.describe(*kinds_of(phase, scope, config)),
    }


def chooses_weights(phase: Phase, config: RunConfig) -> bool:
    """Whether scores while training decide about the weights of a phase; one without segmentation has none."""
    return phase.needs_seg and config.training.chooses


def kinds_of(phase: Phase, scope: Scope, config: RunConfig) -> set[Decides]:
    """Return what kinds of settings a phase reads beside those of the start."""
    read = {
        Decides.OPTIMISATION: True,
        Decides.SEG_LOSS: phase.needs_seg,
        Decides.DEPTH_LOSS: phase.reads_depth,
        Decides.JOINT_LOSS: phase.needs_seg and phase.needs_depth,
        Decides.POOL: scope.masks and scope.pool,
        Decides.MIX: phase.mix != "none",
        Decides.SELECTION: chooses_weights(phase, config),
    }
    return {kind for kind, needed in read.items() if needed}


def describe_scores(config: RunConfig, *, needs_depth: bool) -> dict[str, Any]:
    """Describe what is measured on finished weights."""
    return config.describe(Decides.SCORES, needs_depth=needs_depth)


def evaluation_key(weights: str, config: RunConfig, split: str, depth: str | None, *, needs_depth: bool) -> str:
    """Return the key of a run's scores.

    Args:
        weights: hash of the run's last weights.
        split: fingerprint of what is scored on.
        depth: fingerprint of its depth maps, if there are any.
    """
    return content_hash(
        [EVALUATION_VERSION, weights, describe_scores(config, needs_depth=needs_depth), split, depth], 16
    )

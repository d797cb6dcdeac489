"""How long a step of a training takes here: a few are done, on its own data, and nothing is kept of them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from itertools import islice

import torch

from data_cache.sample import PackedBatch
from data_cache.samples import Source
from pipeline.experiment.artifacts import find_targets
from pipeline.experiment.config import content_hash
from pipeline.experiment.feeding import Feed
from pipeline.experiment.keys import describe_network
from pipeline.experiment.plan import Node
from pipeline.experiment.training_images import open_training_images
from pipeline.session import Session
from stages.networks import build_without_weights
from stages.networks.precision import resolve_dtype
from stages.training.loop import train_phase

WARM_UP, MEASURED = 2, 4
"""Steps that are done before the clock starts, and those it is about."""


def estimate_seconds(nodes: Sequence[Node], session: Session, device: torch.device) -> dict[str, float]:
    """Return by folder how many seconds each training's steps will take here, scores while training left out.

    Phases that do the same in a step, for all that decides its time, are measured once.
    """
    known: dict[str, float] = {}
    found = {}
    for node in nodes:
        kind = _describe_step(node)
        if kind not in known:
            session.console.info(f"measuring a few steps of {node.title}")
            known[kind] = _time_step(node, session, device)
        found[node.folder] = node.steps * known[kind]
    return found


def _describe_step(node: Node) -> str:
    config, phase = node.config, node.phase
    facts = [describe_network(config.network), node.facts.num_classes, phase.trains.names(), phase.needs_seg, phase.mix]
    numbers = [phase.needs_depth, *node.batch, config.training.accumulate, config.training.encoder_policy]
    sections = [section.model_dump(mode="json") for section in (config.data, config.loss)]
    return content_hash([*facts, *numbers, *sections], 16)


def _time_step(node: Node, session: Session, device: torch.device) -> float:
    """Return the seconds of a step, reading of its images included."""
    config = node.config
    images = open_training_images(config, session.workspace, node.facts.labelled, node.facts.selection)
    dataset = images.select(node.scope)
    store = find_targets(config, session.workspace, dataset) if node.phase.reads_depth else None
    pool = images.pool if node.scope.masks and node.scope.pool else 0
    feed = Feed(node, Source(dataset, store, config.depth.target, pool=pool), device)
    steps, parts = min(node.steps, WARM_UP + MEASURED), config.training.accumulate
    warm_up = min(WARM_UP, steps - 1)
    started_at = 0.0

    def batches(first_step: int) -> Iterator[PackedBatch]:
        nonlocal started_at
        for number, batch in enumerate(islice(feed(first_step), steps * parts)):
            if number == warm_up * parts:
                _wait_for(device)
                started_at = time.perf_counter()
            yield batch

    network = build_without_weights(config.network.name, len(dataset.classes), **config.network.options)
    settings = config.training.model_copy(update={"warmup_steps": 0, "keep": "last", "patience": None})
    train_phase(
        network, node.phase, batches, total_steps=steps, seed=node.seed, key="measured", settings=settings,
        losses=config.loss, mixing=config.mix, device=device,
        dtype=resolve_dtype(config.training.precision, str(device)),
    )  # fmt: skip
    _wait_for(device)
    return (time.perf_counter() - started_at) / (steps - warm_up)


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)

"""A node is trained unless it is trained already: from its parent's weights, with its data, in its folder."""

from __future__ import annotations

import contextlib
import time
from dataclasses import asdict
from typing import Any

import torch

from data_cache.content import ContentHashes
from data_cache.errors import UserError
from data_cache.files import hold_folder, write_json
from data_cache.leftovers import remove
from data_cache.metrics import HEADLINE
from data_cache.plugins import CODE
from data_cache.ranks import broadcast_object, is_speaker
from data_cache.samples import Source
from data_cache.split_depth import SplitDepth
from pipeline.console import Advance
from pipeline.experiment.artifacts import find_targets
from pipeline.experiment.feeding import Feed
from pipeline.experiment.keys import chooses_weights, describe_options
from pipeline.experiment.nodes import NodeRecord, load_node
from pipeline.experiment.plan import Node
from pipeline.experiment.provenance import describe_environment, describe_numerics
from pipeline.experiment.scoring import evaluate_split
from pipeline.experiment.together import announce
from pipeline.experiment.training_images import open_training_images
from pipeline.experiment.validating import open_validation
from pipeline.session import Session
from pipeline.workspace import NodeFolder, Workspace
from stages.networks import build_network, build_without_weights, find_network
from stages.networks.interface import Network
from stages.networks.precision import resolve_dtype
from stages.training.checkpoint import save_weights
from stages.training.interruption import stop_on_signals
from stages.training.loop import PhaseSummary, train_phase
from stages.training.metrics_log import MetricsLog, StepReport
from stages.training.selection import Validate, Validation
from stages.training.settings import TrainingSettings
from stages.training.trackers import open_trackers
from stages.training.transfer import CopyReport, copy_part

_SHOWN_SHARE = 0.05
"""Of the time; shorter waits for data are nobody's concern."""


def finish_node(node: Node, session: Session, device: torch.device) -> bool:
    """Train a node unless it is trained already; return whether that was done."""
    folder = session.workspace.node(node.folder)
    if folder.finished:
        return False
    with hold_folder(folder.path, "training this phase"):
        if folder.finished:  # another process may have finished it between the look and the lock
            return False
        announce(node.folder)
        train_node(node, folder, session, device)
    return True


def train_node(node: Node, folder: NodeFolder, session: Session, device: torch.device) -> None:
    """Train a node, or this rank's share of it; the speaker, who holds the folder, writes what is left of it there."""
    config, training = node.config, node.config.training
    images = open_training_images(config, session.workspace, node.facts.labelled, node.facts.selection)
    dataset = images.select(node.scope)
    store = find_targets(config, session.workspace, dataset) if node.phase.reads_depth else None
    network = _build_start(node, session.workspace, len(dataset.classes))
    copies = [copy_part(network, copy.source, copy.target) for copy in node.copies]
    with (
        stop_on_signals() as stop,  # only here: elsewhere an interruption has nothing to save and may come at once
        session.console.progress(node.title, node.steps) as advance,
        _open_log(folder, training) as log,
    ):
        pool = images.pool if node.scope.masks and node.scope.pool else 0
        feed = Feed(node, Source(dataset, store, config.depth.target, pool=pool), device)
        display = StepDisplay(advance, feed)
        summary = train_phase(
            network,
            node.phase,
            feed,
            total_steps=node.steps,
            seed=node.seed,
            key=node.key,
            settings=training,
            losses=config.loss,
            mixing=config.mix,
            device=device,
            dtype=resolve_dtype(training.precision, str(device)),
            checkpoint_folder=folder.checkpoint,
            log=log,
            on_step=display,
            validate=_make_validation(node, session.workspace, device) if node.validate_every else None,
            validate_every=node.validate_every,
            on_validation=display.show_score,
            stop=stop,
        )
        if is_speaker():
            folder.record.unlink(missing_ok=True)  # it may tell of weights that were removed
            save_weights(network, folder.weights)
            write_json(folder.record, _describe_node(node, folder, copies, summary, store, device) | feed.describe())
            remove(folder.checkpoint)
            feed.tell_long_waits()
    if broadcast_object(stop.is_set()):
        raise KeyboardInterrupt(f"phase {node.phase.name!r} was finished; repeat the command to go on")


def _open_log(folder: NodeFolder, training: TrainingSettings) -> contextlib.AbstractContextManager[MetricsLog | None]:
    """Return the log of a phase, which is the speaker's to write."""
    if not is_speaker():
        return contextlib.nullcontext()
    trackers = open_trackers(training, folder.path)
    return MetricsLog(folder.metrics, log_every=training.log_every, trackers=trackers)


def _build_start(node: Node, workspace: Workspace, num_classes: int) -> Network:
    """Build the network a node starts from: its parent's last weights, or the one its seed gives.

    Only the speaker's has weights, which it gives to the other ranks when the training begins.
    """
    wanted = node.config.network
    begins = node.parent is None and is_speaker()
    build = build_network if begins else build_without_weights  # the parent's weights hold them already
    torch.manual_seed(node.config.seed)
    network = build(wanted.name, num_classes, **wanted.options)
    if (plugin := find_network(wanted.name)) and plugin.identify_imported() != node.network[CODE]:
        raise UserError(f"the code of {plugin.what} has changed since this training was planned; repeat the command")
    if not is_speaker():
        return network
    if node.parent is not None:
        load_node(network, workspace.node(node.parent))
    elif not describe_options(wanted).items() <= node.network.items():
        raise UserError(
            f"the weights file {wanted.options.get('encoder_weights')} has changed since this training was planned; "
            "repeat the command when it no longer changes"
        )
    return network


def _make_validation(node: Node, workspace: Workspace, device: torch.device) -> Validate:
    """Return what scores a network while the node is trained; all ranks call it together."""
    dataset = open_validation(node.config, workspace, node.facts.selection)

    def validate(network: Network) -> dict[str, float]:
        scored = evaluate_split(network, network.normalisation, dataset, None, node.config, device, None, together=True)
        return {HEADLINE: scored.metrics[HEADLINE]}

    return validate


class StepDisplay:
    """Tells a progress bar of every step: losses, their shares, images per second, what two losses ask of the encoder
    where that is looked at, waits for data, and scores."""

    def __init__(self, advance: Advance, feed: Feed | None = None) -> None:
        self._advance, self._feed, self._started_at = advance, feed, time.perf_counter()
        self._images, self._step, self._looked, self._score, self._note = 0, 0, "", "", ""

    def __call__(self, report: StepReport) -> None:
        """Show a step."""
        self._images += report.images
        self._step = report.step
        if looked := report.gradients:
            self._looked = f", depth {looked.depth_share:.0%} of the encoder's gradients (cosine {looked.cosine:.2f})"
        losses = " ".join(f"{name} {value:.4f} ({report.share[name]:.0%})" for name, value in report.raw.items())
        waited = self._feed.wait_share if self._feed else 0.0
        waits = f", {waited:.0%} waiting for data" if waited >= _SHOWN_SHARE else ""
        speed = self._images / (time.perf_counter() - self._started_at)
        self._note = f"{losses} {speed:.1f} images/s{self._looked}{waits}"
        self._advance(report.step, self._score + self._note)

    def show_score(self, found: Validation) -> None:
        """Show what the weights scored."""
        self._score = f"mIoU {found.metrics[HEADLINE]:.4f}{' (best)' if found.best else ''} "
        self._advance(found.step, self._score + self._note)


def _describe_node(
    node: Node,
    folder: NodeFolder,
    copies: list[CopyReport],
    summary: PhaseSummary,
    store: SplitDepth | None,
    device: torch.device,
) -> dict[str, Any]:
    return {
        "format": NodeRecord.VERSION,
        "weights": ContentHashes().hash((folder.weights,)),
        "phase": node.phase.name,
        "loss": node.config.loss.describe(node.phase),
        "trains": node.phase.trains.names(),
        "key": node.key,
        "parent": node.parent,
        "steps": summary.steps,
        "images_seen": node.count_images(summary.steps),
        "best_step": summary.best_step if chooses_weights(node.phase, node.config) else None,
        "best_score": summary.best_score if chooses_weights(node.phase, node.config) else None,
        "copied": sum(len(copy.copied) for copy in copies),
        "depth_store": asdict(store.provenance) if store else None,
        "losses": summary.losses,
        "shares": summary.shares,
        "seconds": round(summary.seconds, 3),
        "images_per_second": round(summary.images_per_second, 3),
        "resumed_from": summary.resumed_from,
        "numerics": describe_numerics(device, node.config.training),
        "environment": describe_environment(),
    }

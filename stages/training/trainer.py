"""What one optimiser step changes, and therefore what a checkpoint holds."""

from __future__ import annotations

import hashlib
import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, cast

import torch
from torch import Tensor

from data_cache.errors import UserError
from data_cache.ranks import share_of, sum_over_ranks, world_size
from data_cache.sample import Batch, PackedBatch
from data_cache.unpacking import unpack
from stages.networks.interface import Network, Outputs
from stages.networks.memory_layout import choose_memory_format
from stages.networks.precision import Dtype, autocast
from stages.networks.tensor_files import fill_tensors
from stages.training.distributed import ParallelNetwork, WholeBatch
from stages.training.guard import StepGuard
from stages.training.losses import (
    DepthLossFunction,
    Terms,
    compute_terms,
    count_targets,
    drop_misfits,
    segmentation_loss,
    upload_class_weights,
)
from stages.training.metrics_log import StepReport
from stages.training.mixing import Mixer
from stages.training.optimisation import MovingAverage, PhaseOptimiser, modules_of_phase
from stages.training.reports import ReportQueue, StepFacts
from stages.training.schedule import ENCODER, Phase
from stages.training.settings import LossSettings, MixSettings, TrainingSettings
from stages.training.weighting import build_weighting


class PhaseTrainer:
    """Network, fresh optimiser, loss weighting and moving average of one phase.

    Takes what ``train_phase`` takes; the network is on ``device`` already, and inside ``training_parts``.
    """

    def __init__(
        self,
        network: Network,
        phase: Phase,
        *,
        total_steps: int,
        seed: int,
        settings: TrainingSettings,
        losses: LossSettings,
        mixing: MixSettings | None = None,
        depth_loss: DepthLossFunction | None = None,
        device: torch.device,
        dtype: Dtype,
    ) -> None:
        self._network, self._phase, self._total_steps, self._seed = network, phase, total_steps, seed
        self._num_parts = settings.accumulate
        self._losses, self._depth_loss, self._device, self._dtype = losses, depth_loss, device, dtype
        self._layout = choose_memory_format(network, device)
        self._forward = _compiled(network, device, settings.compile_mode) if settings.compile else network
        self._parallel = ParallelNetwork(self._forward, device) if world_size() > 1 else None
        self._num_classes = network.num_classes if phase.needs_seg else 0
        self._class_weights = upload_class_weights(losses, self._num_classes, device) if phase.needs_seg else None
        self._weighting = build_weighting(phase, losses, network.aux_weight, device)
        self._optimiser = PhaseOptimiser(network, phase, settings, total_steps, self._weighting)
        self._average, self._mixer = None, None
        self._averaged: Network | None = None
        self._hands_over_average = settings.ema_decay is not None
        mixing = mixing or MixSettings()
        if self._hands_over_average or phase.mix != "none":
            decay = mixing.decay if settings.ema_decay is None else settings.ema_decay
            self._average = MovingAverage(network, modules_of_phase(network, phase, settings), decay)
        if phase.mix != "none":
            assert self._average is not None
            assert self._parallel is None, "plans refuse it"
            labeller = self._average.build_network()
            self._mixer = Mixer(labeller, phase, mixing, seed=seed, device=device, dtype=dtype)
        self._guard = StepGuard(network, device, dtype)
        self._reports = ReportQueue(settings.log_every)
        both = phase.needs_seg and phase.needs_depth
        self._encoder = [v for v in network.parts()[ENCODER].parameters() if v.requires_grad] if both else []
        self._looks_every = settings.log_gradients_every if self._encoder else 0
        self._nothing_seen = [torch.full((3,), math.nan, device=device)] if self._looks_every else []

    def train_step(self, step: int, *parts: PackedBatch) -> None:
        """Do the step that follows ``step`` finished ones, without waiting for the device: ``read_reports`` tells more.

        A step whose loss or gradient is not finite changes nothing, batch-norm statistics included, nor do later ones.

        Args:
            parts: of the step's batch; their gradients add up to that of the batch as a whole.
        """
        phase, guard = self._phase, self._guard
        lr = self._optimiser.prepare(step)
        self._optimiser.zero_grad()
        batches, all_misfits = zip(*map(self._place, parts), strict=True)
        looks = self._looks_every > 0 and (step + 1) % self._looks_every == 0
        seen = [self._look_at_gradients(step, batches[0])] if looks else self._nothing_seen
        guard.remember()
        shares = self._find_shares(batches) if len(parts) > 1 else [None]
        each = [self._descend(step, part, *pair) for part, pair in enumerate(zip(batches, shares, strict=True))]
        names, numbers = each[0][0], [found for _, found in each]
        gradients = self._optimiser.gradients()
        with torch.no_grad():
            # All that is known of the losses in one tensor, and from here on nothing else is asked about them.
            losses = numbers[0] if len(parts) == 1 else torch.stack(numbers).sum(0)
            misfits = all_misfits[0] if len(parts) == 1 else torch.stack(all_misfits).sum()
            losses = sum_over_ranks(torch.cat([losses, misfits.to(losses)[None]]))  # each rank's are shares of one sum
            norms = _compute_norms(gradients, guard.scale)
            norm = torch.linalg.vector_norm(norms)
            verdict = guard.judge(torch.isfinite(losses).all() & (losses[-1] == 0), norm)
            self._optimiser.update(norm, verdict.holds, guard.scale)
            guard.finish(verdict)
            self._weighting.observe(dict(zip(names, losses, strict=False)), verdict.holds)
            if self._average:
                self._average.update(step + 1, verdict.holds)
            steep = ~torch.isfinite(norms)
            others = torch.stack([norm, steep.int().argmax().to(norm), steep.sum().to(norm), verdict.broken.to(norm)])
        image_ids = tuple(image_id for batch in batches for image_id in batch.image_ids)
        facts = StepFacts(
            phase.name, step + 1, self._total_steps, lr, image_ids, names, tuple(gradients), self._num_classes
        )
        self._reports.add(facts, torch.cat([losses, others, *seen]))

    def _descend(self, step: int, part: int, batch: Batch, share: Tensor | None) -> tuple[tuple[str, ...], Tensor]:
        """Add the gradient of a part of a step to that of the parts before it; return what losses it came to.

        Args:
            share: the part's shares in the means of segmentation and depth loss; None is all of them.

        Returns:
            The names of the losses; the losses, the same weighted, and the sum that was descended.
        """
        scale, before = self._guard.scale, {}
        if self._parallel and part:  # what is exchanged is the gradient of this part alone
            before = self._optimiser.gradients()
            self._optimiser.zero_grad()
        terms = self._compute_terms(step, batch, self._run, part)
        if share is not None:
            terms = terms.scaled(seg=share[0], depth=share[1])
        total, weighted = self._weighting(terms, 1.0 if share is None else 1 / self._num_parts)
        (total if scale is None else total * scale).backward()
        if self._parallel:
            self._parallel.settle(self._weighting.parameters())
            for name, gradient in before.items():
                parameter = self._optimiser.named_parameters[name]
                parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)
        with torch.no_grad():
            return tuple(weighted), torch.stack([*terms.present().values(), *weighted.values(), total])

    def _find_shares(self, batches: Sequence[Batch]) -> list[Tensor]:
        """Return by part its shares of what the segmentation and the depth loss are means over; on the device."""
        counts = [count_targets(batch, self._phase, self._class_weights) for batch in batches]
        whole = sum_over_ranks(torch.stack(counts))
        return list(whole / whole.sum(0).clamp_min(torch.finfo(torch.float32).tiny))

    def read_reports(self, *, wait: bool) -> Iterator[StepReport]:
        """Yield in order what the steps came to; those of the last interval or two only if ``wait``.

        Raises:
            UserError: a step came out bad: a loss or gradient is not finite, or labels do not fit the network. All is
                then as it was before that step.
        """
        return self._reports.read(wait=wait)

    def find_outcome(self) -> Network:
        """Return a network with the weights that the phase would end with now; its modes are not to be changed."""
        if not (self._average and self._hands_over_average):
            return self._network
        self._averaged = self._averaged or self._average.build_network()  # follows the average from here on
        return self._averaged

    def finish(self) -> None:
        """Leave the network with what the phase hands on: the last weights, or their moving average if one is kept.

        What else a training holds on the device is given back, for the evaluation that follows.
        """
        self._optimiser.zero_grad()
        if self._average and self._hands_over_average:
            self._average.hand_over()
        if self._forward is not self._network:
            # CUDA graphs would keep their memory, and torch compiles no ninth form of a network: it says so nowhere.
            torch.compiler.reset()

    def state(self) -> dict[str, Tensor]:
        """Return all of it as ``<group>/<name>``."""
        groups = {
            "network": self._network.state_dict(),
            "optimiser": self._optimiser.state(),
            "weighting": self._weighting.state_dict(),
            "average": self._average.state() if self._average else {},
            "scaling": self._guard.state(),
        }
        return {f"{group}/{name}": value for group, state in groups.items() for name, value in state.items()}

    def load_state(self, tensors: Mapping[str, Tensor], what: str, remedy: str) -> None:
        """Take over what ``state`` returned.

        Args:
            what: where the tensors come from, for people.
            remedy: what to do where they do not fit.

        Raises:
            UserError: it belongs to a network or an optimiser of other names or shapes.
        """
        names = ("network", "optimiser", "weighting", "average", "scaling")
        groups: dict[str, dict[str, Tensor]] = {name: {} for name in names}
        for key, value in tensors.items():
            group, _, name = key.partition("/")
            if group not in groups:
                raise UserError(f"{what} holds {key!r}, which is no part of a training state; {remedy}")
            groups[group][name] = value
        fill_tensors(self._network.state_dict(), groups["network"], what, remedy)
        fill_tensors(self._weighting.state_dict(), groups["weighting"], f"the loss weighting in {what}", remedy)
        self._optimiser.load_state(groups["optimiser"], what, remedy)
        fill_tensors(self._guard.state(), groups["scaling"], f"the gradients' scale in {what}", remedy)
        averages = self._average.state() if self._average else {}
        fill_tensors(averages, groups["average"], f"the moving average in {what}", remedy)

    def _compute_terms(self, step: int, batch: Batch, run: Callable[..., Outputs], part: int = 0) -> Terms:
        """Return the unweighted losses of a part of a step; what is drawn is a function of step and part alone.

        Neither a resumed run nor an evaluation in between can shift the stream.
        """
        phase, mixer = self._phase, self._mixer
        torch.manual_seed(_seed_of_step(self._seed, step, part))
        learned = _keep_labelled(batch) if mixer and not phase.needs_depth else batch
        with autocast(self._device, self._dtype):
            outputs = run(learned, seg=phase.needs_seg, depth=phase.needs_depth)
        terms = compute_terms(outputs, learned, phase, self._losses, self._class_weights, self._depth_loss)
        if mixer is None:
            return terms
        mixed = mixer.mix(batch, step)
        with autocast(self._device, self._dtype):
            seg_logits = run(_keep_unlabelled(batch, self._lay(mixed.images)), seg=True, depth=False).seg_logits
        assert seg_logits is not None
        loss = segmentation_loss(seg_logits, mixed.seg_labels, self._losses, self._class_weights)
        return terms._replace(mixed=mixed.trusted * loss)

    def _look_at_gradients(self, step: int, batch: Batch) -> Tensor:
        """Return the norms of what seg and depth losses ask of the encoder, and their cosine, by passes of their own.

        So a step is the same to the bit whether it is looked at or not.
        """
        guard = self._guard
        guard.remember()
        _, weighted = self._weighting(self._compute_terms(step, batch, self._run_aside))
        depth = weighted.pop("depth")
        losses = [torch.stack(list(weighted.values())).sum(), depth]
        scale = 1.0 if guard.scale is None else guard.scale
        gradients = []
        for loss in losses:
            each = torch.autograd.grad(
                loss * scale, self._encoder, retain_graph=True, allow_unused=True, materialize_grads=True
            )
            gradients.append(torch.cat([gradient.flatten() for gradient in each]) / scale)
        guard.take_back()
        seg, depth = sum_over_ranks(torch.stack(gradients))
        norms = torch.linalg.vector_norm(torch.stack([seg, depth]), dim=1)
        cosine = (seg @ depth) / norms.prod().clamp_min(torch.finfo(norms.dtype).tiny)
        return torch.cat([norms, cosine[None]])

    def _run(self, batch: Batch, **wanted: bool) -> Outputs:
        if self._parallel:
            return self._parallel.forward(
                batch.images, batch.num_labelled, len(batch.image_ids), **_add_rows(batch, wanted)
            )
        return self._forward(batch.images, **_add_rows(batch, wanted))

    def _run_aside(self, batch: Batch, **wanted: bool) -> Outputs:
        """Run the network as it is: neither compiled nor told to exchange gradients."""
        with WholeBatch(batch.num_labelled, len(batch.image_ids)) if self._parallel else nullcontext():
            return self._network(batch.images, **_add_rows(batch, wanted))

    def _lay(self, images: Tensor) -> Tensor:
        """Return images as the network takes them; mostly they lie so already."""
        return images.contiguous(memory_format=self._layout)

    def _place(self, packed: PackedBatch) -> tuple[Batch, Tensor]:
        """Return the batch on the device, and how many of its pixels have labels that the network has no output for."""
        needed = packed if self._phase.reads_depth else packed._replace(inverse_depth=None)
        batch = unpack(needed, self._network.normalisation, self._device)
        batch = batch._replace(images=self._lay(batch.images))
        if not self._phase.needs_seg:
            return batch, torch.zeros((), device=self._device)
        seg_labels, misfits = drop_misfits(batch.seg_labels, self._num_classes)
        return batch._replace(seg_labels=seg_labels), misfits


def _add_rows(batch: Batch, wanted: dict[str, bool]) -> dict[str, Any]:
    """Leave the images without labels to the depth branch.

    With them in its batch norm, the segmentation branch would learn the labelled images by heart and nothing else.
    """
    return {**wanted, "seg_rows": len(share_of(batch.num_labelled))} if wanted["seg"] and batch.mixes else wanted


def _keep_labelled(batch: Batch) -> Batch:
    """Return what a segmentation loss needs of the labelled rows."""
    rows = slice(batch.num_labelled)
    return batch._replace(image_ids=batch.image_ids[rows], images=batch.images[rows], seg_labels=batch.seg_labels[rows])


def _keep_unlabelled(batch: Batch, images: Tensor) -> Batch:
    """Return a batch of images made from its rows without labels, for a forward pass."""
    return batch._replace(image_ids=batch.image_ids[batch.num_labelled :], images=images, num_labelled=len(images))


def _compute_norms(gradients: Mapping[str, Tensor], scale: Tensor | None) -> Tensor:
    norms = torch.stack(torch._foreach_norm(list(gradients.values())))
    return norms if scale is None else norms / scale


def _seed_of_step(seed: int, step: int, part: int) -> int:
    what = f"{seed}:{step}:{part}" if part else f"{seed}:{step}"
    return int.from_bytes(hashlib.blake2b(what.encode(), digest_size=8).digest(), "big") >> 1


def _compiled(network: Network, device: torch.device, mode: str) -> Network:
    if device.type == "cpu" and not any(shutil.which(name) for name in ("g++", "clang++")):
        raise UserError("--compile on a CPU needs a C++ compiler, and neither g++ nor clang++ was found; leave it out")
    return cast(Network, torch.compile(network, mode=mode))

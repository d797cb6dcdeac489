"""Optimiser, learning rate over time, and moving average of the weights: all that lies between gradient and weights."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn

from data_cache.errors import UserError
from stages.networks.interface import Network
from stages.networks.parts import ENCODER, NAMED_PARTS, Part
from stages.training.encoder_policy import find_encoder_lr_factor, parts_to_train, trains_fresh_only
from stages.training.freezing import trained_modules
from stages.training.schedule import Phase
from stages.training.settings import TrainingSettings

OPTIMIZERS: dict[str, Callable[[list[dict], TrainingSettings], torch.optim.Optimizer]] = {
    "adam": lambda groups, settings: torch.optim.Adam(groups, lr=settings.lr, fused=True),
    "adamw": lambda groups, settings: torch.optim.AdamW(groups, lr=settings.lr, fused=True),
    "sgd": lambda groups, settings: torch.optim.SGD(groups, lr=settings.lr, momentum=settings.momentum, fused=True),
}
"""Fused ones leave out an update when a tensor on the device says so."""
LR_SCHEDULES: dict[str, Callable[[float, TrainingSettings], float]] = {
    "constant": lambda _progress, _settings: 1.0,
    "poly": lambda progress, settings: (1 - progress) ** settings.poly_power,
    "cosine": lambda progress, _settings: (1 + math.cos(math.pi * progress)) / 2,
}
"""Name → factor on the initial rate, from the share of the phase that is done, in [0, 1]."""


def modules_of_phase(network: Network, phase: Phase, settings: TrainingSettings) -> dict[str, nn.Module]:
    """Return by dotted name the modules that a phase trains under the encoder policy."""
    policy = settings.encoder_policy
    return trained_modules(network, parts_to_train(policy, phase), fresh=trains_fresh_only(policy, phase))


def compute_lr_factors(phase: Phase, settings: TrainingSettings, *, fresh: bool = False) -> dict[Part, float]:
    """Return the factor on the learning rate of each single part, or of what in it was never pretrained."""
    factors = dict.fromkeys(Part, 1.0)
    named = [(NAMED_PARTS[name], factor) for name, factor in settings.lr_factors.items()]
    for parts, factor in sorted(named, key=lambda item: -len(item[0].names())):  # narrower ones later, so they hold
        factors |= dict.fromkeys((part for part in Part if part in parts), factor)
    factors[ENCODER] *= 1.0 if fresh else find_encoder_lr_factor(settings.encoder_policy, phase)
    return factors


def compute_lr(settings: TrainingSettings, initial_lr: float, step: int, total_steps: int) -> float:
    """Return the learning rate of one step, always from the initial rate and never from the last one.

    Args:
        settings: ``lr_schedule``, ``poly_power``, ``warmup_steps``.
        initial_lr: rate at the end of the warm-up.
        step: steps done so far, in [0, total_steps).
        total_steps: length of the phase.

    Returns:
        constant: lr0; poly: lr0·(1 − t/T)^power; cosine: lr0·(1 + cos(π·t/T))/2; t and T counted after the warm-up.
    """
    warmup = settings.warmup_steps
    if step < warmup:
        return initial_lr * (step + 1) / warmup
    progress = (step - warmup) / max(1, total_steps - warmup)
    return initial_lr * LR_SCHEDULES[settings.lr_schedule](progress, settings)


class PhaseOptimiser:
    """A fresh optimiser over the trained parts of a network, with the learning rate as a pure function of the step.

    Args:
        network: source of the parameters.
        phase: its ``trains`` and ``lr``.
        settings: the rest.
        total_steps: length of the phase.
        weighting: learned loss weights; they get the plain learning rate and no weight decay.
    """

    def __init__(
        self, network: Network, phase: Phase, settings: TrainingSettings, total_steps: int, weighting: nn.Module
    ) -> None:
        self._settings = settings
        self._total_steps = total_steps
        self._initial_lr = settings.lr if phase.lr is None else phase.lr
        if settings.warmup_steps >= total_steps:
            raise UserError(
                f"phase {phase.name!r} has {total_steps} steps, not more than the {settings.warmup_steps} of warm-up; "
                "train longer or set warmup_steps lower"
            )
        named: dict[str, nn.Parameter] = {}
        groups = [*_group_parts(network, phase, settings, named), *_group_weighting(weighting, named)]
        self.named_parameters = named
        self._factors = [group.pop("lr_factor") for group in groups]
        for value in named.values():
            _close_gaps(value)
        self._flat = {value: nn.Parameter(_flatten(value, like=value)) for value in named.values()}
        for group in groups:
            group["params"] = [self._flat[value] for value in group["params"]]
        self._optimizer = _build(settings, groups)  # each step sets its own rate

    def prepare(self, step: int) -> float:
        """Set the learning rates for the step that follows ``step`` finished ones; returns the rate of factor 1."""
        lr = compute_lr(self._settings, self._initial_lr, step, self._total_steps)
        for group, factor in zip(self._optimizer.param_groups, self._factors, strict=True):
            group["lr"] = lr * factor
        return lr

    def zero_grad(self) -> None:
        """Drop all gradients."""
        for value in self.named_parameters.values():
            value.grad = None

    def gradients(self) -> dict[str, Tensor]:
        """Return the gradients that exist, by parameter name."""
        return {name: value.grad for name, value in self.named_parameters.items() if value.grad is not None}

    def update(self, norm: Tensor, holds: Tensor, scale: Tensor | None = None) -> None:
        """Clip by the already known norm of all gradients, then change the weights.

        Args:
            norm: scalar, of the gradients with ``scale`` taken out.
            holds: scalar bool; where true, weights and momenta stay as they are.
            scale: what the gradients are still multiplied with.
        """
        optimizer, clip, divisor = self._optimizer, self._settings.clip_norm, scale
        if clip is not None:  # as torch's clip_grad_norm_: by clip / (norm + 1e-6), unless that is above 1
            excess = ((norm + 1e-6) / clip).clamp_min(1.0)
            divisor = excess if divisor is None else divisor * excess
        # What torch's GradScaler tells fused optimisers: they divide and leave out in the pass of the update.
        optimizer.found_inf, optimizer.grad_scale = holds.float(), divisor  # type: ignore[attr-defined]
        for value, flat in self._flat.items():
            flat.grad = None if value.grad is None else _flatten(value.grad, like=value)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def state(self) -> dict[str, Tensor]:
        """Return momenta and step counters as ``<parameter name>/<kind>``."""
        return {
            f"{name}/{kind}": _unflatten(value, like=parameter)
            for name, parameter in self.named_parameters.items()
            for kind, value in self._optimizer.state.get(self._flat[parameter], {}).items()
            if isinstance(value, Tensor)
        }

    def load_state(self, state: Mapping[str, Tensor], what: str, remedy: str) -> None:
        """Take over what ``state`` returned.

        Args:
            what: where it comes from, for people.
            remedy: what to do where it does not fit.

        Raises:
            UserError: it is of other parameters, or of another optimiser.
        """
        self._check_state(state, what, remedy)
        for key, value in state.items():
            name, _, kind = key.rpartition("/")
            parameter = self.named_parameters[name]
            placed = value.to(parameter.device, copy=True)
            placed = placed if kind == "step" else _flatten(placed, like=parameter)
            self._optimizer.state[self._flat[parameter]][kind] = placed

    def _check_state(self, state: Mapping[str, Tensor], what: str, remedy: str) -> None:
        kinds = _find_state_kinds(self._settings)
        wanted = {f"{name}/{kind}" for name in {key.rpartition("/")[0] for key in state} for kind in kinds}
        wrong = [
            key
            for key, value in state.items()
            if (parameter := self.named_parameters.get(key.rpartition("/")[0])) is None
            or value.shape not in (parameter.shape, torch.Size())
        ]
        if found := sorted({*wrong, *(wanted ^ state.keys())}):
            raise UserError(
                f"the optimiser's state in {what} is of another training: {len(found)} tensors are missing, unknown or "
                f"of another shape, for example {found[0]}; {remedy}"
            )


class MovingAverage:
    """Exponential moving average of the trained modules, parameters and float buffers alike.

    The decay rises as min(decay, 1 - 1/(t + 1)) with the updates t: until it is reached, the average is the plain mean
    of all weights so far. Integer buffers (batch-norm counters) are taken as they are.

    Source: Tarvainen & Valpola 2017, with the warm-up of their code.
    """

    def __init__(self, network: Network, modules: Mapping[str, nn.Module], decay: float) -> None:
        self._network, self._decay = network, decay
        self._live = {
            f"{prefix}.{name}": value
            for prefix, module in modules.items()
            for name, value in module.state_dict(keep_vars=True).items()
        }
        self._average = {name: value.detach().clone() for name, value in self._live.items()}
        floats = [name for name, value in self._live.items() if value.is_floating_point()]
        self._floats = ([self._average[name] for name in floats], [self._live[name].detach() for name in floats])
        others = [name for name in self._live if name not in set(floats)]
        self._others = ([self._average[name] for name in others], [self._live[name] for name in others])

    @torch.no_grad()
    def update(self, step: int, holds: Tensor) -> None:
        """Move towards the live weights after the step-th update, counted from 1, unless that update was left out."""
        decay = min(self._decay, 1 - 1 / (step + 1))
        averages, live = self._floats
        moves = torch._foreach_sub(live, averages)  # a lerp by a tensor would be a kernel per weight on a GPU
        torch._foreach_mul_(moves, torch.where(holds, 0.0, 1 - decay))
        torch._foreach_add_(averages, moves)
        if self._others[0]:
            torch._foreach_copy_(*self._others)

    def build_network(self) -> Network:
        """Return the network with the averages in place of the trained weights, in evaluation mode.

        It follows all updates: only the averages are its own, what is not trained is the network's.
        """
        kept = {id(value): value for value in (*self._network.parameters(), *self._network.buffers())}
        for name, value in self._live.items():
            average = self._average[name]
            kept[id(value)] = nn.Parameter(average, requires_grad=False) if value.requires_grad else average
        return copy.deepcopy(self._network, kept).eval()

    @torch.no_grad()
    def hand_over(self) -> None:
        """Put the average into the network, for good."""
        for name, value in self._live.items():
            value.copy_(self._average[name])

    def state(self) -> dict[str, Tensor]:
        """Return the averages by name; filling them in restores the state."""
        return dict(self._average)


def _group_parts(
    network: Network, phase: Phase, settings: TrainingSettings, named: dict[str, nn.Parameter]
) -> Iterator[dict]:
    """Yield one parameter group per trained module, learning rate and weight decay; fills ``named`` with them all."""
    never_pretrained = {value for module in network.fresh_modules().values() for value in module.parameters()}
    factors = {fresh: compute_lr_factors(phase, settings, fresh=fresh) for fresh in (False, True)}
    for prefix, module in modules_of_phase(network, phase, settings).items():
        groups: dict[tuple[float, float], list[nn.Parameter]] = {}
        for name, value in module.named_parameters():
            named[f"{prefix}.{name}"] = value
            factor = factors[value in never_pretrained][Part.parse(prefix.partition(".")[0])]
            decays = settings.decay_norm_and_bias or value.ndim >= 2
            groups.setdefault((factor, settings.weight_decay if decays else 0.0), []).append(value)
        for (factor, decay), parameters in groups.items():
            yield {"params": parameters, "weight_decay": decay, "lr_factor": factor}


def _group_weighting(weighting: nn.Module, named: dict[str, nn.Parameter]) -> Iterator[dict]:
    parameters = {f"weighting.{name}": value for name, value in weighting.named_parameters()}
    named |= parameters
    if parameters:
        yield {"params": list(parameters.values()), "weight_decay": 0.0, "lr_factor": 1.0}


def _close_gaps(parameter: nn.Parameter) -> None:
    """Move a parameter to memory without gaps, of which torch's fused kernels (2.15) know nothing."""
    if torch.empty_like(parameter, device="meta").stride() != parameter.stride():
        parameter.data = parameter.detach().clone()


def _flatten(value: Tensor, like: Tensor) -> Tensor:
    """Return a tensor as one row of numbers in the order in which those of another, of its shape, lie in memory.

    It is the same memory where both lie alike. Torch's fused CPU kernels (2.15) copy what does not lie in the order of
    its indices, as weights with channels last do, and that took as long as the update itself.
    """
    places = zip(value.shape, value.stride(), like.stride(), strict=True)
    if any(size > 1 and stride != wanted for size, stride, wanted in places):
        value = torch.empty_like(like, requires_grad=False).copy_(value)
    return value.detach().as_strided((value.numel(),), (1,))


def _unflatten(row: Tensor, like: Tensor) -> Tensor:
    """Return the tensor of which ``_flatten`` made the row; numbers that are not of a parameter as they are."""
    return row.as_strided(like.shape, like.stride()) if row.shape == (like.numel(),) else row


def _build(settings: TrainingSettings, groups: list[dict]) -> torch.optim.Optimizer:
    if not groups:
        raise UserError("the parts to train hold no parameters; name others in the phase's `trains`")
    optimizer = OPTIMIZERS[settings.optimizer](groups, settings)
    if settings.optimizer == "sgd" and settings.momentum:
        # Zeros are where SGD starts from; torch's fused kernel (2.15) would start from memory as it finds it if the
        # first update is left out.
        for parameter in (parameter for group in groups for parameter in group["params"]):
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter, requires_grad=False)
    return optimizer


def _find_state_kinds(settings: TrainingSettings) -> set[str]:
    """Return the tensors that the optimiser keeps of each parameter, by making it take a step."""
    probe = nn.Parameter(torch.zeros(1))
    probe.grad = torch.zeros(1)
    optimizer = _build(settings, [{"params": [probe]}])
    optimizer.step()
    return {kind for kind, value in optimizer.state[probe].items() if isinstance(value, Tensor)}

"""One training step by several ranks: each sees its rows of the batch, and all end with the weights of one process.

Losses are shares of one sum (they divide by counts of all ranks), so gradients are summed. What couples the images of a
batch inside a network is done for the whole batch while ``WholeBatch`` is entered:

- Batch norm in training mode takes mean and variance of all rows; torch's SyncBatchNorm knows no CPUs, and would change
  the classes of the modules. Its running statistics are the same bits on all ranks. In evaluation mode, so where a part
  is frozen, nothing changes.
- What is drawn per image (dropout of every kind, stochastic depth) is drawn for the whole batch on every rank, which
  takes its rows; on a CPU these are the bits one process draws.

Anything else that a network draws is the same on all ranks, which are seeded alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode

from data_cache.ranks import (
    ask_all,
    broadcast_tensors,
    gather_tensors,
    is_speaker,
    own_rows,
    share_of,
    sum_over_ranks,
    world_size,
)
from stages.training.interruption import StopFlag


class WholeBatch(TorchFunctionMode):
    """While it is entered, a network that is given this rank's rows treats them as part of the whole batch.

    Args:
        num_labelled: images of all ranks that have labels, which a segmentation branch may be run on alone.
        num_images: of all ranks.
    """

    def __init__(self, num_labelled: int, num_images: int) -> None:
        super().__init__()
        labelled, every = share_of(num_labelled), own_rows(num_labelled, num_images)
        # Number of own rows → number of all, and which of them are the own ones; both are one where nothing is mixed.
        self._wholes = {len(labelled): (num_labelled, list(labelled)), len(every): (num_images, every)}

    def __torch_function__(
        self, function: Callable, types: Iterable[type], args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Do what concerns the whole batch, and pass on everything else."""
        if (instead := _INSTEAD.get(function)) is not None:
            return instead(self, function, *args, **(kwargs or {}))
        return function(*args, **(kwargs or {}))

    def batch_norm(
        self,
        function: Callable,
        values: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:
        """In place of ``F.batch_norm``."""
        if not training:
            return function(values, running_mean, running_var, weight, bias, training, momentum, eps)
        return _BatchNorm.apply(values, weight, bias, running_mean, running_var, momentum, eps)

    def dropout(
        self, function: Callable, values: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
    ) -> Tensor:
        """In place of ``F.dropout`` and, one draw per channel, of its siblings."""
        if not training or p in (0, 1) or not self._concerns(values.shape):
            return function(values, p, training, inplace)
        per_channel = function is not F.dropout
        noise = values.new_empty(values.shape[:2] + (1,) * (values.dim() - 2)) if per_channel else values
        noise = self._draw(noise, lambda whole: whole.bernoulli_(1 - p)).div_(1 - p)
        return values.mul_(noise) if inplace else values * noise

    def fill(self, function: Callable, values: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """In place of ``Tensor.bernoulli_`` and the like."""
        if not self._concerns(values.shape):
            return function(values, *args, **kwargs)
        return values.copy_(self._draw(values, lambda whole: function(whole, *args, **kwargs)))

    def create(self, function: Callable, *size: Any, **kwargs: Any) -> Tensor:
        """In place of ``torch.rand`` and the like."""
        shape = tuple(size[0] if size and isinstance(size[0], Sequence) else size)
        if not self._concerns(shape):
            return function(*size, **kwargs)
        num_images, rows = self._wholes[shape[0]]
        return function((num_images, *shape[1:]), **kwargs)[rows]

    def _concerns(self, shape: Sequence[int]) -> bool:
        return len(shape) > 0 and shape[0] in self._wholes

    def _draw(self, rows: Tensor, draw: Callable[[Tensor], Tensor]) -> Tensor:
        """Return this rank's rows of what is drawn for all images, in the memory order one process would draw it in."""
        num_images, own = self._wholes[len(rows)]
        strides = torch.empty_like(rows).stride()[1:]
        whole = rows.new_empty_strided((num_images, *rows.shape[1:]), (rows[0].numel(), *strides))
        return draw(whole)[own]


_INSTEAD: dict[Callable, Callable[..., Tensor]] = {
    F.batch_norm: WholeBatch.batch_norm,
    F.dropout: WholeBatch.dropout,
    F.dropout1d: WholeBatch.dropout,
    F.dropout2d: WholeBatch.dropout,
    F.dropout3d: WholeBatch.dropout,
    Tensor.bernoulli_: WholeBatch.fill,
    Tensor.uniform_: WholeBatch.fill,
    Tensor.normal_: WholeBatch.fill,
    torch.rand: WholeBatch.create,
    torch.randn: WholeBatch.create,
}
"""What the networks call → what is done with the whole batch in mind."""


class _BatchNorm(torch.autograd.Function):
    """Batch norm over the rows of all ranks: one exchange of 2·C + 1 numbers forwards, one of 2·C backwards."""

    @staticmethod
    def forward(
        ctx: Any,
        values: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        momentum: float,
        eps: float,
    ) -> Tensor:
        wide = values.to(torch.promote_types(values.dtype, torch.float32))
        count = values.numel() // values.shape[1]
        own_var, own_mean = torch.var_mean(wide, _all_but_channels(values), correction=0)
        # Gathered means and spreads, not sums of squares, which cancel where the mean is large.
        own = torch.cat((own_mean, own_var * count, own_mean.new_full((1,), count)))
        means, spreads, counts = torch.stack(gather_tensors(own)).tensor_split((len(own_mean), -1), dim=1)
        total = counts.sum()
        mean = (means * counts).sum(0) / total
        spread = (spreads + counts * (means - mean).square()).sum(0)
        inv_std = (spread / total + eps).rsqrt()
        if running_mean is not None and running_var is not None:
            running_mean.mul_(1 - momentum).add_(mean, alpha=momentum)
            running_var.mul_(1 - momentum).add_(spread / (total - 1), alpha=momentum)
        scale = inv_std if weight is None else inv_std * weight
        shift = -mean * scale if bias is None else bias - mean * scale
        ctx.save_for_backward(values, weight, mean, inv_std, total)
        return torch.addcmul(_along_channels(shift, values), wide, _along_channels(scale, values)).to(values.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        values, weight, mean, inv_std, total = ctx.saved_tensors
        wide = gradient.to(mean.dtype)
        centred = values.to(mean.dtype) - _along_channels(mean, values)
        sums = torch.stack((wide.sum(_all_but_channels(values)), (wide * centred).sum(_all_but_channels(values))))
        of_values = None
        if ctx.needs_input_grad[0]:
            mean_gradient, slope = sum_over_ranks(sums) / total
            scale = inv_std if weight is None else inv_std * weight
            slanted = centred.mul_(_along_channels(slope * inv_std.square(), values))
            of_values = (
                (wide - _along_channels(mean_gradient, values)).sub_(slanted).mul_(_along_channels(scale, values))
            )
            of_values = of_values.to(values.dtype)
        of_weight = sums[1] * inv_std if ctx.needs_input_grad[1] else None
        of_bias = sums[0] if ctx.needs_input_grad[2] else None
        return of_values, of_weight, of_bias, None, None, None, None


def _all_but_channels(values: Tensor) -> list[int]:
    return [0, *range(2, values.dim())]


def _along_channels(per_channel: Tensor, values: Tensor) -> Tensor:
    return per_channel.view(-1, *[1] * (values.dim() - 2))


class ParallelNetwork:
    """A network of which each rank sees its rows of a batch; the backward pass leaves the sum of all ranks' gradients.

    Args:
        network: only what is trained asks for gradients; it is the same on all ranks.
        device: where it lies.
    """

    def __init__(self, network: nn.Module, device: torch.device) -> None:
        self._parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
        self._reached: set[nn.Parameter] = set()
        hear = self._reached.add
        self._hooks = [each.register_post_accumulate_grad_hook(hear) for each in self._parameters]
        self._network = nn.parallel.DistributedDataParallel(
            network,
            device_ids=None if device.type == "cpu" else [device],
            broadcast_buffers=False,  # they are the same already
            static_graph=True,  # one phase computes the same in every step
        )
        self._network.register_comm_hook(None, lambda _state, bucket: _sum_bucket(bucket))  # torch's own would average

    def forward(self, images: Tensor, num_labelled: int, num_images: int, **wanted: Any) -> Any:
        """Return the outputs for this rank's images, of so many in the whole batch; see ``WholeBatch``."""
        with WholeBatch(num_labelled, num_images):
            return self._network(images, **wanted)

    def settle(self, others: Iterable[nn.Parameter]) -> None:
        """Complete the gradients after the backward pass.

        What no loss depends on gets none: DDP gives it zeros, and weight decay would move it.

        Args:
            others: a few parameters outside the network, on which all ranks' losses depend.
        """
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        for parameter in self._parameters:
            if parameter not in self._reached:
                parameter.grad = None
        for parameter in others:
            if parameter.grad is not None:
                parameter.grad = sum_over_ranks(parameter.grad)


def _sum_bucket(bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    handle = dist.all_reduce(bucket.buffer(), async_op=True)
    return handle.get_future().then(lambda done: done.value()[0])


@torch.no_grad()
def copy_from_speaker(network: nn.Module) -> None:
    """Give all ranks the weights and buffers of rank 0; one that is alone has them already."""
    if world_size() > 1:
        given = broadcast_tensors(network.state_dict())
        for name, value in network.state_dict().items() if not is_speaker() else ():
            value.copy_(given[name])


class SharedStop:
    """Whether the work is to end at the next safe point, on all ranks between the same two steps.

    A signal may reach ranks at different steps. What each has heard is exchanged one step ahead, so that none waits.

    Args:
        stop: what this rank has heard; None hears nothing.
    """

    def __init__(self, stop: StopFlag | None) -> None:
        self._stop = stop
        self._answer = ask_all(False)

    def is_set(self) -> bool:
        """Ask once before every step, on all ranks."""
        wish = self._stop is not None and self._stop.is_set()
        if world_size() == 1:
            return wish
        answer = self._answer()
        self._answer = ask_all(wish)
        return answer

    def wait(self, timeout_s: float) -> bool:
        """Return whether this rank has heard that the end was asked for, or hears it within a time."""
        return self._stop is not None and self._stop.wait(timeout_s)

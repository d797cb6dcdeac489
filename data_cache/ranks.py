"""Which of a job's processes this is, and what they tell each other: the one place that knows torch.distributed.

``torchrun`` starts N processes ("ranks") of one command, and ``join`` makes a job of them. Rank 0 is the speaker: it
decides, writes and speaks, the others compute their share. In a process that runs alone this is rank 0 of 1, and
everything here is the identity; torch.distributed is then not even imported.

- ``rank()``, ``world_size()``, ``is_speaker()``: who this is.
- ``share_of(count)``: the items, rows or images that are this rank's: contiguous, in the order of the ranks.
- ``own_rows(num_labelled, num_images)``: this rank's rows of a batch: its share of the labelled ones and of the others.
- ``sum_over_ranks(tensor)``: without gradient, on any device; the same bits on all ranks.
- ``add_others(own)``, ``as_share(whole)``: for formulas of sums, with gradient: see there.
- ``gather_over_ranks(value)``: what JSON can say of every rank, in their order. ``gather_tensors``: tensors likewise.
- ``broadcast_object(value)``: the speaker's value on all ranks. ``broadcast_tensors(tensors)``: its tensors.
- ``speaker_first()``: a block that the speaker runs before the others, which then find on the disk what it made.
- ``wait_for_all()``: returns on all ranks together.
- ``ask_all(wish)``: whether any rank has a wish, answered later.
- ``check_alike(facts)``: a UserError on all ranks where they are not of one mind.

Each of these (except the first two lines) is a call that all ranks must make, in the same order. A rank that ends while
others wait for it raises ``RuntimeError`` there, which ``is_lost_rank`` recognises; ``claim_last_word`` lets one of
them say why.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

from data_cache.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor
    from torch.distributed import Store

_JOIN_TIMEOUT_S = 300.0
"""So long a job waits for its processes to start."""
_PATIENCE = timedelta(days=7)
"""So long ranks wait for each other: the speaker may hash or save for hours, and an end is noticed at once anyway."""
_LARGEST_PORT = 65535
_COURTESY_S = 3.0
"""So long the other ranks hold back what the speaker probably says as well."""
_LOST = ("gloo/transport", "Connection closed by peer", "Connection reset by peer", "NCCL", "Gloo ")


class World(NamedTuple):
    """A process's place in its job."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    """Its number on its machine."""
    local_size: int = 1
    """Processes of the job on its machine."""

    @classmethod
    def from_environment(cls) -> World:
        """Return what torchrun, or whoever else started several processes, says in the environment.

        Raises:
            UserError: it says a part, or nonsense.
        """
        if os.environ.get("WORLD_SIZE", "1") in ("", "1"):
            return cls()
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
        given = {name: os.environ.get(name, "") for name in (*names, "MASTER_ADDR", "MASTER_PORT")}
        wrong = [
            name for name, value in given.items() if not value or (name != "MASTER_ADDR" and not value.isdecimal())
        ]
        if not wrong:
            number = {name: int(value) for name, value in given.items() if name != "MASTER_ADDR"}
            places = (("RANK", "WORLD_SIZE"), ("LOCAL_RANK", "LOCAL_WORLD_SIZE"))
            wrong = [place for place, size in places if number[place] >= number[size]]
            wrong += ["LOCAL_WORLD_SIZE"] if number["LOCAL_WORLD_SIZE"] > number["WORLD_SIZE"] else []
            wrong += ["MASTER_PORT"] if number["MASTER_PORT"] > _LARGEST_PORT else []
        if wrong:
            raise UserError(
                f"the environment says WORLD_SIZE={given['WORLD_SIZE']}, so this is one of several processes, but "
                f"{', '.join(f'{name} is {given[name]!r}' for name in wrong)}; start them with: torchrun "
                "--nproc-per-node N -m pipeline …, or unset WORLD_SIZE"
            )
        return cls(*(int(given[name]) for name in names))


_world = _wanted = World()
_store: Store | None = None
"""Where the job's processes meet; it outlives each of them but, without torchrun, rank 0."""


def join(world: World) -> None:
    """Become one of a job's processes; does nothing for one that is alone.

    CPU tensors travel by gloo, CUDA tensors by NCCL.

    Raises:
        UserError: another process does not come, or the place where they meet cannot be reached.
    """
    global _world, _wanted, _store  # a process is in one job
    if world.size == 1:
        return
    _wanted = world
    import torch.distributed as dist
    from torch.cuda import is_available

    where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    try:
        store = _hearing_signals(lambda: _meet(world, timedelta(seconds=_JOIN_TIMEOUT_S)))
        store.set_timeout(_PATIENCE)
        backend = "cpu:gloo,cuda:nccl" if is_available() and dist.is_nccl_available() else "gloo"
        dist.init_process_group(backend, store=store, rank=world.rank, world_size=world.size, timeout=_PATIENCE)
    except (RuntimeError, ValueError) as problem:
        reason = str(problem).partition("\n")[0]
        raise UserError(
            f"rank {world.rank} of {world.size} did not find the others of its job at {where} within "
            f"{_JOIN_TIMEOUT_S:.0f} s ({reason}); see that all are started, and that MASTER_ADDR (torchrun: "
            "--rdzv-endpoint) is a machine and port that every machine reaches"
        ) from problem
    _world, _store = world, store


def _meet(world: World, timeout: timedelta) -> Store:
    """Return the place where all of a job's processes have come to."""
    import torch.distributed as dist

    store, *_ = next(dist.rendezvous("env://", world.rank, world.size, timeout=timeout))
    store.set(f"here/{world.rank}", "")
    store.wait([f"here/{other}" for other in range(world.size)], timeout)
    return store


def _hearing_signals(wait: Callable[[], Store]) -> Store:
    """Return what a call returns that waits outside Python, where no signal could end it."""
    answer: Future[Store] = Future()

    def fulfil() -> None:
        try:
            answer.set_result(wait())
        except Exception as problem:  # noqa: BLE001 - raised again where the answer is asked for
            answer.set_exception(problem)

    threading.Thread(target=fulfil, daemon=True).start()  # a pool's thread would be waited for at the end
    return answer.result()


def leave() -> None:
    """Be alone from now on; all ranks should call it."""
    global _world, _wanted, _store
    if _world.size == 1:
        return
    import torch.distributed as dist

    _world, _wanted, _store = World(), World(), None
    dist.destroy_process_group()


def rank() -> int:
    """Return this process's number in its job, from 0."""
    return _world.rank


def world_size() -> int:
    """Return the number of the job's processes."""
    return _world.size


def local_rank() -> int:
    """Return this process's number among those of the job on this machine, from 0."""
    return _world.local_rank


def local_world_size() -> int:
    """Return how many processes the job has on this machine."""
    return _world.local_size


def is_speaker() -> bool:
    """Whether this process decides, writes and speaks for the job."""
    return _world.rank == 0


def share_of(count: int, rank: int | None = None) -> range:
    """Return which of ``count`` things in a row are this rank's (or that one's): [r·count//N, (r+1)·count//N)."""
    place = _world.rank if rank is None else rank
    return range(place * count // _world.size, (place + 1) * count // _world.size)


def own_rows(num_labelled: int, num_images: int) -> list[int]:
    """Return this rank's rows of a batch: its share of the labelled ones, which come first, and of the others.

    So all ranks have as much to do, and each has labelled rows where each can.
    """
    return [*share_of(num_labelled), *(num_labelled + row for row in share_of(num_images - num_labelled))]


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """Return the sum of all ranks' tensors, which have one shape; no gradient flows through it."""
    if _world.size == 1:
        return tensor.detach()
    import torch.distributed as dist

    total = tensor.detach().clone()
    dist.all_reduce(total)
    return total


def add_others(own: Tensor) -> Tensor:
    """Return the sum of all ranks' tensors, with the gradient of this rank's."""
    return own if _world.size == 1 else own + (sum_over_ranks(own) - own.detach())


def as_share(whole: Tensor) -> Tensor:
    """Return what this rank contributes to a number that all ranks have computed from ``add_others``.

    The ranks' contributions add up to the number, and their gradients to its gradient.
    """
    return whole if _world.size == 1 else whole - whole.detach() * (1 - 1 / _world.size)


def gather_tensors(tensor: Tensor) -> list[Tensor]:
    """Return all ranks' tensors in their order; they agree in shape and type. No gradient flows through it."""
    if _world.size == 1:
        return [tensor.detach()]
    import torch
    import torch.distributed as dist

    own = tensor.detach().contiguous()
    everyone = [torch.empty_like(own) for _ in range(_world.size)]
    dist.all_gather(everyone, own)
    return everyone


def gather_over_ranks(value: Any) -> list[Any]:
    """Return what every rank says, in their order: anything that JSON can say, of any length."""
    if _world.size == 1:
        return [value]
    import torch

    words = json.dumps(value).encode()
    lengths = [int(length) for length in gather_tensors(torch.tensor(len(words)))]
    padded = torch.frombuffer(bytearray(words.ljust(max(lengths))), dtype=torch.uint8)
    texts = zip(gather_tensors(padded), lengths, strict=True)
    return [json.loads(bytes(text[:length].numpy())) for text, length in texts]


def broadcast_object(value: Any = None) -> Any:
    """Return the speaker's value on all ranks: anything that JSON can say. What the others give is not looked at."""
    if _world.size == 1:
        return value
    import torch
    import torch.distributed as dist

    words = bytearray(json.dumps(value).encode()) if is_speaker() else bytearray()
    length = torch.tensor(len(words))
    dist.broadcast(length, 0)
    text = torch.frombuffer(words, dtype=torch.uint8) if is_speaker() else torch.empty(int(length), dtype=torch.uint8)
    dist.broadcast(text, 0)
    return json.loads(bytes(text.numpy()))


def broadcast_tensors(tensors: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Return the speaker's tensors by name, on the CPU on the other ranks; what the others give is not looked at."""
    if _world.size == 1:
        return dict(tensors or {})
    import torch
    import torch.distributed as dist

    given = dict(tensors or {}) if is_speaker() else {}
    forms = {name: (list(value.shape), str(value.dtype).removeprefix("torch.")) for name, value in given.items()}
    for name, (shape, kind) in broadcast_object(forms).items():
        value = given[name].cpu().contiguous() if is_speaker() else torch.empty(shape, dtype=getattr(torch, kind))
        if value.numel():
            dist.broadcast(value.view(-1).view(torch.uint8), 0)  # as bytes, whatever types gloo knows
        given.setdefault(name, value)
    return given


def wait_for_all() -> None:
    """Return when all ranks have come here."""
    gather_over_ranks(None)


def ask_all(wish: bool) -> Callable[[], bool]:
    """Begin to ask whether any rank has a wish; return what waits for the answer, which is the same on all ranks."""
    if _world.size == 1:
        return lambda: wish
    import torch
    import torch.distributed as dist

    votes = torch.tensor(int(wish))
    work = dist.all_reduce(votes, async_op=True)

    def answer() -> bool:
        work.wait()
        return bool(votes)

    return answer


@contextmanager
def speaker_first() -> Iterator[None]:
    """Let the speaker run the block before the others do, so that they find what it drew, hashed or made."""
    if not is_speaker():
        wait_for_all()
    yield
    if is_speaker():
        wait_for_all()


def check_alike(facts: Mapping[str, str]) -> None:
    """Raise a UserError on all ranks when one says of itself something else than rank 0 does.

    Args:
        facts: what is said, by what it is about, for people: "version of torch".
    """
    first, *others = gather_over_ranks(dict(facts))
    for number, other in enumerate(others, start=1):
        wrong = [f"{name}: {first.get(name)} and {other.get(name)}" for name in first if first[name] != other.get(name)]
        if wrong:
            raise UserError(
                f"rank 0 and rank {number} of this job are not alike ({'; '.join(wrong)}); start all with the same "
                "command, recipe, program and versions of the libraries, and with data they share"
            )


def claim_last_word(status: int) -> bool:
    """Whether this rank is to say why the job ends; it is the first that had to end by itself.

    Args:
        status: exit status that it ends with, for ``find_last_status`` of the others.
    """
    if _store is None:
        return _wanted.local_rank == 0
    until = time.monotonic() + (0 if is_speaker() else _COURTESY_S)
    while time.monotonic() < until and find_last_status() is None:
        time.sleep(0.05)
    try:
        first = _store.add("last word", 1) == 1
        if first:
            _store.set("status", str(status))
    except RuntimeError:  # the store has gone with rank 0
        return _world.rank == 1
    return first


def find_last_status() -> int | None:
    """Return the exit status of the rank that ended the job, None where none has said it."""
    if _store is not None:
        with contextlib.suppress(RuntimeError):
            return int(_store.get("status")) if _store.check(["status"]) else None
    return None


def take_leave() -> None:
    """Before this process ends out of turn: where the others learn why from it, let them, if they still can."""
    if _store is None or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":  # torchrun keeps what was said
        return
    with contextlib.suppress(RuntimeError):
        _store.set(f"heard/{_world.rank}", "")
        until = time.monotonic() + (_COURTESY_S if is_speaker() else 0)
        while time.monotonic() < until and not _store.check([f"heard/{other}" for other in range(_world.size)]):
            time.sleep(0.05)


def is_lost_rank(problem: BaseException) -> bool:
    """Whether an exception says that another rank has ended while this one waited for it."""
    if _world.size == 1 or not isinstance(problem, RuntimeError):
        return False
    from torch.distributed import DistError

    return isinstance(problem, DistError) or any(sign in str(problem) for sign in _LOST)

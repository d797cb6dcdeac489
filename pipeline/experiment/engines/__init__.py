"""Who does the tasks of a walk: this process, several of this machine, or the workers of a Ray cluster."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from data_cache.errors import UserError
from data_cache.ranks import world_size

if TYPE_CHECKING:
    from pipeline.experiment.walk import Engine
    from pipeline.session import Session


class Spread(NamedTuple):
    """How a person wants trainings to be spread."""

    jobs: int = 1
    """Processes of this machine."""
    on: str | None = None
    """``ray``, or None for this machine."""
    address: str | None = None
    """Of the Ray cluster."""
    gpus_per_training: float | None = None
    """Of a Ray worker; 0 trains on CPUs."""
    wait: bool = False
    """Whether to wait for what other processes are working on."""

    def check(self) -> None:
        """Raise a UserError where one wish excludes another."""
        if world_size() > 1 and (self.jobs > 1 or self.on is not None):
            raise UserError(
                f"torchrun has {world_size()} processes share every batch, --jobs and --on spread whole trainings; "
                "choose one"
            )
        if self.on is None and (self.address is not None or self.gpus_per_training is not None):
            raise UserError("--address and --gpus-per-training are about a Ray cluster; add --on ray, or drop them")
        if self.on is not None and self.jobs > 1:
            raise UserError(f"--jobs {self.jobs} is about this machine, --on {self.on} about others; give one of them")


@contextmanager
def open_engine(spread: Spread, session: Session, device: str) -> Iterator[Engine]:
    """Yield who does the tasks; afterwards nothing of it is left.

    Args:
        device: as a person says it.

    Raises:
        UserError: the wish cannot be fulfilled here.
    """
    spread.check()
    if spread.on == "ray":
        from pipeline.experiment.engines.on_ray import RayTasks

        with (
            Path(os.devnull).open("w") as nowhere,
            contextlib.redirect_stdout(nowhere),  # Ray would speak there
            RayTasks(session, spread.address or "auto", device, spread.gpus_per_training) as tasks,
        ):
            yield tasks
        return
    from pipeline.experiment.devices import choose_device

    chosen = choose_device(device)
    if spread.jobs > 1:
        from pipeline.experiment.engines.jobs import LocalJobs

        with LocalJobs(spread.jobs, session, chosen) as jobs:
            yield jobs
        return
    from pipeline.experiment.engines.here import Here

    yield Here(session, chosen)

"""What a phase is fed: its loader, with what is automatic about it decided, and how much of the time it took."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import torch

from data_cache.errors import Notice
from data_cache.image_cache import open_cache
from data_cache.loaders import Loader, build_training_loader
from data_cache.order import steps_per_epoch
from data_cache.samples import Source
from pipeline.experiment.devices import choose_workers
from pipeline.experiment.plan import Node
from pipeline.threads import count_usable_cpus

_LARGEST_SHARE, _NOTICED_S = 0.05, 10.0
"""Of its time a phase may wait for data so much, or so long, before a person is told."""


class Feed:
    """From a first step to the batches from there to the end of a phase.

    Args:
        node: the phase.
        source: of its images, labels and depth.
        device: of the training.
    """

    def __init__(self, node: Node, source: Source, device: torch.device) -> None:
        data, per_step = node.config.data, node.config.training.images_per_step
        self._node, self._device = node, device
        self._workers = choose_workers(data.workers, device)
        comes_back = node.steps > steps_per_epoch(len(source.dataset) - source.pool, per_step)
        # Of free memory this process may have as much as it has of the cores: others may train beside it.
        share = min(1.0, torch.get_num_threads() / count_usable_cpus())
        cache = open_cache(source.dataset, data.cache_images, data.cache_limit_gb, share=share) if comes_back else None
        self._source = replace(source, cache=cache)
        self._loader: Loader | None = None

    def __call__(self, first_step: int) -> Loader:
        """Return the batches of the steps from this one on."""
        self._loader = build_training_loader(
            self._source,
            augmentation=self._node.config.data,
            batch_size=self._node.config.training.images_per_step,
            parts=self._node.config.training.accumulate,
            pool_size=self._node.batch.unlabelled if self._source.pool else 0,
            seed=self._node.seed,
            first_step=first_step,
            last_step=self._node.steps,
            workers=self._workers,
            device=self._device,
            with_depth=self._node.phase.reads_depth,
        )
        return self._loader

    @property
    def wait_share(self) -> float:
        """Share of the time so far in which the device idled for want of batches; 0 to 1."""
        return self._loader.wait_share if self._loader else 0.0

    def describe(self) -> dict[str, Any]:
        """Return what node.json says: what was automatic came to, and how long the training waited."""
        cached = self._source.cache is not None
        return {"workers": self._workers, "cached_images": cached, "wait_share": round(self.wait_share, 4)}

    def tell_long_waits(self) -> None:
        """Say what to do where the finished phase waited for its data noticeably."""
        if self._loader is None or self.wait_share <= _LARGEST_SHARE or self._loader.waited_s < _NOTICED_S:
            return
        remedies = [f"more loader processes (--workers, {self._workers} now)"]
        if self._source.cache is None and not self._source.dataset.is_mapped:
            remedies.append("decoded images kept in memory (--cache-images on, a limit by --set data.cache_limit_gb=)")
        warnings.warn(
            f"phase {self._node.phase.name!r} spent {self.wait_share:.0%} of its time waiting for data; what helps: "
            f"{', '.join(remedies)}, or files of images about as small as they are trained on",
            Notice,
            stacklevel=2,
        )

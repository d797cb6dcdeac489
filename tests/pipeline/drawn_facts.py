"""Facts about data that are on no disk, for plans that only need to be laid out."""

from __future__ import annotations

from pipeline.experiment.config import content_hash
from pipeline.experiment.reading import DataFacts, Material, Reported, Scope, Selection

SCOPES = tuple(Scope(masks, pool) for masks in (False, True) for pool in (False, True))


def build_facts(
    *,
    images: str = "images",
    masks: str = "masks",
    depth: str | None = "store",
    num_images: int = 400,
    num_classes: int = 8,
    pool: int = 0,
    reported: Reported | None = None,
    selection: Selection | None = None,
) -> DataFacts:
    """Return facts in which every scope has what it reads, and nothing else, in its fingerprint."""
    materials = {}
    for scope in SCOPES:
        fingerprint = content_hash([images, scope.pool, masks if scope.masks else None], 8)
        epoch = num_images + (pool if scope.pool and not scope.masks else 0)
        materials[scope] = Material(epoch, fingerprint, None if depth is None else f"{depth} {scope.pool}")
    reported = reported or Reported("", None)
    return DataFacts(num_classes, materials, pool, "data", None, depth, reported=reported, selection=selection)

"""Facts about data that are on no disk, for plans that only need to be laid out."""

from __future__ import annotations

from pipeline.experiment.config import content_hash
from pipeline.experiment.plan import DataFacts, Material, Reading, Reported

READINGS = tuple(Reading(masks, pool) for masks in (False, True) for pool in (False, True))


def build_facts(
    *,
    images: str = "images",
    masks: str = "masks",
    depth: str | None = "store",
    num_images: int = 400,
    num_classes: int = 8,
    pool: int = 0,
    reported: Reported | None = None,
) -> DataFacts:
    """Return facts in which every reading has what it reads, and nothing else, in its fingerprint."""
    materials = {}
    for reading in READINGS:
        fingerprint = content_hash([images, reading.pool, masks if reading.masks else None], 8)
        epoch = num_images + (pool if reading.pool and not reading.masks else 0)
        materials[reading] = Material(epoch, fingerprint, None if depth is None else f"{depth} {reading.pool}")
    return DataFacts(num_classes, materials, pool, "data", None, depth, reported=reported or Reported("", None))

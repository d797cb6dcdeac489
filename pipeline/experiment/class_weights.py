"""Class weights by name → numbers of the training split, so that plans, keys and records hold numbers alone."""

from __future__ import annotations

from data_cache.class_balance import ClassCount, compute_median_frequency_weights, count_classes
from data_cache.fingerprint import dataset_fingerprint
from pipeline.experiment.artifacts import open_split
from pipeline.experiment.config import MEDIAN_FREQUENCY, RunConfig
from pipeline.session import Session
from pipeline.workspace import read_json, write_json


def resolve_class_weights(config: RunConfig, session: Session) -> RunConfig:
    """Return the recipe with numbers in the place of "median-frequency".

    Counting reads every mask of the training split, so counts are kept in the work directory.
    """
    if config.loss.class_weights != MEDIAN_FREQUENCY:
        return config
    dataset = open_split(config, session.workspace, "train")
    fingerprint = dataset_fingerprint(dataset, session.workspace.content_hashes())
    file = session.workspace.root / "classes" / f"{fingerprint}.json"
    if not file.is_file():
        session.console.say(f"counting the classes of {len(dataset)} masks of {dataset.name} {dataset.split}")
        write_json(file, {"classes": list(dataset.classes), "counts": count_classes(dataset)})
    counts = [ClassCount(*count) for count in read_json(file)["counts"]]
    return config.changed({"loss.class_weights": compute_median_frequency_weights(counts)})

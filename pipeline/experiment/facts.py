"""What a plan must know about data and network before anything is trained; what takes long is kept in the workspace."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from data_cache.class_balance import ClassCount, compute_median_frequency_weights, count_classes
from data_cache.errors import UserError
from data_cache.files import read_json, write_json
from data_cache.fingerprint import dataset_fingerprint
from pipeline.experiment.artifacts import find_labels, open_split
from pipeline.experiment.config import RunConfig, content_hash
from pipeline.experiment.plan import DataFacts, describe_network
from pipeline.session import Session
from pipeline.workspace import Workspace
from stages.networks.settings import NetworkSettings
from stages.training.schedule import CopyWeights, Part

_LAYOUT = 3
"""Of the files in the work directory; raised when they say something else."""


def gather_facts(config: RunConfig, workspace: Workspace, *, needs_depth: bool) -> DataFacts:
    """Look up what a plan must know about the training split."""
    dataset = open_split(config, workspace, "train")
    depth = find_labels(config, workspace, dataset).fingerprint() if needs_depth else None
    fingerprint = dataset_fingerprint(dataset, workspace.content_hashes())
    return DataFacts(len(dataset), len(dataset.classes), fingerprint, depth)


def resolve_class_weights(config: RunConfig, session: Session) -> tuple[float, ...] | None:
    """Return the recipe's class weights, numbers of the training split in the place of "median-frequency".

    Counting reads every mask of the training split, so counts are kept in the work directory.
    """
    weights = config.loss.class_weights
    if not isinstance(weights, str):
        return weights
    dataset = open_split(config, session.workspace, "train")
    fingerprint = dataset_fingerprint(dataset, session.workspace.content_hashes())
    file = session.workspace.root / "classes" / f"{fingerprint}.json"
    if not file.is_file():
        session.console.info(f"counting the classes of {len(dataset)} masks of {dataset.name} {dataset.split}")
        write_json(file, {"classes": list(dataset.classes), "counts": count_classes(dataset)})
    counts = [ClassCount(*count) for count in read_json(file)["counts"]]
    return compute_median_frequency_weights(counts)


@dataclass(frozen=True)
class NetworkFacts:
    """Sizes of a network's parts, and what copies between its decoders would carry."""

    name: str
    parts: dict[str, dict[str, int]]
    """Part → ``tensors`` and ``bytes`` of its state."""
    fresh: int
    """Weights inside the encoder that are never pretrained, and so train where the encoder is frozen."""
    copies: dict[str, dict[str, Any]]
    """Copy → ``tensors`` that it carries, and the ``problem`` if it cannot be done."""

    def count_copied(self, copy: CopyWeights) -> int:
        """Return how many tensors a copy carries.

        Raises:
            UserError: it cannot be done.
        """
        found = self.copies[str(copy)]
        if found["problem"] is None:
            return int(found["tensors"])
        raise UserError(f"network {self.name!r}: {found['problem']}")


def inspect_network(network: NetworkSettings, num_classes: int, workspace: Workspace) -> NetworkFacts:
    """Return the facts of a recipe's network.

    Building a network needs torch and seconds, so the facts are kept in the work directory for the next time.

    Raises:
        UserError: it cannot be built, or its weights file is missing or of another architecture.
    """
    wanted = {"layout": _LAYOUT, "network": describe_network(network), "classes": num_classes}
    file = workspace.root / "networks" / f"{content_hash(wanted, 16)}.json"
    if file.is_file():
        return NetworkFacts(**read_json(file))
    facts = _build_and_look(network, num_classes)
    write_json(file, facts)
    return NetworkFacts(**facts)


def _build_and_look(network: NetworkSettings, num_classes: int) -> dict[str, Any]:
    import torch

    from stages.networks import build_network, build_without_weights, count_parameters
    from stages.networks.encoder_weights import is_weights_file

    if is_weights_file(str(network.options.get("encoder_weights", "none"))):
        built = build_network(network.name, num_classes, **network.options)  # for real: do they fit?
    else:
        with torch.device("meta"):  # shapes without memory
            built = build_without_weights(network.name, num_classes, **network.options)
    parts = {}
    for part, module in built.parts().items():
        tensors = module.state_dict().values()
        parts[part.names()[0]] = {"tensors": len(tensors), "bytes": sum(value.nbytes for value in tensors)}
    fresh = sum(count_parameters(module) for module in built.fresh_modules().values())
    return {"name": network.name, "parts": parts, "fresh": fresh, "copies": _try_copies(built)}


def _try_copies(network: Any) -> dict[str, dict[str, Any]]:
    from stages.training.transfer import plan_copy

    tried: dict[str, dict[str, Any]] = {}
    for source, target in ((Part.SEG_DECODER, Part.DEPTH_DECODER), (Part.DEPTH_DECODER, Part.SEG_DECODER)):
        try:
            report = plan_copy(network, source, target)
            tried[str(CopyWeights(source, target))] = {"tensors": len(report.copied), "problem": None}
        except UserError as problem:
            tried[str(CopyWeights(source, target))] = {"tensors": 0, "problem": str(problem)}
    return tried

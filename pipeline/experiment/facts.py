"""What a plan must know about data and network before anything is trained; what takes long is kept in the workspace."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from typing_extensions import TypedDict

from data_cache.class_balance import compute_median_frequency_weights, count_classes
from data_cache.datasets.interface import SegmentationDataset
from data_cache.datasets.views import View
from data_cache.errors import UserError
from data_cache.files import write_json
from data_cache.fingerprint import dataset_fingerprint
from data_cache.records import Record, read_record
from pipeline.experiment.artifacts import find_labels_if_any, find_targets
from pipeline.experiment.config import RunConfig, content_hash
from pipeline.experiment.keys import describe_network
from pipeline.experiment.labelled import choose_labelled
from pipeline.experiment.looking import check_held_out, look_at, open_masked_split
from pipeline.experiment.reading import DataFacts, Material, Reported, Scope, find_scope
from pipeline.experiment.training_images import TrainingImages, open_training_images
from pipeline.experiment.validating import choose_selection, open_validation
from pipeline.session import Session
from pipeline.workspace import Workspace
from stages.networks.settings import NetworkSettings
from stages.training.schedule import CopyWeights, Part, Phase

if TYPE_CHECKING:
    from data_cache.split_depth import SplitDepth

_SEEN = "the reported split is the training split: scores say nothing about new images"
_CHOSEN = "weights are chosen ({}) on {}, and reported on {}"
_CONTROL = (
    "depth.source {!r}: what is learned in place of depth correlates at {:+.2f} with the estimator's maps, on average"
)
_LAYOUT = 4
"""Of the files in the work directory; raised when they say something else."""


def gather_facts(config: RunConfig, session: Session, phases: Sequence[Phase]) -> DataFacts:
    """Look at what is trained on and at the reported split as closely as training and scoring them will.

    Args:
        phases: whatever any of them reads is looked at.

    Raises:
        UserError: something is wrong with an image, a mask or the depth of either; all bad images are in one message.
    """
    workspace, held_out = session.workspace, config.evaluation.split
    labelled = choose_labelled(config, session)
    selection = choose_selection(config, session, labelled) if any(phase.needs_seg for phase in phases) else None
    images = open_training_images(config, workspace, labelled, selection)
    pool = View(images.pool_parts) if images.pool and any(phase.reads == "all" for phase in phases) else None
    datasets = [images.select(Scope(masks=True, pool=False))]
    if held_out != "train" or images.labelled is not None or images.held_out:
        datasets.append(open_masked_split(config, workspace, held_out))
    num_masked = len(datasets)
    datasets += [pool] if pool else []
    datasets += [open_validation(config, workspace, selection)] if selection else []
    looked = look_at(config, session, datasets)
    reported = looked[num_masked - 1]
    own_pool = None
    if pool is not None and images.own_pool is not None:
        check_held_out(images.own_pool, config, session)
        own_pool = dataset_fingerprint(images.own_pool, workspace.content_hashes(), labels=False)
    materials: dict[Scope, Material] = {}
    depths: dict[Sequence[str], SplitDepth] = {}
    for scope, with_depth in sorted({(find_scope(p, config, images.pool), p.reads_depth) for p in phases}):
        dataset = images.select(scope)
        if with_depth and dataset.image_ids not in depths:
            depths[dataset.image_ids] = find_targets(config, workspace, dataset)
        depth = depths[dataset.image_ids].fingerprint() if with_depth else None
        fingerprint = dataset_fingerprint(dataset, workspace.content_hashes(), labels=scope.masks)
        materials[scope] = Material(images.count_epoch(scope), fingerprint, depth)
    control = _measure_control(config, workspace, images, phases)
    return DataFacts(
        len(images.split.classes),
        materials,
        images.pool,
        dataset_fingerprint(images.split, workspace.content_hashes()),
        own_pool,
        _identify_depth(images, depths.values()),
        images.labelled,
        inspect_reported(reported.dataset, config, session, needs_depth=any(phase.needs_depth for phase in phases)),
        reported.find_smallest(),
        (
            *([_SEEN] if held_out == "train" else []),
            *([_CHOSEN.format(config.training.describe_choice(), selection, held_out)] if selection else []),
            *(line for each in looked for line in (*each.list_doubts(), *each.list_notes())),
            *dict.fromkeys(doubt for depth in depths.values() for doubt in depth.doubts),
            *([] if control is None else [_CONTROL.format(config.depth.source, control)]),
        ),
        selection,
        control,
    )


def _measure_control(
    config: RunConfig, workspace: Workspace, images: TrainingImages, phases: Sequence[Phase]
) -> float | None:
    """Return how the maps that are learned in place of depth correlate with the estimator's, where there are some."""
    from data_cache.depth_controls import correlate_maps

    if config.depth.source in ("teacher", "dataset") or not any(phase.reads_depth for phase in phases):
        return None
    made = find_labels_if_any(config, workspace, images.split)
    return None if made is None else correlate_maps(find_targets(config, workspace, images.split), made)


def _identify_depth(images: TrainingImages, depths: Iterable[SplitDepth]) -> str | None:
    """Return what the depth of runs of one row has in common: the maps, or what made them where a seed chooses some."""
    for depth in depths:
        whole = images.labelled is None and images.own_pool is None and not images.held_out
        return depth.fingerprint() if whole else depth.provenance.fingerprint()
    return None


def inspect_reported(
    dataset: SegmentationDataset, config: RunConfig, session: Session, *, needs_depth: bool
) -> Reported:
    """Identify the reported split.

    Raises:
        UserError: its depth store is unfit; having none at all is no fault.
    """
    store = find_labels_if_any(config, session.workspace, dataset) if needs_depth else None
    split = dataset_fingerprint(dataset, session.workspace.content_hashes())
    return Reported(split, store.fingerprint() if store else None)


def resolve_class_weights(config: RunConfig, session: Session) -> tuple[float, ...] | None:
    """Return the recipe's class weights, numbers of the masks that are used in the place of
    "median-frequency"."""
    weights = config.loss.class_weights
    if not isinstance(weights, str):
        return weights
    labelled = choose_labelled(config, session)
    images = open_training_images(config, session.workspace, labelled, choose_selection(config, session, labelled))
    (looked,) = look_at(config, session, [images.select(Scope(masks=True, pool=False))])
    pixels = [look.pixels for look in looked.looks if look.pixels is not None]
    return compute_median_frequency_weights(count_classes(len(looked.dataset.classes), pixels))


class PartFacts(TypedDict):
    """How much the state of a part is."""

    tensors: int
    bytes: int


class CopyFacts(TypedDict):
    """How many tensors a copy carries, and the problem if it cannot be done."""

    tensors: int
    problem: str | None


class NetworkFacts(Record):
    """Sizes of a network's parts, and what copies between its decoders would carry."""

    name: str
    parts: dict[str, PartFacts]
    fresh: int
    """Weights inside the encoder that are never pretrained, and so train where the encoder is frozen."""
    smallest_px: int
    """Images with a shorter side are refused."""
    copies: dict[str, CopyFacts]

    def check_smallest(self, image: tuple[str, tuple[int, int]] | None) -> None:
        """Refuse an image that the network would refuse; None is none.

        Raises:
            UserError: naming it.
        """
        if image is not None and min(image[1]) < self.smallest_px:
            name, (height, width) = image
            raise UserError(
                f"image {name} of the reported split has {height} x {width} px, but {self.name} takes images from "
                f"{self.smallest_px} px a side; leave it out, enlarge it, or score at the size of the crop: --set "
                "evaluation.size=recipe"
            )

    def count_copied(self, copy: CopyWeights) -> int:
        """Return how many tensors a copy carries.

        Raises:
            UserError: it cannot be done.
        """
        found = self.copies[str(copy)]
        if found["problem"] is None:
            return found["tensors"]
        raise UserError(f"network {self.name!r}: {found['problem']}")


class EncoderCost(Record):
    """What an encoder costs on one machine."""

    encoder: str
    parameters: int
    milliseconds: float


class MeasuredCosts(Record):
    """What encoders cost, and on which machine that was measured."""

    machine: dict[str, str | int]
    backbones: tuple[EncoderCost, ...]


def inspect_network(network: NetworkSettings, num_classes: int, workspace: Workspace) -> NetworkFacts:
    """Return the facts of a recipe's network.

    Building a network needs torch and seconds, so the facts are kept in the work directory for the next time.

    Raises:
        UserError: it cannot be built, or its weights file is missing or of another architecture.
    """
    wanted = {"layout": _LAYOUT, "network": describe_network(network), "classes": num_classes}
    file = workspace.root / "networks" / f"{content_hash(wanted, 16)}.json"
    if file.is_file():
        return read_record(file, NetworkFacts)
    write_json(file, _build_and_look(network, num_classes))
    return read_record(file, NetworkFacts)


def _build_and_look(network: NetworkSettings, num_classes: int) -> dict[str, Any]:
    import torch

    from stages.networks import build_network, build_without_weights, count_parameters, find_network
    from stages.networks.contract import try_laws
    from stages.networks.encoder_weights import is_weights_file

    if is_weights_file(str(network.options.get("encoder_weights", "none"))):
        built = build_network(network.name, num_classes, **network.options)  # for real: do they fit?
    else:
        with torch.device("meta"):  # shapes without memory
            built = build_without_weights(network.name, num_classes, **network.options)
    if find_network(network.name) and (broken := list(filter(None, try_laws(network.name, network.options).values()))):
        raise UserError(
            f"network {network.name!r} does not keep the contract of networks (pipeline check-network "
            f"{network.name}):\n" + "\n".join(broken)
        )
    parts = {}
    for part, module in built.parts().items():
        tensors = module.state_dict().values()
        parts[part.names()[0]] = {"tensors": len(tensors), "bytes": sum(value.nbytes for value in tensors)}
    fresh = sum(count_parameters(module) for module in built.fresh_modules().values())
    return {
        "name": network.name,
        "parts": parts,
        "fresh": fresh,
        "smallest_px": getattr(built, "smallest_input_px", 1),
        "copies": try_copies(built),
    }


def try_copies(network: Any) -> dict[str, dict[str, Any]]:
    """Return the ``CopyFacts`` of both ways between a network's decoders."""
    from stages.training.transfer import plan_copy

    tried: dict[str, dict[str, Any]] = {}
    for source, target in ((Part.SEG_DECODER, Part.DEPTH_DECODER), (Part.DEPTH_DECODER, Part.SEG_DECODER)):
        try:
            report = plan_copy(network, source, target)
            tried[str(CopyWeights(source, target))] = {"tensors": len(report.copied), "problem": None}
        except UserError as problem:
            tried[str(CopyWeights(source, target))] = {"tensors": 0, "problem": str(problem)}
    return tried

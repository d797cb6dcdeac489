"""Which images are to be labelled next: an order of images that no mask is opened for. Imports no torch."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from data_cache.datasets.views import Part
from data_cache.errors import UserError
from data_cache.files import atomic_file, write_json
from data_cache.fingerprint import dataset_fingerprint
from data_cache.records import Record, read_record
from data_cache.sample import DepthKind
from data_cache.settings import LabelledBy
from pipeline.experiment.artifacts import find_labels
from pipeline.experiment.config import RunConfig, content_hash
from pipeline.experiment.training_images import open_training_images
from pipeline.session import Session
from pipeline.workspace import Workspace
from stages.networks.precision import resolve_dtype
from stages.pseudo_depth.aliases import GROUND_TRUTH
from stages.pseudo_depth.identity import identify_estimator

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from data_cache.datasets.interface import SegmentationDataset
    from data_cache.split_depth import SplitDepth

_VERSION = 1
"""Raised by hand when an order comes out otherwise, so that orders found before are no longer reused."""
_ORDER_STREAM = 2
"""First word of the random stream of orders, see ``data_cache.samples.SAMPLE_STREAM``."""
FIRST_ROUND = 25  # Hoyer et al. 2021: chosen by distance alone, and doubled from round to round
"""Images that the student of ``difficulty`` learns from first."""


class Place(NamedTuple):
    """Where an image lies."""

    image_id: str
    dataset: SegmentationDataset
    at: int
    """Its index there."""


@dataclass(frozen=True)
class Selection:
    """What an order is asked of.

    Args:
        images: those that may be chosen, and those that are covered, in the order of their ids.
        covered: rows of ``images`` that have masks already: they are never chosen, and count as chosen before.
        device: what features and the student are computed on.
    """

    config: RunConfig
    session: Session
    images: Sequence[Place]
    covered: frozenset[int] = frozenset()
    device: str = "auto"

    def order(self, by: LabelledBy, budget: int) -> list[Place]:
        """Return so many images in the order in which to label them; a smaller budget's are the first of a larger's.

        Raises:
            UserError: there are fewer, or what the order goes by is missing.
        """
        free = len(self.images) - len(self.covered)
        if budget > free:
            raise UserError(
                f"{budget} images are asked for, but {free} are without a mask"
                f"{f' and not among the {len(self.covered)} that are covered' if self.covered else ''}; ask for fewer"
            )
        return [self.images[row] for row in ORDERS[by](self, budget)]


def gather_places(parts: Iterable[Part]) -> list[Place]:
    """Return the images of parts of splits in the order of their ids."""
    places = [Place(part.dataset.image_ids[at], part.dataset, at) for part in parts for at in part.indices]
    return sorted(places, key=lambda place: (place.image_id, place.dataset.split))


def find_parts(config: RunConfig, workspace: Workspace) -> tuple[Part, ...]:
    """Return the training split and, behind it, what the dataset offers without masks."""
    images = open_training_images(config, workspace, None)
    return Part(images.split, range(len(images.split)), labels=False), *images.pool_parts


def order_randomly(asked: Selection, budget: int) -> list[int]:
    """Return rows in an order of the recipe's seed."""
    import numpy as np

    order = np.random.default_rng((_ORDER_STREAM, asked.config.seed)).permutation(len(asked.images)).tolist()
    return [row for row in order if row not in asked.covered][:budget]


def order_by_features(asked: Selection, budget: int) -> list[int]:
    """Return rows that lie farthest from each other by what the depth teacher's encoder makes of them."""
    from stages.selection.farthest import FarthestPoints

    return FarthestPoints(find_features(asked), asked.covered).pick(budget)


def order_by_maps(asked: Selection, budget: int) -> list[int]:
    """Return rows that lie farthest from each other by their stored depth: miniatures of 8×8."""
    import numpy as np

    from data_cache.depth_target import compute_inverse_depth_target
    from stages.selection.describing import shrink_map
    from stages.selection.farthest import FarthestPoints

    stores, miniatures = find_stores(asked), []
    for place in asked.images:
        store = stores[place.dataset.split]
        found, made = store.read(place.at), store.provenance
        miniatures.append(shrink_map(compute_inverse_depth_target(found.raw, found.stats, made.kind, made.max_depth_m)))
    return FarthestPoints(np.stack(miniatures), asked.covered).pick(budget)


def order_by_difficulty(asked: Selection, budget: int) -> list[int]:
    """Return rows that lie far from each other, and whose depth a small network cannot tell from those chosen before.

    In rounds: the network learns the depth of what is chosen so far; its error on every other image, as a multiple of
    the mean error, is added to the image's distance. Source: Hoyer et al. 2021, section 3.4; there the error is
    weighed by a number that fits their features' scale.
    """
    from pipeline.experiment.student import Lesson, measure_errors
    from stages.selection.farthest import FarthestPoints

    points, order = FarthestPoints(find_features(asked), asked.covered), list[int]()
    stores = find_stores(asked)
    lessons = [Lesson(place.dataset, stores[place.dataset.split], place.at) for place in asked.images]
    while len(order) < budget:
        taken, goal, bonus = points.taken, FIRST_ROUND, None
        while goal <= len(taken):
            goal *= 2
        if len(taken) >= FIRST_ROUND:
            errors = measure_errors(lessons, taken, asked.session, asked.device)
            bonus = errors / max(errors.sum() / (len(lessons) - len(taken)), 1e-12)
        order += points.pick(min(goal - len(taken), budget - len(order)), bonus)
    return order


ORDERS: dict[LabelledBy, Callable[[Selection, int], list[int]]] = {
    "random": order_randomly,
    "depth-features": order_by_features,
    "depth-map": order_by_maps,
    "difficulty": order_by_difficulty,
}


def find_stores(asked: Selection) -> dict[str, SplitDepth]:
    """Return the depth of every split among the images; UserError as ``find_labels``."""
    datasets = {place.dataset.split: place.dataset for place in asked.images}
    return {name: find_labels(asked.config, asked.session.workspace, each) for name, each in datasets.items()}


def find_features(asked: Selection) -> NDArray[np.float32]:
    """Return scaled features (N, C) of the images; those that are known by content are not computed again.

    Raises:
        UserError: depth comes from the dataset, so there is no teacher; or as ``encode_images``.
    """
    import numpy as np

    from stages.selection.describing import standardise

    hashes = asked.session.workspace.content_hashes()
    names = [hashes.hash(place.dataset.sources(place.at).image) for place in asked.images]
    hashes.save()
    file = asked.session.workspace.root / "features" / f"{_name_teacher(asked)}.npz"
    known = _read_features(file)
    if missing := [row for row, name in enumerate(names) if name not in known]:
        try:
            _encode(asked, missing, names, known)
        finally:
            _write_features(file, known)
    return standardise(np.stack([known[name] for name in names]))


def _name_teacher(asked: Selection) -> str:
    depth = asked.config.depth
    if depth.estimator == GROUND_TRUTH:
        raise UserError(
            f"depth-features are those of an estimator, but depth.estimator is {GROUND_TRUTH!r}: the depth that the "
            "dataset brings; choose another --estimator, for example bundled, or depth-map"
        )
    kind = DepthKind(depth.kind) if depth.kind else None
    teacher = identify_estimator(depth.estimator, kind=kind, input_size=depth.input_size, precision=depth.precision)
    return content_hash([_VERSION, teacher._asdict(), resolve_dtype(depth.precision, asked.device)], 16)


def _encode(asked: Selection, rows: Sequence[int], names: Sequence[str], known: dict[str, NDArray[np.float32]]) -> None:
    """Add the features of rows to what is known."""
    from pipeline.experiment.devices import choose_device
    from pipeline.threads import count_usable_cpus
    from stages.pseudo_depth.estimators import load_estimator
    from stages.pseudo_depth.features import encode_images

    depth = asked.config.depth
    estimator = load_estimator(
        depth.estimator,
        kind=DepthKind(depth.kind) if depth.kind else None,
        device=choose_device(asked.device),
        precision=depth.precision,
        input_size=depth.input_size,
        accept_noncommercial=depth.accept_noncommercial,
    )
    by_split: dict[str, list[int]] = {}
    for row in rows:
        by_split.setdefault(asked.images[row].dataset.split, []).append(row)
    with asked.session.console.progress(f"features of images by {depth.estimator}", len(rows)) as advance:
        done = 0
        for of_split in by_split.values():
            dataset = asked.images[of_split[0]].dataset
            indices = [asked.images[row].at for row in of_split]
            name_of = {asked.images[row].image_id: names[row] for row in of_split}
            workers = max(2, count_usable_cpus())
            for batch in encode_images(dataset, indices, estimator, batch_size=depth.batch_size, workers=workers):
                known |= {name_of[name]: found for name, found in zip(batch.image_ids, batch.features, strict=True)}
                advance(done := done + len(batch.image_ids))


def _read_features(file: Path) -> dict[str, NDArray[np.float32]]:
    """Return features by the hash of their image; a damaged or missing file costs time and nothing else."""
    import numpy as np

    with suppress(OSError, ValueError, LookupError, EOFError, zipfile.BadZipFile):
        with np.load(file, allow_pickle=False) as content:
            names, features = content["images"], content["features"]
        if features.ndim == 2 and features.dtype == np.float32 and names.shape == features.shape[:1]:
            return dict(zip(names.astype(str).tolist(), features, strict=True))
    return {}


def _write_features(file: Path, known: dict[str, NDArray[np.float32]]) -> None:
    import numpy as np

    known = _read_features(file) | known  # another process may have added to it meanwhile
    if known:
        with atomic_file(file) as temporary, temporary.open("wb") as stream:
            np.savez(stream, images=np.array(list(known), "S32"), features=np.stack(list(known.values())))


class KeptOrder(Record):
    """An order that was found once, so that every row and seed of a table has the same one."""

    VERSION: ClassVar[int] = 1

    format: int
    images: tuple[str, ...]


def order_training_images(config: RunConfig, session: Session, count: int) -> list[str]:
    """Return the ids of so many images of the training split, in the order of ``data.labelled_by``.

    The order is a matter of images and teacher, not of the run's seed; it is kept in the work directory.

    Raises:
        UserError: as ``Selection.order``.
    """
    config, by = config.changed({"seed": 0}), config.data.labelled_by
    split = find_parts(config, session.workspace)[0]
    asked = Selection(config, session, gather_places([split]))
    read: list[str] = [dataset_fingerprint(split.dataset, session.workspace.content_hashes(), labels=False)]
    if by in ("depth-features", "difficulty"):
        read.append(_name_teacher(asked))
    if by in ("depth-map", "difficulty"):
        read += [store.fingerprint() for store in find_stores(asked).values()]
    file = session.workspace.root / "selections" / f"{content_hash([_VERSION, by, *read], 16)}.json"
    kept = read_record(file, KeptOrder).images if file.is_file() else ()
    if len(kept) < count:
        kept = tuple(place.image_id for place in asked.order(by, count))
        write_json(file, {"format": KeptOrder.VERSION, "images": kept})
    return list(kept[:count])

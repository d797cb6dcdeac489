"""Which training images' masks are used: all, a share that is the same for every row of a seed, or those of a list."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from data_cache.datasets.examination import UNPAIRED
from data_cache.datasets.interface import SegmentationDataset
from data_cache.errors import UserError
from data_cache.label_choice import order_covering, read_image_list
from data_cache.sample import IGNORE_INDEX
from data_cache.settings import parse_share
from pipeline.experiment.artifacts import open_split
from pipeline.experiment.config import RunConfig
from pipeline.experiment.looking import look_at
from pipeline.experiment.selecting import order_training_images
from pipeline.session import Session


def choose_labelled(config: RunConfig, session: Session) -> tuple[str, ...] | None:
    """Return the ids of the images whose masks are used, in the order of the split; None is all.

    Raises:
        UserError: an image or a mask that may be chosen is bad, the share is too small to show every class, or the list
            is no list of these images.
    """
    data = config.data
    share, takes_others = parse_share(data.labelled_fraction), data.unlabelled == "allow"
    if share == 1 and not takes_others:
        return None
    split = open_split(config, session.workspace, "train")
    if share is None:
        what = f"the training split of {data.dataset}"
        return read_image_list(Path(str(data.labelled_fraction)), split.image_ids, what)
    (looked,) = look_at(config, session, [split], tolerated=[UNPAIRED] if takes_others else [])
    shown = {
        place: look.pixels.keys() - {IGNORE_INDEX} for place, look in enumerate(looked.looks) if look.pixels is not None
    }
    if not shown:
        raise UserError(f"no training image of {data.dataset} has a mask; draw some, see: pipeline select")
    places = list(shown) if share == 1 else _choose_share(config, session, split, shown, share)
    return None if len(places) == len(split) else tuple(split.image_ids[place] for place in sorted(places))


def _choose_share(
    config: RunConfig, session: Session, split: SegmentationDataset, shown: dict[int, set[int]], share: float
) -> list[int]:
    """Return the places of a share of the images with masks.

    Args:
        shown: the classes that each of these images shows.
    """
    places, wanted, by = list(shown), max(1, int(share * len(shown) + 0.5)), config.data.labelled_by
    if by != "random":
        names = {split.image_ids[place]: place for place in places}
        asked = wanted if len(places) == len(split) else len(split)  # some of the first may have no mask
        found = order_training_images(config, session, asked)
        chosen = [names[name] for name in found if name in names][:wanted]
        _check_covered(split, shown, chosen, f"data.labelled_by {by!r}")
        return chosen
    order = order_covering([shown[place] for place in places], config.seed)
    if wanted < order.num_covering:
        raise UserError(
            f"data.labelled_fraction {config.data.labelled_fraction} keeps {wanted} of {len(places)} masks, but with "
            f"seed {config.seed} it takes {order.num_covering} to show each class at least once; the smallest possible "
            f"fraction is {order.num_covering}/{len(places)}"
        )
    return [places[number] for number in order.places[:wanted]]


def _check_covered(
    split: SegmentationDataset, shown: dict[int, set[int]], chosen: Sequence[int], chosen_by: str
) -> None:
    """Refuse a choice that knows nothing of classes where it leaves one out that others show."""
    lacking = set().union(*shown.values()).difference(*(shown[place] for place in chosen))
    if lacking:
        names = ", ".join(split.classes[number] for number in sorted(lacking))
        raise UserError(
            f"{chosen_by} keeps {len(chosen)} of {len(shown)} masks, none of which shows {names}; raise "
            "data.labelled_fraction, or choose 'random', which begins with every class"
        )

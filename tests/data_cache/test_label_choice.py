"""A share of the masks shows every class, is part of every larger share, and is a matter of the seed alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from data_cache.errors import UserError
from data_cache.label_choice import order_covering, read_image_list

RNG = np.random.default_rng(0)
SHOWN = [set(np.flatnonzero(RNG.random(9) < 0.5 ** np.arange(1, 10)).tolist()) for _ in range(300)]
"""Classes of images: class 0 is in half of them, class 8 in one of 512 or in none."""


@pytest.mark.parametrize("seed", range(5))
def test_every_class_comes_first_and_the_rarest_foremost(seed: int) -> None:
    order = order_covering(SHOWN, seed)
    assert sorted(order.places) == list(range(len(SHOWN)))
    first = order.places[: order.num_covering]
    everything = set().union(*SHOWN)
    assert set().union(*(SHOWN[place] for place in first)) == everything
    rarest = min(everything, key=lambda found: sum(found in shown for shown in SHOWN))
    assert rarest in SHOWN[first[0]]
    for number in range(order.num_covering):  # none is there for nothing
        assert SHOWN[first[number]] - set().union(set(), *(SHOWN[place] for place in first[:number]))


def test_the_seed_alone_decides_and_seeds_differ() -> None:
    assert order_covering(SHOWN, 3) == order_covering(SHOWN, 3)
    half = len(SHOWN) // 2
    shares = [frozenset(order_covering(SHOWN, seed).places[:half]) for seed in range(4)]
    assert len(set(shares)) == 4


def test_by_lot_means_that_common_images_are_chosen_alike() -> None:
    """Of images that show the same, each is chosen as often as the others."""
    alike = [{0}] * 10
    chosen = np.bincount([order_covering(alike, seed).places[place] for seed in range(400) for place in range(5)])
    assert chosen.min() > 150 and chosen.max() < 250


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("b\nz\n", r"names 1 that train has not \(z\)"),
        ("b\nc\nb\n", r"names 1 twice \(b\)"),
        ("a\na.png\n", r"names 1 twice \(a\)"),
        ("\n \n", "names no image; write an id of train per line"),
        ("street-1\nq\nq\n", r"names 2 that train has not \(street-1, q\) \(did you mean 'street-01'"),
    ],
)
def test_a_list_that_cannot_be_meant_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "list.txt"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        read_image_list(path, ["a", "b", "c", "street-01"], "train")


def test_a_list_names_images_as_people_do(tmp_path: Path) -> None:
    """By id, by file, in any order; the split's order is what counts."""
    path = tmp_path / "list.txt"
    path.write_text("images/train/c.jpg\n\na b.1\r\nb.PNG\n")
    assert read_image_list(path, ["a b.1", "b", "c", "d"], "train") == ("a b.1", "b", "c")
    with pytest.raises(UserError, match=r"neither a share, as 0\.125 or 1/8, nor a file with ids"):
        read_image_list(tmp_path / "1:8", ["a"], "train")

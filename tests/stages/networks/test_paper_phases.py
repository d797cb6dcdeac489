"""The papers' networks: a phase moves exactly what it trains."""

from __future__ import annotations

import pytest
import torch
from small_networks import SMALL_OPTIONS

from data_cache.sample import PackedBatch
from stages.networks import NETWORKS, build_network
from stages.networks.parts import Part
from stages.training.loop import train_phase
from stages.training.schedules import DEPTH, SEG
from stages.training.settings import LossSettings, TrainingSettings

NUM_CLASSES = 3
pytestmark = pytest.mark.filterwarnings("ignore:PSPNet's pyramid")


def build(name: str, options: dict):
    torch.manual_seed(0)
    return build_network(name, NUM_CLASSES, **options)


def draw_batches(first_step: int):
    generator = torch.Generator().manual_seed(first_step)
    while True:
        yield PackedBatch(
            ("a", "b"),
            torch.randint(256, (2, 3, 64, 64), generator=generator, dtype=torch.uint8),
            torch.randint(NUM_CLASSES, (2, 64, 64), generator=generator, dtype=torch.uint8),
            torch.rand(2, 64, 64, generator=generator).half(),
        )


def train_one_step(network, phase, policy: str) -> set[str]:
    """Return the names in the state dict of what moved."""
    before = {name: value.clone() for name, value in network.state_dict().items()}
    train_phase(
        network,
        phase,
        draw_batches,
        total_steps=1,
        seed=0,
        key="",
        settings=TrainingSettings(lr=0.01, encoder_policy=policy),
        losses=LossSettings(),
        device=torch.device("cpu"),
        dtype="float32",
    )
    return {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(("phase", "policy"), [(DEPTH, "train"), (SEG, "freeze")], ids=["depth", "seg-frozen"])
def test_one_step_moves_exactly_what_the_phase_trains(name, phase, policy):
    """Parameters and statistics alike; of a frozen encoder just what was never pretrained."""
    network = build(name, SMALL_OPTIONS[name][-1])
    trained = {part.names()[0].replace("-", "_"): module for part, module in network.parts().items()}
    trained = {key: module for key, module in trained.items() if Part.parse(key.replace("_", "-")) in phase.trains}
    if policy == "freeze":
        del trained["encoder"]
        trained |= network.fresh_modules()
    moved = train_one_step(network, phase, policy)
    assert not [name for name in moved if not name.startswith(tuple(f"{key}." for key in trained))]
    for key, module in trained.items():
        learns = any(True for _ in module.parameters())  # constant deconvolutions have none
        assert any(name.startswith(f"{key}.") for name in moved) == learns, key

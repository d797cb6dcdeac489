"""The papers' networks: a phase moves exactly what it trains, and ONNX computes what they compute."""

from __future__ import annotations

import pytest
import torch

from data_cache.sample import PackedBatch
from data_cache.size_rule import ORIGINAL
from stages.export import onnx_file
from stages.export.fold import fold_batchnorm
from stages.export.job import ExportJob
from stages.networks import NETWORKS, build_network, segmentation_only, strip_depth
from stages.networks.parts import Part
from stages.training.loop import train_phase
from stages.training.schedules import DEPTH, SEG
from stages.training.settings import LossSettings, TrainingSettings

NUM_CLASSES = 3
VGG = {"encoder_weights": "none", "width": 4, "fc_width": 8}
RESNET10 = {"encoder": "tu-resnet10t", "encoder_weights": "none"}
ATROUS = {"width": 8, "low_level_width": 4, **RESNET10}
DCSA = {"reduction": 8, "output_stride": 16, "modulated": True, **RESNET10}
SMALL = {
    "unet": {"decoder_channels": [8, 8, 8, 4, 4], **RESNET10},
    "unet-classic": {"width": 4},
    "unet-valid": {"width": 2},
    "fcn32s": {**VGG, "train_deconvolutions": False},
    "fcn16s": {**VGG, "head": "pool5"},
    "fcn8s": {**VGG, "padding": "caffe", "depth_branch": "full"},
    "conv-vgg": VGG,
    "segnet": {"encoder_weights": "none", "width": 4},
    "pspnet": {"encoder": "resnet18", "encoder_weights": "none", "decoder_channels": 8, "aux": True},
    "deeplabv3plus": ATROUS,
    "deeplabv3plus-mff": {**ATROUS, "share_aspp": True},
    "bisenet": {"width": 16, **RESNET10},
    "bisenet-mff": {"width": 16, **RESNET10},
    "dcsa-resnet": {**DCSA, "encoder": "resnet18", "decoder": "unet", "decoder_channels": [8, 8, 8, 4, 4]},
}
EXPORTED = [
    ("fcn8s", VGG),
    ("fcn8s", {**VGG, "padding": "caffe", "depth_branch": "full"}),
    ("segnet", SMALL["segnet"]),
    ("pspnet", SMALL["pspnet"]),
    ("unet-valid", SMALL["unet-valid"]),
    ("deeplabv3plus-mff", ATROUS),
    ("bisenet-mff", SMALL["bisenet-mff"]),
    ("dcsa-resnet", DCSA),
]
"""Together they hold every operation of all networks; an export takes seconds."""

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
    network = build(name, SMALL[name])
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


@pytest.mark.slow
@pytest.mark.parametrize(("name", "options"), EXPORTED, ids=[name for name, _ in EXPORTED])
def test_onnx_computes_the_same_at_any_size(name, options, tmp_path):
    """Also at sizes that no stride divides, in batches where it takes some, and with batch norm folded."""
    network = strip_depth(build(name, options)).eval()
    torch.manual_seed(2)
    with torch.no_grad():
        # What is practically 0 in a fresh network, FCN's scores and DCSA's offsets, would agree whatever it is made of.
        for parameter, weight in network.named_parameters():
            if "offsets" in parameter or not parameter.startswith("encoder."):
                weight.add_(0.05 * torch.randn(weight.shape))
    module = segmentation_only(network).eval()
    folded = fold_batchnorm(module, torch.zeros(1, 3, 64, 96))
    assert all("aux" in norm for norm in folded.left), (
        "every batch norm that runs has a convolution of its own before it"
    )
    onnx_file.write(ExportJob(network, tmp_path, (64, 96), ORIGINAL, 20, {}, folded=folded.module))
    answer = onnx_file.open_folder(tmp_path)
    for shape in ((1, 70, 101), (2, 97, 66)):
        images = torch.randn(shape[0], 3, *shape[1:], generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            expected = module(images)
        assert (expected.max() - expected.min()).item() > 1e-3
        tolerance = 1e-4 * max(1.0, expected.abs().max().item())
        torch.testing.assert_close(answer(images), expected, rtol=0, atol=tolerance)

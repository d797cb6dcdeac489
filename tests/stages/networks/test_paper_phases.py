"""The papers' networks: every kind of phase moves exactly its parts, and ONNX computes what they compute."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import torch

from data_cache.sample import Batch
from stages.networks import build_network, segmentation_only, strip_depth
from stages.networks.parts import SEG_BRANCH
from stages.training.loop import train_phase
from stages.training.losses import LossSettings
from stages.training.optimisation import OptimSettings
from stages.training.schedule import Phase
from stages.training.schedules import DEPTH, JOINT, SEG

NUM_CLASSES = 3
VGG = {"encoder_weights": "none", "width": 4, "fc_width": 8}
RESNET10 = {"encoder": "tu-resnet10t", "encoder_weights": "none"}
ATROUS = {"width": 8, "low_level_width": 4, **RESNET10}
DCSA = {"reduction": 8, "output_stride": 16, **RESNET10}
CASES = {
    "fcn32s": ("fcn32s", VGG),
    "fcn16s": ("fcn16s", VGG),
    "fcn8s": ("fcn8s", VGG),
    "fcn8s-caffe-full": ("fcn8s", {**VGG, "padding": "caffe", "depth_branch": "full"}),
    "fcn16s-caffe": ("fcn16s", {**VGG, "padding": "caffe"}),
    "fcn8s-frozen": ("fcn8s", {**VGG, "train_deconvolutions": False}),
    "fcn8s-pool5": ("fcn8s", {**VGG, "head": "pool5"}),
    "conv-vgg": ("conv-vgg", VGG),
    "segnet": ("segnet", {"encoder_weights": "none", "width": 4}),
    "pspnet": ("pspnet", {"encoder": "resnet18", "encoder_weights": "none", "decoder_channels": 8, "aux": True}),
    "unet-classic": ("unet-classic", {"width": 4}),
    "unet-valid": ("unet-valid", {"width": 2}),
    "deeplabv3plus": ("deeplabv3plus", ATROUS),
    "mff": ("deeplabv3plus-mff", ATROUS),
    "mff-shared": ("deeplabv3plus-mff", {**ATROUS, "share_aspp": True}),
    "mff-1x1": ("deeplabv3plus-mff", {**ATROUS, "dilated": False}),
    "mff-xception": ("deeplabv3plus-mff", {**ATROUS, "encoder": "tu-xception41"}),
    "bisenet": ("bisenet", {"width": 16, **RESNET10}),
    "bisenet-mff": ("bisenet-mff", {"width": 16, **RESNET10}),
    "dcsa": ("dcsa-resnet", DCSA),
    "dcsa-modulated": ("dcsa-resnet", {**DCSA, "modulated": True}),
    "dcsa-unet": ("dcsa-resnet", {**DCSA, "decoder": "unet", "decoder_channels": [8, 8, 8, 4, 4]}),
}
EXPORTED = [case for case in CASES if case not in ("mff-shared", "mff-1x1", "dcsa-unet")]
"""Those with an operation that no other has; an export takes seconds."""

SEG_WITHOUT_ENCODER = Phase("seg", trains=SEG_BRANCH, focal=1.0)

pytestmark = pytest.mark.filterwarnings("ignore:PSPNet's pyramid")


@pytest.fixture(params=CASES)
def network(request):
    name, options = CASES[request.param]
    torch.manual_seed(0)
    return build_network(name, NUM_CLASSES, **options)


def draw_batches(first_step: int):
    generator = torch.Generator().manual_seed(first_step)
    while True:
        yield Batch(
            ("a", "b"),
            torch.randn(2, 3, 64, 64, generator=generator),
            torch.randint(NUM_CLASSES, (2, 64, 64), generator=generator),
            torch.rand(2, 64, 64, generator=generator),
            torch.ones(2, 64, 64, dtype=torch.bool),
        )


@pytest.mark.parametrize("phase", [SEG, DEPTH, JOINT, SEG_WITHOUT_ENCODER], ids=lambda phase: str(phase.trains))
def test_one_step_moves_exactly_the_parts_of_the_phase(network, phase):
    before = {part: [p.clone() for p in module.state_dict().values()] for part, module in network.parts().items()}
    train_phase(
        network,
        phase,
        draw_batches,
        total_steps=1,
        seed=0,
        optim=OptimSettings(lr=0.01),
        losses=LossSettings(),
        device=torch.device("cpu"),
        precision="float32",
    )
    for part, module in network.parts().items():
        same = [torch.equal(old, new) for old, new in zip(before[part], module.state_dict().values(), strict=True)]
        learns = any(True for _ in module.parameters())  # frozen deconvolutions have none, nor has DCSA's decoder
        assert all(same) != (part in phase.trains and learns), part


@pytest.mark.parametrize("network", EXPORTED, indirect=True)
def test_onnx_computes_the_same_at_the_traced_size(network, tmp_path):
    """Also at a size that no stride divides."""
    size = (70, 101)
    images = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(1))
    module = segmentation_only(strip_depth(network)).eval()
    torch.manual_seed(2)
    with torch.no_grad():
        # What is practically 0 in a fresh network, FCN's scores and DCSA's offsets, would agree whatever it is made of.
        for name, weight in module.network.named_parameters():
            if "offsets" in name or not name.startswith("encoder."):
                weight.add_(0.05 * torch.randn(weight.shape))
        expected = module(images).numpy()
    file = tmp_path / "model.onnx"
    torch.onnx.export(module, (images,), file, dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(file)
    (found,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    assert np.ptp(expected) > 1e-3
    np.testing.assert_allclose(found, expected, atol=1e-4 * max(1.0, np.abs(expected).max()))

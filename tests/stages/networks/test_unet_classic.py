"""The classic U-Nets: counts, sizes, and the unpadded one against an independent statement of the paper's figure 1."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from data_cache.errors import UserError
from stages.networks import build_network, count_parameters
from stages.networks.framing import mirror_pad

NAMES = ("unet-classic", "unet-valid")


def build(name, num_classes=5, **options):
    torch.manual_seed(0)
    return build_network(name, num_classes, **{"width": 2, **options})


def build_on_meta(name, num_classes=21, **options):
    with torch.device("meta"):
        return build_network(name, num_classes, **options)


def draw_images(height, width, batch=1):
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("name", "count"), [("unet-valid", 31_033_045), ("unet-classic", 31_038_933)])
def test_parameter_count_is_the_papers(name, count):
    """By hand for the padded one: 31,033,045 less 5,888 convolution biases, and two batch-norm values for each."""
    assert count_parameters(build_on_meta(name, with_depth=False)) == count


def test_572_px_give_388_px_without_padding():
    network = build_on_meta("unet-valid")
    features = network.encoder(torch.empty(1, 3, 572, 572, device="meta"))
    assert [tuple(maps.shape[1:]) for maps in features] == [
        (64, 568, 568),
        (128, 280, 280),
        (256, 136, 136),
        (512, 64, 64),
        (1024, 28, 28),
    ]
    assert network.forward_valid(torch.empty(1, 3, 572, 572, device="meta")).seg_logits.shape == (1, 21, 388, 388)


def test_unpadded_network_is_the_papers_figure():
    """The same weights run through functions written down from the figure, not through our modules."""
    network = build("unet-valid", with_depth=False).eval()
    weights = network.state_dict()

    def convolve_twice(maps, prefix):
        for layer in (0, 2):
            maps = F.relu(F.conv2d(maps, weights[f"{prefix}.{layer}.weight"], weights[f"{prefix}.{layer}.bias"]))
        return maps

    images = draw_images(188, 204)
    maps = convolve_twice(images, "encoder.stages.0")
    skips = []
    for stage in range(1, 5):
        skips.append(maps)
        maps = convolve_twice(F.max_pool2d(maps, 2), f"encoder.stages.{stage}")
    for stage, skip in enumerate(reversed(skips)):
        up = f"seg_decoder.ups.{stage}"
        maps = F.conv_transpose2d(maps, weights[f"{up}.weight"], weights[f"{up}.bias"], stride=2)
        cut = [(old - new) // 2 for old, new in zip(skip.shape[2:], maps.shape[2:], strict=True)]
        skip = skip[:, :, cut[0] : -cut[0], cut[1] : -cut[1]]
        maps = convolve_twice(torch.cat([skip, maps], 1), f"seg_decoder.stages.{stage}")
    expected = F.conv2d(maps, weights["seg_head.weight"], weights["seg_head.bias"])
    with torch.no_grad():
        found = network.forward_valid(images).seg_logits
    assert found.shape == (1, 5, 4, 20)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


def test_unpadded_network_mirrors_the_border_of_its_images():
    network = build("unet-valid").eval()
    images = draw_images(68, 84)  # 68 + 2·92 and 84 + 2·92 are 12 modulo 16
    with torch.no_grad():
        inside = network.forward_valid(mirror_pad(images, 92, 92, 92, 92))
        whole = network(images)
    assert torch.equal(whole.seg_logits, inside.seg_logits)
    assert torch.equal(whole.depth, inside.depth)


def test_only_the_padded_network_has_batch_norm():
    has_norm = {name: any(isinstance(m, nn.BatchNorm2d) for m in build(name).modules()) for name in NAMES}
    assert has_norm == {"unet-classic": True, "unet-valid": False}


@pytest.mark.parametrize("name", NAMES)
def test_impossible_options_are_refused(name):
    with pytest.raises(UserError, match="width 0 is not possible"):
        build(name, width=0)

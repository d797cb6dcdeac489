"""DeepLabV3+ and its fusion: widths, toggles, what is shared, and how options settle."""

import pytest
import torch
from torch import nn

from data_cache.errors import UserError
from stages.networks import build_network, count_parameters, rebuild_network
from stages.networks.atrous import MultiRateBranch
from stages.networks.parts import Part
from stages.training.transfer import copy_part

SMALL = {"encoder": "tu-resnet10t", "encoder_weights": "none", "width": 8, "low_level_width": 4}


def build_on_meta(name: str = "deeplabv3plus-mff", *, with_depth: bool = False, **options):
    with torch.device("meta"):
        return build_network(name, 19, with_depth=with_depth, **{"encoder_weights": "none", **options})


def collect_dilations(module: nn.Module) -> set[int]:
    return {layer.dilation[0] for layer in module.modules() if isinstance(layer, nn.Conv2d)}


@pytest.mark.parametrize(
    ("name", "options", "channels"),
    [
        ("deeplabv3plus", {}, 304),
        ("deeplabv3plus-mff", {"middle": False}, 560),
        ("deeplabv3plus-mff", {"entry": False}, 560),
        ("deeplabv3plus-mff", {}, 816),
        ("deeplabv3plus-mff", {"dilated": False}, 816),
    ],
    ids=str,
)
def test_width_of_the_concatenation(name, options, channels):
    network, seen = build_on_meta(name, encoder="resnet18", **options), []
    network.seg_decoder.refine.register_forward_pre_hook(lambda _, inputs: seen.append(tuple(inputs[0].shape)))
    network(torch.empty(1, 3, 512, 512, device="meta"), depth=False)
    assert seen == [(1, channels, 128, 128)]


def test_fusion_off_is_plain_deeplab():
    plain, fused = build_on_meta("deeplabv3plus"), build_on_meta(entry=False, middle=False)
    assert list(plain.state_dict()) == list(fused.state_dict())


def test_rates_of_the_paper_outside_the_backbone():
    assert collect_dilations(build_on_meta().seg_decoder) == {1, 3, 6, 9, 12, 18}
    assert collect_dilations(build_on_meta("deeplabv3plus").seg_decoder) == {1, 6, 12, 18}


def test_without_dilation_there_is_none_outside_the_backbone():
    network = build_on_meta(dilated=False, with_depth=True)
    for part, module in network.parts().items():
        if part is not Part.ENCODER:
            assert collect_dilations(module) <= {1}, part


def test_pyramid_rates_double_where_the_encoder_keeps_an_eighth():
    assert collect_dilations(build_on_meta("deeplabv3plus", stride_plan="os8").seg_decoder) == {1, 12, 24, 36}
    assert collect_dilations(build_on_meta("deeplabv3plus", rates=[2, 4, 5]).seg_decoder) == {1, 2, 4, 5}


def test_branch_options_reach_every_branch():
    decoder = build_on_meta(with_1x1=True, with_pool=True, separable=True, branch_rates=[2, 4]).seg_decoder
    branches = [module for module in decoder.modules() if isinstance(module, MultiRateBranch)]
    assert [len(branch.convs) for branch in branches] == [4, 4]
    assert collect_dilations(branches[0]) == {1, 2, 4}


def test_concatenation_follows_equation_2():
    """Low level first, then entry, middle and exit, each resized to it."""
    torch.manual_seed(0)
    network = build_network("deeplabv3plus-mff", 3, with_depth=False, **SMALL).eval()
    decoder, seen = network.seg_decoder, []
    decoder.refine.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        taps = network.encoder(torch.randn(1, 3, 64, 96))
        decoder(taps)
        fusion = decoder.fusion
        paths = [fusion.entry(taps.entry), fusion.middle(taps.middle), fusion.exit(taps.exit)]
        resized = [nn.functional.interpolate(path, size=(16, 24), mode="bilinear") for path in paths]
        expected = torch.cat([decoder.reduce(taps.low_level), *resized], dim=1)
    torch.testing.assert_close(seen[0], expected)


@pytest.mark.parametrize("name", ["deeplabv3plus", "deeplabv3plus-mff"])
def test_shared_paths_belong_to_the_encoder(name):
    own, shared = (build_on_meta(name, with_depth=True, share_aspp=share) for share in (False, True))
    assert count_parameters(own.seg_decoder.fusion) == count_parameters(shared.encoder.fusion)
    assert shared.seg_decoder.fusion is shared.depth_decoder.fusion is None
    duplicated = count_parameters(shared.depth_decoder) + count_parameters(own.seg_decoder.fusion)
    assert duplicated == count_parameters(own.depth_decoder)


def test_shared_paths_leave_the_rest_of_the_decoder_to_copy():
    network = build_network("deeplabv3plus-mff", 3, share_aspp=True, **SMALL)
    assert all(
        name.startswith(("reduce.", "refine."))
        for name in copy_part(network, Part.SEG_DECODER, Part.DEPTH_DECODER).copied
    )


def test_the_settled_stride_plan_is_remembered():
    """Otherwise a network trained from pretrained weights would be rebuilt without them by the other plan."""
    network = build_on_meta("deeplabv3plus")
    assert network.spec.options["stride_plan"] == "8-8-16-a"
    assert build_on_meta("deeplabv3plus", encoder="resnet18").spec.options["stride_plan"] == "os16"
    chosen = build_on_meta("deeplabv3plus", stride_plan="8-8-16-b")
    with torch.device("meta"):
        assert rebuild_network(chosen.spec.without_pretrained()).spec == chosen.spec


def test_normalisation_is_that_of_the_encoder():
    network = build_on_meta("deeplabv3plus")
    assert network.normalisation.mean == network.normalisation.std == (0.5, 0.5, 0.5)
    assert build_on_meta("deeplabv3plus", encoder="resnet18").normalisation.mean == (0.485, 0.456, 0.406)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dilated": False, "with_pool": True, "separable": True}, "drop with_pool, separable"),
        ({"encoder": "resnet18", "low_level_channels": 128}, "'resnet18' has no choice of low_level_channels"),
        ({"width": 0}, "width 0 is not possible"),
        ({"low_level_width": -1}, "low_level_width -1 is not possible"),
        ({"rates": [0]}, r"rates \[0\] are not possible"),
        ({"branch_rates": []}, r"branch_rates \[\] are not possible"),
        ({"stride_plan": "8-8-8"}, "unknown stride_plan '8-8-8'"),
        ({"encoder": "resnet81"}, "unknown encoder 'resnet81'"),
        ({"encoder": "vgg16"}, r"'vgg16' cannot be built with output_stride 16 .*; choose a ResNet or MobileNet"),
    ],
    ids=str,
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        build_on_meta(**options)

"""FCN: the papers' counts, bilinear deconvolutions, skips that count, both paddings, and what a copy can carry."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from data_cache.errors import UserError
from stages.networks import build_network, count_parameters
from stages.networks.fcn import BilinearDeconvolution, FcnHead, compute_bilinear_kernel
from stages.networks.parts import Part
from stages.training.transfer import copy_part

NAMES = ("fcn32s", "fcn16s", "fcn8s")
SMALL = {"encoder_weights": "none", "width": 4, "fc_width": 8}


def build(name="fcn8s", num_classes=5, **options):
    torch.manual_seed(0)
    return build_network(name, num_classes, **{**SMALL, **options})


def build_on_meta(name, num_classes=21, **options):
    with torch.device("meta"):
        return build_network(name, num_classes, encoder_weights="none", **options)


def draw_images(batch=2, height=64, width=96):
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("name", "num_classes", "options", "count"),
    [
        ("fcn32s", 21, {}, 136_152_917),
        ("fcn16s", 21, {}, 134_815_994),
        ("fcn8s", 21, {}, 134_489_759),
        ("fcn32s", 20, {}, 135_980_884),
        ("fcn16s", 20, {}, 134_768_744),
        ("fcn8s", 20, {}, 134_473_084),
        ("fcn8s", 21, {"padding": "caffe"}, 134_489_759),
        ("fcn8s", 21, {"depth_branch": "full"}, 134_489_759),
        ("fcn8s", 21, {"head": "pool5"}, 14_868_639),
        ("fcn32s", 21, {"train_deconvolutions": False}, 134_346_581),
        ("fcn16s", 21, {"train_deconvolutions": False}, 134_357_354),
        ("fcn8s", 21, {"train_deconvolutions": False}, 134_362_751),
    ],
)
def test_parameter_count_is_the_papers(name, num_classes, options, count):
    assert count_parameters(build_on_meta(name, num_classes, with_depth=False, **options)) == count


@pytest.mark.parametrize(("branch", "added"), [("light", 5_155), ("full", 119_551_011)])
def test_depth_branch_adds_what_it_duplicates(branch, added):
    both, single = (build_on_meta("fcn8s", with_depth=depth, depth_branch=branch) for depth in (True, False))
    assert count_parameters(both) - count_parameters(single) == added


@pytest.mark.parametrize("name", NAMES)
def test_any_size_comes_back_with_caffes_padding(name):
    network = build_on_meta(name, padding="caffe")
    for size in ((64, 64), (200, 200), (400, 500), (513, 513), (600, 65)):
        outputs = network(torch.empty(1, 3, *size, device="meta"))
        assert outputs.seg_logits.shape == (1, 21, *size)
        assert outputs.depth.shape == (1, *size)


def collect_shapes(network, images):
    shapes = {}
    for name, module in network.named_modules():
        if isinstance(module, (nn.MaxPool2d, nn.Conv2d, BilinearDeconvolution)):
            module.register_forward_hook(lambda _, __, out, name=name: shapes.__setitem__(name, tuple(out.shape[1:])))
    network(images, depth=False)
    return shapes


@pytest.mark.parametrize(
    ("padding", "pools", "fc", "upscored"),
    [
        ("aligned", [(64, 256), (128, 128), (256, 64), (512, 32), (512, 16)], 16, [32, 64, 512]),
        ("caffe", [(64, 355), (128, 178), (256, 89), (512, 45), (512, 23)], 17, [36, 74, 600]),
    ],
)
def test_inner_shapes_at_512_px_are_the_papers(padding, pools, fc, upscored):
    shapes = collect_shapes(build_on_meta("fcn8s", padding=padding), torch.empty(1, 3, 512, 512, device="meta"))
    found = [shapes[f"encoder.features.{layer}"] for layer in (4, 9, 16, 23, 30)]
    assert found == [(channels, side, side) for channels, side in pools]
    assert shapes["encoder.fc.fc6"] == shapes["encoder.fc.fc7"] == (4096, fc, fc)
    assert [shapes[f"seg_head.deconvolutions.{n}"] for n in range(3)] == [(21, side, side) for side in upscored]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("num_classes", [2, 21])
def test_first_loss_is_the_logarithm_of_the_number_of_classes(name, num_classes):
    logits = build(name, num_classes)(draw_images()).seg_logits
    labels = torch.randint(num_classes, (2, 64, 96), generator=torch.Generator().manual_seed(2))
    assert F.cross_entropy(logits, labels).item() == pytest.approx(math.log(num_classes), abs=1e-5)


def test_score_std_zero_is_the_papers_zero_initialisation():
    outputs = build(score_std=0.0)(draw_images())
    assert not outputs.seg_logits.any()
    assert not outputs.depth.any()


def test_kernel_of_factor_two_is_the_papers():
    quarters = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 4
    assert torch.equal(compute_bilinear_kernel(2), torch.outer(quarters, quarters))


@pytest.mark.parametrize("factor", [2, 8, 16, 32])
def test_inside_of_a_fresh_deconvolution_is_bilinear_interpolation(factor):
    maps = torch.randn(2, 3, 6, 7)
    upsampled = BilinearDeconvolution(3, factor, aligned=True, learnt=True)(maps)
    expected = F.interpolate(maps, scale_factor=factor, mode="bilinear", align_corners=False)
    inside = (..., slice(factor, -factor), slice(factor, -factor))
    torch.testing.assert_close(upsampled[inside], expected[inside], atol=1e-6, rtol=0)


def test_deconvolutions_start_one_to_one_between_channels():
    weight = BilinearDeconvolution(3, 2, aligned=True, learnt=True).weight
    assert not weight[~torch.eye(3, dtype=torch.bool)].any()


@pytest.mark.parametrize(
    ("aligned", "image_at", "crop"),
    # x of the first pixel's left edge: Caffe's 100 px of padding less one for conv1_1; fc6 begins three pixels in
    [(True, {32: 0, 16: 0, 8: 0}, 0), (False, {32: 3 * 32 - 99, 16: -99, 8: -99}, 31)],
)
def test_skips_are_added_in_register_with_the_map_below(aligned, image_at, crop):
    """Score maps that hold the image's x coordinate come out as the x coordinate, times three for three maps."""
    head = FcnHead(1, 3, aligned=aligned, learnt=True)
    count = {32: 12, 16: 40, 8: 80}
    scores = [
        (image_at[stride] + stride * torch.arange(count[stride]) + (stride - 1) / 2).expand(1, 1, count[stride], -1)
        for stride in (32, 16, 8)
    ]
    if aligned:  # maps of one size in pixels of the image
        scores = [maps[..., : 384 // stride, : 384 // stride] for maps, stride in zip(scores, (32, 16, 8), strict=True)]
    out = head(scores)
    row = out[0, 0, out.shape[-2] // 2, crop:]
    inside = slice(100, 200)
    torch.testing.assert_close(row[inside], 3 * torch.arange(len(row)).float()[inside], atol=1e-3, rtol=0)


@pytest.mark.parametrize(("name", "skips"), [("fcn32s", []), ("fcn16s", ["pool4"]), ("fcn8s", ["pool4", "pool3"])])
def test_output_depends_on_exactly_the_skips_of_the_variant(name, skips):
    network = build(name).eval()
    assert list(network.seg_decoder.scores) == ["fr", *skips]
    for layer in network.seg_decoder.scores.values():
        nn.init.ones_(layer.weight)
    features = [maps.detach().requires_grad_() for maps in network.encoder(draw_images())]
    network.seg_head(network.seg_decoder(features)).sum().backward()
    used = dict(zip(("pool3", "pool4", "fr"), (maps.grad is not None for maps in features), strict=True))
    assert used == {"pool3": "pool3" in skips, "pool4": "pool4" in skips, "fr": True}


def test_skips_are_scaled_before_their_score_layers():
    decoder = build(num_classes=1).seg_decoder
    for layer in decoder.scores.values():
        nn.init.ones_(layer.weight)
        nn.init.ones_(layer.bias)
    ones = [torch.ones(1, layer.in_channels, 1, 1) for layer in reversed(decoder.scores.values())]
    scores = [score.item() for score in decoder(ones)]
    assert scores == pytest.approx([1 + 8, 1 + 0.01 * 32, 1 + 0.0001 * 16])


def test_frozen_deconvolutions_are_no_parameters_but_part_of_the_state():
    network = build(train_deconvolutions=False)
    assert not list(network.parts()[Part.SEG_HEAD].parameters())
    assert network.state_dict().keys() == build().state_dict().keys()


def test_full_branch_copies_fc6_and_fc7_and_names_the_scores_it_skips():
    network = build(depth_branch="full")
    report = copy_part(network, Part.DEPTH_DECODER, Part.SEG_DECODER)
    assert set(report.copied) == {f"fc.{layer}.{kind}" for layer in ("fc6", "fc7") for kind in ("weight", "bias")}
    assert set(report.skipped) == network.uncopied
    assert torch.equal(network.seg_decoder.fc.fc6.weight, network.depth_decoder.fc.fc6.weight)


@pytest.mark.parametrize(
    ("options", "remedy"),
    [
        ({}, 'set depth_branch = "full", or run'),
        ({"head": "pool5"}, "run"),
        ({"head": "pool5", "depth_branch": "full"}, "run"),
    ],
)
def test_a_branch_of_scores_alone_has_nothing_to_copy(options, remedy):
    with pytest.raises(UserError, match=f"has nothing to copy: all 6 tensors .*; {remedy} the schedule without"):
        copy_part(build(**options), Part.DEPTH_DECODER, Part.SEG_DECODER)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"padding": "caffee"}, "padding must be one of 'aligned', 'caffe', found 'caffee'"),
        ({"head": "fc8"}, "head must be one of 'full', 'pool5', found 'fc8'"),
        ({"depth_branch": "ful"}, "depth_branch must be one of 'light', 'full', found 'ful'"),
        ({"padding": "caffe", "head": "pool5"}, 'use padding "aligned"'),
        ({"score_std": -1.0}, "score_std -1.0 must be finite and at least 0"),
        ({"width": 0}, "width 0 is not possible"),
        ({"fc_width": 0}, "fc_width 0 is not possible"),
    ],
)
def test_impossible_options_are_refused(options, match):
    with pytest.raises(UserError, match=match):
        build(**options)


def test_images_below_one_deepest_pixel_are_refused():
    with pytest.raises(UserError, match=r"images of 16x96 px are too small for Fcn8s .* at least 32x96"):
        build()(draw_images(height=16))

"""The shared-encoder network against smp's own models, which are the independent oracle."""

import pytest
import segmentation_models_pytorch as smp
import torch

from data_cache.errors import UserError
from stages.networks import build_network, count_parameters, network_options, strip_depth
from stages.networks.parts import Part
from stages.networks.smp_architectures import ARCHITECTURES

SMALL = {"encoder": "tu-resnet10t", "encoder_weights": "none"}


def build(num_classes=3, **options):
    torch.manual_seed(5)
    return build_network("unet", num_classes, **{**SMALL, **options}).eval()


def test_parameters_of_the_paper_network():
    network = build_network("unet", 21, encoder="resnet50", encoder_weights="none")
    assert count_parameters(network) == 41_537_078
    assert count_parameters(strip_depth(network)) == 32_524_005
    decoder = network.parts()[Part.SEG_DECODER]
    assert count_parameters(decoder) == 9_012_928
    assert len(decoder.state_dict()) == 60


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_fresh_weights_and_logits_are_those_of_smp(architecture):
    ours = build(architecture=architecture, with_depth=False)
    torch.manual_seed(5)
    theirs = getattr(smp, ARCHITECTURES[architecture].smp_class)(
        encoder_name="tu-resnet10t", encoder_weights=None, classes=3
    ).eval()
    state = ours.smp_state()
    assert list(state) == list(theirs.state_dict())
    assert all(torch.equal(value, state[name]) for name, value in theirs.state_dict().items())
    images = torch.randn(1, 3, 128, 160)
    with torch.no_grad():
        assert torch.equal(ours(images).seg_logits, theirs(images))


def test_the_two_decoders_start_with_weights_of_their_own():
    parts = build().parts()
    pairs = zip(parts[Part.SEG_DECODER].parameters(), parts[Part.DEPTH_DECODER].parameters(), strict=True)
    drawn = [(ours, other) for ours, other in pairs if ours.ndim == 4]
    assert drawn
    for ours, other in drawn:
        assert not torch.equal(ours, other)
        assert ours.std().item() == pytest.approx(other.std().item(), rel=0.2)


@pytest.mark.parametrize(
    ("encoder", "architecture", "depth", "dropped"),
    [
        ("resnet18", "unet", 3, ("encoder.layer3.", "encoder.layer4.")),
        ("mobilenet_v2", "fpn", 4, ("encoder.features.18.",)),
        ("efficientnet-b0", "linknet", 5, ("encoder._conv_head.", "encoder._bn1.")),
    ],
)
def test_encoder_weights_that_nothing_uses_are_dropped(encoder, architecture, depth, dropped):
    options = {"encoder": encoder, "encoder_weights": "none", "architecture": architecture, "encoder_depth": depth}
    network = build_network("unet", 3, **options)
    assert not [name for name in network.state_dict() if name.startswith(dropped)]
    outputs = network(torch.randn(2, 3, 64, 64))
    (outputs.seg_logits.mean() + outputs.depth.mean()).backward()
    assert not [name for name, weight in network.named_parameters() if weight.grad is None]


def test_dropping_unused_stages_leaves_the_features_as_they_were():
    ours = build(encoder="mobilenet_v2", encoder_depth=3, with_depth=False)
    torch.manual_seed(5)
    theirs = smp.Unet("mobilenet_v2", encoder_depth=3, encoder_weights=None, decoder_channels=(64, 32, 16), classes=3)
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(ours(images).seg_logits, theirs.eval()(images))
    assert set(ours.smp_state()) == set(theirs.state_dict())


@pytest.mark.parametrize(
    ("architecture", "depth"),
    [("fpn", 3), ("fpn", 4), ("upernet", 3), ("segformer", 3), ("deeplabv3", 3), ("pan", 3), ("deeplabv3plus", 3)],
)
def test_fewer_stages_still_answer_at_the_size_of_the_images(architecture, depth):
    network = build(architecture=architecture, encoder_depth=depth, with_depth=False)
    with torch.no_grad():
        assert network(torch.randn(1, 3, 72, 88)).seg_logits.shape == (1, 3, 72, 88)


@pytest.mark.parametrize("encoder", ["resnet18", "mit_b0", "tu-convnext_atto", "tu-hrnet_w18_small", "densenet121"])
def test_odd_sizes_under_encoders_of_every_kind(encoder):
    network = build(encoder=encoder, with_depth=False)
    with torch.no_grad():
        assert network(torch.randn(1, 3, 77, 101)).seg_logits.shape == (1, 3, 77, 101)


def test_padding_is_for_architectures_and_encoders_that_need_it():
    assert build().pad_multiple_px == 1
    assert build(encoder="tu-hrnet_w18_small").pad_multiple_px == 32
    assert build(architecture="fpn").pad_multiple_px == 32
    pan = build(architecture="pan")
    assert (pan.pad_multiple_px, pan.pad_least_px, pan.smallest_input_px) == (16, 128, 16)


def test_padding_changes_nothing_that_a_padded_image_would_not():
    network = build(architecture="linknet")
    images = torch.randn(1, 3, 70, 64)
    padded = torch.nn.functional.pad(images, (0, 0, 0, 26))
    with torch.no_grad():
        assert torch.equal(network(images).depth, network(padded).depth[:, :70])


def test_tiling_reads_the_grid_and_whether_pixels_see_the_whole_image():
    assert (build().tile_grid_px, build().global_context) == (32, False)
    pan = build(architecture="pan")
    assert (pan.tile_grid_px, pan.global_context) == (16, True)


def test_options_have_their_defaults_spelled_out_in_the_spec():
    assert build().spec.options == {**network_options("unet"), **SMALL}


def test_normalisation_is_that_of_the_pretraining():
    assert build().normalisation.mean == (0.485, 0.456, 0.406)
    assert build(encoder="tu-xception41", with_depth=False).normalisation.std == (0.5, 0.5, 0.5)
    assert build(encoder="xception", with_depth=False).normalisation.mean == (0.5, 0.5, 0.5)


def test_timm_options_reach_the_encoder():
    options = {"encoder": "tu-swin_tiny_patch4_window7_224", "with_depth": False}
    with pytest.raises(UserError, match=r"cannot take an image of 64x64"):
        build(**options)
    network = build(**options, encoder_options={"strict_img_size": False})
    assert network.smp_config()["strict_img_size"] is False
    with torch.no_grad():
        assert network(torch.zeros(1, 3, 70, 81)).seg_logits.shape == (1, 3, 70, 81)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"architecture": "unett"}, "unknown architecture 'unett' .did you mean 'unet'"),
        ({"encoder": "resnet51"}, "unknown encoder 'resnet51' .did you mean 'resnet50'"),
        ({"encoder": "tu-resnet10x"}, "tu-resnet10t"),
        ({"encoder_deepth": 3}, "no option 'encoder_deepth' .did you mean 'encoder_depth'"),
        ({"architecture": "fpn", "encoder_depth": 2}, "cannot have encoder_depth 2; possible: 3 to 5"),
        ({"encoder_depth": 6}, "possible: 1 to 5"),
        ({"decoder_channels": [8, 8]}, "give 5 positive numbers"),
        ({"architecture": "fpn", "decoder_channels": 100}, "multiple of 64"),
        ({"architecture": "fpn", "decoder_channels": [64, 64]}, "one positive multiple of 64"),
        ({"architecture": "linknet", "decoder_channels": 8}, "drop decoder_channels"),
        ({"output_stride": 8}, "'unet' has no output_stride; drop it or choose one of pan, deeplabv3"),
        ({"architecture": "pan", "output_stride": 8}, "possible: 16 or 32"),
        ({"architecture": "deeplabv3plus", "encoder": "vgg11"}, "do not support dilated mode"),
        ({"architecture": "unetplusplus", "encoder": "mit_b0"}, "choose another encoder or architecture"),
        ({"encoder": "resnet18", "encoder_options": {"a": 1}}, "passed to timm"),
        ({"encoder": "tu-vit_tiny_patch16_224"}, "cannot build architecture 'unet'"),
    ],
    ids=str,
)
def test_impossible_options_are_refused_with_what_is_possible(options, message):
    with pytest.raises(UserError, match=message):
        build(**options)


def test_unknown_networks_and_class_counts_are_refused():
    with pytest.raises(UserError, match=r"unknown network 'unnet' .did you mean 'unet'"):
        build_network("unnet", 3)
    with pytest.raises(UserError, match=r"0 classes; give at least 1"):
        build_network("unet", 0, **SMALL)


def test_images_that_are_too_small_are_refused_with_a_size_that_works():
    with pytest.raises(UserError, match=r"20x100 px are too small .* to at least 32x100"):
        build()(torch.zeros(1, 3, 20, 100))


def test_a_single_image_that_batch_norm_cannot_train_on_is_refused():
    network = build(architecture="deeplabv3plus").train()
    with pytest.raises(UserError, match=r"single image of 64x64 px.*batch_size to at least 2"):
        network(torch.zeros(1, 3, 64, 64))
    with pytest.raises(UserError, match=r"crop side above 32"):
        build().train()(torch.zeros(1, 3, 32, 32))

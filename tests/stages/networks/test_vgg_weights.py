"""VGG16 weights from files of torchvision's and timm's layout; a narrow VGG stands for the real one."""

from __future__ import annotations

import pytest
import timm
import torch
from huggingface_hub import constants
from safetensors.torch import save_file
from torch import nn
from torchvision.models import VGG, vgg16, vgg16_bn
from torchvision.models.vgg import make_layers

from data_cache.errors import UserError
from stages.networks import build_network
from stages.networks.vgg import FC_WIDTH as PAPERS_FC_WIDTH
from stages.networks.vgg import PUBLISHED, FullyConvolutional, build_vgg16_features, load_vgg16, rename_vgg16

WIDTH, FC_WIDTH = 4, 6
DEEP = 8 * WIDTH
SMALL = {"width": WIDTH, "fc_width": FC_WIDTH}


def build_torchvision_vgg(batch_norm: bool = False) -> VGG:
    """torchvision's class with narrow layers."""
    torch.manual_seed(3)
    stages = [[WIDTH] * 2, [2 * WIDTH] * 2, [4 * WIDTH] * 3, [DEEP] * 3, [DEEP] * 3]
    with torch.device("meta"):
        vgg = VGG(nn.Sequential(), init_weights=False)
    vgg.features = make_layers([layer for stage in stages for layer in (*stage, "M")], batch_norm=batch_norm)
    vgg.classifier[0] = nn.Linear(DEEP * 49, FC_WIDTH)
    vgg.classifier[3] = nn.Linear(FC_WIDTH, FC_WIDTH)
    vgg.classifier[6] = nn.Linear(FC_WIDTH, 10)
    return vgg.eval()


@pytest.fixture(scope="module")
def vgg():
    return build_torchvision_vgg()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("weights")


@pytest.fixture(scope="module")
def torchvision_file(vgg, folder):
    save_file(vgg.state_dict(), folder / "torchvision.safetensors")
    return str(folder / "torchvision.safetensors")


@pytest.fixture(scope="module")
def timm_file(vgg, folder):
    names = {"classifier.0": "pre_logits.fc1", "classifier.3": "pre_logits.fc2", "classifier.6": "head.fc"}
    weights = {}
    for key, value in vgg.state_dict().items():
        layer, _, kind = key.rpartition(".")
        if key == "classifier.0.weight":
            value = value.view(FC_WIDTH, DEEP, 7, 7)
        if key == "classifier.3.weight":
            value = value[..., None, None]
        weights[f"{names.get(layer, layer)}.{kind}"] = value.contiguous()
    save_file(weights, folder / "timm.safetensors")
    return str(folder / "timm.safetensors")


@pytest.mark.parametrize("batch_norm", [False, True])
def test_full_width_features_are_torchvisions(batch_norm):
    with torch.device("meta"):
        ours = build_vgg16_features(batch_norm=batch_norm).state_dict()
        theirs = (vgg16_bn if batch_norm else vgg16)(weights=None).features.state_dict()
    assert {name: value.shape for name, value in ours.items()} == {name: value.shape for name, value in theirs.items()}


def test_published_names_exist():
    assert all(timm.is_model_pretrained(name) for name in PUBLISHED.values())


@pytest.mark.parametrize("batch_norm", [False, True])
def test_timms_own_names_are_understood(batch_norm):
    """At full width: features, fc6 and fc7 in our names and shapes, and nothing else."""
    with torch.device("meta"):
        theirs = timm.create_model(PUBLISHED[batch_norm].partition(".")[0]).state_dict()
        features, fc = build_vgg16_features(batch_norm=batch_norm), FullyConvolutional(512, PAPERS_FC_WIDTH, padding=3)
    ours = {f"features.{name}": value.shape for name, value in features.state_dict().items()}
    ours |= {name: value.shape for name, value in fc.state_dict().items()}
    assert {name: value.shape for name, value in rename_vgg16(theirs).items()} == ours


@pytest.mark.parametrize("layout", ["torchvision_file", "timm_file"])
@pytest.mark.parametrize("branch", ["light", "full"])
def test_classifier_becomes_fc6_and_fc7_of_every_branch(vgg, request, layout, branch):
    """On a 7×7 map the convolutions compute what torchvision's fully connected layers compute."""
    weights = request.getfixturevalue(layout)
    network = build_network("fcn8s", 3, encoder_weights=weights, depth_branch=branch, **SMALL).eval()
    copies = [network.encoder.fc] if branch == "light" else [network.seg_decoder.fc, network.depth_decoder.fc]
    maps = torch.randn(2, DEEP, 7, 7)
    with torch.no_grad():
        expected = vgg.classifier[:6](maps.flatten(1))
        for fc in copies:
            torch.testing.assert_close(fc(maps)[:, :, 3, 3], expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["fcn32s", "fcn16s", "fcn8s", "conv-vgg"])
def test_features_are_torchvisions(vgg, torchvision_file, name):
    network = build_network(name, 3, encoder_weights=torchvision_file, **SMALL).eval()
    images = torch.randn(1, 3, 64, 64)
    features = getattr(network.encoder, "features", network.encoder)
    with torch.no_grad():
        assert torch.equal(features(images), vgg.features(images))


def test_segnet_takes_the_features_and_leaves_the_classifier(folder):
    vgg = build_torchvision_vgg(batch_norm=True)
    save_file(vgg.state_dict(), folder / "vgg16_bn.safetensors")
    network = build_network("segnet", 3, encoder_weights=str(folder / "vgg16_bn.safetensors"), width=WIDTH).eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(network.encoder(images).end, vgg.features(images))


def test_pool5_head_takes_the_features_and_leaves_the_classifier(vgg, torchvision_file):
    network = build_network("fcn8s", 3, encoder_weights=torchvision_file, head="pool5", **SMALL)
    assert torch.equal(network.encoder.features[0].weight, vgg.features[0].weight)


def test_one_file_does_not_tie_two_branches(torchvision_file):
    network = build_network("conv-vgg", 3, encoder_weights=torchvision_file, **SMALL)
    with torch.no_grad():
        network.seg_decoder.fc6.weight.zero_()
    assert network.depth_decoder.fc6.weight.any()


def test_weights_of_another_width_show_both_shapes(torchvision_file):
    with pytest.raises(UserError, match=r"features.0.weight \(4, 3, 3, 3\) instead of \(8, 3, 3, 3\)"):
        build_network("fcn8s", 3, encoder_weights=torchvision_file, width=8, fc_width=FC_WIDTH)


def test_weights_without_classifier_are_refused_where_it_is_needed(vgg, folder):
    features = {name: value for name, value in vgg.state_dict().items() if name.startswith("features.")}
    save_file(features, folder / "features.safetensors")
    with pytest.raises(UserError, match=r"the file lacks \(4\): fc6.weight, fc6.bias, fc7.weight, fc7.bias"):
        build_network("fcn8s", 3, encoder_weights=str(folder / "features.safetensors"), **SMALL)


def test_weights_of_another_architecture_show_both_key_sets(folder):
    save_file({"conv1.weight": torch.zeros(64, 3, 7, 7)}, folder / "resnet.safetensors")
    with pytest.raises(UserError, match=r"(?s)features.0.weight.*conv1.weight"):
        build_network("segnet", 3, encoder_weights=str(folder / "resnet.safetensors"), width=WIDTH)


def test_unknown_published_weights_are_refused():
    with pytest.raises(UserError, match=r"no weights 'imagnet'.*did you mean 'imagenet'"):
        build_network("fcn8s", 3, encoder_weights="imagnet", **SMALL)


def test_without_connection_the_remedy_is_named(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"vgg16.tv_in1k.*no connection.*pipeline fetch.*\"none\""):
        build_network("conv-vgg", 3, **SMALL)


def test_none_draws_random_weights():
    features = build_vgg16_features(width=2)
    before = features[0].weight.clone()
    load_vgg16(features, [], "none")
    assert torch.equal(features[0].weight, before)

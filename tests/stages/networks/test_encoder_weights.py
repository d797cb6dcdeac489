"""Pretrained weights from local files, and one clear message where there is no connection."""

import re

import pytest
import timm
import torch
from huggingface_hub import constants
from safetensors.torch import save_file

from data_cache.errors import UserError
from stages.networks import build_network
from stages.networks.encoder_weights import fetch_encoder_weights


def build(weights, encoder="resnet18", **options):
    return build_network("unet", 3, encoder=encoder, encoder_weights=str(weights), with_depth=False, **options)


def encoder_state(network):
    return {name: value.contiguous() for name, value in network.encoder.state_dict().items()}


@pytest.fixture
def no_connection(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


@pytest.mark.parametrize(("encoder", "prefix"), [("resnet18", ""), ("tu-resnet10t", "encoder.")])
def test_a_local_file_fills_the_encoder(tmp_path, encoder, prefix):
    torch.manual_seed(1)
    donor = encoder_state(build("none", encoder))
    file = tmp_path / "encoder.safetensors"
    save_file({prefix + name: value for name, value in donor.items()}, file)
    torch.manual_seed(2)
    network = build(file, encoder)
    assert all(torch.equal(value, donor[name]) for name, value in network.encoder.state_dict().items())
    assert network.spec.options["encoder_weights"] == str(file)


@pytest.mark.parametrize("encoder", ["resnet10t", "mobilenetv3_small_050", "xception41"])
def test_timms_own_file_fills_the_encoder(tmp_path, encoder):
    """With its classifier, and by other names than smp's: Xception's blocks are numbered with a dot there."""
    torch.manual_seed(1)
    donor = timm.create_model(encoder).state_dict()
    save_file(donor, tmp_path / "model.safetensors")
    state = build(tmp_path / "model.safetensors", f"tu-{encoder}").encoder.state_dict()
    dotted = {re.sub(r"^(stem|blocks)_", r"\1.", name.removeprefix("model.")): value for name, value in state.items()}
    assert len(dotted) > 50
    assert all(torch.equal(value, donor[name]) for name, value in dotted.items())


def test_timms_file_of_another_model_shows_both_sides(tmp_path):
    save_file(timm.create_model("resnet10t").state_dict(), tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"(?s)the file lacks \([1-9]\d*\): model\..*the encoder lacks \([1-9]"):
        build(tmp_path / "model.safetensors", "tu-mobilenetv3_small_050")


@pytest.mark.parametrize("encoder", ["resnet18", "tu-resnet10t"])
def test_a_file_of_all_stages_fits_an_encoder_of_fewer(tmp_path, encoder):
    donor = encoder_state(build("none", encoder))
    file = tmp_path / "encoder.safetensors"
    save_file(donor, file)
    state = build(file, encoder, encoder_depth=3).encoder.state_dict()
    assert len(state) < len(donor)
    assert all(torch.equal(value, donor[name]) for name, value in state.items())


def test_classifier_weights_in_the_file_are_left_out(tmp_path):
    file = tmp_path / "classifier.safetensors"
    save_file({**encoder_state(build("none")), "fc.weight": torch.zeros(10, 512), "fc.bias": torch.zeros(10)}, file)
    build(file)


def test_weights_of_another_architecture_show_both_sides(tmp_path):
    file = tmp_path / "resnet34.safetensors"
    save_file(encoder_state(build("none", "resnet34")), file)
    with pytest.raises(UserError) as caught:
        build(file)
    message = str(caught.value)
    assert "not the weights of encoder 'resnet18'" in message
    assert "the encoder has, the file lacks (0): none" in message
    assert "the file has, the encoder lacks (96): layer1.2.bn1.bias" in message


def test_weights_of_another_shape_are_named(tmp_path):
    file = tmp_path / "wide.safetensors"
    save_file({**encoder_state(build("none")), "conv1.weight": torch.zeros(64, 3, 3, 3)}, file)
    with pytest.raises(UserError, match=r"conv1.weight \(64, 3, 3, 3\) instead of \(64, 3, 7, 7\)"):
        build(file)


def test_pickles_are_never_opened(tmp_path):
    file = tmp_path / "resnet18.pth"
    torch.save({}, file)
    with pytest.raises(UserError, match=r"pickles, which can run code when opened.*pipeline fetch"):
        build(file)


def test_a_missing_or_damaged_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"does not exist"):
        build(tmp_path / "none.safetensors")
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(b"no weights")
    with pytest.raises(UserError, match=r"cannot read .*damaged.safetensors as safetensors"):
        build(damaged)


@pytest.mark.parametrize("encoder", ["resnet18", "tu-resnet10t"])
def test_without_a_connection_one_message_names_the_ways_out(no_connection, encoder):
    with pytest.raises(UserError, match=r"no connection.*'pipeline fetch'.*its path; or .*\"none\""):
        build("imagenet", encoder)


def test_fetching_without_a_connection_writes_nothing(no_connection, tmp_path):
    with pytest.raises(UserError, match=r"no connection"):
        fetch_encoder_weights("resnet18", tmp_path / "resnet18.safetensors")
    assert not list(tmp_path.iterdir())


def test_weights_that_were_never_published_are_refused_with_those_that_were():
    with pytest.raises(
        UserError, match=r"'resnet18' has no weights 'imagnet' .did you mean 'imagenet'.*ssl, swsl, none"
    ):
        build("imagnet")
    with pytest.raises(UserError, match=r"'dpn92' has no weights 'imagenet'"):
        build("imagenet", "dpn92")
    with pytest.raises(UserError, match=r"unknown encoder"):
        fetch_encoder_weights("resnet19", None)

"""What holds for DeepLabV3+, BiSeNet, both with fusion, and DCSA: the papers' counts, sizes, phases, copies, ONNX."""

import copy

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from segmentation_models_pytorch.encoders import get_encoder

from data_cache.errors import UserError
from stages.networks import build_network, count_parameters, segmentation_only, strip_depth
from stages.networks.interface import Network
from stages.networks.parts import DEPTH_BRANCH, ENCODER, EVERYTHING, SEG_BRANCH, Part
from stages.training.freezing import training_parts
from stages.training.transfer import copy_part

RESNET10 = {"encoder": "tu-resnet10t", "encoder_weights": "none"}

SMALL = {
    "deeplabv3plus": {"width": 8, "low_level_width": 4, **RESNET10},
    "deeplabv3plus-mff": {"width": 8, "low_level_width": 4, **RESNET10},
    "deeplabv3plus-mff, shared": {"width": 8, "low_level_width": 4, "share_aspp": True, **RESNET10},
    "deeplabv3plus-mff, 1x1": {"width": 8, "low_level_width": 4, "dilated": False, **RESNET10},
    "bisenet": {"width": 16, **RESNET10},
    "bisenet-mff": {"width": 16, **RESNET10},
    "dcsa-resnet": {"reduction": 8, "output_stride": 16, **RESNET10},
    "dcsa-resnet, modulated": {"reduction": 8, "output_stride": 16, "modulated": True, **RESNET10},
    "dcsa-resnet, unet": {"reduction": 8, "decoder": "unet", "decoder_channels": [8, 8, 8, 4, 4], **RESNET10},
}
"""Name, and after a comma the kind → options that make it small."""

WITHOUT_DECODER = ("dcsa-resnet", "dcsa-resnet, modulated")

EXPORTED = [kind for kind in SMALL if kind.split(", ")[-1] not in ("shared", "1x1", "unet")]
"""Kinds that have an operation of their own; an export takes seconds."""

COUNTS = [
    ("deeplabv3plus", {}, 54_710_947),
    ("deeplabv3plus", {"low_level_channels": 128}, 54_704_803),  # jfzhang95's own network
    ("deeplabv3plus-mff", {"middle": False}, 60_531_363),
    ("deeplabv3plus-mff", {"entry": False}, 60_531_363),
    ("deeplabv3plus-mff", {}, 66_351_779),
    ("deeplabv3plus-mff", {"dilated": False}, 41_254_051),
    ("bisenet", {}, 13_425_721),
    ("bisenet", {"auxiliary": False}, 13_275_539),
    ("bisenet-mff", {}, 14_918_713),
    ("dcsa-resnet", {}, 32_332_819),
    ("dcsa-resnet", {"encoder": "resnet18"}, 16_023_667),
]
"""Source: papers.md 3.6 to 3.8, for 19 classes without the depth branch."""

DEPTH_COUNTS = {
    "deeplabv3plus": 16_839_009,
    "deeplabv3plus-mff": 28_479_841,
    "bisenet": 2_002_433,
    "dcsa-resnet": 2_049,
}
COPIED = {"deeplabv3plus": 16_838_752, "deeplabv3plus-mff": 28_479_584, "bisenet": 2_002_176}
"""Source: papers.md 3.9."""


def build_on_meta(name: str, num_classes: int = 19, *, with_depth: bool = False, **options) -> Network:
    with torch.device("meta"):
        return build_network(name, num_classes, with_depth=with_depth, **{"encoder_weights": "none", **options})


def build_small(kind: str, **others) -> Network:
    torch.manual_seed(0)
    return build_network(kind.split(",")[0], 4, **SMALL[kind], **others)


@pytest.fixture(scope="module", params=SMALL)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def fresh_network(kind):
    return build_small(kind)


@pytest.fixture
def network(fresh_network):
    return copy.deepcopy(fresh_network)


@pytest.mark.parametrize(("name", "options", "count"), COUNTS, ids=str)
def test_counts_of_the_papers(name, options, count):
    assert count_parameters(build_on_meta(name, **options)) == count


@pytest.mark.parametrize("name", DEPTH_COUNTS)
def test_counts_of_the_depth_branch(name):
    single, full = build_on_meta(name), build_on_meta(name, with_depth=True)
    assert count_parameters(full) - count_parameters(single) == DEPTH_COUNTS[name]


@pytest.mark.parametrize("name", COPIED)
def test_counts_of_what_a_copy_carries(name):
    parts = build_on_meta(name, with_depth=True).parts()
    decoders = parts[Part.SEG_DECODER], parts[Part.DEPTH_DECODER]
    assert [count_parameters(decoder) for decoder in decoders] == [COPIED[name]] * 2


@pytest.mark.parametrize("name", ["deeplabv3plus", "deeplabv3plus-mff", "bisenet", "bisenet-mff", "dcsa-resnet"])
@pytest.mark.parametrize("side_px", [200, 400, 500, 513, 600])
def test_full_size_networks_take_any_size(name, side_px):
    outputs = build_on_meta(name, with_depth=True)(torch.empty(2, 3, side_px, side_px, device="meta"))
    assert outputs.seg_logits.shape == (2, 19, side_px, side_px)
    assert outputs.depth.shape == (2, side_px, side_px)
    assert all(logits.shape == (2, 19, side_px, side_px) for logits in outputs.aux_seg_logits)
    assert len(outputs.aux_seg_logits) == (2 if name.startswith("bisenet") else 0)


@pytest.mark.parametrize("name", ["deeplabv3plus", "deeplabv3plus-mff", "bisenet", "bisenet-mff", "dcsa-resnet"])
def test_every_weight_of_the_full_size_networks_gets_gradient(name):
    network = build_on_meta(name, with_depth=True)
    outputs = network(torch.empty(2, 3, 64, 64, device="meta"))
    total = outputs.seg_logits.sum() + outputs.depth.sum() + sum(logits.sum() for logits in outputs.aux_seg_logits)
    gradients = torch.autograd.grad(total, list(network.parameters()), allow_unused=True)
    assert all(gradient is not None for gradient in gradients)


def take_step(network: Network, parts: Part, images: torch.Tensor) -> None:
    """One plain step on the sum of the losses of the branches that learn."""
    batch, _, height, width = images.shape
    seg, depth = Part.SEG_HEAD in parts, Part.DEPTH_HEAD in parts
    with training_parts(network, parts):
        optimiser = torch.optim.SGD([weight for weight in network.parameters() if weight.requires_grad], lr=0.1)
        outputs = network(images, seg=seg, depth=depth)
        labels = (torch.arange(height * width) % 4).reshape(1, height, width).expand(batch, -1, -1)
        loss = torch.zeros(())
        if seg:
            loss = loss + sum(F.cross_entropy(each, labels) for each in (outputs.seg_logits, *outputs.aux_seg_logits))
        if depth:
            loss = loss + F.mse_loss(outputs.depth, torch.linspace(0, 1, width).expand(batch, height, width))
        loss.backward()
        optimiser.step()


@pytest.mark.parametrize("parts", [ENCODER | SEG_BRANCH, ENCODER | DEPTH_BRANCH, EVERYTHING, SEG_BRANCH], ids=str)
def test_a_step_moves_exactly_the_parts_it_trains(network, parts):
    before = {part: copy.deepcopy(module.state_dict()) for part, module in network.parts().items()}
    take_step(network, parts, torch.randn(2, 3, 64, 64))
    for part, module in network.parts().items():
        moved = any(not torch.equal(value, before[part][name]) for name, value in module.state_dict().items())
        assert moved == (part in parts and bool(before[part])), part


def test_a_batch_of_one_trains(network):
    take_step(network, EVERYTHING, torch.randn(1, 3, 64, 64))
    assert all(value.isfinite().all() for value in network.state_dict().values())


def test_a_copy_carries_the_whole_decoder(kind, network):
    if kind in WITHOUT_DECODER:
        with pytest.raises(UserError, match="nothing to copy"):
            copy_part(network, Part.DEPTH_DECODER, Part.SEG_DECODER)
        return
    parts = network.parts()
    heads = copy.deepcopy(parts[Part.SEG_HEAD].state_dict())
    report = copy_part(network, Part.DEPTH_DECODER, Part.SEG_DECODER)
    assert report.skipped == ()
    source, target = (parts[part].state_dict() for part in (Part.DEPTH_DECODER, Part.SEG_DECODER))
    assert set(report.copied) == set(source) == set(target)
    assert all(torch.equal(value, target[name]) for name, value in source.items())
    assert not {value.data_ptr() for value in source.values()} & {value.data_ptr() for value in target.values()}
    assert all(torch.equal(value, heads[name]) for name, value in parts[Part.SEG_HEAD].state_dict().items())


def test_stripped_logits_are_bit_equal(network):
    images = torch.randn(1, 3, 71, 90)
    network.eval()
    with torch.no_grad():
        assert torch.equal(strip_depth(network)(images).seg_logits, network(images).seg_logits)


@pytest.mark.parametrize("kind", EXPORTED, indirect=True)
def test_onnx_computes_the_same_at_the_traced_size(network, tmp_path):
    torch.manual_seed(1)
    for name, weight in network.named_parameters():
        if "offsets" in name:  # zero in a fresh network, so that nothing would be deformed
            torch.nn.init.normal_(weight, std=0.1)
    exported = segmentation_only(strip_depth(network)).eval()
    images = torch.randn(1, 3, 70, 97)
    file = tmp_path / "network.onnx"
    torch.onnx.export(exported, (images,), file, dynamo=True, input_names=["images"], verbose=False)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"images": images.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(logits, exported(images).numpy(), atol=1e-4, rtol=1e-4)


@pytest.fixture(scope="module")
def resnet10_file(tmp_path_factory):
    torch.manual_seed(7)
    file = tmp_path_factory.mktemp("weights") / "resnet10t.safetensors"
    save_file(get_encoder("tu-resnet10t", weights=None).state_dict(), file)
    return file


@pytest.mark.parametrize("kind", ["deeplabv3plus", "bisenet", "dcsa-resnet"])
def test_a_local_file_fills_the_encoder(kind, resnet10_file):
    options = {**SMALL[kind], "encoder_weights": str(resnet10_file)}
    encoder = build_network(kind, 4, **options).parts()[Part.ENCODER]
    weights = load_file(resnet10_file)
    # Attention modules wrap the layer behind them, whose names then hold one word more.
    loaded = {name.replace(".layer.", "."): value for name, value in encoder.state_dict().items()}
    for name, value in weights.items():
        (found,) = [own for own in loaded if own == name or own.endswith(f".{name}")]
        assert torch.equal(loaded[found], value), name


@pytest.mark.parametrize("kind", ["deeplabv3plus", "bisenet", "dcsa-resnet"])
def test_a_file_of_another_encoder_shows_both_key_sets(kind, resnet10_file):
    options = {**SMALL[kind], "encoder": "resnet18", "encoder_weights": str(resnet10_file)}
    with pytest.raises(UserError, match=r"(?s)the file lacks \([1-9].*the encoder lacks \([1-9]"):
        build_network(kind, 4, **options)


def test_images_smaller_than_the_strides_are_refused(network):
    with pytest.raises(UserError, match=r"images of 20x64 px are too small.*pad or resize"):
        network(torch.zeros(1, 3, 20, 64))


@pytest.mark.parametrize("name", ["deeplabv3plus", "bisenet", "dcsa-resnet"])
def test_an_unknown_option_is_named(name):
    with pytest.raises(UserError, match=r"has no option 'encodr' \(did you mean 'encoder'\?\)"):
        build_network(name, 3, encodr="resnet18")
